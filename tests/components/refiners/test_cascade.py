"""Two refiners in sequence: the steps of the first, then the second's from where it left off."""

from functools import partial

import pytest
import torch

from components.refiners.adapter import Adapter
from components.refiners.cascade import Cascade
from components.refiners.core import Inputs, Layout
from components.refiners.hybrid import Hybrid
from tests.support.cores import ATTENTION, DIM, begun, inputs, made, mlp, recursive, slots, states

PAIRS = {
    "mlp_slots": (partial(mlp, steps=2), partial(slots, steps=3)),
    "slots_mlp": (partial(slots, steps=3), partial(mlp, steps=1)),
    "slots_slots": (partial(slots, steps=1, orthogonality=0.5), partial(slots, steps=2, orthogonality=0.25)),
    "adapter_recursive": (partial(Adapter, heads=2), partial(recursive, steps=2, halting=True)),
    "recursive_updates_slots": (partial(recursive, steps=1, supervise="updates"), partial(slots, steps=2)),
    "mlp_recursive_updates": (partial(mlp, steps=2), partial(recursive, steps=1, supervise="updates")),
    "heads": (partial(mlp, steps=2), partial(slots, steps=2, context_layers=(0, 2))),
    "selective_mlp": (partial(Hybrid, doubtful=partial(slots, steps=2), chunk=2), partial(mlp, steps=2)),
}
every_pair = pytest.mark.parametrize(("coarse", "fine"), PAIRS.values(), ids=PAIRS)


def by_hand(core, given, mask, positions=None, statistics=False):
    """Each core's own recursion: the fine one is begun at the coarse one's last states, and asked about x."""
    layout = Layout(mask, positions)
    found = states(core.coarse, mask, positions=positions, statistics=statistics, **given)
    condition = core.fine.condition(Inputs(given["x"], given["embedding"], given.get("heads"), given.get("confidence")), layout)
    carry = core.fine.initial_carry(found[-1].hidden, condition)
    for number in range(core.fine.n_steps):
        found.append(core.fine.step(number, carry, condition, layout, statistics))
        carry = found[-1].carry
    return found


@pytest.mark.parametrize("mask", [None, ATTENTION], ids=["no_mask", "padding"])
@every_pair
def test_steps_are_those_of_both_in_turn(coarse, fine, mask):
    core = made(partial(Cascade, coarse=coarse, fine=fine))
    given = inputs(core)
    found, expected = states(core, mask, statistics=True, **given), by_hand(core, given, mask, statistics=True)
    assert core.n_steps == len(found) == core.coarse.n_steps + core.fine.n_steps
    for state, other in zip(found, expected, strict=True):
        assert torch.equal(state.hidden, other.hidden) and state.statistics == other.statistics
        for one, two in ((state.penalty, other.penalty), (state.halt, other.halt)):
            assert one is two is None or torch.equal(one, two)


def test_positions_hold_for_both():
    core = made(partial(Cascade, coarse=partial(mlp, steps=2), fine=partial(slots, steps=2)))
    given, positions = inputs(core), torch.arange(6).expand(3, 6) % 2 == 0
    for state, other in zip(states(core, positions=positions, **given), by_hand(core, given, None, positions), strict=True):
        assert torch.equal(state.hidden, other.hidden) and torch.equal(state.hidden[~positions], given["x"][~positions])


def test_the_gradient_of_the_fine_one_reaches_the_coarse_one():
    core = made(partial(Cascade, coarse=partial(mlp, steps=1), fine=partial(slots, steps=1)))
    states(core, **inputs(core))[-1].hidden.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in core.coarse.parameters())


def test_begun_elsewhere_the_coarse_one_starts_there():
    core = made(partial(Cascade, coarse=partial(mlp, steps=1), fine=partial(mlp, steps=1)))
    condition, _, layout = begun(core, inputs(core))
    start = torch.randn(3, 6, DIM, generator=torch.Generator().manual_seed(1))
    carry = core.coarse.initial_carry(start, condition["coarse"])
    found = core.step(0, core.initial_carry(start, condition), condition, layout).hidden
    assert torch.equal(found, core.coarse.step(0, carry, condition["coarse"], layout).hidden)


def test_both_are_filled():
    core = made(partial(Cascade, coarse=mlp, fine=mlp), awake=False)
    for part in (core.coarse, core.fine):
        assert not part.down.weight.any() and part.up.weight.std() > 0 and part.hidden_rms.item() == pytest.approx(1.7)
    assert not torch.equal(core.coarse.up.weight, core.fine.up.weight)


@pytest.mark.parametrize("order", [1, -1])
def test_what_one_of_them_reads_the_cascade_reads(order):
    reads = partial(Cascade, **dict(zip(("coarse", "fine"), (partial(slots, context_layers=(0, 2)), mlp)[::order], strict=True)))
    doubts = partial(Cascade, **dict(zip(("coarse", "fine"), (partial(Hybrid, doubtful=mlp), mlp)[::order], strict=True)))
    assert reads(DIM).context_layers == (0, 2) and not reads(DIM).needs_confidence
    assert doubts(DIM).context_layers == () and doubts(DIM).needs_confidence


def test_heads_of_different_layers_are_an_error_naming_them():
    with pytest.raises(ValueError, match=r"the same layers, got \[0\] and \[1\]"):
        Cascade(DIM, coarse=partial(slots, context_layers=(0,)), fine=partial(slots, context_layers=(1,)))
