"""The two-state recursion once more, written out in plain torch from the bare weights."""

import pytest
import torch
from torch.nn import functional as F

from components.refiners.core import Layout
from components.refiners.recursive_core import RecursiveCore
from tests.support import plain
from tests.support.cores import ATTENTION, DIM, HEADS, RMS, SEQ, begun, inputs, made, recursive, states


def network(w, z, mask, rotary=False, places=None):
    """f: attention and SwiGLU, a norm without weights after each, block after block."""
    for block in range(sum(name.endswith("qkv.weight") for name in w)):
        b = plain.below(w, f"level.blocks.{block}.")
        z = norm(z + F.linear(plain.attention(z, b["attention.qkv.weight"], HEADS, mask, places, rotary), b["out.weight"]))
        gate, up = F.linear(z, b["gate_up.weight"]).chunk(2, -1)
        z = norm(z + F.linear(gate / (1 + torch.exp(-gate)) * up, b["down.weight"]))
    return z


def norm(z):
    return z / (z.square().mean(-1, keepdim=True) + 1e-5).sqrt()


def recursion(w, given, mask=None, *, steps, h_cycles=1, l_cycles=2, learning=None, updates=False, standalone=False, **of_f):
    """Hidden states and halting logits of every supervised step, in one graph; cycles before the last ``learning`` detached."""
    x, embedding = given["x"], given["embedding"]
    question = embedding if standalone else plain.injection(plain.below(w, "injection."), x, embedding)
    z_H, z_L = w["initial_H"].expand_as(x), w["initial_L"].expand_as(x)
    found = []

    def answer(z):
        hidden = z if standalone else x + RMS * (F.linear(z, w["out.weight"]) + w["out.bias"])
        kept = torch.ones(x.shape[:2]) if mask is None else mask
        pooled = (z * kept[..., None]).sum(1) / kept.sum(1, keepdim=True)
        halt = F.linear(pooled, w["halt.weight"], w["halt.bias"])[:, 0] if "halt.weight" in w else None
        found.append((hidden, halt))

    for _ in range(steps):
        for cycle in range(h_cycles):
            for _ in range(l_cycles):
                z_L = network(w, z_L + z_H + question, mask, **of_f)
                if updates:
                    answer(z_L)
            z_H = network(w, z_H + z_L, mask, **of_f)
            if updates:
                answer(z_H)
            if learning is not None and cycle < h_cycles - learning:
                z_L, z_H = z_L.detach(), z_H.detach()
        if not updates:
            answer(z_H)
    return found


VARIANTS = {
    "one_cycle": {"steps": 3},
    "two_blocks": {"steps": 2, "blocks": 2},
    "cycles": {"steps": 2, "h_cycles": 3, "l_cycles": 1},
    "cycles_of_three": {"steps": 2, "h_cycles": 2, "l_cycles": 3},
    "updates": {"steps": 2, "h_cycles": 2, "l_cycles": 2, "supervise": "updates"},
    "updates_of_one": {"steps": 1, "l_cycles": 1, "supervise": "updates"},
    "rotary": {"steps": 2, "rotary": True},
    "standalone": {"steps": 3, "standalone": True},
    "standalone_updates": {"steps": 2, "standalone": True, "supervise": "updates", "rotary": True},
}
every_variant = pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)


def core_of(options, awake=True):
    return made(lambda dim: RecursiveCore(dim, **{"heads": HEADS, "blocks": 1, **options}), awake=awake).double()


def by_hand(core, given, mask=None, **more):
    a = core.architecture
    sizes = {name: a[name] for name in ("steps", "h_cycles", "l_cycles", "standalone", "rotary")}
    return recursion(plain.bare(core), given, mask, updates=a["supervise"] == "updates", **sizes, **more)


def assert_equal(found, expected):
    assert len(found) == len(expected) > 0
    for state, (hidden, halt) in zip(found, expected, strict=True):
        torch.testing.assert_close(state.hidden, hidden, rtol=1e-4, atol=1e-4)
        assert (state.halt is None) == (halt is None)
        if halt is not None:
            torch.testing.assert_close(state.halt, halt, rtol=1e-4, atol=1e-4)


# Values


@pytest.mark.parametrize("mask", [None, ATTENTION], ids=["no_mask", "padding"])
@pytest.mark.parametrize("halting", [False, True], ids=["", "halting"])
@every_variant
def test_every_step_equals_a_plain_recomputation_from_the_weights(options, halting, mask):
    core = core_of({**options, "halting": halting})
    given = inputs(core, dtype=torch.float64)
    assert_equal(states(core, mask, **given), by_hand(core, given, mask))


