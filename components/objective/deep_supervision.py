"""Deep supervision: a loss at every recursion step, without its memory bill.

What would be kept naively for K steps over a large vocabulary is K times the logits and K times the graph of a step. Here logits
exist for some rows at a time (``components.objective.linear_cross_entropy``), the graph of a step is kept or made again
(``components.objective.activations``), and a segment whose states are detached from what follows is done with at once
(``components.recursion``). Training calls it through ``components.objective.objective``.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from components.batch import Batch
from components.model import Model
from components.objective.activations import Activations, RunStep, keep
from components.objective.losses import HALTING, Loss, halting_loss, masked_cross_entropy
from components.recursion import BpttSegments, State, Tree, bptt_segments, full_gradient, mapped, tensors
from components.refiners.core import Layout


@dataclass(frozen=True)
class Supervised:
    """Numbers of a microbatch, on the device: its part of the optimizer step's.

    Attributes:
        total: sum over steps of weight * (loss + penalties).
        losses: loss of each step.
        statistics: of each step.
    """

    total: Tensor
    losses: list[Tensor]
    statistics: list[dict[str, Tensor]]


def backward(
    model: Model,
    batch: Batch,
    weights: Sequence[float | Tensor],
    *,
    sequences: int,
    loss: Loss = masked_cross_entropy,
    bptt: BpttSegments = full_gradient,
    activations: Activations = keep,
    statistics: bool = False,
    autocast: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Supervised:
    """Add the gradient of sum_k weights_k * loss_k to the parameters' ``grad``.

    It is that of the one graph which holds every step; with several segments, of that graph cut between them.

    Args:
        model: frozen as wanted.
        batch: a microbatch.
        weights: of each supervised step; 0 = its loss is reported only.
        sequences: of the optimizer step, over all microbatches and processes: what losses are divided by.
        loss: of a step's states (``components.objective.losses``).
        bptt: how far back a loss reaches.
        activations: what is kept of a step.
        statistics: also measure slots where there are any.
        autocast: the precision of the forward pass.
    """
    supervision = _Supervision(model, batch, weights, sequences, statistics, loss)
    with autocast():
        condition, carry, supervision.layout = model.begin(batch)
    outer: Tree = {"condition": condition, "carry": carry}
    inner = mapped(_leaf, outer)
    supervision.condition, carry = inner["condition"], inner["carry"]
    for numbers in bptt_segments(len(weights), bptt):
        terms = []
        for number in numbers:
            with autocast():
                term, state = activations(supervision.step(number, carry))
                supervision.report(number, state, term)
            terms.append(term)
            carry = state.carry
        if any(term.requires_grad for term in terms):
            torch.stack(terms).sum().backward()
        carry = mapped(Tensor.detach, carry)
    _send_on(outer, inner)
    return Supervised(torch.stack(supervision.terms).sum(), supervision.losses, supervision.measured)


class _Supervision:
    """The steps of one microbatch with their losses, and what they said."""

    condition: Tree
    layout: Layout

    def __init__(
        self, model: Model, batch: Batch, weights: Sequence[float | Tensor], sequences: int, statistics: bool, loss: Loss
    ) -> None:
        self.model, self.batch, self.weights, self.sequences = model, batch, weights, sequences
        self.statistics, self.loss = statistics, loss
        self.nothing = torch.zeros((), device=batch.tokens.device)
        self.terms, self.losses = [self.nothing] * len(weights), [self.nothing] * len(weights)
        self.measured: list[dict[str, Tensor]] = [{} for _ in weights]

    def step(self, number: int, carry: Tree) -> RunStep:
        """Step ``number`` from ``carry`` with its part of the loss, as ``components.objective.activations`` runs it."""

        def run(compute: bool) -> tuple[Tensor, State]:
            measure = compute or not self._supervised(number)  # nothing need ever run such a step again
            state = self.model.step(number, carry, self.condition, self.layout, self.statistics and measure)
            if measure:
                self.measured[number] = state.statistics
            if not self._supervised(number):
                return self.nothing, state
            loss, right = self.loss(self.model, state.hidden, self.batch, compute=compute)
            loss = loss / self.sequences
            term = self.weights[number] * (loss + self._penalties(state, right))
            if compute:
                self.losses[number], self.terms[number] = loss.detach(), term.detach()
            return term, state

        return run

    @torch.no_grad()
    def report(self, number: int, state: State, term: Tensor) -> None:
        """The loss of a step that is not supervised, or that no gradient reaches: nothing runs it again, with its loss."""
        if term.requires_grad or self.losses[number] is not self.nothing:
            return
        loss, right = self.loss(self.model, state.hidden, self.batch, compute=True)
        self.losses[number] = loss = loss / self.sequences
        if self._supervised(number):
            self.terms[number] = self.weights[number] * (loss + self._penalties(state, right))

    def _supervised(self, number: int) -> bool:
        weight = self.weights[number]
        return isinstance(weight, Tensor) or weight != 0

    def _penalties(self, state: State, right: Tensor) -> Tensor | float:
        share = len(self.batch) / self.sequences
        penalty = 0.0 if state.penalty is None else state.penalty * share
        if state.halt is None:
            return penalty
        return penalty + HALTING * halting_loss(state.halt, right, self.batch) / self.sequences


def _leaf(outer: Tensor) -> Tensor:
    """The same values where gradients gather instead of flowing on."""
    return outer.detach().requires_grad_(outer.requires_grad)


def _send_on(outer: Tree, inner: Tree) -> None:
    """Let what gathered in the leaves flow on."""
    pairs = [(o, i.grad) for o, i in zip(tensors(outer), tensors(inner), strict=True) if i.grad is not None]
    if pairs:
        torch.autograd.backward([o for o, _ in pairs], [gradient for _, gradient in pairs])
