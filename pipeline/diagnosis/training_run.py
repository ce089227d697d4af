"""A training run as its files tell it: curves, validations and the settings that a diagnosis needs; no tensors."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any

from pipeline.diagnosis.finding import Finding

TAIL = 0.1  # share of the steps that make a window: evens out batches, and at the end the learning rate has fallen by then
ENOUGH = 20  # steps below which nothing is said: a window would be a step or two
GROWN = 0.5  # share of the planned steps before which nothing is said of what a run has yet to become


@dataclass(frozen=True)
class Window:
    """Mean of a column over neighbouring steps, and its standard error."""

    mean: float
    error: float

    def above(self, other: "Window", times: float) -> bool:
        """Whether it is more than so many times another one, or that much above one below 0, beyond three standard errors of the
        difference.
        """
        apart = self.mean - other.mean
        return apart > (times - 1) * abs(other.mean) and apart > 3 * math.hypot(self.error, other.error)


@dataclass(frozen=True)
class Validation:
    """Validation losses after so many optimizer steps, one a recursion step."""

    step: int
    losses: Sequence[float]

    @property
    def mean(self) -> float:
        """Average over recursion steps: of the last one alone, once it is small, a single token decides."""
        return fmean(self.losses)


@dataclass(frozen=True)
class Run:
    """What one training phase has left so far.

    Attributes:
        name: of the phase, "warmup" or "controls/backbone" for example.
        columns: of ``curves.csv``.
        validations: in their order.
        planned: optimizer steps of the whole run; 0 = not known.
        ended: whether the run has come to its end.
        clip: largest gradient norm; 0 = off or not known.
        unit: root mean square of the states that a refiner changes; 0 = not known.
        uses: how often a stored mask was seen; 0 = not known, or masks are drawn anew.
        waited: share of the time in which the device waited for batches, of a run that goes on; 0 = not known.
        trials: learning rates that were searched, and the best of them: (rates, best).
    """

    name: str
    columns: Mapping[str, Sequence[float]]
    validations: Sequence[Validation] = ()
    planned: int = 0
    ended: bool = True
    clip: float = 0.0
    unit: float = 0.0
    uses: float = 0.0
    waited: float = 0.0
    trials: tuple[Sequence[float], float] = field(default=((), 1.0))

    @property
    def steps(self) -> int:
        """Count the optimizer steps so far."""
        return len(self.columns.get("loss", ()))

    @property
    def grown(self) -> bool:
        """Whether there is enough of it to judge what it came to."""
        return self.steps >= ENOUGH and (self.ended or (self.planned > 0 and self.steps >= GROWN * self.planned))

    @property
    def width(self) -> int:
        """Count the steps of a window."""
        return max(2, round(TAIL * self.steps))

    def window(self, column: str, start: int, stop: int) -> Window:
        """Average a column over the steps from ``start`` until before ``stop``."""
        values = self.columns[column][max(0, start) : max(0, stop)] or [math.nan]
        return Window(fmean(values), stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.inf)

    def head(self, column: str) -> Window:
        """Average a column over the first steps."""
        return self.window(column, 0, self.width)

    def tail(self, column: str) -> Window:
        """Average a column over the last steps."""
        return self.window(column, self.steps - self.width, self.steps)

    def named(self, prefix: str) -> dict[str, str]:
        """List the columns of a kind, "gate/" for example: what follows the prefix, and the column."""
        return {name.removeprefix(prefix): name for name in self.columns if name.startswith(prefix)}

    @property
    def best(self) -> Validation | None:
        """Return the validation with the least loss of the last recursion step; the first of several, None of none."""
        return min(self.validations, key=lambda validation: validation.losses[-1], default=None)

    def by_recursion_step(self) -> Sequence[float]:
        """Losses of the recursion steps: of the best validation, without one of the last training steps."""
        if self.best is not None:
            return self.best.losses
        return [self.tail(column).mean for column in self.named("loss/step_").values()]


Rule = Callable[[Run], Iterator[Finding]]
Evaluation = Mapping[str, Any]  # what evaluate's metrics.json holds
