"""The page: what it holds, and what is missing for it."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from pipeline.errors import DataError
from pipeline.files import json_bytes
from pipeline.reporting.markdown import with_unit
from pipeline.reporting.page import optional, report
from tests.conftest import run_stages
from tests.support.handmade import cells, retained
from tests.support.resealing import reseal


def test_the_page_holds_its_tables_and_pictures(finished):
    page = (finished / "outputs/report/report.md").read_text()
    assert (finished / "outputs/report/table.md").read_text() in page
    for picture in ("losses", "steps", "slots", "puzzles"):
        assert f"({picture}.png)" in page and (finished / f"outputs/report/{picture}.png").is_file()
    assert "- joint - frozen: " in page and "- warmup: " in page


def test_a_refiner_without_slots_has_a_page_without_their_picture(copy_of):
    """Of the refiners only the slot refiner measures slots and gates."""
    for file in (copy_of / "outputs").rglob("curves.csv"):
        header, *rows = (line.split(",") for line in file.read_text().splitlines())
        columns = [i for i, name in enumerate(header) if not name.startswith(("slot/", "gate/"))]
        file.write_text("".join(",".join(row[i] for i in columns) + "\n" for row in (header, *rows)))
    reseal(copy_of)
    shutil.rmtree(copy_of / "outputs/report")
    run_stages(copy_of, ("report",))
    assert "(steps.png)" in (page := (copy_of / "outputs/report/report.md").read_text())
    assert "slots.png" not in page and not (copy_of / "outputs/report/slots.png").exists()


def test_an_evaluation_of_other_models_is_refused(copy_of, monkeypatch):
    monkeypatch.chdir(copy_of)
    run_stages(copy_of, ("warmup",), "warmup.run.seed=5")
    with pytest.raises(
        DataError, match=r"outputs/evaluate belongs to warmup .*, but outputs/warmup holds .*; run dvc repro evaluate"
    ):
        report(
            copy_of / "out",
            Path("outputs/evaluate"),
            Path("data/shards"),
            {"backbone": "data/backbone", "warmup": "outputs/warmup"},
        )


def test_a_control_that_is_on_and_a_search_are_told(copy_of):
    """The control without recursion stands in the table and among the differences; what was tried has a section."""
    on = ("ADAPTER_FIT=@without_recursion/loop.fit", "CONTROL_RATES=[0.5, 1.0]")
    run_stages(copy_of, ("controls",), *on)
    run_stages(copy_of, ("evaluate", "report"))
    page = (copy_of / "outputs/report/report.md").read_text()
    trained = json.loads((copy_of / "outputs/controls/optional/adapter/metrics.json").read_text())
    assert f"one block without recursion in the refiner's place, of {trained['parameters']['trainable']:,} parameters" in page
    assert "\n- warmup - control_adapter: " in page and "\n## Learning rates\n" in page
    best = min(trial["best_loss"] for trial in trained["rates"])
    assert f"**{best:.4f}**" in page and [trial["rate"] for trial in trained["rates"]] == [0.5, 1.0]
    stored = json.loads((copy_of / "data/shards/metrics.json").read_text())["bytes"]
    rows = {row[0]: row[1:] for row in cells((copy_of / "outputs/report/table.md").read_text())}
    assert rows["control_adapter"][3] == rows["warmup"][3] == with_unit(stored) and rows["control_backbone"][3] == "0"
    evaluated = json.loads((copy_of / "outputs/evaluate/metrics.json").read_text())["models"]
    assert rows["control_adapter"][2] == with_unit(evaluated["control_adapter"]["flops_per_answer"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file.unlink(), r"data/shards/index\.json does not exist; .*run dvc repro extract"),
        (lambda file: file.write_bytes(file.read_bytes()[:-9]), r"data/shards/index\.json"),
        (
            lambda file: file.write_bytes(other_index(file)),
            r"outputs/warmup belongs to extract .*, but data/shards holds .*repro warmup",
        ),
    ],
)
def test_states_that_are_not_those_that_were_read_are_refused(copy_of, monkeypatch, change, message):
    monkeypatch.chdir(copy_of)
    change(copy_of / "data/shards/index.json")
    with pytest.raises(DataError, match=message):
        report(copy_of / "out", Path("outputs/evaluate"), Path("data/shards"), {"warmup": "outputs/warmup"})


def other_index(file):
    """An index of other shards, whole in itself."""
    index = json.loads(file.read_bytes())
    index["shards"][0]["bytes"] += 1
    content = json_bytes({key: value for key, value in index.items() if key != "fingerprint"})
    return json_bytes({**index, "fingerprint": hashlib.sha256(content).hexdigest()})


def test_without_a_search_or_more_controls_nothing_is_told_of_them(finished):
    page = (finished / "outputs/report/report.md").read_text()
    assert "Learning rates" not in page and "control_adapter" not in page and "control_refiner_lora" not in page


def test_without_an_evaluation_the_stage_is_named(tmp_path):
    with pytest.raises(DataError, match=r"metrics.json does not exist; it is written by stage evaluate: run dvc repro evaluate"):
        report(tmp_path / "out", tmp_path, tmp_path, {})


def test_a_section_is_there_for_what_was_asked(models):
    assert optional(models) == {}
    assert list(optional(retained(models, 0.3))) == ["Forgetting"]


def test_sections_on_whole_answers_are_named(whole):
    assert list(optional(whole)) == ["Generated answers", "Likelihood of whole answers"]
