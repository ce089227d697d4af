"""The puzzle that is solved in a GIF: which one, its frames, its size, and what is said where there is none."""

import io
import json

import pytest
from PIL import Image

from pipeline.reporting.animation import animate, animation, most_changing
from pipeline.reporting.refinement import Traced
from pipeline.text.rendering import is_reference
from tests.conftest import ROOT
from tests.support.resealing import reseal

SOLUTION = [0, 1, 2, 3, 2, 3, 0, 1, 1, 0, 3, 2, 3, 2, 1, 0]
FIRST = 3  # cells that are clues


def state(*wrong, certain=0.95):
    return {"ids": [(t + 1) % 4 if i in wrong else t for i, t in enumerate(SOLUTION)], "probability": [certain] * 16}


def trace(*puzzles):
    """Puzzles as (the frozen backbone's wrong cells, those of each step)."""
    n = len(puzzles)
    return {
        "rendering": "sudoku", "tokens": [SOLUTION] * n, "response": [[i >= FIRST for i in range(16)]] * n,
        "models": {
            "frozen": [[state(*frozen)] for frozen, _ in puzzles],
            "joint": [[state(*wrong) for wrong in steps] for _, steps in puzzles],
        },
    }  # fmt: skip


DULL, LIVELY, WRONG, SOLVED = ((5,), ((), ())), ((5, 6, 7), ((6, 8), ())), ((5,), ((5, 6), (6,))), ((), ((), ()))


@pytest.mark.parametrize(
    ("puzzles", "row"),
    [((DULL, LIVELY), 1), ((LIVELY, DULL), 0), ((DULL, DULL), 0), ((WRONG, SOLVED, DULL), 2), ((WRONG, SOLVED), None)],
)
def test_the_mended_puzzle_that_changes_most_is_played(puzzles, row):
    traced = Traced.of(trace(*puzzles))
    scored = [tuple(1.0 if not wrong else 0.4 for wrong in (frozen, steps[-1])) for frozen, steps in puzzles]
    assert most_changing(traced, scored, "joint") == row
    assert (animation(trace(*puzzles), "joint", is_reference, str) is None) == (row is None)


def frames(data):
    image = Image.open(io.BytesIO(data))
    for number in range(image.n_frames):
        image.seek(number)
        yield image.convert("RGB").copy(), image.info["duration"]


def test_frames_are_clues_backbone_and_steps_and_the_last_stands():
    data = animation(trace(LIVELY), "joint", is_reference, str)
    assert data == animation(trace(LIVELY), "joint", is_reference, str) and data.startswith(b"GIF89a")
    shown = list(frames(data))
    assert len(shown) == 2 + 2
    times = [duration for _, duration in shown]
    assert times[-1] >= 3 * times[0] and len(set(times[:-1])) == 1
    assert Image.open(io.BytesIO(data)).info["loop"] > 0  # it ends

    def reddish(picture):
        return sum(count for count, (r, g, b) in picture.getcolors(1 << 20) if r > g + 40 and r > b + 20 and b > 100)

    def greenish(picture):
        return sum(count for count, (r, g, b) in picture.getcolors(1 << 20) if g > r + 30 and g > b + 10)

    red, green = ([count(picture) for picture, _ in shown] for count in (reddish, greenish))
    assert red[0] == 0 and green[0] == 0  # nothing is filled in
    assert red[1] > red[2] > red[3] == 0 and green[1] < green[2] < green[3]
    assert red[1] / red[2] == pytest.approx(3 / 2, rel=0.2)


def test_a_paler_cell_is_one_of_less_confidence():
    def darkest(certain):
        given = trace(LIVELY)
        given["models"]["joint"][0][-1] = state(certain=certain)
        *_, (last, _) = frames(animation(given, "joint", is_reference, str))
        return min(r for count, (r, g, b) in last.getcolors(1 << 20) if g > r + 10 and count > 500)

    assert darkest(0.95) < darkest(0.6) < darkest(0.35)


def test_the_gif_of_a_run_is_small_and_what_is_not_played_is_said(copy_of):
    evaluation, out = copy_of / "outputs/evaluate", copy_of / "puzzle.gif"
    assert "mends none" in animate(evaluation, out) and not out.exists()  # the smoke preset solves nothing
    content = json.loads((evaluation / "trace.json").read_text())
    content["models"]["joint"][0][-1]["ids"] = content["tokens"][0]
    (evaluation / "trace.json").write_text(json.dumps(content))
    reseal(copy_of)
    assert animate(evaluation, out) == f"a puzzle as it is solved: {out}"
    assert 1000 < out.stat().st_size <= 400_000
    assert "holds no evaluation" in animate(copy_of / "nowhere", out)


def test_the_gif_of_the_readme_is_small_and_ends_with_the_solved_puzzle():
    data = (ROOT / "docs/refinement.gif").read_bytes()
    assert "(docs/refinement.gif)" in (ROOT / "README.md").read_text() and len(data) <= 400_000
    shown = list(frames(data))
    assert len(shown) == 2 + 4 and shown[-1][1] >= 3 * shown[0][1]


def test_text_is_not_played(text, tmp_path):
    assert animate(text / "outputs/evaluate", tmp_path / "a.gif") == "no puzzle is played: the trace is of text"
