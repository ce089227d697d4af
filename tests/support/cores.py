"""Every core in every variant that computes something else, small, with inputs to try it on."""

from functools import partial

import pytest
import torch

from components.backbones.recursive_lm import RecursiveLM
from components.backbones.tiny_lm import TinyLM
from components.batch import Batch
from components.refined_lm import RefinedLM
from components.refiners.adapter import Adapter
from components.refiners.cascade import Cascade
from components.refiners.chunk_masking import ChunkMasking
from components.refiners.core import Inputs, Layout
from components.refiners.delta import Clamped, RmsScaled
from components.refiners.entry import Normed
from components.refiners.hybrid import Hybrid
from components.refiners.memory import Memory
from components.refiners.mlp_refiner import MLPRefiner
from components.refiners.recursive_core import RecursiveCore
from components.refiners.refiner import SlotRefiner
from components.refiners.tapped import Tapped

DIM, HEADS, SEQ, RMS = 16, 2, 6, 1.7
ATTENTION = torch.arange(SEQ) < torch.tensor([6, 3, 5])[:, None]

LITERAL = {"entry": Normed, "injection": None, "update": Clamped()}  # the founding design
DESIGNS = {"damped": {}, "residual": {"update": RmsScaled()}, "literal": LITERAL}
slots = partial(SlotRefiner, heads=HEADS)
recursive = partial(RecursiveCore, heads=HEADS, blocks=1)
mlp = partial(MLPRefiner, chunk=4, ratio=2)

RESIDUAL = {
    "slots": partial(slots, steps=3),
    "slots_blocks_rotary": partial(slots, steps=2, blocks=2, rotary=True),
    "slots_penalty": partial(slots, steps=3, orthogonality=0.5),
    "slots_added": partial(slots, steps=3, update=RmsScaled()),
    "slots_of_backbone": partial(slots, steps=3, context_layers=(0, 2)),
    "recursive": partial(recursive, steps=3),
    "recursive_two_blocks_rotary": partial(RecursiveCore, heads=HEADS, blocks=2, steps=2, rotary=True),
    "recursive_cycles": partial(recursive, steps=3, h_cycles=3, l_cycles=1, gradient_cycles=1, halting=True),
    "recursive_updates": partial(recursive, steps=1, h_cycles=2, supervise="updates", halting=True),
    "mlp": partial(mlp, steps=3),
    "adapter": partial(Adapter, heads=HEADS),
    "cascade": partial(Cascade, coarse=partial(mlp, steps=2), fine=partial(slots, steps=2)),
    "cascade_recursive": partial(Cascade, coarse=partial(slots, steps=1), fine=partial(recursive, steps=2, halting=True)),
    "selective": partial(Hybrid, doubtful=partial(slots, steps=3), chunk=2),
    "hybrid": partial(
        Hybrid, doubtful=partial(slots, steps=3, orthogonality=0.5, rotary=True), confident=partial(mlp, steps=3), chunk=2
    ),
    "hybrid_penalties": partial(
        Hybrid, doubtful=partial(slots, steps=2, orthogonality=0.5), confident=partial(slots, steps=2, orthogonality=0.25), chunk=2
    ),
    "slots_of_taps": partial(
        slots, steps=3, slots=[("low", "tap 0", 4), ("self", "state", 4), ("moved", "change", 4), ("high", "tap -1", 8)]
    ),
    "tapped": partial(Tapped, refiner=partial(slots, steps=3), layers=(0, 2)),
    "tapped_recursive": partial(Tapped, refiner=partial(recursive, steps=2, halting=True), layers=(1,)),
    "tapped_mlp": partial(Tapped, refiner=partial(mlp, steps=3), layers=(0, 1, -1)),
    "memory": partial(Memory, refiner=partial(slots, steps=3)),
    "tapped_selective": partial(Tapped, refiner=partial(Hybrid, doubtful=partial(slots, steps=2), chunk=2), layers=(1, 2)),
    "selective_tapped": partial(Hybrid, doubtful=partial(Tapped, refiner=partial(slots, steps=2), layers=(1, 2)), chunk=2),
    "chunk_masking": partial(ChunkMasking, refiner=partial(slots, steps=3), chunk=2, refined=(0, 2)),
    "all_doubtful": partial(
        Hybrid, doubtful=partial(slots, steps=2), confident=partial(mlp, steps=2), chunk=2, route="doubtful"
    ),
    "all_confident": partial(
        Hybrid, doubtful=partial(slots, steps=2), confident=partial(mlp, steps=2), chunk=2, route="confident"
    ),
}  # fmt: skip
STANDALONE = {
    "standalone": partial(recursive, steps=2, standalone=True),
    "standalone_updates": partial(recursive, steps=1, supervise="updates", standalone=True, halting=True, rotary=True),
}
CORES = {**RESIDUAL, **STANDALONE, "slots_literal": partial(slots, steps=3, **LITERAL)}