@every_variant
def test_there_are_as_many_steps_as_the_settings_say(options):
    a = core_of(options).architecture
    updates = a["h_cycles"] * (a["l_cycles"] + 1) if a["supervise"] == "updates" else 1
    assert core_of(options).n_steps == a["steps"] * updates


@pytest.mark.parametrize("h_cycles", [1, 3])
def test_supervision_of_updates_sees_the_same_recursion(h_cycles):
    """Every (l_cycles + 1)-th update is a cycle's answer: of the same states, bit for bit."""
    options = {"steps": 2, "h_cycles": h_cycles, "l_cycles": 2}
    steps, updates = core_of(options), core_of({**options, "supervise": "updates"})
    given = inputs(steps, dtype=torch.float64)
    found = [state.hidden for state in states(updates, **given)][3 * h_cycles - 1 :: 3 * h_cycles]
    assert len(found) == 2
    assert all(torch.equal(a, b.hidden) for a, b in zip(found, states(steps, **given), strict=True))


@pytest.mark.parametrize("updates", [False, True])
def test_rotary_attention_sees_the_places_that_are_given(updates):
    core = core_of({"steps": 1, "rotary": True, "supervise": "updates" if updates else "steps"})
    given, places = inputs(core, dtype=torch.float64), torch.tensor([[0, 1, 2, 3, 4, 5], [1, 2, 7, 9, 30, 31], [5, 4, 3, 2, 1, 0]])
    condition, carry, layout = begun(core, given, Layout(ATTENTION, places=places))
    found = []
    for number in range(core.n_steps):
        found.append(core.step(number, carry, condition, layout))
        carry = found[-1].carry
    assert_equal(found, by_hand(core, given, ATTENTION, places=places))
    assert not torch.allclose(found[-1].hidden, by_hand(core, given, ATTENTION)[-1][0], rtol=1e-3)


def test_the_answer_changes_only_where_states_may():
    core, positions = core_of({"steps": 2}), torch.arange(SEQ).expand(3, SEQ) % 2 == 0
    given = inputs(core, dtype=torch.float64)
    for state, (hidden, _) in zip(states(core, positions=positions, **given), by_hand(core, given), strict=True):
        torch.testing.assert_close(state.hidden, torch.where(positions[..., None], hidden, given["x"]), rtol=1e-4, atol=1e-4)


def test_begun_at_other_states_the_answer_is_a_change_of_those():
    """The fine one of a cascade: what it is asked stays x, what it changes is where the coarse one left off."""
    core = core_of({"steps": 1})
    given, start = inputs(core, dtype=torch.float64), torch.randn(3, SEQ, DIM, generator=torch.Generator().manual_seed(1)).double()
    condition, carry, layout = begun(core, given)
    other = core.step(0, core.initial_carry(start, condition), condition, layout).hidden
    torch.testing.assert_close(other - start, core.step(0, carry, condition, layout).hidden - given["x"])


# Gradients


@pytest.mark.parametrize("learning", [1, 2, 3, None])
def test_the_gradient_flows_through_the_last_cycles_of_a_step_only(learning):
    core = core_of({"steps": 2, "h_cycles": 3, "l_cycles": 2, "gradient_cycles": learning, "halting": True})
    given = inputs(core, dtype=torch.float64)
    parameters = dict(core.named_parameters())
    w = {**plain.bare(core), **parameters}
    a = core.architecture
    expected = recursion(w, given, ATTENTION, steps=2, h_cycles=3, l_cycles=a["l_cycles"], learning=learning)
    found = states(core, ATTENTION, **given)
    assert_equal(found, expected)
    gradients = [
        torch.autograd.grad(sum(h.square().sum() + halt.sum() for h, halt in each), list(parameters.values()))
        for each in ([(s.hidden, s.halt) for s in found], expected)
    ]
    for name, ours, by_hand in zip(parameters, *gradients, strict=True):
        torch.testing.assert_close(ours, by_hand, rtol=1e-5, atol=1e-6 * by_hand.abs().max().item(), msg=name)
    if learning in (1, 2):
        full = recursion(w, given, ATTENTION, steps=2, h_cycles=3)
        qkv = torch.autograd.grad(sum(h.square().sum() + t.sum() for h, t in full), w["level.blocks.0.attention.qkv.weight"])[0]
        index = list(parameters).index("level.blocks.0.attention.qkv.weight")
        assert (gradients[0][index] - qkv).abs().max() > 1e-3 * qkv.abs().max()


