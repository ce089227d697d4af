"""RefinedLM: backbone tail + refiner + readout as one module; what warmup and joint train and evaluate runs."""

from collections.abc import Iterator

from jaxtyping import Bool, Float
from torch import Tensor

from components.batch import Batch
from components.model import Model
from components.recursion import Recursion, State, full_gradient
from components.refiner import SlotRefiner
from components.tiny_lm import TinyLM


class RefinedLM(Model):
    """A backbone (whole, or its tail alone) whose last states are refined before the frozen norm and head read them.

    Raises:
        ValueError: the refiner's width is not the backbone's.
    """

    def __init__(self, backbone: TinyLM, refiner: SlotRefiner, recursion: Recursion = full_gradient) -> None:
        super().__init__()
        widths = refiner.architecture["dim"], backbone.architecture["dim"]
        if widths[0] != widths[1]:
            raise ValueError(f"the refiner refines states of width {widths[0]}, the backbone's are {widths[1]} wide")
        self.backbone, self.refiner, self.recursion = backbone, refiner, recursion

    def steps(
        self,
        batch: Batch,
        *,
        steps: int | None = None,
        positions: Bool[Tensor, "batch seq"] | None = None,
        statistics: bool = False,
    ) -> Iterator[State]:
        """Yield the refined state after each step, from cached hidden states or from the tokens."""
        x = self.backbone.states(batch)
        embedding = self.backbone.embed(batch.tokens)
        yield from self.refiner.refine(
            x, embedding, batch.attention,
            recursion=self.recursion, steps=steps, positions=positions, statistics=statistics,
        )  # fmt: skip

    def readout(self, state: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows vocab"]:
        """Logits through the backbone's own final norm and head."""
        return self.backbone.readout(state)
