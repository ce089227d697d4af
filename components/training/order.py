"""Which rows make up an optimizer step: a pure function of (seed, step), the same whatever reads them and however many processes.

Epochs follow each other without a seam: a step may take the last rows of one epoch and the first of the next, so that every row is
seen exactly once an epoch and every step is full. No shuffle buffer, hence no state: any step can be computed without those before.
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Int
from torch import Tensor

from components.noise import permutation

ROWS, BLOCKS, STEPS = (k << 32 for k in (1, 3, 5))  # streams of the shuffling noise; masks use streams 0, 1, ...


@dataclass(frozen=True)
class DeterministicSampler:
    """The endless stream of training rows, cut into steps of ``size``.

    Args:
        lengths: padded length of each row, in tokens. Rows of one length make up a step as far as they go, so that short rows are
            not padded to long ones; what is left over of every length is put together.
        size: rows of an optimizer step.
        seed: of the order.
        blocks: number of the stored block that each row lies in; needed for ``near``.
        near: shuffle among this many blocks at a time, for disks that are slow to seek; 0 = among all rows.
        shards: file of each block, for what can only be read as a stream: files come in any order, the blocks of each in theirs.

    Raises:
        ValueError: there are fewer rows than one step takes.
    """

    lengths: Int[Tensor, "rows"]
    size: int
    seed: int
    blocks: Int[Tensor, "rows"] | None = None
    near: int = 0
    shards: Int[Tensor, "blocks"] | None = None
    _epochs: dict[int, Tensor] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if len(self.lengths) < self.size:
            raise ValueError(f"a step of {self.size} rows needs at least as many training examples, there are {len(self.lengths)}")

    def step(self, number: int) -> tuple[Int[Tensor, "batch"], Int[Tensor, "batch"]]:
        """Rows of a step (from 0), and the epoch that each of them belongs to."""
        count, begin, end = len(self.lengths), number * self.size, (number + 1) * self.size
        epochs = range(begin // count, (end - 1) // count + 1)
        parts = [self.epoch(e)[max(begin - e * count, 0) : end - e * count] for e in epochs]
        seen = [torch.full((len(part),), e) for e, part in zip(epochs, parts, strict=True)]
        return (parts[0], seen[0]) if len(parts) == 1 else (torch.cat(parts), torch.cat(seen))

    def epoch(self, number: int) -> Int[Tensor, "rows"]:
        """List all rows in the order of one epoch."""
        if number not in self._epochs:
            for old in [e for e in self._epochs if e < number - 1]:
                self._epochs.pop(old, None)
            self._epochs[number] = self._arranged(self._shuffled(number), number)
        return self._epochs[number]

    def reading(self, epoch: int) -> Int[Tensor, "blocks"]:
        """Blocks in the order in which an epoch comes to them, ``near`` at a time."""
        assert self.blocks is not None
        if self.shards is None:
            return permutation(self.seed, BLOCKS + epoch, int(self.blocks.max()) + 1)
        files = permutation(self.seed, BLOCKS + epoch, int(self.shards.max()) + 1)
        return files.argsort()[self.shards].argsort(stable=True)

    def _shuffled(self, epoch: int) -> Int[Tensor, "rows"]:
        rows = permutation(self.seed, ROWS + epoch, len(self.lengths))
        if self.blocks is None or not self.near:
            return rows
        place = self.reading(epoch).argsort() // self.near
        return rows[place[self.blocks[rows]].argsort(stable=True)]

    def _arranged(self, rows: Int[Tensor, "rows"], epoch: int) -> Int[Tensor, "rows"]:
        """Steps of one length each, wherever the epoch has enough rows of it; the steps then shuffled."""
        kinds = self.lengths[rows]
        if int(kinds.min()) == int(kinds.max()):
            return rows
        steps, rest = list[Tensor](), list[Tensor]()
        for kind in kinds.unique():
            mine = rows[kinds == kind]
            whole = len(mine) - len(mine) % self.size
            steps += mine[:whole].split(self.size) if whole else ()
            rest.append(mine[whole:])
        left = torch.cat(rest)
        begun = -epoch * len(rows) % self.size  # rows that complete the last step of the epoch before
        if len(left) < begun:
            left = torch.cat([left, steps.pop()])
        first, left = left[:begun], left[begun:]
        whole = len(left) - len(left) % self.size
        steps += left[:whole].split(self.size) if whole else ()
        chosen = permutation(self.seed, STEPS + epoch, len(steps)).tolist()
        if self.near:  # blocks stay together as far as lengths allow
            place = rows.argsort()
            chosen.sort(key=lambda i: int(place[steps[i][0]]))
        return torch.cat([first, *(steps[i] for i in chosen), left[whole:]])
