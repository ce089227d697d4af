"""Chapters of the page: which tables stand beside which diagrams."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.reporting import calibration, diagrams, tables
from pipeline.reporting.figures import Curves
from pipeline.reporting.markdown import markdown, with_unit
from pipeline.reporting.refinement import Traced
from pipeline.reporting.webpage import Bar, Chapter, bar

PHASES = ("warmup", "joint", "finetune")  # that train the refiner, in their order
OF_STATISTICS = (
    "What the refiner does at each recursion step on the headline's examples. Healthy gates lie within .3 and .7, slots differ in "
    "size, overlap (how alike slots are) is small.\n\n"
)
OF_CALIBRATION = (
    "Confidence is the probability of the token that a model writes; here of the {n:,} tokens that are filled in of the answers of "
    "the {examples} traced examples, at the last step. *calibration error*: the mean distance between confidence and share right, "
    "in ten bins (ECE). Tokens of one example depend on one another: read small differences with care.\n\n"
)
OF_COST = (
    "*FLOPs a step*: of one optimizer step. Seconds, bytes of memory and tokens a second depend on the machine and its load, so "
    "that no output holds them: `python -m stages configure --plan` reckons them for this machine, and while a phase trains, its "
    "lines tell them. Afterwards `python -m stages compare` shows the seconds that this machine recorded, and `python -m stages "
    "visualise` measures memory and time by the number of recursion steps.\n\n"
)


def bars(models: Mapping[str, Any], metric: str) -> list[Bar]:
    """Show each model's headline with its interval, as shares of 1 or, of a metric without bounds, of the highest."""
    values = {name: measured[metric] for name, measured in models.items()}
    if metric == "exact":
        return [bar(name, value, words="{:.1%}") for name, value in values.items()]
    longest = max(value["high"] for value in values.values())
    return [bar(name, value, longest) for name, value in values.items()]


def headline(models: Mapping[str, Any], metric: str, measure: str) -> str:
    """Say in one sentence what the last refined model reaches, and what the frozen backbone does."""
    refined = last_phase(models)
    value, frozen = (models[name][metric]["mean"] for name in (refined, "frozen"))
    if metric == "exact":
        return f"{measure}: {refined} gets {value:.1%} exactly right, the frozen backbone {frozen:.1%}"
    return f"{measure}: {metric} of {refined} is {value:.3f}, of the frozen backbone {frozen:.3f} (lower is better)"


def last_phase(models: Mapping[str, Any]) -> str:
    """Name the last phase that a model was trained by."""
    return next((name for name in reversed(PHASES) if name in models), "frozen")


def chapters(
    models: Mapping[str, Any],
    trace: Mapping[str, Any],
    curve: Mapping[str, Curves],
    trained: Mapping[str, Mapping[str, Any]],
    sections: Mapping[str, str],
) -> Iterator[Chapter]:
    """Arrange what the report holds.

    Args:
        models: metrics of each model.
        trace: of the evaluation.
        curve: of each phase that took steps.
        trained: ``metrics.json`` of each phase.
        sections: of the markdown report, by title; each stands in one chapter.
    """
    metric = tables.headline_metric(models)
    left = dict(sections)
    of_phases = {name: columns for name, columns in curve.items() if name in ("backbone", *PHASES)}

    def text(*titles: str) -> str:
        return "\n".join(f"### {title}\n\n{left.pop(title)}" for title in titles if title in left)

    yield Chapter("Results and controls", text("Results on test", "Differences, paired"))
    yield Chapter("Loss of each recursion step", text("After each recursion step"), diagrams.losses(of_phases))
    quality = [diagrams.by_step(models, metric, f"recursion steps: {metric}"), *diagrams.by_depth(models, metric)]
    if several := diagrams.by_operations(models, metric):
        quality.append(several)
    if "parallelism" in models["frozen"]:
        quality += diagrams.by_parallelism(models, tables.curve_scores(models))
    decoded = ("At any number of recursion steps", "Whole answers, decoded in several passes", "Few passes", "Halting")
    yield Chapter("Quality against steps, passes and FLOPs", text(*decoded), quality)
    if rest := text(*(title for title in sections if title in left)):
        yield Chapter("More measures", rest)
    inside = diagrams.refiner({name: columns for name, columns in curve.items() if name in PHASES})
    if inside or statistics(models):
        yield Chapter("Inside the refiner", OF_STATISTICS + statistics(models), inside)
    yield _calibration(models, Traced.of(trace))
    yield Chapter("Cost", OF_COST + cost(trained))


def statistics(models: Mapping[str, Any]) -> str:
    """Write a table of what the last refined model does at each step, "" where nothing was measured."""
    steps: Sequence[Mapping[str, float]] = models[last_phase(models)].get("statistics_by_step", ())
    names = list(dict.fromkeys(name for step in steps for name in step))
    rows = [[name, *(f"{step[name]:.3f}" if name in step else "" for step in steps)] for name in names]
    return markdown([[last_phase(models), *(f"step {i + 1}" for i in range(len(steps)))], *rows]) if rows else ""


def _calibration(models: Mapping[str, Any], traced: Traced) -> Chapter:
    by_model = {name: calibration.bins(traced, name) for name in models if name in traced.models}
    rows = [["model", "mean confidence", "share right", "calibration error"]]
    for name, parts in by_model.items():
        n = sum(part.n for part in parts)
        confidence, right = (sum(part.n * getattr(part, key) for part in parts) / n for key in ("confidence", "right"))
        rows.append([name, f"{confidence:.3f}", f"{right:.3f}", f"{calibration.calibration_error(parts):.3f}"])
    tokens = sum(part.n for part in by_model["frozen"])
    text = OF_CALIBRATION.format(n=tokens, examples=len(traced.tokens)) + markdown(rows)
    shown = {name: by_model[name] for name in dict.fromkeys(("frozen", last_phase(models)))}
    return Chapter("Calibration of the confidence", text, [diagrams.calibration(shown)])


def cost(trained: Mapping[str, Mapping[str, Any]]) -> str:
    """Write a table of what each phase took: a row a phase that took steps."""
    rows = [["phase", "steps", "FLOPs a step", "training FLOPs", "trained parameters", "all parameters", "best validation loss"]]
    for name, metrics in trained.items():
        if not metrics["steps"]:
            continue
        parameters = metrics["parameters"]
        best = f"{metrics['best_loss']:.4f} at step {metrics['best_step']}" if metrics.get("best_loss") is not None else ""
        rows.append([
            name, f"{metrics['steps']:,}", with_unit(metrics["flops_per_step"]), with_unit(metrics["flops"]),
            f"{parameters['trainable']:,}", f"{parameters['total']:,}", best,
        ])  # fmt: skip
    return markdown(rows)
