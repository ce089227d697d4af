"""Refine some chunks and leave the others alone: by a mask of one's own, or by the backbone's confidence (Hybrid). By settings:
``ChunkMasking``, the same chunks of every sequence.

Look at the skipped chunks: bit-identical to what came in. A mask alone saves no work, because the skipped tokens are still
attended to; Hybrid packs the doubtful chunks together and computes nothing else: look at the operations saved.
"""

from functools import partial

import torch

from components.refiners.chunk_masking import ChunkMasking, chunk_positions
from components.refiners.delta import Clamped
from components.refiners.entry import Normed
from components.refiners.hybrid import Hybrid
from components.refiners.refiner import SlotRefiner
from pipeline.training.flops import count

CHUNK, CHUNKS, STEPS = 16, 8, 4
generator = torch.Generator().manual_seed(0)
x, embedding = torch.randn(2, 2, CHUNK * CHUNKS, 64, generator=generator)
literal = partial(SlotRefiner, heads=4, steps=STEPS, entry=Normed, injection=None, update=Clamped())
whole = literal(dim=64)
whole.init_weights(1.0, generator)
chosen = torch.zeros(2, CHUNKS, dtype=torch.bool)
chosen[0, [0, 3, 5]] = chosen[1, [1, 2, 7]] = True
positions = chunk_positions(chosen, CHUNK * CHUNKS)


def report(name: str, hidden: torch.Tensor) -> None:
    """How many positions came out as they went in, where they should and where they should not."""
    same = (hidden == x).all(-1)
    print(f"{name}: skipped positions bit-identical {same[~positions].sum()}/{(~positions).sum()}, ", end="")
    print(f"chosen positions changed {(~same[positions]).sum()}/{positions.sum()}")


with torch.no_grad():
    masked = [s.hidden for s in whole.refine(x, embedding, positions=positions)][-1]
    report("mask", masked)

    # the backbone is sure of a token at .99, and of one token of each chosen chunk only at .4
    confidence = torch.full(positions.shape, 0.99).masked_fill(positions & (torch.arange(128) % CHUNK == 7), 0.4)
    hybrid = Hybrid(64, literal, chunk=CHUNK, threshold=0.9)
    hybrid.doubtful.load_state_dict(whole.state_dict())
    states = list(hybrid.refine(x, embedding, confidence=confidence, statistics=True))
    report("hybrid", states[-1].hidden)

    everything = count(lambda: list(whole.refine(x, embedding)))
    by_mask = count(lambda: list(whole.refine(x, embedding, positions=positions)))
    selected = count(lambda: list(hybrid.refine(x, embedding, confidence=confidence)))
    settings = ChunkMasking(64, literal, chunk=CHUNK, refined=(0, 3, 5))  # what settings can say: the first row's chunks, for all
    settings.refiner.load_state_dict(whole.state_dict())
    by_settings = [s.hidden for s in settings.refine(x, embedding)][-1]
    print("settings: the first row is that of the mask, bit for bit:", torch.equal(by_settings[0], masked[0]))
print(f"share of tokens refined: {states[-1].statistics['share/doubtful'].item():.1%}")
for name, flops in (("everything", everything), ("mask", by_mask), ("hybrid", selected)):
    print(f"{name:<11}{flops / 1e6:>7.1f} MFLOPs, saved {1 - flops / everything:.1%}")
