"""A core from its description alone: the same computation again, and no other name is known."""

import json

import pytest
import torch

from components.refiners.architectures import CORES as NAMES
from components.refiners.architectures import build_core
from components.refiners.delta import Clamped, RmsScaled
from components.refiners.entry import Normed
from components.refiners.refiner import SlotRefiner
from tests.support.cores import ATTENTION, CORES, DIM, inputs, made, slots, states

SETTINGS = {
    "slots_of_ones_own": lambda dim: slots(dim, slots=[("mood", "state", 4), ("drift", "change", 5), ("doubt", "variance", 7)]),
    "slots_clamped": lambda dim: slots(dim, update=Clamped(0.3, 0.2)),
    "slots_added": lambda dim: slots(dim, update=RmsScaled()),
    "slots_normed": lambda dim: slots(dim, entry=Normed),
    "slots_without_injection": lambda dim: slots(dim, injection=None),
    "slots_of_a_head_width": lambda dim: SlotRefiner(dim, heads=None, head_width=4),
    "slots_of_other_ratios": lambda dim: slots(dim, blocks=2, mlp_ratio=2, delta_ratio=3),
}
ALL = {**CORES, **SETTINGS}


@pytest.mark.parametrize("name", ALL)
def test_a_core_built_from_its_description_computes_the_same(name):
    core = made(ALL[name])
    built = build_core(json.loads(json.dumps(core.architecture)))  # as a file hands it over
    assert built.architecture == core.architecture and type(built) is type(core)
    assert (built.dim, built.n_steps) == (core.dim, core.n_steps)
    assert (built.context_layers, built.needs_confidence) == (core.context_layers, core.needs_confidence)
    built.load_state_dict(core.state_dict())
    given = inputs(core)
    for ours, other in zip(states(built, ATTENTION, **given), states(core, ATTENTION, **given), strict=True):
        assert torch.equal(ours.hidden, other.hidden)
        for one, two in ((ours.penalty, other.penalty), (ours.halt, other.halt)):
            assert one is two is None or torch.equal(one, two)


def test_a_core_within_a_core_within_a_core_is_built():
    mlp = {"core": "MLPRefiner", "dim": DIM, "steps": 2, "chunk": 4, "ratio": 2}
    hybrid = {"core": "Hybrid", "dim": DIM, "doubtful": mlp, "confident": None, "chunk": 2, "threshold": 0.5, "route": "chunks"}
    whole = {"core": "Cascade", "dim": DIM, "coarse": hybrid, "fine": {**mlp, "steps": 3}}
    built = build_core({**whole, "coarse": {**hybrid, "confident": mlp}})
    assert build_core(whole).architecture == whole and built.n_steps == 5
    assert built.coarse.confident.architecture == mlp and build_core(whole).coarse.confident is None


def test_every_name_is_that_of_the_core_it_builds():
    built = {type(made(core)).__name__ for core in CORES.values()}
    assert built == set(NAMES) == {core.__name__ for core in NAMES.values()}


@pytest.mark.parametrize(("given", "told"), [({"core": "SlotRefinr"}, "SlotRefinr"), ({}, "None"), ({"core": "TinyLM"}, "TinyLM")])
def test_an_unknown_core_is_an_error_naming_those_there_are(given, told):
    with pytest.raises(
        ValueError, match=rf"^no core is called '{told}'; there are SlotRefiner, RecursiveCore, .*ChunkMasking, Memory$"
    ):
        build_core({**given, "dim": DIM})


def test_an_unknown_core_within_another_is_named():
    with pytest.raises(ValueError, match="no core is called 'Fast'"):
        build_core({"core": "Cascade", "dim": DIM, "coarse": {"core": "Fast"}, "fine": slots(DIM).architecture})


def test_a_description_of_another_version_or_with_an_unknown_part_is_an_error():
    old = {name: value for name, value in slots(DIM).architecture.items() if name != "update"}
    with pytest.raises(ValueError, match="description lacks update; another version wrote it: train it again"):
        build_core({**old, "design": "literal"})
    with pytest.raises(ValueError, match="no part of the slot refiner is called 'Normd'; there are Identity, Normed"):
        build_core({**slots(DIM).architecture, "entry": "Normd"})


def test_the_literal_design_is_described_in_words():
    described = made(CORES["slots_literal"]).architecture
    assert described["entry"] == "Normed" and described["injection"] is None and described["slots"] is None
    assert described["update"] == {"update": "Clamped", "scale": 0.1, "limit": 0.5}


def test_the_description_is_left_as_it_is():
    given = made(CORES["cascade"]).architecture
    before = json.dumps(given)
    build_core(given)
    assert json.dumps(given) == before
