"""A frozen backbone and a slot refiner, one forward pass.

Look at the two columns: with the default design the refined states *are* the backbone's before any training (0, bit for bit);
the founding design ("literal": a LayerNorm at the entry, no injection, a clamped update) starts anywhere, so its states move away
with every step.
"""

import torch

from components.backbones.tiny_lm import TinyLM
from components.batch import Batch
from components.refined_lm import RefinedLM
from components.refiners.delta import Clamped
from components.refiners.entry import Normed
from components.refiners.refiner import SlotRefiner

generator = torch.Generator().manual_seed(0)
tokens = torch.randint(20, (2, 16), generator=generator)
masked = torch.rand(2, 16, generator=generator) < 0.5
batch = Batch(tokens=tokens.masked_fill(masked, 20), targets=tokens, masked=masked, weights=masked / masked.sum(1, keepdim=True))

backbone = TinyLM(vocab=21, seq=16, dim=64, layers=2, heads=4)
backbone.init_weights(generator)
with torch.no_grad():
    before = backbone.states(batch)
rms = before.square().mean().sqrt().item()
print(f"hidden states [batch, seq, dim] = {list(before.shape)}, rms {rms:.4f}")

print("largest change of a state against the backbone's\nstep    residual    literal")
changes = []
literal = {"entry": Normed, "injection": None, "update": Clamped()}
for design in ({}, literal):
    refiner = SlotRefiner(dim=64, heads=4, steps=4, **design)
    refiner.init_weights(rms, torch.Generator().manual_seed(1))
    model = RefinedLM(backbone, refiner)
    with torch.no_grad():
        states = [state.hidden for state in model.steps(batch)]
        carry, outputs = model.eval()(model.initial_carry(batch), batch)  # the same in one call
    assert torch.equal(outputs["logits"], model.readout(states[-1]))
    changes.append([(state - refiner.entry(before)).abs().max().item() for state in states])
for step, (residual, literal) in enumerate(zip(*changes, strict=True), 1):
    print(f"{step:>4}  {residual:>10.6f} {literal:>10.6f}")
print(f"logits [batch, seq, vocab] = {list(outputs['logits'].shape)} after {carry.steps} steps")
