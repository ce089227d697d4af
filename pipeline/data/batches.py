"""What training reads: sources give any rows of any epoch as a Batch, cached or live, and training cannot tell which.

No randomness is ever drawn: order and masks are counter-based, so a batch is a pure function of its rows and their epochs.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from components import noise
from components.backbones.backbone import BackboneModel
from components.backbones.taps import tapped_trunk
from components.batch import Batch
from components.objective.nested import Masking, draw, passes_of, single
from components.training.grid_symmetries import Augmentation
from components.training.order import DeterministicSampler
from pipeline.corpora.prepared import Split, Vocabulary
from pipeline.data.reader import ShardReader
from pipeline.data.remote import RemoteTrunk
from pipeline.data.shard_index import ShardIndex
from pipeline.errors import ConfigError, DataError
from pipeline.models.backbones import Backbone

Chosen = tuple[Tensor, Tensor]  # rows of a batch, and the epoch of each
Deferred = Callable[[], Batch]  # makes one batch, in any thread
# One thread at a time: a pretrained trunk is patched while it runs, and which kernels compute attention is the process's to say.
TRUNK = threading.RLock()
AUGMENTATION = 1 << 35  # where the streams of augmentation begin, which has one for each of the masks
VALIDATION = 1 << 33  # the stream of the validation masks, the same at every evaluation
NO_GRID = "augment makes other grid puzzles of those of the corpus, and this one holds none; set it to None"


class Source(Protocol):
    """Interface of where the rows of a split come from.

    Attributes:
        layer: that the batches' hidden states enter; 0 = the first, from the tokens.
        taps: layers below it whose entering states come with them.
        padded: tokens that each row takes up in a batch.
        fingerprint: digest of the data's manifest; "" = it has none.
        nested: how many mask draws of a row in turn are nested; 1 = they are independent.
        stage: that wrote the data.
    """

    layer: int
    taps: tuple[int, ...]
    nested: int
    padded: Tensor
    fingerprint: str
    stage: str

    def sampler(self, size: int, seed: int) -> DeterministicSampler:
        """The order of training, in steps of ``size`` rows."""

    def batch(self, rows: Tensor, epochs: Tensor) -> Batch:
        """The given rows, each as masked in its epoch, padded to the longest ``padded`` among them."""

    def deferred(self, chosen: Iterator[Chosen], sampler: DeterministicSampler | None = None) -> Iterator[Deferred]:
        """For each of the chosen batches what makes it. One thread at a time asks for the next; any thread may make it.

        Args:
            chosen: rows of each batch.
            sampler: the order that they are chosen in; None = by row.
        """


class Sources(Protocol):
    """Interface of what opens the rows of a split: ``pipeline.data.sources``."""

    def __call__(self, split: str, *, backbone: Backbone) -> Source: ...


def padded_lengths(lengths: Tensor, buckets: Sequence[int], sequence: int) -> Tensor:
    """The smallest bucket that holds each length; the whole sequence is always one.

    >>> padded_lengths(torch.tensor([3, 64, 65, 200]), [64, 128], 256).tolist()
    [64, 64, 128, 256]
    """
    bounds = torch.tensor(sorted({*(b for b in buckets if b < sequence), sequence}))
    return bounds[torch.searchsorted(bounds, lengths)]


class LiveSource:
    """Live batches from prepared examples: masks drawn anew each epoch, hidden states from the trunk if one is given.

    Args:
        split: the examples.
        vocabulary: their token ids.
        masking: the forward process (``components.objective.masking``).
        seed: of the masks.
        buckets: lengths that batches are padded to; the whole sequence is always one.
        draws: masks repeat after this many epochs, as cached draws do; None = never.
        stream: fixed noise stream instead of the epoch's (validation): one draw, nested in none.
        trunk: backbone whose states entering ``layer`` come with each batch; None = batches without hidden states.
        layer: the split.
        taps: layers below it whose entering states come too.
        dtype: states are rounded to it, as they are in shards.
        autocast: precision of the trunk, the one that extract ran it in.
        augment: makes another example of a row in every draw, nested ones the same; not in a fixed stream. None = rows stay.
        fingerprint: digest of the data's manifest.

    Attributes:
        remote: client of a trunk in another process, in place of ``trunk``; None = there is none.
    """

    stage = "prepare"
    remote: RemoteTrunk | None = None

    def __init__(
        self,
        split: Split,
        vocabulary: Vocabulary,
        masking: Masking,
        seed: int,
        *,
        buckets: Sequence[int] = (),
        draws: int | None = None,
        stream: int | None = None,
        trunk: BackboneModel | None = None,
        layer: int = 0,
        taps: tuple[int, ...] = (),
        dtype: torch.dtype = torch.float32,
        autocast: Callable[[], AbstractContextManager[None]] = nullcontext,
        augment: Augmentation | None = None,
        fingerprint: str = "",
    ) -> None:
        if augment is not None and vocabulary.rendering != "sudoku":
            raise ConfigError(NO_GRID)
        self.split, self.vocabulary, self.seed = split, vocabulary, seed
        self.augment = augment if stream is None else None
        self.masking = masking if stream is None else single(masking)
        self.nested = passes_of(self.masking)
        self.draws, self.stream, self.trunk, self.dtype = draws, stream, trunk, dtype
        self.autocast, self.layer, self.taps, self.fingerprint = autocast, layer, taps, fingerprint
        self.padded = padded_lengths(split.lengths(), buckets, split.tokens.shape[1])

    def __len__(self) -> int:
        return len(self.split)

    def sampler(self, size: int, seed: int) -> DeterministicSampler:
        return DeterministicSampler(self.padded, size, seed)

    def deferred(self, chosen: Iterator[Chosen], sampler: DeterministicSampler | None = None) -> Iterator[Deferred]:
        return (partial(self.batch, *pair) for pair in chosen)

    def batch(self, rows: Tensor, epochs: Tensor) -> Batch:
        examples = self.split.take(rows)
        streams = torch.full_like(epochs, self.stream) if self.stream is not None else epochs
        streams = streams if self.draws is None or self.stream is not None else streams % self.draws
        assert examples.uid is not None
        tokens, response = examples.tokens, examples.response
        if self.augment is not None:
            groups = AUGMENTATION + streams.div(self.nested, rounding_mode="floor")
            tokens, response = self.augment(tokens, response, noise.uniform(self.seed, groups, examples.uid, tokens.shape[1] + 1))
        masked, weights = draw(self.masking, response, self.seed, streams, examples.uid)
        batch = assemble(tokens, masked, weights, examples.valid, self.vocabulary)
        batch = batch.cut(int(self.padded[rows].max()))
        if self.remote is not None:
            return batch.entered(self.remote.states(batch.tokens, batch.attention), self.taps)
        return batch if self.trunk is None else self._with_states(batch)

    def _with_states(self, batch: Batch) -> Batch:
        assert self.trunk is not None
        moved = batch.to(self.trunk.head.weight.device)
        states = states_of(self.trunk, moved.tokens, moved.attention, self.layer, self.taps, self.autocast)
        return batch.entered(states.to(self.dtype), self.taps)  # the rest moves with it, its masked positions found on the host


@torch.no_grad()
def states_of(
    trunk: BackboneModel,
    tokens: Tensor,
    attention: Tensor | None,
    layer: int,
    taps: Sequence[int],
    autocast: Callable[[], AbstractContextManager[None]],
) -> Tensor:
    """Run a trunk over tokens on its device, one thread at a time; states enter ``layer``, behind them those of taps."""
    with TRUNK, autocast():
        return tapped_trunk(trunk, tokens, attention, layer, taps)


class CachedSource:
    """Batches from shards; epochs walk the stored draws.

    Args:
        shards: an opened folder.
        split: "train" or "validation".
        buckets: lengths that batches are padded to; the whole sequence is always one.
        near: shuffle among this many blocks at a time, for disks that are slow to seek; 0 = among all rows.
    """

    stage = "extract"

    def __init__(self, shards: ShardReader, split: str, buckets: Sequence[int] = (), near: int = 0) -> None:
        self.shards, self.near = shards, near
        draws = 1 if split == "validation" else int(shards.index["draws"])
        stored = [shards.rows(split, draw) for draw in range(draws)]
        if any(not np.array_equal(shards.uid[rows], shards.uid[stored[0]]) for rows in stored):
            raise DataError(f"{shards.folder}: draws of {split} do not hold the same rows; run dvc repro extract")
        self.positions = torch.stack(stored)
        self.layer, self.taps, self.fingerprint = int(shards.index["layer"]), shards.table.taps, shards.fingerprint
        self.nested = shards.index.get("nested", 1)
        first = self.positions[0]
        blocks = torch.from_numpy(shards.block)[first]
        self.blocks = blocks - blocks.min()
        sequence = int(shards.index["sequence"])
        self.padded = padded_lengths(torch.from_numpy(shards.length)[first], buckets, sequence)

    def __len__(self) -> int:
        return self.positions.shape[1]

    def sampler(self, size: int, seed: int) -> DeterministicSampler:
        return DeterministicSampler(self.padded, size, seed, self.blocks, self.near)

    def deferred(self, chosen: Iterator[Chosen], sampler: DeterministicSampler | None = None) -> Iterator[Deferred]:
        return (partial(self.batch, *pair) for pair in chosen)

    def batch(self, rows: Tensor, epochs: Tensor) -> Batch:
        padded = int(self.padded[rows].max())
        return stored_batch(self.shards.table, self.shards.read(self.positions[epochs % len(self.positions), rows], padded))


def stored_batch(table: ShardIndex, fields: dict[str, Tensor]) -> Batch:
    """Make a Batch of rows as they were stored."""
    padded = fields["tokens"].shape[1]
    attention = torch.arange(padded) < fields["length"][:, None] if table.index["padded"] else None
    batch = Batch(
        tokens=fields["tokens"].long(), targets=fields["targets"].long(), masked=fields["masked"], weights=fields["weights"],
        attention=attention, scale=fields.get("scale"), channel=table.channel,
    )  # fmt: skip
    return batch.entered(fields["hidden"], table.taps)


def assemble(tokens: Tensor, masked: Tensor, weights: Tensor, valid: Tensor | None, vocabulary: Vocabulary) -> Batch:
    """The one place where a Batch is made from examples: the mask is put over the targets.

    Causal: nothing is hidden, and what is to be predicted stands one place earlier. A first token is predicted from nothing, and
    is left out.
    """
    targets, weights = tokens.long(), weights.float()
    if vocabulary.causal:
        following, predicted, weights = (F.pad(x[:, 1:], (0, 1)) for x in (targets, masked, weights))
        return Batch(targets, following, predicted, weights, valid)
    seen = torch.where(masked, torch.tensor(vocabulary.mask_id), targets)
    return Batch(tokens=seen, targets=targets, masked=masked, weights=weights, attention=valid)
