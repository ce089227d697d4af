"""Which numbers stand in the diagrams, from handmade metrics."""

import pytest

from pipeline.reporting import diagrams
from pipeline.reporting.calibration import Bin
from tests.support.handmade import curve, depth

ROWS = range(600)
TRAINED = {
    "step": [float(i) for i in ROWS], "loss/step_0": [2.0] * 600, "loss/step_1": [1.0] * 600, "slot/context": [0.5] * 600,
    "gate/context": [0.4] * 600, "overlap": [0.1] * 600, "lr": [0.0] * 600,
}  # fmt: skip


def test_losses_have_a_panel_a_phase_and_a_line_a_step():
    (panel,) = diagrams.losses({"warmup": TRAINED, "finetune": {"step": [], "loss": []}})
    assert panel.title == "warmup" and [line.label for line in panel.lines] == ["step 1", "step 2"] and panel.yscale == "log"
    assert panel.lines[1].y == [1.0] * 150 and panel.lines[0].x == [4.0 * i for i in range(150)]


def test_the_refiner_shows_slots_gates_and_overlap_where_they_were_measured():
    panels = diagrams.refiner({"warmup": TRAINED, "joint": {"step": [0.0], "loss/step_0": [1.0]}})
    assert [panel.title for panel in panels] == ["warmup: slot rms", "warmup: gate", "warmup: updates"]
    assert [line.label for panel in panels for line in panel.lines] == ["context", "context", "overlap of slots"]


def test_steps_show_a_model_of_one_step_across(models):
    panel = diagrams.by_step(models, "nll", "title")
    frozen, warmup = panel.lines
    assert list(frozen.x) == [1, 3] and frozen.y == [1.0, 1.0] and frozen.dash == "dashed" and not frozen.marker
    assert list(warmup.x) == [1, 2, 3] and warmup.y == [1.0, 0.75, 0.5] and warmup.low == pytest.approx([0.99, 0.74, 0.49])
    assert list(panel.xticks) == [1, 2, 3]


def test_depths_are_shown_over_steps_and_operations_with_the_trained_one_ringed(models):
    assert list(diagrams.by_depth(models, "exact")) == []
    models["warmup"]["depths"] = [depth(1, 0.5, 1.0), depth(4, 0.75, 0.5), depth(64, 0.8, 0.4)]
    steps, operations = diagrams.by_depth(models, "exact")
    assert steps.lines[0].x == [1, 4, 64] and operations.lines[0].x == [10**6, 4 * 10**6, 64 * 10**6]
    assert all(panel.lines[0].y == [0.5, 0.75, 0.8] and panel.lines[0].ringed == [1] for panel in (steps, operations))


def test_passes_are_shown_over_their_operations(models):
    panel = diagrams.by_operations(models, "exact")
    assert {line.label: (line.x, line.y) for line in panel.lines} == {
        "frozen": ([3_000_000, 24_000_000], [0.25, 0.35]), "warmup": ([3_000_000, 24_000_000], [0.75, 0.8]),
    }  # fmt: skip
    for measured in models.values():
        del measured["test"]["decode_8"]
    assert diagrams.by_operations(models, "exact") is None


def test_decodes_with_a_name_of_their_own_are_shown_without_a_single_pass(models):
    for measured in models.values():
        measured["decode"] = {"decode_8": measured["test"].pop("decode_8")}
    panel = diagrams.by_operations(models, "exact")
    assert {line.label: (line.x, line.y) for line in panel.lines} == {
        "frozen": ([24_000_000], [0.35]), "warmup": ([24_000_000], [0.8]),
    }  # fmt: skip
    assert diagrams.by_operations(models, "nll") is None


def test_few_passes_are_those_of_the_plain_sampler(models):
    for measured in models.values():
        measured["parallelism"] = {"plain": curve(0.2, 0.4, 90.0), "again": curve(0.9, 0.9, 9.0)}
    (panel,) = diagrams.by_parallelism(models, ["token_accuracy"])
    assert all(line.x == [1.2, 6.0] and line.y == [0.4, 0.2] for line in panel.lines)


def test_calibration_is_drawn_against_the_diagonal():
    panel = diagrams.calibration({"joint": [Bin(2, 0.4, 0.5), Bin(9, 0.9, 0.8)]})
    assert [(line.label, list(line.x), list(line.y)) for line in panel.lines] == [
        ("as sure as right", [0, 1], [0, 1]), ("joint", [0.4, 0.9], [0.5, 0.8]),
    ]  # fmt: skip
