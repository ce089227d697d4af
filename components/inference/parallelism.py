"""Few passes: how good whole answers are where several of their tokens are decoded in one pass, and one number for the curve."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from components.inference.answers import Answers
from components.inference.sampling import Sampler
from components.ranges import Depth, PositiveInt

PENALTY = 3.0  # alpha: how fast points below the best accuracy lose their weight
TOLERATED = 5.0  # percentage points below a curve's first that a point may lie and still count
PLAIN = "plain"  # name of the curve that others are compared with
GREEDY = Sampler()


class Parallelism:
    """Settings of curves: answers of the same examples, decoded anew by every sampler in each of several numbers of passes.

    Args:
        items: examples that are answered, the first of the split.
        passes: through the model for an answer, each a point of the curve.
        split: that the examples are taken from.
        sampler: of the curve that is called plain; its ``steps`` are the passes.
        others: by name, more samplers, compared with that one.
        results: how results are read from texts, and by which patterns they are right; None = tokens alone are compared.

    Raises:
        ValueError: a number is out of range, passes are no multiple of a sampler's blocks, a sampler draws or has steps, or results
            come with a prefix, which curves, whose passes read everything, do not keep.
    """

    def __init__(
        self,
        items: PositiveInt = 64,
        passes: Sequence[Depth] = (1, 2, 4, 8, 16),
        split: str = "test",
        sampler: Sampler = GREEDY,
        others: Mapping[str, Sampler] | None = None,
        results: Answers | None = None,
    ) -> None:
        if items < 1 or not passes or min(passes) < 1 or len({*passes}) < len(passes):
            raise ValueError(f"items must be positive and passes different positive numbers, got {items} items and {list(passes)}")
        if PLAIN in (others := others or {}):
            raise ValueError(f"others: '{PLAIN}' is the curve of sampler; choose another name")
        self.samplers = {PLAIN: sampler, **others}
        for name, of_curve in self.samplers.items():
            if of_curve.temperature or of_curve.steps is not None:
                raise ValueError(
                    f"sampler '{name}' takes the likeliest tokens in the passes of the curve: expected temperature 0 and steps "
                    f"None, got {of_curve.temperature} and {of_curve.steps}"
                )
            for number in passes:
                replace(of_curve, steps=number).check()
        if results is not None and results.approximation is not None:
            raise ValueError(f"results: a curve's passes read everything: expected prefix None, got {results.approximation}")
        self.items, self.passes, self.split, self.results = items, sorted(passes), split, results

    def decodes(self) -> list[tuple[str, int, int]]:
        """List every decode of the curve: the split, runs of the model for an answer, and examples."""
        runs = [number * (2 if sampler.guidance else 1) for sampler in self.samplers.values() for number in self.passes]
        return [(self.split, number, self.items) for number in runs]


def accuracy_under_parallelism(
    parallelism: Float[Tensor, "*curves points"], accuracy: Float[Tensor, "*curves points"], best: Float[Tensor, "*curves"]
) -> Float[Tensor, "*curves"]:
    """Weigh the area under the curve of accuracy over parallelism (AUP): accuracy that is lost on the way counts for less.

    With points (r_1, y_1), (r_2, y_2) ... in the order of r, those left out whose y lies more than 5 below y_1:

        AUP = r_1 y_1 + sum_{i > 1} (r_i - r_{i-1}) (y_i W(y_i) + y_{i-1} W(y_{i-1})) / 2,  W(y) = min(exp(-3 (1 - y / best)), 1)

    Source: Qian et al., d3LLM (2026), its leaderboard's measure (alpha = 3, y_min = y_1 - 5).

    Args:
        parallelism: r, tokens decoded in a pass.
        accuracy: y, in percent.
        best: the highest accuracy that any method reaches on the task, in percent.
    """
    order = parallelism.argsort(stable=True)
    rates, heights = parallelism.gather(-1, order), accuracy.gather(-1, order)
    weight = (-PENALTY * (1 - heights / best[..., None].clamp_min(torch.finfo(heights.dtype).tiny))).exp().clamp_max(1.0)
    area, last_rate, last = rates[..., 0] * heights[..., 0], rates[..., 0], (heights * weight)[..., 0]
    for rate, height, weighted in zip(*(x.unbind(-1)[1:] for x in (rates, heights, heights * weight)), strict=True):
        counts = height >= heights[..., 0] - TOLERATED
        area = torch.where(counts, area + (rate - last_rate) * (weighted + last) / 2, area)
        last_rate, last = torch.where(counts, rate, last_rate), torch.where(counts, weighted, last)
    return area