def made(core, seed=0, awake=True, std=0.4):
    """A core with initial weights, or with every weight random: norms, gates and output layers too."""
    generator = torch.Generator().manual_seed(seed)
    core = core(DIM)
    core.init_weights(RMS, generator)
    if awake:
        for parameter in core.parameters():
            torch.nn.init.normal_(parameter, std=std, generator=generator)
    return core


def inputs(core, seed=0, dtype=torch.float32):
    """What ``core`` refines, as keyword arguments of ``refine``: as many doubtful chunks as not, of different numbers a row."""
    g = torch.Generator().manual_seed(seed)
    given = {"x": torch.randn(3, SEQ, DIM, generator=g), "embedding": 0.1 * torch.randn(3, SEQ, DIM, generator=g)}
    heads = torch.randn(3, SEQ, DIM * len(core.context_layers), generator=g)
    if core.context_layers:
        given["heads"] = heads
    if core.needs_confidence:
        given["confidence"] = torch.tensor([[1, 0.5, 1, 1, 0.95, 1], [0.2, 0.3, 0.4, 1, 1, 1], [1, 1, 1, 0.91, 0.1, 1]])
    if core.taps:
        given["taps"] = torch.randn(3, SEQ, DIM * len(core.taps), generator=g)  # side by side
    return {name: value.to(dtype) for name, value in given.items()}


def taps(core, given):
    """States by the layer that they enter, as a core takes them."""
    return dict(zip(core.taps, given["taps"].split(DIM, -1), strict=True)) if core.taps else {}


def states(core, attention=None, **given):
    given["taps"] = taps(core, given)
    return list(core.refine(given.pop("x"), given.pop("embedding"), attention, **given))


def begun(core, given, layout=None):
    """Condition, first carry and layout, for steps taken by hand."""
    layout = Layout() if layout is None else layout
    given = dict(given)
    optional = [given.get(name) for name in ("heads", "confidence")]
    condition = core.condition(Inputs(given["x"], given["embedding"], *optional, taps(core, given)), layout)
    return condition, core.initial_carry(given["x"], condition), layout


def every_core_with_one(parameter, values, whole=("slots_penalty", "recursive_cycles"), cores=tuple(CORES)):
    """A sweep over pairs instead of the product: every core with one of the values in turn, the cores of ``whole`` with all.

    Args:
        parameter: name of the test's argument beside ``name``; several, separated by commas, for values that are tuples.
        values: by the word that stands for each in the test's name.
        whole: the cores that meet every value: those with a penalty, with a halting loss and with cycles within a step.
        cores: names.
    """
    words = list(values)
    pairs = {(name, words[number % len(words)]) for number, name in enumerate(cores)} | {(n, w) for n in whole for w in words}
    rows = [(name, values[word]) for name, word in sorted(pairs)]
    rows = [(name, *value) if "," in parameter else (name, value) for name, value in rows]
    return pytest.mark.parametrize(f"name,{parameter}", rows, ids=[f"{name}-{word}" for name, word in sorted(pairs)])


# Whole models

VOCAB, LAYERS = 11, 3


def batch(seed=0, masked=0.6, sequences=3):
    """Padded sequences of which some tokens are supervised, each with a weight of its own."""
    g = torch.Generator().manual_seed(seed)
    tokens, targets = (torch.randint(VOCAB, (sequences, SEQ), generator=g) for _ in range(2))
    attention = ATTENTION[torch.arange(sequences) % 3]
    masked = (torch.rand(sequences, SEQ, generator=g) < masked) & attention
    return Batch(tokens, targets, masked, torch.rand(sequences, SEQ, generator=g) * masked, attention)


def model_of(name, seed=0, joint=False, std=0.4, dtype=torch.float64):
    """The core of this name over a backbone, which is frozen unless ``joint``; a standalone one as a model of its own."""
    generator = torch.Generator().manual_seed(seed)
    if name in STANDALONE:
        model = RecursiveLM(VOCAB, SEQ, DIM, CORES[name])
        model.init_weights(generator)
        return model.to(dtype)
    backbone = TinyLM(VOCAB, SEQ, DIM, LAYERS, HEADS)
    backbone.init_weights(generator)
    for parameter in backbone.blocks.parameters():
        parameter.data.mul_(3)  # large enough that every block matters
    model = RefinedLM(backbone.requires_grad_(joint), made(CORES[name], seed, std=std)).to(dtype)
    if model.refiner.needs_confidence:
        confidence = model._confidence(backbone.states(batch()), batch())[batch().masked].sort().values
        model.refiner.threshold = confidence[len(confidence) // 3 :][:2].mean().item()  # some chunks are below, some are not
    return model
