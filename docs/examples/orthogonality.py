"""Overlap of the slots over training, with and without the orthogonality penalty.

Look at the two columns of overlap (mean squared cross-correlation of slots over tokens, 0 to 1): without the penalty the slots
are left to themselves, with it they come to say different things; the losses beside tell what that costs. The task: the second
half of a sequence is the first half, backwards.
"""

import torch

from components.backbones.tiny_lm import TinyLM
from components.batch import Batch
from components.objective.objective import Objective
from components.refined_lm import RefinedLM
from components.refiners.refiner import SlotRefiner
from components.training.freezing import freeze_except


def mirrored(rows: int, generator: torch.Generator) -> Batch:
    """Eight random digits and, masked, the same backwards."""
    half = torch.randint(8, (rows, 8), generator=generator)
    tokens, masked = torch.cat([half, half.flip(1)], 1), torch.arange(16).expand(rows, 16) >= 8
    return Batch(tokens.masked_fill(masked, 8), tokens, masked, masked / 8)


def train(orthogonality: float) -> list[tuple[float, float]]:
    """Loss and overlap, at the last step, of every 40th update."""
    generator = torch.Generator().manual_seed(0)
    backbone = TinyLM(vocab=9, seq=16, dim=32, layers=1, heads=4)
    backbone.init_weights(generator)
    torch.nn.init.normal_(backbone.embedding.weight, generator=generator)
    torch.nn.init.normal_(backbone.positions, generator=generator)
    refiner = SlotRefiner(dim=32, heads=4, steps=3, orthogonality=orthogonality)
    refiner.init_weights(1.0, generator)
    model = RefinedLM(backbone, refiner)
    freeze_except(model, ["refiner"])
    optimizer, objective = torch.optim.AdamW(refiner.parameters(), lr=5e-3), Objective(model.n_steps)
    found = []
    for update in range(161):
        optimizer.zero_grad()
        now = objective.gradient(model, mirrored(32, generator), sequences=32, statistics=update % 40 == 0)
        if update % 40 == 0:
            found.append((now.losses[-1].item(), now.statistics[-1]["overlap"].item()))
        optimizer.step()
    return found


torch.set_num_threads(1)  # for so small a model a second thread costs more than it gives
print("          without            penalty x 3\nupdate    loss  overlap      loss  overlap")
for i, (without, penalised) in enumerate(zip(train(0.0), train(3.0), strict=True)):
    print(f"{40 * i:>6}{without[0]:>8.3f}{without[1]:>9.4f}{penalised[0]:>10.3f}{penalised[1]:>9.4f}")
