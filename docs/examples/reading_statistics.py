"""What a refiner tells about itself: slot sizes, gates, confidence, size of the update, overlap of the slots; step by step.

Look at the refinement slot: it is the *change* of the context since the step before, so it is 0 at step 1. And at delta: the
founding design bounds it by 0.1.
"""

import torch

from components.refiners.delta import Clamped
from components.refiners.entry import Normed
from components.refiners.refiner import SlotRefiner

generator = torch.Generator().manual_seed(0)
refiner = SlotRefiner(dim=64, heads=4, steps=4, entry=Normed, injection=None, update=Clamped())
refiner.init_weights(1.0, generator)
x, embedding = torch.randn(2, 8, 16, 64, generator=generator)

with torch.no_grad():
    measured = [state.statistics for state in refiner.refine(x, embedding, statistics=True)]
print(f"{'':<18}" + "".join(f"  step {k}" for k in range(1, len(measured) + 1)))
for name in measured[0]:
    print(f"{name:<18}" + "".join(f"{statistics[name].item():>8.4f}" for statistics in measured))
