"""The table of an ablation: what every variant came to over seeds, beside the default, and in how few passes if that was asked."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from components.inference.metrics import over_seeds
from components.inference.parallelism import PLAIN
from pipeline.evaluation.few_passes import TOKENS
from pipeline.files import read_json
from pipeline.reporting.intervals import compares_exact, is_clear
from pipeline.reporting.markdown import bold_if_clear, cell, markdown

BASE = "default"


def folder_name(variant: str) -> str:
    """Name the folder of a variant's results, below ``outputs/`` of each seed's workspace."""
    return "".join(c if c.isalnum() else "_" for c in variant)


def rows(places: Sequence[Path], names: Sequence[str]) -> list[dict[str, Any]]:
    """Validation loss, headline and its difference to the default's, over seeds, in the order of the validation loss."""
    by_name = {name: [_reading(place, name) for place in places] for name in names}
    metric = _headline([reading for readings in by_name.values() for reading in readings])
    rows = []
    for name, readings in by_name.items():
        paired = [own[metric] - base[metric] for own, base in zip(readings, by_name[BASE], strict=True)]
        difference = over_seeds(paired)
        rows.append({
            "variant": name, "metric": metric, "parameters": readings[0]["parameters"], "steps": readings[0]["steps"],
            "validation": over_seeds([reading["validation"] for reading in readings]),
            "test": over_seeds([reading[metric] for reading in readings]), "test_values": [reading[metric] for reading in readings],
            "difference": difference, "verdict": _verdict(name, metric, difference),
        })  # fmt: skip
    return sorted(rows, key=lambda row: row["validation"]["mean"])


def _reading(place: Path, name: str) -> dict[str, Any]:
    folder = place / "outputs" / folder_name(name)
    training = read_json(folder / "metrics.json", "ablate")
    of_model = _evaluated(place, name)
    return {
        "parameters": training["parameters"]["trainable"], "steps": training["steps"], "validation": training["best_loss"],
        **{metric: of_model[metric]["mean"] for metric in ("exact", "nll", "cosine") if metric in of_model},
    }  # fmt: skip


def _evaluated(place: Path, name: str) -> dict[str, Any]:
    """Metrics of a variant's model; one that was trained from scratch is the frozen one of its own evaluation."""
    models = read_json(place / "outputs" / f"{folder_name(name)}-evaluated" / "metrics.json", "ablate")["models"]
    of_model: dict[str, Any] = models.get(folder_name(name), models["frozen"])
    return of_model


def _headline(readings: Sequence[Mapping[str, float]]) -> str:
    """The cosine of embeddings; of tokens exact, where any model gets answers exactly right, else nll."""
    if "cosine" in readings[0]:
        return "cosine"
    return "exact" if compares_exact(reading["exact"] for reading in readings) else "nll"


def _verdict(name: str, metric: str, difference: Mapping[str, float]) -> str:
    """Of a difference over seeds: its interval is clear of zero, or it is noise."""
    if name == BASE:
        return ""
    if not is_clear(difference):
        return "noise"
    return "helps" if (difference["mean"] > 0) == (metric != "nll") else "hurts"


def few_passes(places: Sequence[Path], names: Sequence[str]) -> list[dict[str, Any]]:
    """Score of whole answers over the number of passes, of every variant and sampler, and its difference to the default's.

    Empty where the settings ask for no such curves (``PARALLELISM``). The score is the share of answers that are exactly right,
    where any is, else that of tokens.
    """
    curves = {name: [_evaluated(place, name).get("parallelism", {}) for place in places] for name in names}
    of_all = [curve for of_seeds in curves.values() for curve in of_seeds]
    if not all(of_all):
        return []
    points = [point for curve in of_all for sampler in curve.values() for point in sampler["points"].values()]
    score = "exact" if compares_exact(point["exact"]["mean"] for point in points) else TOKENS
    rows = []
    for name, of_seeds in curves.items():
        for sampler, curve in of_seeds[0].items():
            by_passes = {}
            for passes in curve["points"]:
                own, base = ([c[sampler]["points"][passes][score]["mean"] for c in cs] for cs in (of_seeds, curves[BASE]))
                difference = over_seeds([a - b for a, b in zip(own, base, strict=True)])
                by_passes[passes] = {"test": over_seeds(own), "difference": difference}
            rows.append({"variant": name, "sampler": sampler, "metric": score, "passes": by_passes})
    return rows


def table(rows: Sequence[Mapping[str, Any]], points: Sequence[Mapping[str, Any]], seeds: int) -> str:
    """Write out what ``rows`` and ``few_passes`` return, as markdown."""
    metric = rows[0]["metric"]
    header = [
        "variant",
        "trained parameters",
        "steps",
        f"validation {'loss' if metric == 'cosine' else 'nll'}",
        f"test {metric}",
        "test - default",
        "verdict",
    ]
    lines = [
        [
            row["variant"], f"{row['parameters']:,}", f"{row['steps']:,}", cell(row["validation"]), cell(row["test"]),
            "" if row["variant"] == BASE else cell(row["difference"]), row["verdict"],
        ]
        for row in rows
    ]  # fmt: skip
    note = (
        f"Means with 95 % intervals over {seeds} seeds (Student's t), same compute each, in the order of the validation loss.\n\n"
    )
    return note + markdown([header, *lines]) + ("\n" + _few_passes_table(points) if points else "")


def _few_passes_table(points: Sequence[Mapping[str, Any]]) -> str:
    """A line for each curve, and one for its difference to the default's."""
    lines = [["variant", f"test {points[0]['metric']}, by passes", *points[0]["passes"]]]
    for row in points:
        label = row["variant"] if row["sampler"] == PLAIN else f"{row['variant']}, {row['sampler']}"
        lines.append([label, "", *(cell(point["test"]) for point in row["passes"].values())])
        if row["variant"] != BASE:
            lines.append(["", f"- {BASE}", *(bold_if_clear(point["difference"]) for point in row["passes"].values())])
    return markdown(lines)
