"""Decoding a masked-diffusion model: everything at once, or a few tokens at a time, most certain first.

One sampler serves evaluation and generation. What was committed is revisited by a rule alone (``components.inference.revising``),
the mask itself is never predicted, and nothing about a row depends on the other rows.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from components import noise
from components.inference.revising import Rule
from components.ranges import Depth, NonNegativeFloat, PositiveInt, Range, Seed, Share

# token ids, the positions that are queried -> their logits, row after row
Predict = Callable[[Int[Tensor, "batch seq"], Bool[Tensor, "batch seq"]], Float[Tensor, "places vocab"]]
LONGEST = 1 << 24  # positions that noise can tell apart


def low_confidence_remasking(
    predict: Predict,
    tokens: Int[Tensor, "batch seq"],
    mask_id: int,
    steps: int,
    blocks: int = 1,
    known: Bool[Tensor, "ids"] | None = None,
) -> "Pass":
    """The last of ``steps`` passes, an equal share of each block's tokens decoded in each; see ``Sampler``.

    Raises:
        ValueError: blocks do not divide steps.
    """
    return deque(Sampler(steps, blocks).passes(predict, tokens, mask_id, known=known), maxlen=1).pop()


@dataclass(frozen=True)
class Pass:
    """State of a decode after one of its passes.

    Attributes:
        tokens: ids; the mask id where nothing is decided yet.
        probability: of each token when it was committed; 1 in the prompt, 0 where nothing is decided or the model was not asked.
        committed: True where this pass committed a token.
        evaluations: runs of the model that each row took so far.
    """

    tokens: Int[Tensor, "batch seq"]
    probability: Float[Tensor, "batch seq"]
    committed: Bool[Tensor, "batch seq"]
    evaluations: Int[Tensor, "batch"]


@dataclass(frozen=True)
class Sampler:
    """Low-confidence remasking: a pass predicts all masked tokens, keeps the most certain ones and masks the rest again.

    The masked positions of each row are cut left to right into ``blocks`` equal blocks, decoded one after the other
    (semi-autoregressive); each block takes ``steps / blocks`` passes and commits an equal share in each, the remainder first.
    Sources: Nie et al., LLaDA (2025), algorithm 5 (low-confidence remasking), sections B.4 (blocks) and 2.4 (guidance); Wu et al.,
    Fast-dLLM (2025), ``threshold``.

    Args:
        steps: passes at most, of all blocks together; None = one for each token.
        blocks: cut left to right; 1 = pure diffusion.
        temperature: 0 = the most likely token; above, drawn at that temperature (Gumbel-max).
        guidance: scale of classifier-free guidance: logits u + (scale + 1)(c - u), where u does not see the prompt; 0 = none, up
            to 1000: a pass runs the model twice.
        threshold: probability from which on tokens are committed beyond a pass's share, and at least one is; None = none.
        end_confidence: factor on an end's probability where tokens are ranked; 0 = ends come after everything else, so that a flood
            of early ones cannot cut an answer short.
        seed: of what is drawn.
        revise: which decided tokens of a block are masked again after a pass, but for its last (``components.inference.revising``);
            the next pass commits as many more, so that the passes stay as many. None = what is decided stays.
        revisions: how often each place may be masked again.
    """

    steps: Depth | None = None
    blocks: Depth = 1
    temperature: NonNegativeFloat = 0.0
    guidance: Annotated[float, Range(ge=0, le=1000)] = 0.0
    threshold: Share | None = None
    end_confidence: Share = 1.0
    seed: Seed = 0
    revise: Rule | None = None
    revisions: PositiveInt = 1

    def check(self) -> None:
        """Raise ValueError unless the settings fit together."""
        if self.blocks < 1 or (self.steps is not None and (self.steps < 1 or self.steps % self.blocks)):
            raise ValueError(f"steps must be a positive multiple of blocks, got steps {self.steps} and blocks {self.blocks}")
        if self.temperature < 0 or self.guidance < 0:
            raise ValueError(f"temperature and guidance must be at least 0, got {self.temperature} and {self.guidance}")
        if not 0 <= self.end_confidence <= 1:
            raise ValueError(f"end_confidence must lie within 0..1, got {self.end_confidence}")
        if self.revisions < 1:
            raise ValueError(f"revisions must be at least 1, got {self.revisions}; without any, leave revise None")

    def passes(
        self,
        predict: Predict,
        tokens: Int[Tensor, "batch seq"],
        mask_id: int,
        *,
        end_id: int | None = None,
        uid: Int[Tensor, "batch"] | None = None,
        finish: Predict | None = None,
        finishing: int = 1,
        known: Bool[Tensor, "ids"] | None = None,
    ) -> Iterator[Pass]:
        """Run the decode and yield after every pass.

        Args:
            predict: one pass of the model.
            tokens: prompt and ``mask_id`` wherever a token is wanted.
            mask_id: never predicted.
            end_id: a row is done when all before its first end is decided; what is still masked after it becomes ends.
            uid: key of each row's noise; needed to draw.
            finish: predicts in ``predict``'s place where a block is left no more tokens than its last ``finishing`` passes commit.
            finishing: how many those are.
            known: whether an id has a token; without one it is never predicted, nor are ids beyond these. None = all have.

        Raises:
            ValueError: settings that do not fit together, or tokens are to be drawn without ``uid``.
        """
        self.check()
        answer = tokens == mask_id
        order, total = answer.cumsum(1) - 1, answer.sum(1, keepdim=True)
        probability, evaluations = (~answer).float(), torch.zeros_like(total[:, 0])
        finished, revised = torch.zeros_like(total, dtype=torch.bool), torch.zeros_like(tokens)
        revisions = 0 if self.revise is None else self.revisions
        for block in range(self.blocks):
            inside = answer & (order >= total * block // self.blocks) & (order < total * (block + 1) // self.blocks)
            schedule = _Schedule(inside.sum(1, keepdim=True), self.steps and self.steps // self.blocks)
            reserve = torch.zeros_like(total) if finish is None else schedule.left_for_the_last(finishing)
            for number in range(schedule.passes):
                candidates = inside & (tokens == mask_id) & ~finished
                left = candidates.sum(1, keepdim=True)
                if (self.threshold is not None or end_id is not None) and not left.any():
                    break
                late = (left > 0) & ((left <= reserve) | schedule.is_among_the_last(finishing, number))
                open_to_doubt = (left > 0) & ~schedule.is_among_the_last(1, number) & (revised < revisions)
                decided = inside & (tokens != mask_id) & open_to_doubt
                queried = candidates | decided  # what else there is is not looked at
                logits = self._guided(_in_turn(predict, finish, left, late), tokens, answer, mask_id, queried)
                turn = left if self.revise is None else evaluations[:, None] + 1  # as no other pass of the row has
                undecided = without(logits[candidates[queried]], mask_id, known)
                certain, best = (_placed(each, candidates) for each in self._chosen(undecided, candidates, turn, uid))
                score = certain if end_id is None else torch.where(best == end_id, certain * self.end_confidence, certain)
                share = left - schedule.left_after(number)
                committed = candidates & self._ranked(score, candidates, left, share, torch.where(late, 0, reserve))
                doubted = self._doubted(without(logits[decided[queried]], mask_id, known), tokens, decided)
                tokens = torch.where(committed, best, tokens).masked_fill(doubted, mask_id)
                probability = torch.where(committed, certain, probability).masked_fill(doubted, 0.0)
                evaluations = evaluations + (left[:, 0] > 0) * (2 if self.guidance else 1)
                revised = revised + doubted
                if end_id is not None:
                    finished = _ended(tokens, answer, mask_id, end_id)
                    tokens = torch.where(finished & (tokens == mask_id), end_id, tokens)
                yield Pass(tokens, probability, committed, evaluations)

    def _doubted(
        self,
        logits: Float[Tensor, "places vocab"],
        tokens: Int[Tensor, "batch seq"],
        decided: Bool[Tensor, "batch seq"],
    ) -> Bool[Tensor, "batch seq"]:
        """The decided tokens that are masked again, by how probable the pass finds them."""
        if self.revise is None or not decided.any():
            return torch.zeros_like(decided)
        probability = logits.softmax(-1).gather(-1, tokens[decided][:, None].long())[:, 0]
        return decided & self.revise(_placed(probability, decided), decided)

    def _ranked(
        self,
        score: Float[Tensor, "batch seq"],
        candidates: Bool[Tensor, "batch seq"],
        left: Int[Tensor, "batch 1"],
        share: Int[Tensor, "batch 1"],
        reserve: Int[Tensor, "batch 1"],
    ) -> Bool[Tensor, "batch seq"]:
        """The positions that a pass commits: the first ``share`` by score, more where the threshold says so."""
        score = score.masked_fill(~candidates, -1.0)
        rank = score.argsort(dim=1, descending=True, stable=True).argsort(dim=1, stable=True)
        if self.threshold is not None:
            sure = (score >= self.threshold).sum(1, keepdim=True)
            share = torch.minimum(torch.maximum(share, sure.clamp_min(1)), left - reserve)
        return rank < share

    def _guided(
        self,
        predict: Predict,
        tokens: Int[Tensor, "batch seq"],
        answer: Bool[Tensor, "batch seq"],
        mask_id: int,
        queried: Bool[Tensor, "batch seq"],
    ) -> Float[Tensor, "places vocab"]:
        """The queried logits, away from those that the model gives where it does not see the prompt."""
        if not self.guidance:
            return predict(tokens, queried)
        unconditional = predict(torch.where(answer, tokens, mask_id), queried).float()
        return unconditional + (self.guidance + 1) * (predict(tokens, queried).float() - unconditional)

    def _chosen(
        self,
        logits: Float[Tensor, "places vocab"],
        candidates: Bool[Tensor, "batch seq"],
        turn: Int[Tensor, "batch 1"],
        uid: Int[Tensor, "batch"] | None,
    ) -> tuple[Float[Tensor, "places"], Int[Tensor, "places"]]:
        """A token for each place, the most likely or one that is drawn, and its probability.

        What is drawn depends on the row, how many of its tokens are undecided, and the position: on nothing that a batch decides.
        """
        if not self.temperature:
            return most_likely(logits)
        rows, columns = candidates.nonzero(as_tuple=True)
        drawn = self.drawn(logits, turn[rows, 0] * LONGEST + columns, None if uid is None else uid[rows])
        return logits.softmax(-1).gather(-1, drawn[:, None])[:, 0], drawn

    def drawn(
        self, logits: Float[Tensor, "rows vocab"], number: Int[Tensor, "rows"], uid: Int[Tensor, "rows"] | None
    ) -> Int[Tensor, "rows"]:
        """Draw a token for each row at the temperature, with the noise of this ``number`` and ``uid``."""
        if uid is None:
            raise ValueError("to draw tokens, every row needs a uid")
        gumbel = -(-noise.uniform(self.seed, number, uid, logits.shape[-1]).log()).log()
        return (logits.double() + self.temperature * gumbel).argmax(-1)


class _Schedule:
    """How many tokens of a block, ``size`` of each row, are left after each pass: equal shares, the remainder first."""

    def __init__(self, size: Int[Tensor, "batch 1"], steps: int | None) -> None:
        self.size = size
        self.passes = int(size.max()) if steps is None else steps
        self.last = size.clamp(1, max(1, self.passes))  # as many passes as a row has something to commit in

    def left_after(self, number: int | Int[Tensor, "batch 1"]) -> Int[Tensor, "batch 1"]:
        """Tokens left after pass ``number``, from 0."""
        whole, remainder = self.size // self.last, self.size % self.last
        return (whole * (self.last - 1 - number) + (remainder - 1 - number).clamp_min(0)).clamp_min(0)

    def is_among_the_last(self, n: int, number: int) -> Bool[Tensor, "batch 1"]:
        """Whether pass ``number`` is one of the last ``n`` in which a row commits."""
        return number >= self.last - n

    def left_for_the_last(self, n: int) -> Int[Tensor, "batch 1"]:
        """Tokens that the last ``n`` passes of each row commit."""
        return torch.where(self.last > n, self.left_after(self.last - n - 1), self.size)


def _placed(values: Shaped[Tensor, "places"], where: Bool[Tensor, "batch seq"]) -> Shaped[Tensor, "batch seq"]:
    """Values of places in whole rows, 0 beside them."""
    return torch.zeros_like(where, dtype=values.dtype).masked_scatter(where, values)


def _in_turn(predict: Predict, finish: Predict | None, left: Int[Tensor, "batch 1"], late: Bool[Tensor, "batch 1"]) -> Predict:
    """``predict`` for rows whose last passes, which are those of ``finish``, have not come."""
    early = (left > 0) & ~late
    if finish is None or not late.any():
        return predict
    if not early.any():
        return finish

    def by_row(tokens: Int[Tensor, "batch seq"], queried: Bool[Tensor, "batch seq"]) -> Float[Tensor, "places vocab"]:
        of_late, logits = late.expand_as(queried)[queried], predict(tokens, queried & ~late)
        both = logits.new_empty(len(of_late), logits.shape[-1])
        both[~of_late], both[of_late] = logits, finish(tokens, queried & late)
        return both

    return by_row


def _ended(
    tokens: Int[Tensor, "batch seq"], answer: Bool[Tensor, "batch seq"], mask_id: int, end_id: int
) -> Bool[Tensor, "batch 1"]:
    """Rows whose answer holds an end with nothing undecided before it."""
    undecided = (answer & (tokens == mask_id)).cumsum(1)
    return (answer & (tokens == end_id) & (undecided == 0)).any(1, keepdim=True)


def without(logits: Float[Tensor, "*rows vocab"], mask_id: int, known: Bool[Tensor, "ids"] | None) -> Float[Tensor, "*rows vocab"]:
    """Copy the logits, so that neither the mask id has a chance nor one that no token has."""
    logits = logits.to(torch.float32, copy=True)
    logits[..., mask_id : mask_id + 1] = -torch.inf  # a causal model's is no id of its
    if known is not None:
        logits[..., : len(known)].masked_fill_(~known.to(logits.device)[: logits.shape[-1]], -torch.inf)
        logits[..., len(known) :] = -torch.inf
    return logits


def most_likely(logits: Float[Tensor, "*rows vocab"]) -> tuple[Float[Tensor, "*rows"], Int[Tensor, "*rows"]]:
    """Find the most likely token; returns its probability and its id."""
    probability, best = logits.softmax(-1).max(-1)
    return probability, best
