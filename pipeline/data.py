"""Batches for every phase, cached or live, in an order that is a pure function of (seed, epoch). The door to ``torchdata``.

A source yields one epoch's batches; ``loader`` walks epochs and is stateful (``state_dict`` / ``load_state_dict`` give exactly
the batches that an uninterrupted run would have seen). No randomness is ever drawn: order and masks are counter-based.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torchdata.nodes import BaseNode, Loader, Prefetcher

from components import noise
from components.batch import Batch
from components.tiny_lm import TinyLM
from pipeline.prepared import Split, Vocabulary
from pipeline.shards import Block, Shards, concatenate

Masking = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
ORDER = 1 << 32  # streams of the shuffling noise; masks use streams 0, 1, ...
VALIDATION = 1 << 33  # the stream of the validation masks, the same at every evaluation


class Source(Protocol):
    """One epoch of batches; ``shuffle`` = None keeps the stored order (and a last, smaller batch)."""

    layer: int  # that the batches' hidden states enter; 0 = from the tokens

    def epoch(self, epoch: int, batch_size: int, shuffle: int | None) -> Iterator[Batch]: ...

    def __len__(self) -> int: ...


class Examples:
    """Live batches from prepared examples: masks drawn anew each epoch, hidden states from the trunk if one is given.

    Args:
        split: the examples.
        vocabulary: their token ids.
        masking: the forward process (``components.masking``).
        seed: of the masks.
        draws: masks repeat after this many epochs, as cached draws do; None = never.
        stream: fixed noise stream instead of the epoch's (validation).
        trunk: backbone whose states entering ``layer`` come with each batch; None = batches without hidden states.
        layer: the split.
        dtype: states are rounded to it, as they are in shards.
        autocast: precision of the trunk, the one that extract ran it in.
    """

    def __init__(
        self,
        split: Split,
        vocabulary: Vocabulary,
        masking: Masking,
        seed: int,
        *,
        draws: int | None = None,
        stream: int | None = None,
        trunk: TinyLM | None = None,
        layer: int = 0,
        dtype: torch.dtype = torch.float32,
        autocast: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.split, self.vocabulary, self.masking, self.seed = split, vocabulary, masking, seed
        self.draws, self.stream, self.trunk, self.dtype = draws, stream, trunk, dtype
        self.autocast = autocast
        self.layer = layer

    def __len__(self) -> int:
        return len(self.split)

    def epoch(self, epoch: int, batch_size: int, shuffle: int | None) -> Iterator[Batch]:
        n = len(self.split)
        order = torch.arange(n) if shuffle is None else noise.permutation(shuffle, ORDER + epoch, n)
        for first in range(0, n if shuffle is None else n - n % batch_size, batch_size):
            yield self.batch(order[first : first + batch_size], epoch)

    def batch(self, rows: Tensor, epoch: int) -> Batch:
        """The batch of the given rows as masked in ``epoch``."""
        examples = self.split.take(rows)
        stream = self.stream if self.stream is not None else epoch if self.draws is None else epoch % self.draws
        assert examples.uid is not None
        numbers = noise.uniform(self.seed, stream, examples.uid, self.vocabulary.sequence + 1)
        masked, weights = self.masking(examples.response, numbers)
        batch = assemble(examples.tokens, masked, weights, examples.valid, self.vocabulary.mask_id)
        return batch if self.trunk is None else self._with_states(batch)

    @torch.no_grad()
    def _with_states(self, batch: Batch) -> Batch:
        assert self.trunk is not None
        moved = batch.to(self.trunk.norm.weight.device)
        with self.autocast():
            hidden = self.trunk.trunk(moved.tokens, moved.attention, self.layer)
        return replace(moved, hidden=hidden.to(self.dtype))


class Cached:
    """Batches from shards. Shards are permuted each epoch; rows are shuffled within windows of ``window`` rows.

    Args:
        shards: an opened folder.
        split: "train" or "validation".
        window: rows held in memory to shuffle among; at least one batch.
    """

    def __init__(self, shards: Shards, split: str, window: int) -> None:
        self.shards, self.split, self.window = shards, split, window
        self.draws = 1 if split == "validation" else int(shards.index["draws"])
        self.layer = int(shards.index["layer"])

    def __len__(self) -> int:
        return sum(entry["examples"] for entry in self.shards.entries(self.split, 0))

    def epoch(self, epoch: int, batch_size: int, shuffle: int | None) -> Iterator[Batch]:
        entries = self.shards.entries(self.split, epoch % self.draws)
        if shuffle is not None:
            entries = [entries[i] for i in noise.permutation(shuffle, ORDER + epoch, len(entries)).tolist()]
        rest: Block | None = None
        for number, window in enumerate(self._windows(entries, max(self.window, batch_size))):
            rows = window if rest is None else concatenate([rest, window])
            n = len(rows["uid"])
            if shuffle is not None:
                order = noise.permutation(shuffle, 2 * ORDER + (epoch << 20) + number, n)
                rows = {name: tensor[order] for name, tensor in rows.items()}
            for first in range(0, n - n % batch_size, batch_size):
                yield self._batch({name: tensor[first : first + batch_size] for name, tensor in rows.items()})
            rest = {name: tensor[n - n % batch_size :] for name, tensor in rows.items()}
        if shuffle is None and rest is not None and len(rest["uid"]):
            yield self._batch(rest)

    def _windows(self, entries: list[dict[str, Any]], rows: int) -> Iterator[Block]:
        held: list[Block] = []
        for block in self.shards.blocks(entries):
            held.append(block)
            if sum(len(b["uid"]) for b in held) >= rows:
                yield concatenate(held)
                held = []
        if held:
            yield concatenate(held)

    def _batch(self, rows: Block) -> Batch:
        batch = assemble(rows["tokens"], rows["masked"], rows["weights"], rows.get("valid"), self.shards.index["mask_id"])
        return replace(batch, hidden=rows["hidden"])


def assemble(tokens: Tensor, masked: Tensor, weights: Tensor, valid: Tensor | None, mask_id: int) -> Batch:
    """Put the mask over the targets: the one place where a Batch is made from examples, cached or live."""
    targets = tokens.long()
    seen = torch.where(masked, torch.tensor(mask_id), targets)
    return Batch(tokens=seen, targets=targets, masked=masked, weights=weights.float(), attention=valid)


class Epochs(BaseNode[Batch]):
    """Walks a source epoch after epoch, for ever or for ``epochs``; its state is {epoch, batch}."""

    def __init__(self, source: Source, batch_size: int, shuffle: int | None, epochs: int | None, start: int) -> None:
        super().__init__()
        self.source, self.batch_size, self.shuffle, self.epochs, self.start = source, batch_size, shuffle, epochs, start
        self._epoch = self._batch = 0
        self._batches: Iterator[Batch] = iter(())

    def reset(self, initial_state: dict[str, Any] | None = None) -> None:
        super().reset(initial_state)
        per_epoch = len(self.source) // self.batch_size if self.start else 1
        self._epoch, skip = divmod(self.start, per_epoch)
        if initial_state is not None:
            self._epoch, skip = initial_state["epoch"], initial_state["batch"]
        self._batch = 0
        self._batches = self.source.epoch(self._epoch, self.batch_size, self.shuffle)
        for _ in range(skip):
            self.next()

    def next(self) -> Batch:
        while self.epochs is None or self._epoch < self.epochs:
            batch = next(self._batches, None)
            if batch is not None:
                self._batch += 1
                return batch
            self._epoch, self._batch = self._epoch + 1, 0
            self._batches = self.source.epoch(self._epoch, self.batch_size, self.shuffle)
        raise StopIteration

    def get_state(self) -> dict[str, Any]:
        return {"epoch": self._epoch, "batch": self._batch}


def loader(source: Source, batch_size: int, shuffle: int | None = None, epochs: int | None = None, start: int = 0) -> Loader[Batch]:
    """A stateful loader; the next batches are made in a thread while the model computes.

    Args:
        source: the batches of an epoch.
        batch_size: rows of a batch.
        shuffle: seed of the order; None = stored order, with a last smaller batch.
        epochs: None = for ever.
        start: batch to begin with, counted from the first epoch on (training order).

    Raises:
        ValueError: the source has fewer rows than one training batch.
    """
    if shuffle is not None and len(source) < batch_size:
        raise ValueError(f"a batch of {batch_size} needs at least as many training examples, there are {len(source)}")
    return Loader(Prefetcher(Epochs(source, batch_size, shuffle, epochs, start), prefetch_factor=4))
