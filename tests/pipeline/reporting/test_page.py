"""The page: what it holds, and what is missing for it."""

import shutil
from pathlib import Path

import pytest

from pipeline.errors import DataError
from pipeline.reporting.page import optional, report
from tests.conftest import run_stages
from tests.support.handmade import retained
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
        report(copy_of / "out", Path("outputs/evaluate"), {"backbone": "data/backbone", "warmup": "outputs/warmup"})


def test_without_an_evaluation_the_stage_is_named(tmp_path):
    with pytest.raises(DataError, match=r"metrics.json does not exist; it is written by stage evaluate: run dvc repro evaluate"):
        report(tmp_path / "out", tmp_path, {})


def test_a_section_is_there_for_what_was_asked(models):
    assert optional(models) == {}
    assert list(optional(retained(models, 0.3))) == ["Forgetting"]


def test_sections_on_whole_answers_are_named(whole):
    assert list(optional(whole)) == ["Generated answers", "Likelihood of whole answers"]
