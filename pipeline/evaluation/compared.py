"""Models that are put through the same batches: what they share is computed once a batch, and finished pieces survive a kill."""

from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial
from itertools import islice
from typing import TypeVar

import torch
from torch import Tensor

from components.backbones.backbone import BackboneModel
from components.backbones.shared_trunk import SharedTrunk
from components.batch import Batch
from components.model import Model
from pipeline.machine.cached_results import cached_result
from pipeline.machine.distributed import gathered, rank, world
from pipeline.machine.runtime import Runtime

T = TypeVar("T")
Work = Callable[[Model, Batch], Mapping[str, Tensor]]  # of a model, on a batch that it runs: with states if it begins there


class Compared:
    """Models by name, one device, and what those that are over the model named "frozen" have in common with it.

    Args:
        models: by name, on the runtime's device.
        runtime: where they compute.
    """

    def __init__(self, models: Mapping[str, Model], runtime: Runtime) -> None:
        self.models, self.runtime = models, runtime
        frozen = models.get("frozen")
        self.trunk = SharedTrunk(frozen, models) if isinstance(frozen, BackboneModel) else None
        self.above = {} if self.trunk is None else self.trunk.above

    def on(self, batches: Iterable[Batch], piece: str, work: Work) -> dict[str, list[dict[str, Tensor]]]:
        """Do work on every batch with every model; the batches are shared out among the processes, which all learn of all.

        Args:
            batches: the same in every process.
            piece: name of what is done, under which finished results are kept.
            work: what is done.

        Returns:
            What came of it by model, in the order of the batches, on the host.
        """
        mine: dict[str, list[dict[str, Tensor]]] = {name: [] for name in self.models}
        for number, batch in islice(enumerate(batches), rank(), None, world()):
            for name, result in self.on_one(batch, f"{piece}/{number}", work).items():
                mine[name].append(result)
        return {name: interleaved(gathered(results)) for name, results in mine.items()}

    @torch.no_grad()
    def on_one(self, batch: Batch, piece: str, work: Work) -> dict[str, dict[str, Tensor]]:
        """Do work on a batch with every model, in this process; the shared layers run when the first of them wants their states."""
        batch = batch.to(self.runtime.device)
        shared = cache(partial(self._with_states, batch))
        results = {}
        for name in self.models:
            results[name] = cached_result(f"{piece}/{name}", partial(self._worked, name, batch, shared, work))
        return results

    def whole(self, model: Model) -> Model:
        """The model that runs from the tokens on, of one that work was done with."""
        return next((self.models[name] for name, above in self.above.items() if above is model), model)

    def _worked(self, name: str, batch: Batch, shared: Callable[[], Batch], work: Work) -> Mapping[str, Tensor]:
        return work(self.above[name], shared()) if name in self.above else work(self.models[name], batch)

    def _with_states(self, batch: Batch) -> Batch:
        assert self.trunk is not None
        with self.runtime.autocast():
            return self.trunk.with_states(batch)


def interleaved(shares: list[list[T]]) -> list[T]:
    """What processes made of every ``world``-th batch, in the order of the batches.

    >>> interleaved([[0, 2, 4], [1, 3]])
    [0, 1, 2, 3, 4]
    """
    return [share[i] for i in range(len(shares[0])) for share in shares if i < len(share)]
