"""Every long loop of every stage shows life: with a clock that races, each prints lines with rate and time left."""

import json
import re
import shutil

import pytest

from pipeline.data.reader import ShardReader
from tests.conftest import run_stages, workspace

TIMED = r"\d+ of \d+ \| [\d.]+ (s a {unit}|{unit}s/s), \d+ s left"
PUZZLES = {
    "prepare": [("prepare train", "puzzle"), ("prepare test_5", "puzzle")],
    "backbone": [("operations", "microbatch"), ("backbone", "step"), ("validation", "batch")],
    "extract": [("extract", "token")],
    "warmup": [("warmup", "step"), ("validation", "batch")],
    "joint": [("joint", "step")],
    "controls": [("controls/backbone", "step"), ("controls/warmup", "step")],
    "evaluate": [("test_5", "batch"), ("evaluate decodes", "batch"), ("passes", "pass")],
}
TEXT = {
    "prepare": [("prepare train", "example"), ("prepare test", "example")],
    "evaluate": [
        ("mask_30", "batch"),
        ("answers", "answer"),
        ("passes", "pass"),
        ("likelihood", "answer"),
        ("masks", "mask"),
    ],
}


@pytest.fixture
def printed(tmp_path, capsys, racing_clock, monkeypatch):
    """What a stage prints over a copy of a finished run."""

    def run(finished, preset, stage):
        folder = workspace(tmp_path / "copy", preset)
        for part in ("data", "outputs", "raw"):
            if (finished / part).exists():
                shutil.copytree(finished / part, folder / part)
        shutil.copy(finished / "params.yaml", folder / "params.yaml")
        monkeypatch.setenv("SLOTLOOP_RAW", str(folder / "raw"))
        run_stages(folder, (stage,))
        return capsys.readouterr().out

    return run


def silent(output, loops):
    """The loops, by label and unit, that printed no line by time."""
    return [loop for loop in loops if not re.search(rf"(^|> ){loop[0]}: {TIMED.format(unit=loop[1])}$", output, re.MULTILINE)]


@pytest.mark.parametrize("stage", PUZZLES)
def test_of_puzzles(stage, finished, printed):
    assert silent(printed(finished, "smoke", stage), PUZZLES[stage]) == []


@pytest.mark.parametrize("stage", TEXT)
def test_of_text(stage, text, printed):
    output = printed(text, "gsm8k_smoke", stage)
    assert silent(output, TEXT[stage]) == []
    if stage == "prepare":  # of files nobody knows how many rows they hold
        assert re.search(r"^prepare train.jsonl: \d+ \| [\d.]+ s a row, time left unknown$", output, re.MULTILINE)


def test_what_is_checked_shows_life_too(finished, capsys, racing_clock):
    shards = len(json.loads((finished / "data/shards/index.json").read_text())["shards"])
    ShardReader(finished / "data/shards").verify()
    assert capsys.readouterr().err.count("verify ") == shards > 1


def test_nothing_of_the_clock_enters_what_a_stage_writes(finished, printed, tmp_path):
    for stage in ("prepare", "extract", "evaluate"):
        printed(finished, "smoke", stage)
        for folder in ("data/prepared", "data/shards", f"outputs/{stage}"):
            for file in (path for path in (finished / folder).rglob("*") if path.is_file()):
                assert (tmp_path / "copy" / file.relative_to(finished)).read_bytes() == file.read_bytes(), file
        shutil.rmtree(tmp_path / "copy")
