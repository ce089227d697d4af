"""Deep supervision: a loss at every recursion step, without its memory bill.

What would be kept naively for K steps over a large vocabulary is K times the logits and K times the graph of a step. Here logits
exist for some rows at a time (``components.objective.linear_cross_entropy``), the graph of a step is kept or made again
(``components.objective.activations``), and a segment whose states are detached from what follows is done with at once
(``components.recursion``). Training calls it through ``components.objective.objective``.

A batch may be the first of several denoising passes over the same sequences (``Batch.later``). They are unrolled into one
recursion as long as all of them: a pass of a model that remembers begins with the last carry of the pass before, and where the
gradient is cut is said of the whole. Losses are divided by sequences times passes: a step counts what as many single passes count.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from components.batch import Batch
from components.model import Model
from components.objective.activations import Activations, RunStep, keep
from components.objective.losses import HALTING, Loss, halting_loss, masked_cross_entropy
from components.recursion import BpttSegments, State, Tree, bptt_segments, detached, full_gradient, mapped, tensors
from components.refiners.core import Layout, recur

Disturb = Callable[[int, Tree, Model, Batch], Tree]  # of the carry that a supervised step starts from, by the step's number
Price = Callable[[Tree, Tree, Model, Batch], Tensor]  # of a step from one carry to the next


@dataclass(frozen=True)
class Supervised:
    """Numbers of a microbatch, on the device: its part of the optimizer step's.

    Attributes:
        total: sum over steps of weight * (loss + penalties).
        losses: loss of each step, of all passes together.
        statistics: of each step, pass after pass.
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
    lead: int = 0,
    disturb: Disturb | None = None,
    price: Price | None = None,
    statistics: bool = False,
    autocast: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Supervised:
    """Add the gradient of sum_k weights_k * loss_k to the parameters' ``grad``.

    It is that of the one graph which holds every step; with several segments, of that graph cut between them.

    Args:
        model: frozen as wanted.
        batch: a microbatch, perhaps with later passes over it.
        weights: of each supervised step of a pass; 0 = its loss is reported only.
        sequences: of the optimizer step, over all microbatches and processes: what losses are divided by.
        loss: of a step's states (``components.objective.losses``).
        bptt: how far back a loss reaches.
        activations: what is kept of a step.
        lead: steps that the recursion takes before, without gradient: later ones send theirs to the condition, and to what of the
            carry no step changes.
        disturb: changes the carry that a pass begins with, before what leads, and each that a later supervised step starts from.
        price: what a pass's last supervised step costs beside its loss, summed over sequences.
        statistics: also measure slots where there are any.
        autocast: the precision of the forward pass.
    """
    if lead and batch.later:
        raise ValueError("objective.Objective.lead goes before single passes alone, and these are unrolled; set it to None")
    divisor = sequences * len(batch.passes)
    over = partial(_Supervision, loss=loss, lead=lead, disturb=disturb, price=price, statistics=statistics)
    passes = [over(each, model, weights, divisor) for each in batch.passes]
    carry: Tree = {}
    for numbers in bptt_segments(len(weights) * len(passes), bptt):
        terms = []
        for place in numbers:
            of_pass, number = divmod(place, len(weights))
            supervision = passes[of_pass]
            with autocast():
                carry = supervision.disturbed(number, carry) if number else supervision.begin(carry)
            with autocast():
                term, state = activations(supervision.step(number, carry))
                supervision.report(number, carry, state, term)
            terms.append(term)
            carry = state.carry
        if any(term.requires_grad for term in terms):
            torch.stack(terms).sum().backward()
        carry = mapped(Tensor.detach, carry)
    for supervision in passes:
        _send_on(supervision.outer, supervision.inner)
    total = torch.stack([term for supervision in passes for term in supervision.terms]).sum()
    losses = [_sum(of_passes) for of_passes in zip(*(supervision.losses for supervision in passes), strict=True)]
    return Supervised(total, losses, [measured for supervision in passes for measured in supervision.measured])


