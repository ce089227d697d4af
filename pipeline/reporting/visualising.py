"""Show a trained phase's deep supervision on one page: passes, weights, how far gradients reach, and what steps take here.

All of it is of the phase's own model and settings. What is measured depends on the machine and its load: no number of it is a
result, and no output of the pipeline holds it.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from components.batch import Batch
from components.objective.gradient_reach import gradient_reach
from components.objective.objective import Objective
from components.objective.supervision import LearnedWeights, constant, exponential_decay, last_only, linear_decay, u_shaped
from components.recursion import BpttSegments, full_gradient, one_step_gradient, truncated_gradient
from components.refined_lm import RefinedLM
from components.training.freezing import freeze_except
from pipeline import environment
from pipeline.errors import ConfigError, DataError
from pipeline.files import write_atomic
from pipeline.machine.runtime import Runtime
from pipeline.models.backbones import Backbone
from pipeline.models.checkpoint import load_refined
from pipeline.models.model_folder import CURVES, DESCRIPTION, ModelFolder
from pipeline.reporting import provenance, webpage
from pipeline.reporting.figures import SEVERAL, Curves, of_step
from pipeline.reporting.markdown import markdown, with_unit
from pipeline.reporting.panels import Diagram, Line, Panel, pictures
from pipeline.reporting.schematics import Cells, Recursion
from pipeline.reporting.webpage import Chapter, slug
from pipeline.settings import config
from pipeline.training import curves
from pipeline.training.step_costs import KEEP, PLAIN, StepCost, measure

PHASES = ("warmup", "joint")  # whose folder says all that is needed
SCHEDULES = {"constant": constant, "linear decay": linear_decay, "exponential decay": exponential_decay, "u-shaped": u_shaped}
ROWS = 16  # sequences that are looked at
DEPTHS = (1, 2, 4, 8)  # recursion steps that are measured
PLACES = 101  # of training at which weights are looked up
MIDDLE = (0.7, 0.2)  # of the colour map
OF_PASSES = (
    "The forward pass is the same, step after step from the backbone's states. What differs is which losses it is learned from, "
    "and along which arrows their gradient flows back. At inference no loss is computed, so nothing of it is paid for.\n\n"
)
OF_WEIGHTS = (
    "The loss that is minimised is the sum of the steps' losses L, each times its weight. *learned*: what "
    "`supervision.learned` would have made of this run's losses, replayed with its learning rates.\n\n"
)
OF_REACH = (
    "Norm of the gradient of each step's loss (a row) at the state that each earlier step hands on (a column), on {rows} "
    "validation sequences and the trained weights; an empty cell: none arrives. Weights do not count. Without deep "
    "supervision the last row alone is learned from.\n\n"
)
OF_COSTS = (
    "One gradient of {rows} sequences, measured here: the most bytes that are allocated at once beyond the model, operations of "
    "matrix products, and seconds of the quickest of three, with whatever else ran.\n\n"
)


def visualise(model: Path, out: Path) -> list[str]:
    """Write ``index.html`` into ``out``, and each of its diagrams as PNG and SVG; returns the names of the diagrams.

    Args:
        model: folder that warmup or joint wrote, in the workspace with its data.
        out: folder to write to.

    Raises:
        UserError: there is no such model, or it does not fit the data that is here.
    """
    if not (model / DESCRIPTION).is_file():
        raise DataError(
            f"{model} holds no model; run dvc repro warmup, or name the folder of one that warmup or joint wrote (--model)"
        )
    folder = ModelFolder(model, model.name)
    if (phase := folder.manifest.writer) not in PHASES:
        raise DataError(f"{model} is what {phase} wrote, expected what warmup or joint writes: name their folder (--model)")
    if not (columns := curves.read(folder.manifest.verify(CURVES))):
        raise DataError(f"{model} took no step: nothing was learned from losses there; name another phase (--model)")
    config.load_file(model / "config.gin", phase)
    of_run = partial(config.argument, f"stages.{phase}.run")
    runtime: Runtime = of_run("runtime")
    with runtime.in_force():
        refined, batch = _model(folder, phase, of_run)
        refined, batch = refined.to(runtime.device), batch.to(runtime.device)
        objective: Objective = config.argument("pipeline.training.loop.fit", "objective")(steps=refined.n_steps)
        depths = DEPTHS if refined.n_steps > 1 else DEPTHS[:1]
        reached, measured = list(reaches(refined, batch, objective)), measure(refined, batch, objective.loss, depths, runtime)
        content = [
            Chapter("With deep supervision and without", OF_PASSES, list(passes(objective))),
            Chapter("Weights of the losses", OF_WEIGHTS, list(weights(objective, columns))),
            Chapter("How far a gradient reaches", OF_REACH.format(rows=len(batch)), reached),
            costs(measured, len(batch), runtime),
        ]
    said = [*findings(measured), *([_furthest(reached[0].rows)] if refined.n_steps > 1 else [])]
    diagrams = [panel for chapter in content for panel in chapter.panels]
    for panel in diagrams:
        for ending, data in pictures(panel).items():
            write_atomic(out / f"{slug(panel.title)}{ending}", data)
    title = f"{refined.n_steps} recursion steps and the losses that they are learned from"
    page = webpage.Page(None, title, (), content, findings=said, name=f"deep supervision of {phase}")
    write_atomic(out / "index.html", webpage.render(page).encode())
    return [slug(panel.title) for panel in diagrams]


def _model(folder: ModelFolder, phase: str, of_run: Any) -> tuple[RefinedLM, Batch]:
    """Load the model as its phase left it, trained where the phase trains it, and the first validation sequences."""
    base = Backbone(of_run("backbone"))
    source = of_run("states")("validation", backbone=base)
    refined = load_refined(folder, base, phase, source.layer)
    try:
        freeze_except(refined, of_run("unfreeze"), layer_norms=of_run("layer_norms"))
    except ValueError as error:
        raise ConfigError(f"{phase}: {error}") from None
    rows = torch.arange(min(ROWS, len(source)))
    return refined, source.batch(rows, torch.zeros_like(rows))


def passes(objective: Objective) -> Iterator[Diagram]:
    """Draw the recursion as it is without deep supervision, and with this run's."""
    steps = objective.steps
    yield Recursion("without deep supervision", last_only(steps), full_gradient(steps), "The last step alone has a loss.")
    given = [float(weight) for weight in objective.weights()]
    cut = "dotted: where this run cuts it" if len(objective.bptt(steps)) > 1 else "this run cuts it nowhere"
    yield Recursion("with it, as this run", given, objective.bptt(steps), f"Red: where gradient flows; {cut}.")


