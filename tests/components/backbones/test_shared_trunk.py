"""Shared layers: run once they give what each model computes from the tokens, and a model that differs below them runs whole."""

from functools import partial

import pytest
import torch

from components.backbones.recursive_lm import RecursiveLM
from components.backbones.shared_trunk import SharedTrunk
from components.backbones.tiny_lm import TinyLM
from components.batch import Batch
from components.nn.sharing import twin
from components.refined_lm import RefinedLM
from components.refiners.recursive_core import RecursiveCore
from components.refiners.refiner import SlotRefiner

LAYERS = 4


@pytest.fixture
def frozen():
    model = TinyLM(vocab=11, seq=6, dim=16, layers=LAYERS, heads=2)
    model.init_weights(torch.Generator().manual_seed(0))
    return model.eval()


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(11, (3, 6), generator=generator)
    attention = torch.arange(6) < torch.tensor([6, 4, 5])[:, None]
    masked = attention & (torch.rand(3, 6, generator=generator) < 0.5)
    return Batch(tokens, tokens, masked, masked.float(), attention)


def trained(frozen, *patterns, refiner=None):
    """A model over the backbone that has its own tensors where a name begins so."""
    model = twin(frozen)
    own = {name: value + 0.1 for name, value in model.state_dict().items() if name.startswith(patterns)} if patterns else {}
    model.load_state_dict(own, strict=False, assign=True)
    return model if refiner is None else RefinedLM(model, refiner).eval()


def slots(**settings):
    refiner = SlotRefiner(dim=16, heads=2, steps=2, **settings)
    refiner.init_weights(1.0, generator := torch.Generator().manual_seed(2))
    with torch.no_grad():
        for parameter in refiner.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return refiner


CASES = {  # own tensors by model -> the split, and who shares what lies below it
    "alone": ({}, 0, []),
    "a refiner": ({"warmup": ()}, LAYERS, ["frozen", "warmup"]),
    "one of two": ({"joint": ("blocks.3",)}, 3, ["frozen", "joint"]),
    "layers of two": ({"warmup": (), "joint": ("blocks.2",), "own": ("blocks.3",)}, 2, ["frozen", "warmup", "joint", "own"]),
    "one far below the others": ({"warmup": (), "joint": ("blocks.3",), "deep": ("blocks.0",)}, 3, ["frozen", "warmup", "joint"]),
    "everything": ({"warmup": (), "finetune": ("",)}, LAYERS, ["frozen", "warmup"]),
    "embeddings": ({"warmup": (), "other": ("embedding",)}, LAYERS, ["frozen", "warmup"]),
    "norm and head": ({"other": ("norm", "head")}, 0, []),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_most_have_in_common_is_shared(frozen, batch, case):
    own, split, sharing = CASES[case]
    models = {"frozen": frozen, **{name: trained(frozen, *patterns, refiner=slots()) for name, patterns in own.items()}}
    trunk = SharedTrunk(frozen, models)
    assert trunk.split == split and list(trunk.above) == sharing
    states = trunk.with_states(batch) if sharing else batch
    with torch.no_grad():
        for name in sharing:
            plain = [model_state.hidden for model_state in models[name].steps(batch)]
            ours = [state.hidden for state in trunk.above[name].steps(states)]
            assert len(plain) == len(ours) and all(map(torch.equal, plain, ours))
            assert torch.equal(models[name].readout(plain[-1]), trunk.above[name].readout(ours[-1]))


def test_a_layer_whose_heads_are_read_runs_for_each(frozen, batch):
    models = {"frozen": frozen, "warmup": trained(frozen, refiner=slots(context_layers=(-2,)))}
    trunk = SharedTrunk(frozen, models)
    assert trunk.split == 2 and set(trunk.above) == set(models)
    states = trunk.with_states(batch)
    assert torch.equal(trunk.above["warmup"].states(states), models["warmup"].states(batch))


def test_states_of_taps_come_with_those_at_the_split(frozen, batch):
    """Models read different layers, one its own, and the backbone none."""
    models = {"frozen": frozen}
    for name, own, taps in (("warmup", (), (0, 2)), ("joint", ("blocks.3",), (-3, 3)), ("plain", (), ())):
        core = slots(slots=[(f"s{i}", f"tap {tap}", 4) for i, tap in enumerate(taps)] + [("a", "change", 4), ("b", "state", 4)])
        models[name] = trained(frozen, *own, refiner=core)
    trunk = SharedTrunk(frozen, models)
    assert trunk.split == 3 and trunk.taps == (0, 1, 2) and set(trunk.above) == set(models)
    states = trunk.with_states(batch)
    with torch.no_grad():
        for name, model in models.items():
            assert torch.equal(trunk.above[name].states(states), model.states(batch)), name


def test_models_from_the_split_on_take_no_memory_of_their_own(frozen):
    models = {"frozen": frozen, "joint": trained(frozen, "blocks.3", refiner=slots())}
    trunk = SharedTrunk(frozen, models)
    for name, above in trunk.above.items():
        mine = {id(tensor) for tensor in models[name].parameters()}
        assert {id(tensor) for tensor in above.parameters()} < mine
    assert {n.split(".")[1] for n, _ in trunk.above["frozen"].named_parameters() if n.startswith("blocks.")} == {"3"}


def test_a_recursive_backbone_shares_nothing():
    core = partial(RecursiveCore, heads=2, steps=3, blocks=1, l_cycles=1)
    frozen = RecursiveLM(vocab=11, seq=6, dim=16, core=core).eval()
    frozen.init_weights(torch.Generator().manual_seed(0))
    trunk = SharedTrunk(frozen, {"frozen": frozen, "warmup": RefinedLM(twin(frozen), slots())})
    assert trunk.split == 0 and trunk.above == {}