@dataclass(eq=False)
class _Supervision:
    """The steps of one pass over a microbatch with their losses, and what they said."""

    batch: Batch
    model: Model
    weights: Sequence[float | Tensor]
    sequences: int
    loss: Loss
    lead: int
    disturb: Disturb | None
    price: Price | None
    statistics: bool

    layout: Layout = field(init=False)
    outer: Tree = field(init=False)
    inner: Tree = field(init=False)

    def __post_init__(self) -> None:
        self.nothing = torch.zeros((), device=self.batch.tokens.device)
        self.terms, self.losses = [self.nothing] * len(self.weights), [self.nothing] * len(self.weights)
        self.measured: list[dict[str, Tensor]] = [{} for _ in self.weights]

    def begin(self, memory: Tree) -> Tree:
        """What the first step starts from: after a pass that ended with ``memory`` with that, if the model remembers."""
        condition, carry, self.layout = self.model.begin(self.batch)
        carry = self.disturbed(0, carry)
        with torch.no_grad():
            for state in recur(self.model.step, range(self.lead), carry, condition, self.layout, False):
                carry = detached(state.carry, carry)
        self.outer = {"condition": condition, "carry": carry}
        self.inner = mapped(_leaf, self.outer)
        fresh: Tree = self.inner["carry"]
        return self.model.recalled(fresh, memory) if memory and self.model.remembers else fresh

    def disturbed(self, number: int, carry: Tree) -> Tree:
        """The carry that step ``number`` starts from, of the one that is handed to it."""
        return carry if self.disturb is None else self.disturb(number, carry, self.model, self.batch)

    def step(self, number: int, carry: Tree) -> RunStep:
        """Step ``number`` from ``carry`` with its part of the loss, as ``components.objective.activations`` runs it."""
        return partial(self._run, number, carry)

    def _run(self, number: int, carry: Tree, compute: bool) -> tuple[Tensor, State]:
        measure = compute or not self._supervised(number)  # nothing need ever run such a step again
        state = self.model.step(self.lead + number, carry, self.inner["condition"], self.layout, self.statistics and measure)
        if measure:
            self.measured[number] = state.statistics
        if not self._supervised(number):
            return self.nothing, state
        loss, right = self.loss(self.model, state.hidden, self.batch, compute=compute)
        loss = loss / self.sequences
        term = self.weights[number] * (loss + self._penalties(number, carry, state, right))
        if compute:
            self.losses[number], self.terms[number] = loss.detach(), term.detach()
        return term, state

    @torch.no_grad()
    def report(self, number: int, carry: Tree, state: State, term: Tensor) -> None:
        """The loss of a step that is not supervised, or that no gradient reaches: nothing runs it again, with its loss."""
        if term.requires_grad or self.losses[number] is not self.nothing:
            return
        loss, right = self.loss(self.model, state.hidden, self.batch, compute=True)
        self.losses[number] = loss = loss / self.sequences
        if self._supervised(number):
            self.terms[number] = self.weights[number] * (loss + self._penalties(number, carry, state, right))

    def _supervised(self, number: int) -> bool:
        weight = self.weights[number]
        return isinstance(weight, Tensor) or weight != 0

    def _penalties(self, number: int, carry: Tree, state: State, right: Tensor) -> Tensor | float:
        share = len(self.batch) / self.sequences
        penalty = 0.0 if state.penalty is None else state.penalty * share
        if self.price is not None and number == len(self.weights) - 1:
            penalty = penalty + self.price(carry, state.carry, self.model, self.batch) / self.sequences
        if state.halt is None:
            return penalty
        return penalty + HALTING * halting_loss(state.halt, right, self.batch) / self.sequences


def _sum(of_passes: Sequence[Tensor]) -> Tensor:
    """The sum over passes; the very number of a single one."""
    return of_passes[0] if len(of_passes) == 1 else torch.stack(list(of_passes)).sum()


def _leaf(outer: Tensor) -> Tensor:
    """The same values where gradients gather instead of flowing on."""
    return outer.detach().requires_grad_(outer.requires_grad)


def _send_on(outer: Tree, inner: Tree) -> None:
    """Let what gathered in the leaves flow on."""
    pairs = [(o, i.grad) for o, i in zip(tensors(outer), tensors(inner), strict=True) if i.grad is not None]
    if pairs:
        torch.autograd.backward([o for o, _ in pairs], [gradient for _, gradient in pairs])
