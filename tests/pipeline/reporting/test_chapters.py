"""Chapters, bars and tables of the page, from handmade metrics."""

import pytest

from pipeline.reporting.chapters import bars, chapters, cost, headline, statistics
from tests.support.handmade import cells, value

PHASE = {"steps": 300, "flops_per_step": 2_000_000, "flops": 600_000_000, "parameters": {"trainable": 1234, "total": 5678}}
STATE = {"ids": [1, 2], "probability": [0.9, 0.5]}
TRACE = {"tokens": [[1, 1]], "response": [[True, True]], "models": {"frozen": [[STATE]], "warmup": [[STATE, STATE]]}}


def test_bars_are_shares_of_one_or_of_the_longest(models):
    assert [(bar.label, bar.mean, bar.words) for bar in bars(models, "exact")] == [
        ("frozen", 0.25, "25.0% [24.0%, 26.0%]"), ("warmup", 0.75, "75.0% [74.0%, 76.0%]"),
    ]  # fmt: skip
    assert [bar.mean for bar in bars(models, "nll")] == pytest.approx([1.5 / 1.51, 0.5 / 1.51])


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        ("exact", "test: warmup gets 75.0% exactly right, the frozen backbone 25.0%"),
        ("nll", "test: nll of warmup is 0.500, of the frozen backbone 1.500 (lower is better)"),
    ],
)
def test_the_headline_is_a_sentence(models, metric, said):
    assert headline(models, metric, "test") == said


def test_the_last_phase_is_the_one_that_is_told_of(models):
    models["joint"] = {**models["warmup"], "exact": value(0.875)}
    assert headline(models, "exact", "test").startswith("test: joint gets 87.5%")


def test_statistics_have_a_column_a_step(models):
    assert statistics(models) == ""
    models["warmup"]["statistics_by_step"] = [{"overlap": 0.25}, {"overlap": 0.5, "slot/context": 1.0}]
    header, _, *rows = cells(statistics(models))
    assert header == ["warmup", "step 1", "step 2"]
    assert rows == [["overlap", "0.250", "0.500"], ["slot/context", "", "1.000"]]


def test_cost_has_a_row_a_phase_that_took_steps():
    best = {"best_loss": 0.5, "best_step": 20}
    header, _, *rows = cells(cost({"warmup": {**PHASE, **best}, "finetune": {"steps": 0, "flops": 0}, "joint": PHASE}))
    assert header[:2] == ["phase", "steps"] and [row[0] for row in rows] == ["warmup", "joint"]
    assert rows[0][1:] == ["300", "2 M", "600 M", "1,234", "5,678", "0.5000 at step 20"] and rows[1][-1] == ""


def test_every_section_stands_in_one_chapter(models):
    sections = {
        "Results on test": "RESULTS",
        "Differences, paired": "DIFFERENCES",
        "Halting": "HALTING",
        "Forgetting": "FORGETTING",
    }
    shown = {chapter.title: chapter.text for chapter in chapters(models, TRACE, {}, {"warmup": PHASE}, sections)}
    assert all(sum(text in of for of in shown.values()) == 1 for text in sections.values())
    assert "FORGETTING" in shown["More measures"] and "HALTING" in shown["Quality against steps, passes and FLOPs"]
    assert "Inside the refiner" not in shown
    rows = {row[0]: row[1:] for row in cells(shown["Calibration of the confidence"])}
    assert rows["frozen"] == ["0.700", "0.500", "0.300"] and "2 tokens" in shown["Calibration of the confidence"]
