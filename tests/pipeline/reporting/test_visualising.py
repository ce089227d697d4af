"""The page on deep supervision: of the phase's own model and settings, its numbers against plain computations."""

import math
import re
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch

from components.objective.objective import Objective
from components.objective.supervision import LearnedWeights, constant, learned, linear_decay
from components.recursion import truncated_gradient
from pipeline.errors import DataError, UserError
from pipeline.reporting import visualising
from pipeline.reporting.visualising import passes, visualise, weights
from pipeline.training.step_costs import StepCost
from tests.pipeline.reporting.test_browser import CHROMIUM, visited
from tests.support.html_page import elements, read

CURVES = {"step": [0.0, 1.0, 2.0], "loss/step_0": [1.0, 0.5, 0.25], "loss/step_1": [0.5, 0.5, 2.0], "lr": [0.01, 0.02, 0.0]}


@pytest.fixture(scope="module")
def seen(finished, tmp_path_factory):
    """The page of the smoke run's joint phase."""
    out = tmp_path_factory.mktemp("seen")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(finished)
        names = visualise(Path("outputs/joint"), out)
    return out, names


def test_every_diagram_is_on_the_page_and_a_file_of_two_kinds(seen):
    out, names = seen
    root = read((out / "index.html").read_text())
    assert [visualising.slug(e.text()) for e in root.all("figcaption")] == names and len(set(names)) == len(names) >= 10
    assert {path.name for path in out.iterdir()} == {"index.html", *(f"{name}{end}" for name in names for end in (".png", ".svg"))}
    places = [e.attributes[key] for e in elements(root) for key in ("src", "href") if key in e.attributes]
    assert all(place.startswith(("#", "data:,")) for place in places)
    assert not root.all("dl") and len(root.all("li")) > 10


def test_the_page_shows_the_weights_of_the_run(seen):
    text = read((seen[0] / "index.html").read_text()).text()
    assert "slotloop: deep supervision of joint" in text and "4 recursion steps" in text
    svg = (seen[0] / "with-it-as-this-run.svg").read_text()
    assert all(f">{weight:.3g}</text>" in svg for weight in linear_decay(4))


def test_no_gradient_passes_a_cut_and_all_pass_none(seen):
    shown = {}
    for name in ("all-steps", "the-last-two", "one-step"):
        svg = (seen[0] / f"gradient-through-{name}.svg").read_text()
        shown[name] = len(re.findall(r"<text[^>]*>[\d.e-]+</text>", svg)) - 8  # ticks
    assert shown == {"all-steps": 10, "the-last-two": 6, "one-step": 4}


def test_weights_over_training_follow_the_curriculum():
    panels = {panel.title: panel for panel in weights(Objective(2, supervision=constant, curriculum=0.5), CURVES)}
    first, second = panels["this run's weights"].lines
    assert (first.y[0], second.y[0], first.y[-1], second.y[-1]) == (1.0, 0.0, 0.5, 1.0)
    assert second.y[24] == 0.0 and second.y[25] == 1.0  # a half of half of the run
    assert list(panels["curriculum"].lines[0].y)[::50] == [1, 2, 2]
    assert [line.label for line in panels["schedules"].lines][-1] == "this run"
    assert "curriculum" not in {panel.title for panel in weights(Objective(2), CURVES)}


def test_a_run_that_learns_its_weights_has_no_given_ones():
    titles = {panel.title: panel for panel in weights(Objective(2, supervision=learned), CURVES)}
    assert set(titles) == {"schedules", "learned weights"}
    assert "this run" not in [line.label for line in titles["schedules"].lines]


def test_learned_weights_are_replayed_from_the_losses():
    """The first step of AdamW moves each s by the rate against the sign of its gradient 1 - loss."""
    rows = visualising.learned(CURVES, 2)
    assert rows[0] == [1.0, 1.0] and len(rows) == 3
    assert rows[1][0] == pytest.approx(1.0) and rows[1][1] == pytest.approx(math.exp(0.01), rel=1e-4)
    module = LearnedWeights(2)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.01, weight_decay=0.0)
    for losses, rate in (((1.0, 0.5), 0.01), ((0.5, 0.5), 0.02)):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        s = module.log_variance
        (torch.exp(-s) * torch.tensor(losses) + s).sum().backward()
        optimizer.step()
    assert rows[2] == pytest.approx(torch.exp(-module.log_variance).tolist(), rel=1e-5)


def test_a_cut_is_said_in_the_picture():
    without, given = passes(Objective(4, bptt=partial(truncated_gradient, last=2)))
    assert list(without.weights) == [0.0, 0.0, 0.0, 1.0] and list(without.segments) == [4]
    assert list(given.segments) == [2, 2] and "dotted: where this run cuts it" in given.caption
    assert "cuts it nowhere" in list(passes(Objective(4)))[1].caption


def test_findings_compare_the_deepest_with_keeping_everything():
    costs = [
        StepCost(way, steps, size * steps, flops * steps, 1.0)
        for way, size, flops in (("keep", 100, 10), ("checkpoint", 25, 13), ("no deep supervision", 90, 9))
        for steps in (1, 8)
    ]
    (said,) = visualising.findings(costs)
    assert said == "8 steps, checkpoint: 0.25 of the memory and 1.30 of the operations of keeping every graph (200B of 800B)"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("outputs/evaluate", "outputs/evaluate holds no model; run dvc repro warmup"),
        ("outputs/finetune", "outputs/finetune is what finetune wrote, expected what warmup or joint writes"),
        ("outputs/controls/warmup", "outputs/controls/warmup is what controls/warmup wrote, expected"),
        ("data/backbone", "data/backbone is what backbone wrote, expected what warmup or joint writes"),
        ("nowhere", "nowhere holds no model; run dvc repro warmup"),
        ("bare", "bare/config.gin does not exist"),
    ],
)
def test_what_cannot_be_shown_is_one_line(copy_of, monkeypatch, tmp_path, model, message):
    monkeypatch.chdir(copy_of)
    shutil.copytree(copy_of / "outputs/joint", copy_of / "bare")
    (copy_of / "bare/config.gin").unlink()
    with pytest.raises(UserError) as refused:
        visualise(Path(model), tmp_path / "out")
    assert message in str(refused.value) and "\n" not in str(refused.value) and not (tmp_path / "out").exists()


def test_a_phase_that_took_no_step_is_one_line(copy_of, monkeypatch, tmp_path):
    monkeypatch.chdir(copy_of)
    monkeypatch.setattr(visualising.curves, "read", lambda path: {})
    with pytest.raises(DataError, match="outputs/joint took no step"):
        visualise(Path("outputs/joint"), tmp_path / "out")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
@pytest.mark.parametrize("width", [400, 1400])
def test_in_a_browser_nothing_is_wider_than_the_window(seen, tmp_path, width):
    script = 'document.body.innerHTML = "<pre>" + frame.contentDocument.documentElement.scrollWidth + "</pre>";'
    logged, document = visited((seen[0] / "index.html").read_text(), tmp_path, width, script)
    assert logged == [] and f"<pre>{width}</pre>" in document
