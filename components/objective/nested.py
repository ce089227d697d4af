"""Nested mask draws: draws of an example in groups, each masking a part of what the one before it in its group masked.

So stored draws, read in turn, are what denoising passes see: tokens are revealed from pass to pass and none is hidden again. The
draws of a group mask as much as independent draws of a masking do, the largest first, their positions taken in one common order: a
loss over all draws of a group has the expectation that it has over independent ones.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from components import noise
from components.objective.masking import exact_count
from components.ranges import Range

Masking = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # response, noise -> masked, weights
UnrolledPasses = Annotated[int, Range(ge=2, le=4)]


@dataclass(frozen=True)
class Nested:
    """A masking whose draws 0..passes - 1, passes..2 passes - 1, ... are nested; a single draw is that masking's.

    Args:
        masking: under the same noise of the positions, of any two of its masks one holds the other (all of
            ``components.objective.masking`` are such).
        passes: draws of a group, 2 to 4.
    """

    masking: Masking = exact_count
    passes: UnrolledPasses = 2

    def __call__(
        self, response: Bool[Tensor, "batch seq"], numbers: Float[Tensor, "batch noise"]
    ) -> tuple[Bool[Tensor, "batch seq"], Float[Tensor, "batch seq"]]:
        return self.masking(response, numbers)

    def of_group(
        self, response: Bool[Tensor, "batch seq"], noises: Float[Tensor, "passes batch noise"], place: Int[Tensor, "batch"]
    ) -> tuple[Bool[Tensor, "batch seq"], Float[Tensor, "batch seq"]]:
        """Mask by one of a group's draws.

        Args:
            response: True where a token may be masked.
            noises: of the group's draws; of all but the first, only how much is masked is taken.
            place: of each row's draw in its group, from 0.
        """
        drawn = [self.masking(response, torch.cat([each[:, :1], noises[0][:, 1:]], 1)) for each in noises]
        masked, weights = (torch.stack(parts) for parts in zip(*drawn, strict=True))
        largest_first = masked.sum(-1).argsort(dim=0, descending=True, stable=True)
        chosen, rows = largest_first.gather(0, rearrange(place, "batch -> 1 batch"))[0], torch.arange(len(response))
        return masked[chosen, rows], weights[chosen, rows]


def passes_of(masking: Masking) -> int:
    """Count the draws of a group; 1 = draws are independent."""
    return masking.passes if isinstance(masking, Nested) else 1


def check_draws(masking: Masking, draws: int | None) -> None:
    """Raise ValueError unless that many draws make up whole groups; None = there is no end to them."""
    if draws is not None and draws % passes_of(masking):
        raise ValueError(
            f"draws nested by {passes_of(masking)} (nested.Nested.passes) come in groups: their number must be a multiple of it, "
            f"got {draws} (DRAWS)"
        )


def single(masking: Masking) -> Masking:
    """Return what a masking draws by itself: of a nested one the masking whose draws are nested."""
    return masking.masking if isinstance(masking, Nested) else masking


def draw(
    masking: Masking, response: Bool[Tensor, "batch seq"], seed: int, draws: Int[Tensor, "batch"], uid: Int[Tensor, "batch"]
) -> tuple[Bool[Tensor, "batch seq"], Float[Tensor, "batch seq"]]:
    """Mask each row by the draw of that number.

    Args:
        masking: nested or not.
        response: True where a token may be masked.
        seed: of the masks.
        draws: number of each row's draw.
        uid: key of each row's noise.
    """
    columns = response.shape[1] + 1
    if not isinstance(masking, Nested):
        return masking(response, noise.uniform(seed, draws, uid, columns))
    place = draws % masking.passes
    noises = [noise.uniform(seed, draws - place + number, uid, columns) for number in range(masking.passes)]
    return masking.of_group(response, torch.stack(noises), place)
