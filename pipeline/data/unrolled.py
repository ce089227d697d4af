"""Batches of several denoising passes: the nested mask draws of the same rows, one after the other."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from torch import Tensor

from components.batch import Batch
from components.training.order import DeterministicSampler
from pipeline.data.batches import Chosen, Deferred, Source
from pipeline.errors import ConfigError


class Unrolled:
    """A source whose batches hold the passes after the first as ``later``; epoch e reads draws passes * e to passes * (e + 1) - 1.

    Args:
        source: of single draws, nested by ``passes``; reading any of them costs what reading the first costs.
        passes: draws of a batch.

    Raises:
        ConfigError: the source's draws are not nested so.
    """

    def __init__(self, source: Source, passes: int) -> None:
        if source.nested != passes:
            raise ConfigError(
                f"sources.unrolled reads {passes} nested mask draws together, and those of {source.stage} are nested by "
                f"{source.nested}; set extract.run.masking (of live states sources.live.masking) = @nested.Nested(), "
                f"nested.Nested.passes = {passes}, and read them by @sources.cached, @sources.live or @sources.remote"
            )
        self.source, self.passes = source, passes
        self.layer, self.taps, self.padded, self.nested = source.layer, source.taps, source.padded, source.nested
        self.fingerprint, self.stage = source.fingerprint, source.stage

    def __len__(self) -> int:
        return len(self.padded)

    def sampler(self, size: int, seed: int) -> DeterministicSampler:
        """Order rows as the source does: a step holds as many of them, in all passes."""
        return self.source.sampler(size, seed)

    def deferred(self, chosen: Iterator[Chosen], sampler: DeterministicSampler | None = None) -> Iterator[Deferred]:
        """Defer each of the chosen batches with all its passes."""
        return (partial(self.batch, *pair) for pair in chosen)

    def batch(self, rows: Tensor, epochs: Tensor) -> Batch:
        """Read the given rows' draws of the epoch, the one with the most masks first."""
        first, *later = (self.source.batch(rows, self.passes * epochs + number) for number in range(self.passes))
        return replace(first, later=tuple(later))
