"""ChunkMasking: refinement of chosen parts of a sequence, by where they stand. The other tokens come out bit-identical.

A mask saves no work: skipped tokens are still attended to. What goes by the backbone's confidence, and saves it: ``hybrid``.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from einops import repeat
from jaxtyping import Bool, Float
from torch import Tensor, nn

from components.ranges import NonNegativeInt, PositiveInt
from components.recursion import State, Tree
from components.refiners.core import Core, Inputs, Layout


class ChunkMasking(Core):
    """A refiner that may change some chunks of every sequence and no others, in training as at inference.

    Args:
        dim: width of the states.
        refiner: takes dim.
        chunk: tokens of a chunk; a last shorter chunk is one too.
        refined: which chunks may change, counted from 0; chunks that a sequence does not have count for nothing.

    Raises:
        ValueError: a chunk of no token, no chunk at all, or a negative one.
    """

    def __init__(
        self, dim: int, refiner: Callable[..., Core], chunk: PositiveInt = 16, refined: Sequence[NonNegativeInt] = (0,)
    ) -> None:
        super().__init__()
        if chunk < 1 or not refined or min(refined) < 0:
            raise ValueError(f"chunks need at least 1 token and a number from 0 on, got chunk {chunk}, refined {list(refined)}")
        self.refiner = refiner(dim=dim)
        self.dim, self.n_steps = dim, self.refiner.n_steps
        self.context_layers, self.needs_confidence = self.refiner.context_layers, self.refiner.needs_confidence
        self.incremental, self.taps, self.anchored = self.refiner.incremental, self.refiner.taps, self.refiner.anchored
        self.chunk, self.refined = chunk, tuple(refined)
        self.architecture = {
            "core": "ChunkMasking", "dim": dim, "refiner": self.refiner.architecture, "chunk": chunk, "refined": list(refined)
        }  # fmt: skip

    def init_weights(self, hidden_rms: float, generator: torch.Generator) -> None:
        """Fill the weights of the refiner."""
        self.refiner.init_weights(hidden_rms, generator)

    def condition(self, inputs: Inputs, layout: Layout) -> Tree:
        """Mark the positions that may change, beside the refiner's own condition."""
        rows, seq, _ = inputs.x.shape
        places = torch.arange(seq, device=inputs.x.device).expand(rows, -1) if layout.places is None else layout.places
        positions = torch.isin(places // self.chunk, torch.tensor(self.refined, device=places.device))
        if layout.positions is not None:
            positions = positions & layout.positions
        return {"positions": positions, "inner": self.refiner.condition(inputs, replace(layout, positions=positions))}

    def initial_carry(self, hidden: Float[Tensor, "batch seq dim"], condition: Tree) -> Tree:
        """Start where the refiner starts."""
        return self.refiner.initial_carry(hidden, condition["inner"])

    def step(self, number: int, carry: Tree, condition: Tree, layout: Layout, statistics: bool = False) -> State:
        """Take the refiner's step, at the marked positions."""
        layout = replace(layout, positions=condition["positions"])
        return self.refiner.step(number, carry, condition["inner"], layout, statistics)

    def compile_targets(self) -> list[nn.Module]:
        """Name what the refiner would compile."""
        return self.refiner.compile_targets()


def chunk_positions(chunks: Bool[Tensor, "batch chunks"], seq: int) -> Bool[Tensor, "batch seq"]:
    """Spread a per-chunk refinement mask over positions: equal chunks, True = refine.

    >>> chunk_positions(torch.tensor([[True, False]]), 4)
    tensor([[ True,  True, False, False]])

    Raises:
        ValueError: the chunks do not divide the sequence.
    """
    n = chunks.shape[1]
    if seq % n:
        raise ValueError(f"{n} chunks do not divide a sequence of {seq} tokens ({seq / n:g} tokens a chunk)")
    return repeat(chunks, "b c -> b (c s)", s=seq // n)
