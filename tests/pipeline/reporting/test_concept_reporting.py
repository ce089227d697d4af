"""The report's tables on embeddings, from handmade metrics."""

from components.inference.retrieval import METRICS
from pipeline.reporting.concept_reporting import differences_table, report, results_table, steps_table
from pipeline.reporting.provenance import Provenance
from tests.support.html_page import read


def value(mean):
    return {"mean": mean, "low": mean - 0.01, "high": mean + 0.01, "n": 9}


def model(*means):
    steps = {f"{name}_by_step": [value(mean) for mean in means] for name in METRICS}
    measured = {**{name: value(means[-1]) for name in METRICS}, **steps}
    return {"next": measured, **measured}


METRICS_OF_TWO = {
    "headline": "next", "measures": ["next"], "candidates": {"next": 9},
    "models": {"frozen": model(0.5), "warmup": model(0.6, 0.625)},
    "differences": {"warmup - frozen": {"next": {name: value(0.125 if name == "cosine" else 0.005) for name in METRICS}}},
}  # fmt: skip


def cells(table):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def test_a_line_a_model():
    header, _, *lines = cells(results_table(METRICS_OF_TWO["models"], ["next"]))
    assert header == ["model", *(f"next {name}" for name in METRICS)]
    assert [line[:2] for line in lines] == [["frozen", ".500 [.490, .510]"], ["warmup", ".625 [.615, .635]"]]


def test_a_difference_is_bold_where_its_interval_is_clear_of_zero():
    line = cells(differences_table(METRICS_OF_TWO["differences"], ["next"]))[2]
    assert line[:3] == ["warmup - frozen", "**.125 [.115, .135]**", ".005 [-.005, .015]"]


def test_steps_are_shown_of_models_that_take_several():
    header, _, *lines = cells(steps_table(METRICS_OF_TWO["models"]))
    assert header == ["model", "metric", "step 1", "step 2"] and [line[1] for line in lines] == list(METRICS)
    assert lines[0] == ["warmup", "cosine", "0.600", "0.625"]


def test_the_page_holds_tables_and_the_pictures_that_there_are(tmp_path):
    curve = {"warmup": {"step": [0.0, 1.0], "loss/step_0": [2.0, 1.0], "loss/step_1": [2.0, 1.0]}}
    table = report(tmp_path, METRICS_OF_TWO, curve, Provenance("concepts", [], [], [], ""), "- **warmup: gate dead**\n")
    page = (tmp_path / "report.md").read_text()
    assert table in page and "![losses](losses.png)" in page and "slots.png" not in page
    assert "## Health\n\n- **warmup: gate dead**\n" in page
    assert (tmp_path / "steps.png").is_file() and (tmp_path / "table.md").read_text() == table
    root = read((tmp_path / "index.html").read_text())
    assert "warmup: gate dead" in root.text()
    assert [e.text() for e in root.all("h1")] == ["slotloop: concepts"] and not root.all("article")
    assert "0.625 [0.615, 0.635]" in root.text() and len(root.all("svg")) == 2
