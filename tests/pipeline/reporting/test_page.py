"""The page: what it holds, and what is missing for it."""

import pytest

from pipeline.errors import DataError
from pipeline.reporting.page import optional, report
from tests.support.handmade import retained


def test_the_page_holds_its_tables_and_pictures(finished):
    page = (finished / "outputs/report/report.md").read_text()
    assert (finished / "outputs/report/table.md").read_text() in page
    for picture in ("losses", "steps", "slots", "puzzles"):
        assert f"({picture}.png)" in page and (finished / f"outputs/report/{picture}.png").is_file()
    assert "- joint - frozen: " in page and "- warmup: " in page


def test_without_an_evaluation_the_stage_is_named(tmp_path):
    with pytest.raises(DataError, match=r"metrics.json does not exist; it is written by stage evaluate: run dvc repro evaluate"):
        report(tmp_path / "out", tmp_path, {})


def test_a_section_is_there_for_what_was_asked(models):
    assert optional(models) == {}
    assert list(optional(retained(models, 0.3))) == ["Forgetting"]


def test_sections_on_whole_answers_are_named(whole):
    assert list(optional(whole)) == ["Generated answers", "Likelihood of whole answers"]
