"""Slots of other widths, names and sources, and the context slot taken from the backbone's own attention layers.

The last slot weighs the update; statistics and gates bear the slots' names.

Look at the last table: with the refiner's own attention the context changes from step to step; taken from frozen backbone layers
(``context_layers``) it is the same at every step. Layers that do not run above the split cannot be read: an error says so.
"""

import torch

from components.backbones.tiny_lm import TinyLM
from components.batch import Batch
from components.refined_lm import RefinedLM
from components.refiners.delta import Clamped
from components.refiners.entry import Normed
from components.refiners.refiner import SlotRefiner

generator = torch.Generator().manual_seed(0)
tokens = torch.randint(20, (4, 16), generator=generator)
masked = torch.rand(4, 16, generator=generator) < 0.5
batch = Batch(tokens.masked_fill(masked, 20), tokens, masked, masked / masked.sum(1, keepdim=True))
backbone = TinyLM(vocab=21, seq=16, dim=64, layers=2, heads=4)
backbone.init_weights(generator)

print("slots (name, source, width)")
own_widths = [
    ("context", "context", 16),
    ("reasoning", "attention", 16),
    ("refinement", "change", 40),
    ("confidence", "variance", 4),
]
own_slots = [("doing", "attention", 24), ("mood", "state", 8), ("origin", "backbone", 16), ("doubt", "variance", 4)]
for name, given in (("the four", None), ("own widths", own_widths), ("own slots", own_slots)):
    refiner = SlotRefiner(dim=64, heads=4, slots=given)
    refiner.init_weights(1.0, torch.Generator().manual_seed(1))
    with torch.no_grad():
        (*_, last) = RefinedLM(backbone, refiner).steps(batch, statistics=True)
    print(
        f"{name:<12}"
        + ", ".join(f"{slot} {width}" for slot, width in refiner.slots.widths.items())
        + f": {refiner.slots.total} wide"
    )
    print(f"{'':<12}" + ", ".join(name for name in last.statistics if name.startswith("gate/")))

print("\nrms of the context slot after it was projected\ncontext from        inputs   step 1   step 2   step 3   step 4")
for layers in ((), (1,), (0, 1)):
    refiner = SlotRefiner(dim=64, heads=4, steps=4, entry=Normed, injection=None, update=Clamped(), context_layers=layers)
    refiner.init_weights(1.0, torch.Generator().manual_seed(1))
    with torch.no_grad():
        sizes = [s.statistics["slot/context"].item() for s in RefinedLM(backbone, refiner).steps(batch, statistics=True)]
    source = f"layers {layers}" if layers else "own attention"
    print(f"{source:<16}{refiner.slots.project['context'].in_features:>10}" + "".join(f"{size:>9.5f}" for size in sizes))

try:
    RefinedLM(TinyLM(vocab=21, seq=16, dim=64, layers=2, heads=4, first_layer=1), refiner)
except ValueError as error:
    print(f"\nValueError: {error}")
