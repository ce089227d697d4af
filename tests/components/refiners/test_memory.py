"""Memory: nothing while its gates are closed, the plain formula once they are not, over the refiners whose carry can be mixed."""

from functools import partial

import pytest
import torch

from components.backbones.tiny_lm import TinyLM
from components.refined_lm import RefinedLM
from components.refiners.architectures import build_core
from components.refiners.memory import Memory
from components.refiners.tapped import Tapped
from tests.support.cores import ATTENTION, CORES, DIM, HEADS, VOCAB, begun, inputs, made, slots, states

REMEMBERED = {
    "slots": ["hidden"], "mlp": ["hidden"], "adapter": ["hidden"], "recursive": ["z_H", "z_L"], "recursive_updates": ["z_H", "z_L"]
}  # fmt: skip
over = pytest.mark.parametrize("name", REMEMBERED)


def remembering(name, awake=True):
    return made(partial(Memory, refiner=CORES[name]), awake=awake)


def after_a_pass(core, seed):
    """What a pass over other states leaves."""
    *_, last = states(core, **inputs(core, seed))
    return last.carry


@over
def test_a_first_pass_is_the_refiners_own(name):
    core = remembering(name)
    given = inputs(core)
    for ours, plain in zip(states(core, ATTENTION, **given), states(core.refiner, ATTENTION, **given), strict=True):
        assert torch.equal(ours.hidden, plain.hidden)


@over
def test_untrained_memory_is_none(name):
    core = remembering(name, awake=False)
    _, fresh, _ = begun(core, inputs(core))
    recalled = core.recalled(fresh, after_a_pass(core, 1))
    assert recalled.keys() == fresh.keys() and all(torch.equal(recalled[key], fresh[key]) for key in fresh)


@over
def test_what_is_recalled_is_the_gated_mixture(name):
    core = remembering(name)
    _, fresh, _ = begun(core, inputs(core))
    memory = after_a_pass(core, 1)
    recalled = core.recalled(fresh, memory)
    for key in fresh:
        if key not in REMEMBERED[name]:
            assert recalled[key] is fresh[key]
            continue
        f, m, gate = fresh[key].double(), memory[key].double(), core.gates[key].double()
        sizes = [x / (x.square().mean(-1, keepdim=True) + torch.finfo(torch.float32).eps).sqrt() for x in (f, m)]
        opened = torch.tanh(torch.cat(sizes, -1) @ gate.weight.T / (2 * DIM) ** 0.5 + gate.bias)
        torch.testing.assert_close(recalled[key].double(), (1 - opened) * f + opened * m, rtol=1e-4, atol=1e-5)


@over
def test_a_gate_that_is_open_puts_the_last_carry_in_place_of_the_fresh_one(name):
    core = remembering(name, awake=False)
    for gate in core.gates.values():
        torch.nn.init.constant_(gate.bias, 50.0)
    _, fresh, _ = begun(core, inputs(core))
    memory = after_a_pass(core, 1)
    recalled = core.recalled(fresh, memory)
    assert all(torch.allclose(recalled[key], memory[key], atol=1e-5) for key in REMEMBERED[name])


@over
def test_the_gates_alone_are_added(name):
    core = remembering(name)
    own = {key for key, _ in core.named_parameters() if not key.startswith("refiner.")}
    assert own == {f"gates.{state}.{part}" for state in REMEMBERED[name] for part in ("weight", "bias")}
    assert sum(p.numel() for p in core.gates.parameters()) == len(REMEMBERED[name]) * (2 * DIM + 1) * DIM


def test_it_is_built_again_from_its_description():
    core = remembering("slots")
    again = build_core(core.architecture)
    assert isinstance(again, Memory) and again.architecture == core.architecture
    again.load_state_dict(core.state_dict())


@pytest.mark.parametrize("name", ["cascade", "hybrid", "chunk_masking"])
def test_a_carry_of_several_refiners_is_an_error(name):
    with pytest.raises(ValueError, match="memory goes over a refiner whose carry is one set of states"):
        Memory(DIM, CORES[name])


def test_a_refiner_that_reads_taps_does_so_with_memory_too():
    over_taps = Memory(DIM, CORES["tapped"])
    assert over_taps.taps == CORES["tapped"](DIM).taps != () and set(over_taps.gates) == {"hidden"}
    assert Memory(DIM, CORES["slots_of_taps"]).taps == CORES["slots_of_taps"](DIM).taps != ()


def test_memory_is_the_outermost():
    backbone = TinyLM(VOCAB, 6, DIM, 3, HEADS)
    RefinedLM(backbone, Memory(DIM, CORES["tapped"]))
    with pytest.raises(ValueError, match=r"^memory goes around the whole refiner"):
        RefinedLM(backbone, Tapped(DIM, partial(Memory, refiner=slots), layers=(0,)))


def test_a_causal_backbone_has_no_passes_to_remember():
    backbone = TinyLM(VOCAB, 6, DIM, 2, HEADS)
    backbone.causal = True
    with pytest.raises(ValueError, match="a causal backbone has none"):
        RefinedLM(backbone, Memory(DIM, slots))