def weights(objective: Objective, columns: Curves) -> Iterator[Diagram]:
    """Show the schedules beside this run's, its weights over training, its curriculum, and weights as they would be learned."""
    steps = objective.steps
    numbers = range(1, steps + 1)
    lines = [
        Line(name, numbers, schedule(steps), SEVERAL[i], dash="dashed") for i, (name, schedule) in enumerate(SCHEDULES.items())
    ]
    if objective.learned is None:
        own = [float(weight) for weight in objective.weights()]
        lines.append(Line("this run", numbers, own, "#222222", ringed=range(steps)))
    yield Panel("schedules", "recursion step", "weight", lines, xticks=numbers)
    last = max(1, len(columns["step"]) - 1)
    shares = [i / (PLACES - 1) for i in range(PLACES)]
    if objective.learned is None:
        over = [[float(weight) for weight in objective.weights(share)] for share in shares]
        yield _over_training("this run's weights", [share * last for share in shares], over)
    if objective.curriculum:
        depths = [objective.depth(share) for share in shares]
        line = Line("supervised steps", [share * last for share in shares], depths, SEVERAL[0], marker="")
        yield Panel("curriculum", "optimizer step", "supervised steps", [line])
    replayed = learned(columns, steps)
    every = max(1, len(replayed) // PLACES)
    yield _over_training("learned weights", columns["step"][::every], replayed[::every])


def _over_training(title: str, x: Sequence[float], rows: Sequence[Sequence[float]]) -> Panel:
    steps = len(rows[0])
    lines = [
        Line(f"step {i + 1}", x, [row[i] for row in rows], of_step(i, steps, *MIDDLE), marker="") for i in range(steps)
    ]  # fmt: skip
    return Panel(title, "optimizer step", "", lines)


def learned(columns: Curves, steps: int) -> list[list[float]]:
    """Replay ``supervision.learned`` on recorded losses: the weight of each step before each optimizer step.

    Args:
        columns: curves with ``loss/step_k`` of each recursion step and ``lr``.
        steps: recursion steps.
    """
    objective = LearnedWeights(steps)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=0.0, weight_decay=0.0)
    replayed = []
    for row, rate in enumerate(columns["lr"]):
        replayed.append([float(weight) for weight in objective.weights()])
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        objective.backward([torch.tensor(columns[f"loss/step_{step}"][row]) for step in range(steps)], 1.0)
        optimizer.step()
    return replayed


