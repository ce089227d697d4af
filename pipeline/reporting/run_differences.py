"""What can be said of two runs: their intervals side by side and, where both traced the same examples, these in pairs.

evaluate leaves results of single examples of those alone that it traces (``evaluate.run.samples``). So the difference over all
examples is reckoned from two intervals, as if the examples were others: on the same ones it is wider than it need be, for a model
that does well on an example mostly does so in both runs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import hypot

import torch
from torch import Tensor

from components.inference.metrics import difference
from pipeline.reporting.compared_runs import Run
from pipeline.reporting.intervals import is_clear
from pipeline.reporting.refinement import Traced
from pipeline.text.rendering import rendering_of

SAME = "same model"


@dataclass(frozen=True)
class Pairs:
    """Results of a model in two runs on the same traced examples.

    Attributes:
        better, worse: examples on which the second run does better or worse than the first.
        difference: of the mean, with its interval.
    """

    better: int
    worse: int
    difference: Mapping[str, float]


def apart(first: Mapping[str, float], second: Mapping[str, float]) -> dict[str, float]:
    """Subtract a mean with its interval from another, taken as independent.

    >>> {k: round(v, 2) for k, v in apart({"mean": 0.5, "low": 0.46, "high": 0.53, "n": 9}, {"mean": 0.8, "low": 0.76, "high": 0.84,
    ... "n": 9}).items()}
    {'mean': 0.3, 'low': 0.25, 'high': 0.36, 'n': 9}

    Source: Zou and Donner, "Construction of confidence limits about effect measures" (2008), equation 3, by the distances of each
    interval's ends from its mean.
    """
    mean = second["mean"] - first["mean"]
    low = mean - hypot(first["high"] - first["mean"], second["mean"] - second["low"])
    high = mean + hypot(first["mean"] - first["low"], second["high"] - second["mean"])
    return {"mean": mean, "low": low, "high": high, "n": min(first["n"], second["n"])}


def verdict(first: Run, second: Run, model: str, metric: str, *, higher_is_better: bool) -> str:
    """Say whether a model of the second run is "better" or "worse" than the first run's, the "same model", or "not clear".

    Args:
        first, second: the runs, both with the model.
        model: its name.
        metric: by which it is compared.
        higher_is_better: of the metric.
    """
    one, other = (run.evaluation.content["evaluated"].get(model) for run in (first, second))
    if one == other is not None and first.models[model][metric] == second.models[model][metric]:
        return SAME
    value = apart(first.models[model][metric], second.models[model][metric])
    if not is_clear(value):
        return "not clear"
    return "better" if (value["mean"] > 0) == higher_is_better else "worse"


def same_data(first: Run, second: Run) -> bool:
    """Whether two runs were evaluated on the very same prepared data, with the same measure and masks."""
    one, other = (run.evaluation.inputs.get("prepare") for run in (first, second))
    keys = [("evaluate", f"run.{name}") for name in ("measures", "seed", "limit")]
    return one == other is not None and all(first.settings.get(key) == second.settings.get(key) for key in keys)


def pairs(first: Run, second: Run, model: str, exact: bool) -> Pairs | None:
    """Pair a model's traced answers in two runs by example; None where the examples, or what is hidden of them, are not the same.

    Args:
        first, second: the runs.
        model: its name in both.
        exact: compare answers that are right as a whole; else the share of right tokens.
    """
    if first.trace is None or second.trace is None or any(
        rendering_of(run.trace["rendering"]).predicts == "embeddings" for run in (first, second) if run.trace
    ):  # fmt: skip
        return None
    traced = [Traced.of(run.trace) for run in (first, second) if run.trace is not None]
    one, other = traced
    shown = [model in of.models for of in traced]
    if not all(shown) or (one.tokens, one.masked) != (other.tokens, other.masked):
        return None
    a, b = (_results(of, model, exact) for of in traced)
    each, seed = torch.arange(len(a)), torch.Generator().manual_seed(0)
    value = difference(b, a, torch.ones(len(a)).double(), each, generator=seed, bounds=(0.0, 1.0))
    return Pairs(int((b > a).sum()), int((b < a).sum()), value)


def _results(traced: Traced, model: str, exact: bool) -> Tensor:
    """Share of right tokens of each traced example after the last step, or whether all are right."""
    tokens = torch.tensor([steps[-1]["ids"] for steps in traced.models[model]])
    masked = torch.tensor(traced.masked)
    right = (tokens == torch.tensor(traced.tokens)) & masked
    hidden = masked.sum(1)
    return (right.sum(1) == hidden).double() if exact else right.sum(1).double() / hidden.clamp(min=1)
