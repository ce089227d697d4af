"""Every example of docs/examples runs by itself, anywhere, and what it prints is true."""

import os
import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.support.dvc import PATIENCE
from tests.support.script import printed

EXAMPLES = sorted((ROOT / "docs/examples").glob("*.py"))


def numbers(text):
    """Every number of a text, signs and thousands separators understood."""
    return [float(word.replace(",", "")) for word in re.findall(r"(?<![\w.])-?\d[\d,]*\.?\d*(?![\w])", text)]


def after(start, out):
    """The numbers of each line behind ``start``."""
    return [numbers(line[len(start) :]) for line in out.splitlines() if line.startswith(start)]


def table(out, width):
    """Rows of nothing but ``width`` numbers."""
    rows = [line.split() for line in out.splitlines() if re.fullmatch(r"[\d. -]+", line)]
    return [[float(word) for word in row] for row in rows if len(row) == width]


def basic_forward(out):
    rows = table(out, 3)
    assert [row[0] for row in rows] == [1, 2, 3, 4]
    assert all(residual == 0 for _, residual, _ in rows)
    literal = [row[2] for row in rows]
    assert literal[0] > 0 and literal == sorted(literal) and literal[-1] <= 4 * 0.1


def reading_statistics(out):
    (first, *others), *_ = after("slot/refinement", out)
    assert first == 0 and all(size > 0 for size in others) and len(others) == 3
    assert after("gate/", out) == [[0.5] * 4] * 4
    assert all(0 < size <= 0.1 for size in after("delta", out)[0])


def chunk_masking(out):
    assert out.count("skipped positions bit-identical 160/160, chosen positions changed 96/96") == 2
    (everything, _), (mask, _), (hybrid, saved) = (after(name, out)[-1] for name in ("everything", "mask ", "hybrid "))
    assert everything == mask > hybrid and saved == pytest.approx(100 * (1 - hybrid / everything), abs=0.1) and saved > 60
    assert "share of tokens refined: 37.5%" in out and "that of the mask, bit for bit: True" in out


def custom_slots(out):
    assert after("the four", out) == [[32, 16, 16, 8, 72]] and after("own widths", out) == [[16, 16, 40, 4, 76]]
    assert after("own slots", out) == [[24, 8, 16, 4, 52]] and "gate/doing, gate/mood, gate/origin, gate/doubt" in out
    assert len(set(after("own attention", out)[0][1:])) == 4  # changes at every step
    for name, width in (("layers (1,)", 64), ("layers (0, 1)", 128)):
        inputs, *sizes = after(name, out)[0]
        assert inputs == width and len(sizes) == 4 and len(set(sizes)) == 1  # the backbone's is the same at every step
    assert "ValueError: the refiner reads the heads of backbone layer 0" in out


def freezing_pattern(out):
    sizes = [after(name, out)[0][0] for name in ("W_ctx", "W_reason", "W_refine", "W_conf")]
    assert sizes == [524288, 262144, 262144, 131072]  # of the founding document
    millions = {
        name: re.findall(rf"^{name} parameters: +([\d.]+)M", out, re.MULTILINE) for name in ("Total", "Trainable", "Frozen")
    }
    total, trained, frozen = ([float(n) for n in found] for found in millions.values())
    assert len(total) == len(trained) == len(frozen) == 4
    assert all(t == pytest.approx(a + b, abs=0.011) for t, a, b in zip(total, trained, frozen, strict=True))
    assert after("refiner.slots.project.context.weight", out) == [[524288]]
    assert "ValueError: no module matches 'slot_refiner'" in out


def gates(out):
    first, *_, last = table(out, 6)
    assert first[2:] == [0.5] * 4 and last[0] == 120
    assert last[1] < 0.1 * first[1]
    assert all(0.3 < gate < 0.7 and gate != 0.5 for gate in last[2:]) and len(set(last[2:])) == 4


