"""The report on models that predict a sentence's embedding: the same page with other metrics."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from components.inference.retrieval import METRICS
from pipeline.files import write_atomic
from pipeline.reporting import diagrams, figures, webpage
from pipeline.reporting.markdown import bold_if_clear, cell, markdown
from pipeline.reporting.provenance import Provenance

TITLE = "# Results on test\n"
HEAD = f"""{TITLE}
Means with 95 % intervals (bootstrap over documents), in the encoder's own space. *retrieval_k*: the true sentence is among the k
nearest of all sentences that are to be predicted. `frozen` is a ridge regression from the sentence before, the mean of all before
it, and the first.

"""


def report(out: Path, metrics: Mapping[str, Any], curve: Mapping[str, figures.Curves], origin: Provenance, health: str) -> str:
    """Write ``report.md``, ``table.md``, the pictures and ``index.html`` into ``out``; returns the table.

    Args:
        out: folder.
        metrics: of the evaluation.
        curve: of each phase that took steps.
        origin: where the numbers come from.
        health: what is wrong with the phases, as markdown.
    """
    models = dict(sorted(metrics["models"].items(), key=lambda item: len(item[1]["cosine_by_step"])))
    measures, differences = metrics["measures"], metrics["differences"]
    figures.losses(curve, out / "losses.png")
    figures.by_step(models, "cosine", f"{metrics['headline']}: after each recursion step", out / "steps.png")
    if any(key.startswith("slot/") for columns in curve.values() for key in columns):
        figures.slots(curve, out / "slots.png")
    table = results_table(models, measures)
    write_atomic(out / "table.md", table.encode())
    sections = {
        "Differences, paired": f"Bold: the interval is clear of zero.\n\n{differences_table(differences, measures)}",
        "After each recursion step": steps_table(models),
        "Health": health,
        "Pictures": "\n\n".join(f"![{name}]({name}.png)" for name in ("losses", "steps", "slots")
                                if (out / f"{name}.png").is_file()) + "\n",
    }  # fmt: skip
    page = HEAD + table + "".join(f"\n## {title}\n\n{text}" for title, text in sections.items())
    write_atomic(out / "report.md", page.encode())
    of_phases = {name: columns for name, columns in curve.items() if not name.startswith("control")}
    steps = [diagrams.by_step(models, "cosine", "recursion steps: cosine")]
    chapters = [
        webpage.Chapter("Results and controls", f"{HEAD.partition(TITLE)[2]}{table}\n{sections['Differences, paired']}"),
        webpage.Chapter("Loss of each recursion step", "", diagrams.losses(of_phases)),
        webpage.Chapter("Quality against steps", sections["After each recursion step"], steps),
        *([webpage.Chapter("Inside the refiner", "", inside)] if (inside := diagrams.refiner(of_phases)) else []),
        webpage.Chapter("Health", health),
    ]
    headline = f"{metrics['headline']}: mean cosine to the true sentence's embedding"
    bars = [webpage.bar(name, measured["cosine"]) for name, measured in models.items()]
    write_atomic(out / "index.html", webpage.render(webpage.Page(origin, headline, bars, chapters)).encode())
    return table


def results_table(models: Mapping[str, Any], measures: Sequence[str]) -> str:
    """Write a table with one row a model."""
    header = ["model", *(f"{m} {metric}" for m in measures for metric in METRICS)]
    return markdown(
        [header, *([name, *(cell(measured[m][k]) for m in measures for k in METRICS)] for name, measured in models.items())]
    )


def differences_table(pairs: Mapping[str, Any], measures: Sequence[str]) -> str:
    """Paired differences; bold where the interval is clear of zero."""
    rows = [["difference", *(f"{m} {metric}" for m in measures for metric in METRICS)]]
    for pair, by_measure in pairs.items():
        values = [by_measure[m][k] for m in measures for k in METRICS]
        rows.append([pair, *map(bold_if_clear, values)])
    return markdown(rows)


def steps_table(models: Mapping[str, Any]) -> str:
    """The headline measure of each refined model after each recursion step."""
    refined = {name: measured for name, measured in models.items() if len(measured["cosine_by_step"]) > 1}
    longest = max((len(measured["cosine_by_step"]) for measured in refined.values()), default=0)
    rows = [["model", "metric", *(f"step {i + 1}" for i in range(longest))]]
    for name, measured in refined.items():
        for key in METRICS:
            values = measured[f"{key}_by_step"]
            rows.append([name, key, *(f"{v['mean']:.3f}" for v in values), *([""] * (longest - len(values)))])
    return markdown(rows)
