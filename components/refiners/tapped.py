"""Tapped: any refiner, which also reads states from deeper in the backbone, side by side with the last ones.

Each layer's states go through a norm of their own and all of them through one projection, which starts at zero: at first the model
is the one without taps. It is divided by the root of its fan-in: normed states have much in common over tokens, and the first
optimizer steps, as large for every weight, would add up to more than a state. What it makes of them is added to where the recursion
starts, in units of the states, and to the token embeddings that every step sees, in theirs.

Source: Li et al., "EAGLE-3: Scaling up Inference Acceleration of Large Language Models via Training-Time Test" (2025), section 3.1
(low, middle and high features, concatenated and projected to the width of one).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from components.recursion import State, Tree
from components.refiners.core import Core, Inputs, Layout, zeros_


class Tapped(Core):
    """A refiner that sees the states which enter some layers of the backbone, beside the last states.

    Args:
        dim: width of the states.
        refiner: takes dim.
        layers: whose entering states are read, low to high; negative ones count from the last layer. Those below the split must be
            stored (``extract.run.taps``), those above it are read as they run.

    Raises:
        ValueError: no layer.
    """

    def __init__(self, dim: int, refiner: Callable[..., Core], layers: Sequence[int]) -> None:
        super().__init__()
        if not layers:
            raise ValueError("Tapped reads the states of no layer: set TAPS to layers below the split, such as [2, 15, 26] of 30")
        self.refiner = refiner(dim=dim)
        self.dim, self.n_steps = dim, self.refiner.n_steps
        self.context_layers, self.needs_confidence = self.refiner.context_layers, self.refiner.needs_confidence
        self.incremental, self.remembered = self.refiner.incremental, self.refiner.remembered
        self.anchored = self.refiner.anchored
        self.layers = tuple(layers)
        self.taps = tuple(dict.fromkeys((*self.layers, *self.refiner.taps)))
        self.norms = nn.ModuleList(nn.LayerNorm(dim, bias=False) for _ in self.layers)
        self.project = nn.Linear(len(self.layers) * dim, dim, bias=False)
        self.hidden_rms: Tensor
        self.register_buffer("hidden_rms", torch.ones(()))
        self.architecture = {"core": "Tapped", "dim": dim, "refiner": self.refiner.architecture, "layers": list(layers)}

    def init_weights(self, hidden_rms: float, generator: torch.Generator) -> None:
        """Fill the weights of the refiner; the projection says nothing at first."""
        self.hidden_rms.fill_(hidden_rms)
        self.refiner.init_weights(hidden_rms, generator)
        zeros_(self.project)

    def condition(self, inputs: Inputs, layout: Layout) -> Tree:
        """Fuse the taps, and let the refiner see them beside the token embeddings."""
        normed = [norm(inputs.taps[layer]) for norm, layer in zip(self.norms, self.layers, strict=True)]
        fused = self.project(torch.cat(normed, -1)) * self.project.in_features**-0.5
        size = inputs.embedding.square().mean(-1, keepdim=True).sqrt()
        seen = replace(inputs, embedding=inputs.embedding + size * fused)
        return {"fused": self.hidden_rms * fused, "inner": self.refiner.condition(seen, layout)}

    def initial_carry(self, hidden: Float[Tensor, "batch seq dim"], condition: Tree) -> Tree:
        """Start where the refiner starts, from the states with what was fused of the taps."""
        return self.refiner.initial_carry(hidden + condition["fused"], condition["inner"])

    def step(self, number: int, carry: Tree, condition: Tree, layout: Layout, statistics: bool = False) -> State:
        """Take the refiner's own step."""
        return self.refiner.step(number, carry, condition["inner"], layout, statistics)

    def compile_targets(self) -> list[nn.Module]:
        """Name what the refiner would compile."""
        return self.refiner.compile_targets()
