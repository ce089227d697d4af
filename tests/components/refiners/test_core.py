"""What every core promises, whatever it computes."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

from components.recursion import mapped
from components.refiners.core import (
    Injection,
    Inputs,
    Layout,
    at_least_one_step,
    causal_mask,
    recur,
    shared_layers,
    uniform_,
    zeros_,
)
from tests.support.cores import (
    ATTENTION,
    CORES,
    DIM,
    RESIDUAL,
    RMS,
    SEQ,
    STANDALONE,
    begun,
    every_core_with_one,
    inputs,
    made,
    slots,
    states,
)
from tests.support.plain import bare, below, injection

every_core = pytest.mark.parametrize("name", CORES)
every_residual_core = pytest.mark.parametrize("name", RESIDUAL)


def test_the_list_of_cores_is_whole():
    assert len(CORES) >= 20 and {type(made(core)).__name__ for core in CORES.values()} == {
        "SlotRefiner", "RecursiveCore", "MLPRefiner", "Adapter", "Cascade", "Tapped", "Hybrid", "ChunkMasking", "Memory"
    }  # fmt: skip


# Values


@every_core_with_one("attention", {"no_mask": None, "padding": ATTENTION}, whole=("slots",), cores=tuple(RESIDUAL))
def test_at_the_start_states_are_x_bit_for_bit_at_every_step(name, attention):
    core = made(RESIDUAL[name], awake=False)
    given = inputs(core)
    found = states(core, attention, **given)
    assert len(found) == core.n_steps and all(torch.equal(state.hidden, given["x"]) for state in found)


@every_residual_core
def test_at_the_start_the_first_loss_already_moves_the_output_layer(name):
    core = made(RESIDUAL[name], awake=False)
    states(core, **inputs(core))[0].hidden.square().sum().backward()
    silent = [p for p in core.parameters() if p.ndim == 2 and not p.any()]
    assert silent and any(p.grad is not None and p.grad.any() for p in silent)


@every_core
def test_once_awake_every_step_changes_the_states(name):
    core = made(CORES[name])
    given = inputs(core)
    hidden = [given["x"], *(state.hidden for state in states(core, **given))]
    assert all(not torch.allclose(a, b) for a, b in pairwise(hidden)) and all(h.isfinite().all() for h in hidden)


@every_core_with_one("fill", {"5": 5.0, "-100": -100.0, "0": 0.0}, whole=("slots", "hybrid"))
def test_padding_does_not_influence_tokens(name, fill):
    core = made(CORES[name]).double()
    given = inputs(core, dtype=torch.float64)
    other = {key: value if key == "confidence" else value.clone() for key, value in given.items()}
    for key in {"x", "embedding", "heads"} & set(other):
        other[key][~ATTENTION] = fill
    for clean, dirty in zip(states(core, ATTENTION, **given), states(core, ATTENTION, **other), strict=True):
        torch.testing.assert_close(clean.hidden[ATTENTION], dirty.hidden[ATTENTION], rtol=1e-12, atol=1e-12)
        for one, two in ((clean.penalty, dirty.penalty), (clean.halt, dirty.halt)):
            assert one is two is None or torch.allclose(one, two, rtol=1e-6)


@every_core
def test_a_padded_sequence_has_the_states_of_the_short_one(name):
    core = made(CORES[name]).double()
    given = inputs(core, dtype=torch.float64)
    padded = states(core, ATTENTION, **given)
    for row, length in enumerate(ATTENTION.sum(1).tolist()):
        short = states(core, **{key: value[row : row + 1, :length] for key, value in given.items()})
        for ours, plain in zip(padded, short, strict=True):
            torch.testing.assert_close(ours.hidden[row : row + 1, :length], plain.hidden, rtol=1e-10, atol=1e-10)
            assert ours.halt is None or ours.halt[row].item() == pytest.approx(plain.halt.item(), rel=1e-8)


@every_residual_core
@settings(max_examples=4, deadline=None)
@drawn(st.lists(st.booleans(), min_size=3 * SEQ, max_size=3 * SEQ))
def test_positions_outside_the_mask_stay_bit_identical_to_x(name, mask):
    positions, core = torch.tensor(mask).view(3, SEQ), made(RESIDUAL[name])
    given = inputs(core)
    for state in states(core, ATTENTION, positions=positions, **given):
        assert torch.equal(state.hidden[~positions], given["x"][~positions])


@every_residual_core
def test_a_mask_that_lets_everything_change_is_no_mask(name):
    core = made(RESIDUAL[name])
    given = inputs(core)
    masked = states(core, positions=torch.ones(3, SEQ, dtype=torch.bool), **given)
    assert all(torch.equal(a.hidden, b.hidden) for a, b in zip(masked, states(core, **given), strict=True))


# What stands behind a token


def followed(core, given, causal):
    """States of every step, under a padded layout."""
    condition, carry, layout = begun(core, given, Layout(ATTENTION, past=causal_mask(given["x"]) if causal else None))
    return torch.stack([state.hidden for state in recur(core.step, range(core.n_steps), carry, condition, layout, False)])


@every_core_with_one("place", {"1": 1, "3": 3, "last": SEQ - 1}, whole=("slots", "recursive_cycles"))
def test_a_causal_core_learns_nothing_of_what_stands_behind(name, place):
    core = made(CORES[name]).double()
    given = inputs(core, dtype=torch.float64)
    if core.needs_confidence:
        with pytest.raises(ValueError, match="cannot be routed by confidence"):
            followed(core, given, causal=True)
        return
    other = {key: value.clone() for key, value in given.items()}
    for value in other.values():
        value[:, place:] = value[:, place:].roll(1, -1) * 0.9
    change = (followed(core, other, causal=True) - followed(core, given, causal=True)).abs().amax((0, -1))
    assert change[:, :place].max() == 0 and change[:, place].min() > 0
    before = (followed(core, other, causal=False) - followed(core, given, causal=False)).abs()[:, ATTENTION.all(1), :place]
    chunked = "mlp" in name or name == "all_confident"
    assert before.max() > 0 or (chunked and place == 4)


# Steps and carries


@every_core
def test_steps_by_hand_from_carries_alone_are_those_of_refine(name):
    core = made(CORES[name])
    given = inputs(core)
    condition, carry, layout = begun(core, given, Layout(ATTENTION))
    for number, expected in enumerate(states(core, ATTENTION, **given)):
        state = core.step(number, mapped(torch.clone, carry), mapped(torch.clone, condition), layout)
        assert torch.equal(state.hidden, expected.hidden)
        carry = state.carry


@every_core
def test_what_is_handed_on_has_the_batch_first(name):
    core = made(CORES[name])
    condition, carry, layout = begun(core, inputs(core))
    sizes = []
    for number in range(core.n_steps):
        carry = core.step(number, carry, condition, layout).carry
        mapped(lambda tensor: sizes.append(len(tensor)) or tensor, {"condition": condition, "carry": carry})
    assert len(sizes) > core.n_steps and set(sizes) == {3}


@every_core
def test_sequences_do_not_see_each_other(name):
    core = made(CORES[name]).double()
    given = inputs(core, dtype=torch.float64)
    alone = [states(core, **{key: value[row : row + 1] for key, value in given.items()}) for row in range(3)]
    for number, state in enumerate(states(core, **given)):
        apart = torch.cat([one[number].hidden for one in alone])
        torch.testing.assert_close(state.hidden, apart, rtol=1e-8, atol=1e-8)  # a recursion multiplies rounding


@every_core_with_one("steps", {"1": 1, "2": 2}, whole=("slots",))
def test_another_number_of_steps_begins_the_same(name, steps):
    core = made(CORES[name])
    given = inputs(core)
    fewer = states(core, steps=min(steps, core.n_steps), **given)
    assert len(fewer) == min(steps, core.n_steps)
    assert all(torch.equal(a.hidden, b.hidden) for a, b in zip(fewer, states(core, **given), strict=False))


@pytest.mark.parametrize("steps", [0, -3])
def test_no_step_at_all_is_an_error_naming_the_number(steps):
    core = made(slots)
    with pytest.raises(ValueError, match=rf"at least 1 step, got {steps}$"):
        states(core, steps=steps, **inputs(core))
    with pytest.raises(ValueError, match=rf"at least 1 step, got {steps}$"):
        at_least_one_step(steps)


# Statistics


@every_core
def test_statistics_are_scalars_without_gradient_and_come_only_on_request(name):
    core = made(CORES[name])
    given = inputs(core)
    measured, plain = states(core, ATTENTION, statistics=True, **given), states(core, ATTENTION, **given)
    for one, other in zip(measured, plain, strict=True):
        assert one.statistics and not other.statistics and torch.equal(one.hidden, other.hidden)
        for value in one.statistics.values():
            assert value.ndim == 0 and not value.requires_grad and value.isfinite()


@every_core
def test_statistics_leave_padding_out(name):
    core = made(CORES[name]).double()
    given = inputs(core, dtype=torch.float64)
    other = {key: value.clone() for key, value in given.items()}
    for key in {"x", "embedding", "heads"} & set(other):
        other[key][~ATTENTION] = 7.0
    pairs = zip(states(core, ATTENTION, statistics=True, **given), states(core, ATTENTION, statistics=True, **other), strict=True)
    for clean, dirty in pairs:
        assert {n: v.item() for n, v in clean.statistics.items()} == pytest.approx(
            {n: v.item() for n, v in dirty.statistics.items()}, rel=1e-5, abs=1e-7
        )


@pytest.mark.parametrize("name", [n for n in RESIDUAL if n.startswith(("mlp", "adapter", "recursive"))])
def test_delta_is_the_size_of_the_change_at_tokens(name):
    core = made(RESIDUAL[name])
    given = inputs(core)
    state = states(core, ATTENTION, statistics=True, steps=1, **given)[0]
    change = (state.hidden - given["x"])[ATTENTION]
    assert state.statistics["delta"].item() == pytest.approx(change.square().mean().sqrt().item(), rel=1e-4)


# Weights


@every_core
def test_initial_weights_follow_the_generator_alone(name):
    first, again = made(CORES[name], seed=0, awake=False).state_dict(), made(CORES[name], seed=0, awake=False).state_dict()
    torch.manual_seed(123)
    other = made(CORES[name], seed=1, awake=False).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@every_residual_core
def test_the_unit_of_an_update_is_the_size_of_the_backbones_states(name):
    core = made(RESIDUAL[name])
    units = [value for key, value in core.state_dict().items() if key.endswith("hidden_rms")]
    assert units and all(value.item() == pytest.approx(RMS) for value in units)


def test_injection_equals_the_plain_formula():
    torch.manual_seed(0)
    module = Injection(DIM, 24)
    for p in module.parameters():
        torch.nn.init.normal_(p)
    x, embedding = torch.randn(2, 3, DIM), 0.1 * torch.randn(2, 3, DIM)
    torch.testing.assert_close(module(x, embedding), injection(bare(module), x, embedding), rtol=1e-4, atol=1e-4)
    assert module(x, embedding).shape == (2, 3, 24)


def test_uniform_fills_weights_and_biases_up_to_one_over_the_root_of_fan_in():
    module = torch.nn.Sequential(torch.nn.Linear(100, 50), torch.nn.LayerNorm(50), torch.nn.Linear(50, 200))
    uniform_(module, torch.Generator().manual_seed(0))
    for linear in (module[0], module[2]):
        bound = linear.in_features**-0.5
        for p in linear.parameters():
            assert 0.9 * bound < p.abs().max() <= bound
    assert torch.equal(module[1].weight, torch.ones(50))


def test_zeros_silences_a_layer():
    linear = torch.nn.Linear(3, 4)
    zeros_(linear)
    assert not linear(torch.randn(2, 3)).any()


# Inputs


def test_layout_keeps_x_where_states_may_not_change():
    new, x = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    positions = torch.tensor([[True, False, True], [False, False, True]])
    kept = Layout(positions=positions).where(new, x)
    assert torch.equal(kept[positions], new[positions]) and torch.equal(kept[~positions], x[~positions])
    assert Layout().where(new, x) is new


def test_parts_of_a_layout_hold_its_sequences_in_order():
    masks = torch.arange(10).view(5, 2) % 3 == 0
    parts = Layout(masks, None, torch.arange(10).view(5, 2)).parts(2, 5)
    assert [len(part.places) for part in parts] == [2, 2, 1] and all(part.positions is None for part in parts)
    assert torch.equal(torch.cat([part.attention for part in parts]), masks)
    assert len(Layout().parts(2, 5)) == 3


def test_layers_are_shared_by_those_who_read_any():
    reads, reads_not = made(RESIDUAL["slots_of_backbone"]), made(slots)
    assert shared_layers(reads, reads_not) == shared_layers(reads_not, reads, reads) == (0, 2)
    assert shared_layers(reads_not) == shared_layers() == ()


def test_different_layers_are_an_error_naming_both():
    one, other = slots(DIM, context_layers=(0, 2)), slots(DIM, context_layers=(1,))
    with pytest.raises(ValueError, match=r"the same layers, got \[0, 2\] and \[1\]"):
        shared_layers(one, other)


def test_absent_inputs_are_none():
    x = torch.zeros(1, 2, 3)
    assert Inputs(x, x).heads is None and Inputs(x, x).confidence is None


def test_standalone_cores_read_the_embeddings_alone():
    for core in map(made, STANDALONE.values()):
        given = inputs(core)
        other = {**given, "x": given["x"] + 1}
        assert all(torch.equal(a.hidden, b.hidden) for a, b in zip(states(core, **given), states(core, **other), strict=True))


def test_below_strips_the_prefix():
    assert below({"a.b": 1, "c.a.b": 2}, "a.") == {"b": 1}