def reaches(model: RefinedLM, batch: Batch, objective: Objective) -> Iterator[Cells]:
    """Measure how far gradients reach: through all steps, two of them, and one."""
    ways: dict[str, BpttSegments] = {
        "all steps": full_gradient,
        "the last two": partial(truncated_gradient, last=2),
        "one step": one_step_gradient,
    }
    for name, bptt in ways.items():
        rows: Tensor = gradient_reach(model, batch, bptt, objective.loss)
        mine = " This run's." if bptt(model.n_steps) == objective.bptt(model.n_steps) else ""
        yield Cells(f"gradient through {name}", rows.tolist(), "state after step", "loss of step", mine.strip())


def findings(measured: Sequence[StepCost]) -> Iterator[str]:
    """Say what the ways to hold activations take for the most steps, beside keeping all of them."""
    deepest = [cost for cost in measured if cost.steps == max(cost.steps for cost in measured)]
    whole = next(cost for cost in deepest if cost.way == KEEP)
    for cost in deepest:
        if cost.way not in (KEEP, PLAIN):
            part, flops = cost.bytes / whole.bytes, cost.flops / whole.flops
            words = f"{part:.2f} of the memory and {flops:.2f} of the operations of keeping every graph"
            yield f"{cost.steps} steps, {cost.way}: {words} ({with_unit(cost.bytes)}B of {with_unit(whole.bytes)}B)"


def _furthest(reach: Sequence[Sequence[float]]) -> str:
    last = reach[-1]
    words = f"{last[0] / last[-1]:.2g} times" if last[-1] else "none of"
    return f"The gradient of the last loss at the first step's state is {words} that at its own."


def costs(measured: Sequence[StepCost], rows: int, runtime: Runtime) -> Chapter:
    """Show what was measured, with the machine beside it.

    Args:
        measured: of each way and number of steps.
        rows: sequences of the gradient.
        runtime: where it was computed.
    """
    by_way: dict[str, list[StepCost]] = {}
    for cost in measured:
        by_way.setdefault(cost.way, []).append(cost)
    kinds = {"bytes": ("memory", "MB", 1e6), "flops": ("operations", "GFLOP", 1e9), "seconds": ("time", "ms", 1e-3)}
    panels = []
    for field, (title, unit, size) in kinds.items():
        lines = [
            Line(way, [c.steps for c in of], [getattr(c, field) / size for c in of], SEVERAL[i])
            for i, (way, of) in enumerate(by_way.items())
        ]
        panels.append(Panel(title, "recursion steps", unit, lines, xticks=[c.steps for c in next(iter(by_way.values()))]))
    table = [["held by", "steps", "memory", "operations", "ms"]]
    table += [[c.way, str(c.steps), f"{with_unit(c.bytes)}B", with_unit(c.flops), f"{c.seconds * 1e3:.1f}"] for c in measured]
    here: Mapping[str, Any] = {"device": runtime.device.type, "precision": runtime.precision, "threads": runtime.threads}
    machine = markdown([["machine", ""], ["processor", environment.processor()], *map(list, provenance.machine(here))])
    return Chapter("What steps take here", f"{OF_COSTS.format(rows=rows)}{markdown(table)}\n{machine}", panels)
