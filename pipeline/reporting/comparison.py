"""Compare runs on one page: settings that differ, headlines with intervals, what sets them apart, curves over each other, cost."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.errors import DataError
from pipeline.files import write_atomic
from pipeline.reporting import run_differences, webpage
from pipeline.reporting.compared_runs import Run, read_runs
from pipeline.reporting.diagrams import mean_line, training_line
from pipeline.reporting.figures import MODELS, SEVERAL
from pipeline.reporting.intervals import compares_exact
from pipeline.reporting.markdown import bold_if_clear, cell, escaped, markdown, with_unit
from pipeline.reporting.panels import Line, Panel
from pipeline.reporting.run_differences import SAME
from pipeline.reporting.tables import CHAINS
from pipeline.reporting.webpage import Bar, Chapter

METRICS = {
    "exact": ("exact", "nll", "token_accuracy"),
    "nll": ("nll", "token_accuracy"),
    "cosine": ("cosine",),
}  # by the headline's
SAYING = {
    "better": "is better than",
    "worse": "is worse than",
    SAME: "has the very model of",
    "not clear": "cannot be told apart from",
}
UNBOUNDED = "nll"  # the one metric of which less is better
PLACES = ("out", "prepared", "backbone", "models", "warmup", "evaluation", "shards")  # settings that say where files lie
OF_SAME = "All runs were evaluated on the same examples. "
OF_OTHERS = "Not all runs were evaluated on the same examples: a difference can come from these. "
OF_DIFFERENCES = (
    "Differences from {first}, with 95 % intervals: of all examples from the intervals of both runs, as if they were independent "
    "(Zou and Donner 2008), which on the same examples is cautious; *in pairs* over the {traced} examples that both runs traced, "
    "the only ones of which evaluate leaves single results, as {what} (no pairs: other examples or masks, or a trace is lost). "
    "Bold: clear of zero. One run says nothing of how another seed would do.\n\n"
)
OF_COST = (
    "*training TFLOP*: 10^12 operations of a phase's training. Seconds are from begin to end of a stage as this machine's records "
    "(`.tracking`) tell, with whatever else ran on it; an empty cell: no record with these settings and results. Memory is not "
    "recorded: `python -m stages visualise` measures it.\n\n"
)
OF_SETTINGS = (
    "Of all settings in effect those that are not the same in every run, without places of files; empty: the run does not know the "
    "setting.\n\n"
)


def compare(names: Sequence[str], out: Path) -> list[str]:
    """Write ``index.html`` into ``out``, which compares runs; returns what can be said, a line each.

    Args:
        names: folders, git revisions or experiments, the first of which the others are compared with.
        out: folder of the page.

    Raises:
        DataError: a run cannot be read, or they have no headline in common.
    """
    runs = read_runs(names)
    metric = _metric(runs)
    said = [line for other in runs[1:] for line in _statements(runs[0], other, metric)]
    lower = ", lower is better" if metric == UNBOUNDED else ""
    title = f"{len(runs)} runs on {runs[0].headline}: {metric}{lower}"
    content = [
        Chapter("What sets the runs apart", _differences(runs, metric)),
        Chapter("Settings that differ", OF_SETTINGS + settings_table(runs)),
        Chapter("Results side by side", results_table(runs, metric)),
        Chapter("Curves over each other", "", list(panels(runs, metric))),
        Chapter("Cost", OF_COST + cost_table(runs)),
        Chapter("The runs", _runs_table(runs)),
    ]
    warnings = [f"{run.name}: {remark}" for run in runs for remark in run.remarks]
    page = webpage.Page(
        None, title, bars(runs, metric), content, warnings=warnings, findings=said, name=" and ".join(run.name for run in runs)
    )
    write_atomic(out / "index.html", webpage.render(page).encode())
    return said


def _metric(runs: Sequence[Run]) -> str:
    """Name the metric that all runs are compared by."""
    first = runs[0]
    for run in runs[1:]:
        one, other = first.headline, run.headline
        kinds = ["cosine" in _any_model(of) for of in (first, run)]
        if one != other or kinds[0] != kinds[1]:
            what = f"{first.name} compares models by {one}, {run.name} by {other}" if one != other else "one predicts embeddings"
            raise DataError(f"{first.name} and {run.name} have no headline in common: {what}; compare runs of one task")
        if not set(first.models) & set(run.models):
            raise DataError(f"{first.name} and {run.name} have no model in common; evaluate them with the same phases")
    if "cosine" in _any_model(first):
        return "cosine"
    shares = [measured["exact"]["mean"] for run in runs for measured in run.models.values()]
    return "exact" if compares_exact(shares) else "nll"


def _any_model(run: Run) -> Mapping[str, Any]:
    return next(iter(run.models.values()))


def models_of(runs: Sequence[Run]) -> list[str]:
    """List the models of any run, in the order in which they are shown."""
    names = {name for run in runs for name in run.models}
    return [name for name in MODELS if name in names] + sorted(names - set(MODELS))


def colour(number: int) -> str:
    """Name the colour of a run by its place among the runs."""
    return SEVERAL[number % len(SEVERAL)]


def bars(runs: Sequence[Run], metric: str) -> list[Bar]:
    """Show the headline of each model of each run, the runs of a model one below the other."""
    longest = 1.0 if metric != UNBOUNDED else max(measured[metric]["high"] for run in runs for measured in run.models.values())
    words = "{:.1%}" if metric == "exact" else "{:.3f}"
    shown = []
    for model in models_of(runs):
        for number, run in enumerate(runs):
            if model in run.models:
                bar = webpage.bar(model, run.models[model][metric], longest, words)
                shown.append(replace(bar, meaning=run.name, colour=colour(number)))
    return shown


def _statements(first: Run, other: Run, metric: str) -> Iterator[str]:
    for model in models_of([first, other]):
        if model in first.models and model in other.models:
            value = run_differences.apart(first.models[model][metric], other.models[model][metric])
            verdict = run_differences.verdict(first, other, model, metric, higher_is_better=metric != UNBOUNDED)
            yield f"{model}: {other.name} {SAYING[verdict]} {first.name}{'' if verdict == SAME else f' ({cell(value)})'}"


def _differences(runs: Sequence[Run], metric: str) -> str:
    first = runs[0]
    exact = metric == "exact"
    rows = [["model", "run", f"{metric} - {escaped(first.name)}", "says", "in pairs", "better / worse in pairs"]]
    traced = 0
    for model in models_of(runs):
        for run in (run for run in runs[1:] if model in run.models and model in first.models):
            value = run_differences.apart(first.models[model][metric], run.models[model][metric])
            says = run_differences.verdict(first, run, model, metric, higher_is_better=metric != UNBOUNDED)
            row = [model, escaped(run.name), bold_if_clear(value), says]
            if (paired := run_differences.pairs(first, run, model, exact)) is None:
                rows.append([*row, "no pairs", ""])
                continue
            traced = int(paired.difference["n"])
            rows.append([*row, bold_if_clear(paired.difference), f"{paired.better} / {paired.worse}"])
    what = "answers that are right as a whole" if exact else "shares of right tokens"
    same = all(run_differences.same_data(first, run) for run in runs[1:])
    text = OF_DIFFERENCES.format(first=escaped(first.name), traced=traced, what=what)
    return (OF_SAME if same else OF_OTHERS) + text + markdown(rows)


def settings_table(runs: Sequence[Run]) -> str:
    """Write a table of the settings that differ; those that differ alike in several stages in one row."""
    rows: dict[tuple[str, ...], list[str]] = {}
    if any(run.preset != runs[0].preset for run in runs):
        rows["preset", *(run.preset for run in runs)] = ["all"]
    for stage, setting in dict.fromkeys(key for run in runs for key in run.settings):
        values = [run.settings.get((stage, setting), "") for run in runs]
        if len(set(values)) > 1 and setting.removeprefix("run.") not in PLACES:
            rows.setdefault((setting, *values), []).append(stage)
    if not rows:
        return "None: all settings that the runs left are the same.\n"
    header = ["setting", "stage", *(escaped(run.name) for run in runs)]
    return markdown([header, *([escaped(s), ", ".join(of), *map(escaped, values)] for (s, *values), of in rows.items())])


def results_table(runs: Sequence[Run], metric: str) -> str:
    """Write a table of the headline's metrics: a row a model and run."""
    rows = [["model", "run", *(name.replace("_", " ") for name in METRICS[metric]), "FLOPs an answer", "n"]]
    for model in models_of(runs):
        for run in (run for run in runs if model in run.models):
            measured = run.models[model]
            flops = with_unit(measured["flops_per_answer"]) if "flops_per_answer" in measured else ""
            cells = [cell(measured[name]) for name in METRICS[metric]]
            rows.append([model, escaped(run.name), *cells, flops, f"{measured[metric]['n']:,}"])
    return markdown(rows)