def orthogonality(out):
    rows = table(out, 5)
    assert [row[0] for row in rows] == [0, 40, 80, 120, 160] and rows[0][1:3] == rows[0][3:]
    assert all(penalised < 0.5 * without for _, _, without, _, penalised in rows[1:])
    assert all(loss < 0.1 * rows[0][1] for loss in rows[-1][1::2])


def deep_supervision(out):
    weights = {"constant": [0.5, 0.5, 1], "linear_decay": [0.17, 0.33, 1], "exponential_decay": [0.125, 0.25, 1]}
    for name, expected in {**weights, "last_only": [0, 0, 1]}.items():  # of the founding document
        assert after(f"weights {name}", out) == [expected]
    cut, whole, deep = (row[-3:] for row in after("gradient at steps 1..3:", out))
    assert cut[:2] == [0, 0] and cut[2] > 0 and all(0 < a < b for a, b in zip(whole[:2], deep[:2], strict=True))
    last_only, linear_decay = (row[-3:] for row in after("loss of steps 1..3 after 180 updates:", out))
    assert last_only[2] < 0.2 and min(last_only[:2]) > 2 and max(linear_decay) < 0.2
    rows = table(out, 7)
    assert [row[0] for row in rows] == [2, 4, 8]
    for _, naive, keep, checkpoint, *flops in rows:
        assert naive > keep > checkpoint and flops[0] == flops[1] < flops[2] < 4 / 3 * flops[0]
    assert rows[-1][3] < 1.2 * rows[0][3] and rows[-1][1] > 3 * rows[0][1]  # checkpoint: the same for any number of cycles


CHECKS = {
    check.__name__: check
    for check in (
        basic_forward, reading_statistics, chunk_masking, custom_slots, freezing_pattern, gates, orthogonality, deep_supervision
    )
}  # fmt: skip


def run(path, folder):
    """Output of an example, run in ``folder`` by an interpreter of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(path)], cwd=folder, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not re.search(r"USDT|Warning|Traceback", done.stdout + done.stderr), done.stderr
    return done.stdout


def shown():
    """The output that the README of the examples shows, by example."""
    text = (ROOT / "docs/examples/README.md").read_text()
    return dict(re.findall(r"^python docs/examples/(\w+)\.py\n```\n\n```\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))


def wording(text):
    """Its lines without their numbers: those of a training differ a little from machine to machine."""
    return {re.sub(r"[\d.,]+", "#", line).replace(" ", "") for line in text.splitlines() if line.strip()}


def test_every_example_is_tested_and_shown():
    assert len(EXAMPLES) == 8
    assert {path.stem for path in EXAMPLES} == set(CHECKS) == set(shown())


def test_an_example_needs_nothing_but_the_package(tmp_path, monkeypatch, capsys):
    """One of them by an interpreter of its own; the others start the same and run in this one."""
    path = ROOT / "docs/examples/basic_forward.py"
    monkeypatch.chdir(tmp_path)
    assert run(path, tmp_path) == printed(capsys, str(path))


LONG = ("deep_supervision",)  # as long as all others


@pytest.mark.parametrize(
    "path", [pytest.param(path, id=path.stem, marks=[pytest.mark.slow] * (path.stem in LONG)) for path in EXAMPLES]
)
def test_what_an_example_prints_is_true_and_shown(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    out = printed(capsys, str(path))
    CHECKS[path.stem](out)
    assert wording(shown()[path.stem]) <= wording(out)
    pictures = sorted(tmp_path.rglob("*.png"))
    assert [p.name for p in pictures] == (["memory.png", "supervision.png"] if path.stem == "deep_supervision" else [])
    assert all(p.read_bytes()[:4] == b"\x89PNG" and p.parent == tmp_path / "build/examples" for p in pictures)
    assert {p.name for p in tmp_path.iterdir()} <= {"build"} and "/build/" in (ROOT / ".gitignore").read_text().splitlines()
