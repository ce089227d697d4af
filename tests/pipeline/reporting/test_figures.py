"""Pictures: written, of the right kind, the same bytes from the same data and other bytes from other data."""

import pytest

from pipeline.reporting import figures
from tests.support.handmade import curve, depth, restart


def value(mean):
    return {"mean": mean, "low": mean - 0.1, "high": mean + 0.1}


def curves(scale=1.0, steps=(0, 1)):
    rows = range(60)
    losses = {f"loss/step_{k}": [scale * (2 + k) / (1 + r) for r in rows] for k in steps}
    return {"step": list(rows), **losses, "slot/context": [0.1 * r * scale for r in rows], "gate/context": [0.5] * 60}


def trace(ids=1):
    state = {"ids": [0, 1, 2, ids] * 4, "probability": [0.9] * 16}
    return {
        "tokens": [[0, 1, 2, 3] * 4],
        "response": [[False, True] * 8],
        "models": {"frozen": [[state]], "joint": [[state, state]]},
    }


def losses(path, scale=1.0):
    figures.losses({"backbone": curves(scale, (0,)), "warmup": curves(scale), "finetune": {"step": [], "loss": []}}, path)


def by_step(path, scale=1.0):
    models = {"frozen": {"nll_by_step": [value(scale)]}, "joint": {"nll_by_step": [value(scale), value(scale / 2)]}}
    figures.by_step(models, "nll", "a title", path)


def slots(path, scale=1.0):
    figures.slots({"warmup": curves(scale), "joint": curves(scale)}, path)


def puzzles(path, scale=1.0):
    figures.puzzles(trace(ids=int(scale)), "joint", [0], lambda token: str(token + 1), path)


def parallelism(path, scale=1.0):
    models = {
        name: {"parallelism": {"plain": curve(0.2 * scale, 0.3, 90.0), "careful": curve(0.1, 0.3 * scale, 90.0)}}
        for name in ("frozen", "joint")
    }
    figures.parallelism(models, ["exact", "token_accuracy"], path)


def depths(path, scale=1.0):
    models = {"frozen": {}, "joint": {"depths": [depth(1, 0.5, scale), depth(4, 0.75, 0.5), depth(64, 0.8, 0.4)]}}
    figures.depths(models, "exact", "test", path)


def breadth(path, scale=1.0):
    rules = {"change": [restart(1, 0.5), restart(4, 0.2 * scale)], "majority": [restart(1, 0.5), restart(4, 0.7)]}
    depths = [depth(1, 0.5, scale), depth(4, 0.75, 0.5)]
    models = {"frozen": {}, "warmup": {"breadth": rules}, "joint": {"depths": depths, "breadth": rules}}
    figures.breadth(models, "exact", "test", path)


def over_depth(path, scale=1.0):
    curves = {"damped": [{1: 0.1, 4: 0.2 * scale}, {1: 0.2, 4: 0.3}], "added": [{1: 0.1, 4: 0.1}, {1: 0.2, 4: 0.0}]}
    figures.over_depth({"test_5": curves, "test_7": curves}, 4, path)


DRAWN = [losses, by_step, slots, puzzles, parallelism, depths, breadth, over_depth]


@pytest.mark.parametrize("draw", DRAWN)
def test_a_picture_is_a_png_without_clock_or_software_and_the_same_bytes_twice(tmp_path, draw):
    draw(tmp_path / "a.png")
    draw(tmp_path / "deep/b.png")
    content = (tmp_path / "a.png").read_bytes()
    assert content.startswith(b"\x89PNG\r\n") and len(content) > 2000
    assert (tmp_path / "deep/b.png").read_bytes() == content
    assert not any(word in content for word in (b"Software", b"tIME", b"Creation"))
    assert figures.plt.get_fignums() == []


@pytest.mark.parametrize("draw", DRAWN)
def test_other_data_gives_another_picture(tmp_path, draw):
    draw(tmp_path / "a.png")
    draw(tmp_path / "b.png", 3.0)
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "b.png").read_bytes()


def test_style_does_not_leak(tmp_path):
    before = dict(figures.plt.rcParams)
    losses(tmp_path / "a.png")
    assert dict(figures.plt.rcParams) == before
