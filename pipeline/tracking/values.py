"""What a run leaves in ``metrics.json``, as trackers hold it: single numbers, and short curves beside those of ``curves.csv``."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def single(files: Path) -> dict[str, float]:
    """Every finite number of a run's metrics by its name; those of a folder below carry its name."""
    numbers: dict[str, float] = {}
    for folder, metrics in _metrics(files):
        named = {**{name: value for name, value in metrics.items() if name != "models"}, **metrics.get("models", {})}
        numbers |= {f"{folder}/{name}" if folder else name: value for name, value in flat(named).items() if math.isfinite(value)}
    return numbers


def curves(files: Path) -> Iterator[tuple[str, str, list[tuple[int, float]]]]:
    """Evaluations over recursion steps, and validations over training steps that no file of rows holds: folder, name, points."""
    for folder, metrics in _metrics(files):
        rows = (files / folder / "validation.csv").is_file() and "rates" not in metrics  # of a search rows are mixed
        if metrics.get("validation") and not rows:
            yield folder, "validation/loss", [(entry["step"], entry["loss"]) for entry in metrics["validation"]]
        for model, measured in metrics.get("models", {}).items():
            for name, values in measured.items():
                if name.endswith("_by_step"):
                    yield from ((folder, f"{key}/{model}", points) for key, points in _over_steps(name, values).items())


def flat(metrics: dict[str, Any]) -> dict[str, float]:
    """Numbers of nested metrics as ``a.b.c``; an interval ``{"mean", "low", "high", "n"}`` is its mean.

    >>> flat({"warmup": {"nll": {"mean": 0.5, "low": 0.4, "high": 0.6, "n": 9}}, "steps": 3, "headline": "test"})
    {'warmup.nll': 0.5, 'steps': 3.0}
    """
    numbers: dict[str, float] = {}
    for key, value in metrics.items():
        if isinstance(value, dict):
            inner = {"": float(value["mean"])} if "mean" in value else {f".{name}": x for name, x in flat(value).items()}
            numbers |= {f"{key}{name}": x for name, x in inner.items()}
        elif isinstance(value, int | float) and not isinstance(value, bool):
            numbers[key] = float(value)
    return numbers


def _over_steps(name: str, values: list[dict[str, float]]) -> dict[str, list[tuple[int, float]]]:
    """A list over recursion steps, of intervals or of several numbers by name, as curves.

    >>> _over_steps("nll_by_step", [{"mean": 2.0, "low": 1.0}, {"mean": 1.5, "low": 1.0}])
    {'nll_by_step': [(0, 2.0), (1, 1.5)]}
    >>> _over_steps("statistics_by_step", [{"gate": 0.5, "delta": 0.1}])
    {'gate_by_step': [(0, 0.5)], 'delta_by_step': [(0, 0.1)]}
    """
    if values and "mean" in values[0]:
        return {name: [(step, value["mean"]) for step, value in enumerate(values)]}
    keys = values[0] if values else {}
    return {f"{key.replace('/', '_')}_by_step": [(step, value[key]) for step, value in enumerate(values)] for key in keys}


def _metrics(files: Path) -> list[tuple[str, dict[str, Any]]]:
    """Every metrics.json with its folder, "" for the output's own."""
    paths = sorted(files.rglob("metrics.json"))
    return [(file.parent.relative_to(files).as_posix().removeprefix("."), json.loads(file.read_bytes())) for file in paths]