def panels(runs: Sequence[Run], metric: str) -> Iterator[Panel]:
    """Lay the curves of all runs over each other: the last step's loss, validation, and the headline after each recursion step."""
    for phase in dict.fromkeys(phase for run in runs for phase in run.curves):
        lines = []
        for number, run in ((i, run) for i, run in enumerate(runs) if phase in run.curves):
            columns = run.curves[phase]
            losses = [key for key in columns if key.startswith("loss/step_")] or ["loss"]
            lines.append(training_line(columns, losses[-1], run.name, colour(number)))
        yield Panel(f"{phase}: loss of the last step", "optimizer step", "", lines, yscale="log")
        if validated := list(_validation(runs, phase)):
            yield Panel(f"{phase}: validation loss", "optimizer step", "", validated, yscale="log")
    for model in models_of(runs):
        measured = [(i, run.name, run.models[model][f"{metric}_by_step"]) for i, run in enumerate(runs) if model in run.models]
        longest = max(len(values) for _, _, values in measured)
        if longest > 1:
            lines = [mean_line(name, range(1, len(values) + 1), values, colour(i)) for i, name, values in measured]
            yield Panel(f"{model}: recursion steps", "recursion step", metric, lines, xticks=range(1, longest + 1))


def _validation(runs: Sequence[Run], phase: str) -> Iterator[Line]:
    for number, run in enumerate(runs):
        if points := [at for at in run.trained.get(phase, {}).get("validation", ()) if at["loss"] is not None]:
            yield Line(run.name, [at["step"] for at in points], [at["loss"] for at in points], colour(number))


