"""The gate of each slot before and after a short training: how much of it the delta network gets to see.

Look at the gates: all 0.5 at first, then each goes its own way (healthy are 0.3 to 0.7); and at the loss, which says that the
refiner learned something meanwhile. The task: the second half of a sequence is the first half, backwards. The backbone is frozen
and untrained, so everything that is learned is the refiner's.
"""

import torch

from components.backbones.tiny_lm import TinyLM
from components.batch import Batch
from components.objective.objective import Objective
from components.refined_lm import RefinedLM
from components.refiners.refiner import SlotRefiner
from components.training.freezing import freeze_except

torch.set_num_threads(1)  # for so small a model a second thread costs more than it gives
generator = torch.Generator().manual_seed(0)


def mirrored(rows: int) -> Batch:
    """Eight random digits and, masked, the same backwards."""
    half = torch.randint(8, (rows, 8), generator=generator)
    tokens, masked = torch.cat([half, half.flip(1)], 1), torch.arange(16).expand(rows, 16) >= 8
    return Batch(tokens.masked_fill(masked, 8), tokens, masked, masked / 8)


backbone = TinyLM(vocab=9, seq=16, dim=32, layers=1, heads=4)
backbone.init_weights(generator)
torch.nn.init.normal_(backbone.embedding.weight, generator=generator)
torch.nn.init.normal_(backbone.positions, generator=generator)
refiner = SlotRefiner(dim=32, heads=4, steps=3)
refiner.init_weights(1.0, generator)
model = RefinedLM(backbone, refiner)
freeze_except(model, ["refiner"])
optimizer, objective = torch.optim.AdamW(refiner.parameters(), lr=5e-3), Objective(model.n_steps)

print(f"{'update':>6}{'loss':>9}" + "".join(f"{name:>12}" for name in refiner.slots.widths))
for update in range(121):
    optimizer.zero_grad()
    supervised = objective.gradient(model, mirrored(32), sequences=32)
    if update % 40 == 0:
        print(
            f"{update:>6}{supervised.losses[-1].item():>9.3f}"
            + "".join(f"{gate:>12.3f}" for gate in refiner.slots.gates().tolist())
        )
    optimizer.step()
