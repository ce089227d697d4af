"""What a training step minimises and how its gradient is made, in one object: training loops know nothing else of it.

The objective is sum_k weight_k * loss_k over the recursion steps (``components.objective.deep_supervision``).
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from components.batch import Batch
from components.model import Model
from components.objective.activations import Activations, keep
from components.objective.carry_noise import CarryNoise
from components.objective.deep_supervision import Supervised, backward
from components.objective.fixed_point import FixedPoint
from components.objective.lead import RandomLead
from components.objective.losses import Loss, masked_cross_entropy
from components.objective.supervision import LearnedWeights, Supervision, linear_decay, of_first_steps, supervised_steps
from components.ranges import Share, in_range
from components.recursion import BpttSegments, full_gradient


class Objective(nn.Module):
    """Loss, supervision and gradient of a recursion. Its parameters, if any, are trained with the model and are no part of it.

    Args:
        steps: recursion steps of the model, K.
        loss: of a step's states (``components.objective.losses``).
        supervision: number of steps -> weight of each (``components.objective.supervision``).
        curriculum: share of the run over which supervision grows from the first step to all, 0 to 1; 0 = all from the start.
        bptt: how far back the gradient flows through the steps (``components.recursion``).
        activations: what is kept of a step until its backward pass (``components.objective.activations``).
        lead: steps before the supervised ones, without gradient (``components.objective.lead``); None = the first is supervised.
        noise: on what steps start from (``components.objective.carry_noise``); None = none.
        settling: price of what the last step still moves (``components.objective.fixed_point``); None = it is free.

    Attributes:
        learned: weights that are trained along; None where they are given.

    Raises:
        ValueError: a curriculum outside its range or with learned weights, or a schedule that does not fit the number of steps.
    """

    @in_range
    def __init__(
        self,
        steps: int,
        loss: Loss = masked_cross_entropy,
        supervision: Supervision = linear_decay,
        curriculum: Share = 0.0,
        bptt: BpttSegments = full_gradient,
        activations: Activations = keep,
        lead: RandomLead | None = None,
        noise: CarryNoise | None = None,
        settling: FixedPoint | None = None,
    ) -> None:
        super().__init__()
        self.steps, self.loss, self.curriculum, self.bptt, self.activations = steps, loss, curriculum, bptt, activations
        of_recursion = (lead, noise, settling) if steps > 1 else (None, None, None)  # what a model of one step has no place for
        self.lead, self.noise, self.settling = of_recursion
        bptt(steps)  # which raises where it cannot cut
        weights = supervision(steps)
        self.learned = weights if isinstance(weights, LearnedWeights) else None
        if self.learned is None:
            schedule = cast(Callable[[int], list[float]], supervision)
            depths = range(1, steps + 1) if curriculum else (steps,)
            self._given = {depth: of_first_steps(schedule, steps, depth) for depth in depths}
        elif curriculum:
            raise ValueError(
                "objective.Objective.curriculum grows given weights; supervision.learned finds its own: use one of the two"
            )

    def depth(self, progress: float) -> int:
        """Count the steps that are supervised at a share of the run; what a gradient costs depends on nothing else.

        Args:
            progress: share of the run that is done, 0 to 1.
        """
        return supervised_steps(self.steps, progress / self.curriculum) if self.curriculum else self.steps

    def weights(self, progress: float = 1.0) -> Sequence[float | Tensor]:
        """Weigh the loss of each step at a share of the run, without gradient."""
        return self._given[self.depth(progress)] if self.learned is None else self.learned.weights()

    def steps_before(self, key: int) -> int:
        """Count the steps before the supervised ones in the optimizer step with this noise key."""
        return 0 if self.lead is None else self.lead(key)

    def check(self, model: Model) -> None:
        """Raise ValueError if the model carries nothing that gets noise or can settle."""
        given = [name for name in ("noise", "settling") if getattr(self, name) is not None]
        if given and not model.carried_states:
            raise ValueError(
                f"objective.Objective.{given[0]} needs a recursion whose carry is one set of states (SlotRefiner, RecursiveCore, "
                "MLPRefiner, or Tapped over one of them); choose another REFINER, or set it to None"
            )

    def gradient(
        self,
        model: Model,
        batch: Batch,
        *,
        sequences: int,
        progress: float = 1.0,
        lead: int = 0,
        key: int = 0,
        statistics: bool = False,
        autocast: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> Supervised:
        """Add a microbatch's gradient to the ``grad`` of the model's parameters and of the objective's own.

        Args:
            model: frozen as wanted.
            batch: a microbatch.
            sequences: of the optimizer step, over all microbatches and processes: what losses are divided by.
            progress: share of the run that is done, 0 to 1.
            lead: steps before the supervised ones: ``steps_before``.
            key: of the optimizer step's noise.
            statistics: also measure slots where there are any.
            autocast: the precision of the forward pass.
        """
        supervised = backward(
            model, batch, self.weights(progress), sequences=sequences, loss=self.loss, bptt=self.bptt,
            activations=self.activations, lead=lead, disturb=None if self.noise is None else partial(self.noise, key),
            price=self.settling, statistics=statistics, autocast=autocast,
        )  # fmt: skip
        if self.learned is not None:
            self.learned.backward(supervised.losses, len(batch) / sequences)
        return supervised

    @torch.no_grad()
    def losses(self, model: Model, batch: Batch) -> Float[Tensor, "steps"]:
        """Sum the loss of each step over a batch, for validation: not weighted, not divided."""
        return torch.stack([self.loss(model, state.hidden, batch, compute=True)[0] for state in model.steps(batch)])