def cost_table(runs: Sequence[Run]) -> str:
    """Write a table of what each phase of each run took, and each other stage whose seconds are recorded."""
    rows = [["stage", "run", "steps", "training TFLOP", "trained parameters", "best validation loss", "seconds"]]
    for phase in dict.fromkeys([*(p for run in runs for p in run.trained), *(s for run in runs for s in run.seconds)]):
        for run in (run for run in runs if phase in run.trained or phase in run.seconds):
            metrics = run.trained.get(phase)
            row = ["", "", "", ""] if metrics is None else _phase_cost(metrics)
            seconds = run.seconds.get(phase)
            rows.append([phase, escaped(run.name), *row, "" if seconds is None else f"{seconds:.0f}"])
    for model in models_of(runs):
        for run in (run for run in runs if len(chain := CHAINS.get(model, ())) > 1 and all(p in run.trained for p in chain)):
            whole = sum(run.trained[phase]["flops"] for phase in CHAINS[model])
            rows.append([f"{model}, all phases", escaped(run.name), "", f"{whole / 1e12:.2f}", "", "", ""])
    return markdown(rows) if len(rows) > 1 else "The runs left nothing of it.\n"


def _phase_cost(metrics: Mapping[str, Any]) -> list[str]:
    best = f"{metrics['best_loss']:.4f} at step {metrics['best_step']}" if metrics.get("best_loss") is not None else ""
    return [f"{metrics['steps']:,}", f"{metrics['flops'] / 1e12:.2f}", f"{metrics['parameters']['trainable']:,}", best]


def _runs_table(runs: Sequence[Run]) -> str:
    rows = [["run", "preset", "read from", "evaluation", "data"]]
    for run in runs:
        origin = f"commit {run.commit[:12]}" if run.commit else "its folder"
        data = run.evaluation.inputs.get("prepare", "")[:12]
        rows.append([escaped(run.name), escaped(run.preset), origin, run.evaluation.digest[:12], data])
    return markdown(rows)
