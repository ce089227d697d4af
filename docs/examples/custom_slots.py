"""Slots of other widths, and the context slot taken from the backbone's own attention layers.

Look at the last table: with the refiner's own attention the context changes from step to step; taken from frozen backbone layers
(``context_layers``) it is the same at every step. Layers that do not run above the split cannot be read: an error says so.
"""

import torch

from components.backbones.tiny_lm import TinyLM
from components.batch import Batch
from components.refined_lm import RefinedLM
from components.refiners.refiner import SlotRefiner

generator = torch.Generator().manual_seed(0)
tokens = torch.randint(20, (4, 16), generator=generator)
masked = torch.rand(4, 16, generator=generator) < 0.5
batch = Batch(tokens.masked_fill(masked, 20), tokens, masked, masked / masked.sum(1, keepdim=True))
backbone = TinyLM(vocab=21, seq=16, dim=64, layers=2, heads=4)
backbone.init_weights(generator)

print("widths             context  reasoning  refinement  confidence  side by side")
own = {"context": 16, "reasoning": 16, "refinement": 40, "confidence": 4}
for name, widths in (("d/2 d/4 d/4 d/8", None), ("own", own)):
    slots = SlotRefiner(dim=64, heads=4, widths=widths, design="literal").slots
    print(f"{name:<17}" + "".join(f"{width:>{n}}" for width, n in zip(slots.widths.values(), (9, 11, 12, 12), strict=True)), end="")
    print(f"{slots.total:>14}")

print("\nrms of the context slot after it was projected\ncontext from        inputs   step 1   step 2   step 3   step 4")
for layers in ((), (1,), (0, 1)):
    refiner = SlotRefiner(dim=64, heads=4, steps=4, design="literal", context_layers=layers)
    refiner.init_weights(1.0, torch.Generator().manual_seed(1))
    with torch.no_grad():
        sizes = [s.statistics["slot/context"].item() for s in RefinedLM(backbone, refiner).steps(batch, statistics=True)]
    source = f"layers {layers}" if layers else "own attention"
    print(f"{source:<16}{refiner.slots.project['context'].in_features:>10}" + "".join(f"{size:>9.5f}" for size in sizes))

try:
    RefinedLM(TinyLM(vocab=21, seq=16, dim=64, layers=2, heads=4, first_layer=1), refiner)
except ValueError as error:
    print(f"\nValueError: {error}")
