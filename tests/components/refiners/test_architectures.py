"""A core from its description alone: the same computation again, and no other name is known."""

import json

import pytest
import torch

from components.refiners.architectures import CORES as NAMES
from components.refiners.architectures import build_core
from tests.support.cores import ATTENTION, CORES, DIM, inputs, made, slots, states

SETTINGS = {
    "slots_of_other_widths": lambda dim: slots(dim, widths={"context": 4, "reasoning": 5, "refinement": 6, "confidence": 7}),
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
    with pytest.raises(ValueError, match=rf"^no core is called '{told}'; there are SlotRefiner, RecursiveCore, .*Hybrid$"):
        build_core({**given, "dim": DIM})


def test_an_unknown_core_within_another_is_named():
    with pytest.raises(ValueError, match="no core is called 'Fast'"):
        build_core({"core": "Cascade", "dim": DIM, "coarse": {"core": "Fast"}, "fine": slots(DIM).architecture})


def test_the_description_is_left_as_it_is():
    given = made(CORES["cascade"]).architecture
    before = json.dumps(given)
    build_core(given)
    assert json.dumps(given) == before
