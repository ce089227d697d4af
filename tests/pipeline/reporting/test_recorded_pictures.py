"""Pictures of a finished evaluation for trackers: a puzzle moves, a text is a table of its steps, other things are left out."""

import io
import json
import shutil

import pytest
from PIL import Image

from pipeline.errors import DataError
from pipeline.reporting.recorded_pictures import draw
from tests.support.resealing import reseal


def test_a_puzzle_is_played(copy_of, tmp_path):
    evaluation, out = copy_of / "outputs/evaluate", tmp_path / "files"
    content = json.loads((evaluation / "trace.json").read_text())
    content["models"]["joint"][0][-1]["ids"] = content["tokens"][0]
    (evaluation / "trace.json").write_text(json.dumps(content))
    reseal(copy_of)
    traced = tmp_path / "traced"
    traced.mkdir()
    for name in ("metrics.json", "trace.json"):
        shutil.copyfile(evaluation / name, traced / name)
    draw(traced, out)
    assert [file.name for file in out.iterdir()] == ["refinement.gif"]
    steps = len(content["models"]["joint"][0])
    assert Image.open(io.BytesIO((out / "refinement.gif").read_bytes())).n_frames == 2 + steps


def test_a_text_is_a_table_of_its_steps(text, tmp_path):
    evaluation = text / "outputs/evaluate"
    draw(evaluation, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["refinement.md"]
    page = (tmp_path / "refinement.md").read_text()
    trace = json.loads((evaluation / "trace.json").read_text())
    steps = len(trace["models"]["joint"][0])
    rows = [line.split(" |")[0].strip("| ") for line in page.splitlines() if line.startswith("|")]
    assert rows[2:] == ["frozen backbone", *(f"step {number}" for number in range(1, steps + 1)), "reference"]
    assert page.startswith("# Example ") and "What is" in page and " right, mean confidence " in page
    assert len({line.count(" | ") for line in page.splitlines() if line.startswith("| ")}) == 1


def test_where_there_are_no_tokens_nothing_is_drawn(copy_of, tmp_path):
    evaluation = copy_of / "outputs/evaluate"
    (evaluation / "trace.json").write_text(json.dumps({"rendering": "sentences"}))
    reseal(copy_of)
    draw(evaluation, tmp_path / "files")
    assert not (tmp_path / "files").exists()


def test_a_trace_that_is_not_what_was_written_is_refused(copy_of, tmp_path):
    evaluation = copy_of / "outputs/evaluate"
    (evaluation / "trace.json").write_text("{}")
    with pytest.raises(DataError):
        draw(evaluation, tmp_path)
