"""How well confidence says how often a model is right: bins of probability, from the answers of evaluate's trace."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.reporting.refinement import Traced

BINS = 10


@dataclass(frozen=True)
class Bin:
    """Tokens of similar confidence: their number, mean confidence and share of right ones."""

    n: int
    confidence: float
    right: float


def bins(traced: Traced, model: str) -> list[Bin]:
    """Sort the filled-in tokens of a model's last step into bins of equal width; empty ones are left out.

    Args:
        traced: what the evaluation traced.
        model: its name.
    """
    sorted_tokens: list[list[tuple[float, bool]]] = [[] for _ in range(BINS)]
    for target, masked, steps in zip(traced.tokens, traced.masked, traced.models[model], strict=True):
        for token, probability, correct, hidden in zip(steps[-1]["ids"], steps[-1]["probability"], target, masked, strict=True):
            if hidden:
                sorted_tokens[min(BINS - 1, int(probability * BINS))].append((probability, token == correct))
    return [_bin(members) for members in sorted_tokens if members]


def _bin(members: Sequence[tuple[float, bool]]) -> Bin:
    n = len(members)
    return Bin(n, sum(p for p, _ in members) / n, sum(right for _, right in members) / n)


def calibration_error(of_model: Sequence[Bin]) -> float:
    """Compute the expected calibration error: the mean of |share right - confidence| over tokens, bin by bin.

    Source: Guo et al., "On Calibration of Modern Neural Networks" (2017), equation 3.

    >>> calibration_error([Bin(1, 0.5, 1.0), Bin(3, 0.9, 0.8)])
    0.2
    """
    total = sum(part.n for part in of_model)
    return round(sum(part.n * abs(part.right - part.confidence) for part in of_model) / total, 12)
