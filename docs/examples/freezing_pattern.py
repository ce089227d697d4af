"""Freeze everything but what a pattern names, and read the table of what is trained.

Look at the four slot projections at d = 1024: 524,288, 262,144, 262,144 and 131,072 weights, as in the founding document; the
table by module counts their biases too, the table by weight names each. A pattern that matches nothing is an error, never silence.
(On the meta device: shapes, no memory.)
"""

import torch

from components.backbones.tiny_lm import TinyLM
from components.refined_lm import RefinedLM
from components.refiners.refiner import SlotRefiner
from components.training.freezing import by_weight, freeze_except

with torch.device("meta"):
    model = RefinedLM(TinyLM(vocab=32000, seq=512, dim=1024, layers=12, heads=16), SlotRefiner(dim=1024, heads=16))

print("weights of the slot projections")
for name, symbol in {"context": "W_ctx", "reasoning": "W_reason", "refinement": "W_refine", "confidence": "W_conf"}.items():
    print(f"{symbol:<10}{model.refiner.slots.project[name].weight.numel():>12,}")

parts = {
    "warmup: the refiner": ["refiner"],
    "slots and delta network": ["refiner.slots", "refiner.delta_*", "refiner.confidence"],
    "joint: and the last layer": ["refiner", "backbone.blocks.11"],
}
for name, patterns in parts.items():
    frozen = freeze_except(model, patterns)
    print(f"\n{name}: freeze_except(model, {patterns})")
    print(frozen if len(patterns) == 1 else "\n".join(str(frozen).splitlines()[-3:]))

print("\nby weight: freeze_except(model, ['refiner.slots'])")
print(by_weight(freeze_except(model, ["refiner.slots"])))

try:
    freeze_except(model, ["slot_refiner"])
except ValueError as error:
    print(f"\nValueError: {error}")