def test_without_gradient_every_cycle_is_without():
    core = core_of({"steps": 1, "h_cycles": 2, "gradient_cycles": 1, "standalone": True})
    with torch.no_grad():
        (state,) = states(core, **inputs(core, dtype=torch.float64))
    assert not state.hidden.requires_grad and not state.carry["z_L"].requires_grad


# The start


def test_at_the_start_a_standalone_answer_is_the_state_itself_and_a_refiner_changes_nothing():
    for standalone in (True, False):
        core = core_of({"steps": 2, "standalone": standalone}, awake=False)
        given = inputs(core, dtype=torch.float64)
        found = states(core, **given)
        assert_equal(found, by_hand(core, given))
        assert all(torch.equal(state.hidden, given["x"]) for state in found) != standalone
    assert core.out is not None and core_of({"standalone": True}).out is core_of({"standalone": True}).injection is None


def test_the_network_keeps_states_at_size_one():
    core = core_of({"steps": 3, "standalone": True})
    for state in states(core, **inputs(core, dtype=torch.float64)):
        torch.testing.assert_close(state.hidden.square().mean(-1), torch.ones(3, SEQ).double(), rtol=1e-3, atol=0)


def test_at_the_start_it_never_halts():
    core = core_of({"steps": 2, "halting": True}, awake=False)
    for state in states(core, **inputs(core, dtype=torch.float64)):
        assert state.halt.tolist() == [-5.0] * 3


def test_initial_states_differ_lie_within_two_and_are_not_trained():
    core = made(lambda dim: RecursiveCore(256), awake=False)
    for initial in (core.initial_H, core.initial_L):
        assert 1.8 < initial.abs().max() <= 2 and 0.8 < initial.std() < 0.96  # 0.88 after the cut
    assert not torch.equal(core.initial_H, core.initial_L)
    assert not {"initial_H", "initial_L", "hidden_rms"} & set(dict(core.named_parameters()))


def test_the_network_begins_with_the_variance_of_its_fan_in():
    core = made(lambda dim: RecursiveCore(192), awake=False)
    for block in core.level.blocks:
        for linear in (block.attention.qkv, block.out, block.gate_up, block.down):
            bound = 2 / 0.8796 * linear.in_features**-0.5
            assert linear.weight.std().item() == pytest.approx(linear.in_features**-0.5, rel=0.03)
            assert 0.95 * bound < linear.weight.abs().max() <= bound


@pytest.mark.parametrize(("expansion", "width"), [(4.0, 48), (1.0, 16), (3.1, 40), (0.1, 8)])
def test_the_swiglu_has_two_thirds_of_the_expansion_in_whole_eights(expansion, width):
    assert recursive(DIM, expansion=expansion).level.blocks[0].down.in_features == width


# Statistics


@pytest.mark.parametrize("standalone", [False, True])
def test_statistics_are_sizes_of_what_is_not_padding(standalone):
    core = core_of({"steps": 2, "standalone": standalone})
    given = inputs(core, dtype=torch.float64)
    for state in states(core, ATTENTION, statistics=True, **given):
        sizes = {f"state/{name}": state.carry[name] for name in ("z_H", "z_L")}
        if not standalone:
            sizes["delta"] = state.hidden - given["x"]
        expected = {name: value[ATTENTION].square().mean().sqrt().item() for name, value in sizes.items()}
        assert {name: value.item() for name, value in state.statistics.items()} == pytest.approx(expected, rel=1e-5)


# Errors


@pytest.mark.parametrize("name", ["steps", "blocks", "h_cycles", "l_cycles"])
@pytest.mark.parametrize("value", [0, -1])
def test_sizes_below_one_are_an_error_naming_them(name, value):
    with pytest.raises(ValueError, match=rf"needs at least 1 of {name}, got {value}$"):
        RecursiveCore(DIM, **{name: value})


@pytest.mark.parametrize("value", [0, 4])
def test_gradient_cycles_beyond_a_step_are_an_error_naming_both(value):
    with pytest.raises(ValueError, match=rf"within 1..h_cycles \(3\), got {value}$"):
        RecursiveCore(DIM, h_cycles=3, gradient_cycles=value)


def test_unknown_supervision_and_heads_that_do_not_fit_are_errors():
    with pytest.raises((ValueError, TypeError), match="cycles"):
        RecursiveCore(DIM, supervise="cycles")
    with pytest.raises(ValueError, match=r"heads must divide dim, got dim 16 and heads 3"):
        RecursiveCore(DIM, heads=3)
    with pytest.raises(ValueError, match=r"heads of even width, got 1 "):
        RecursiveCore(DIM, heads=16, rotary=True)
