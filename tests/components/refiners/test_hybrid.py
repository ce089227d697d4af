"""Routing of chunks: each refiner computes on its own tokens as if there were no others, the rest is x, and costs nothing."""

from functools import partial

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from components.refiners.core import Layout
from components.refiners.hybrid import Hybrid, packed, taken
from tests.support.cores import ATTENTION, DIM, SEQ, begun, inputs, made, mlp, recursive, slots, states

TWO = partial(Hybrid, doubtful=partial(slots, steps=2, rotary=True), confident=partial(mlp, steps=2), chunk=2)
ONE = partial(Hybrid, doubtful=partial(slots, steps=2, rotary=True), chunk=2)
KINDS = {
    "selective": ONE,
    "hybrid": TWO,
    "recursive": partial(
        Hybrid, doubtful=partial(recursive, steps=2, rotary=True), confident=partial(slots, steps=2, blocks=2), chunk=2
    ),
    "heads": partial(Hybrid, doubtful=partial(slots, steps=2, context_layers=(0, 2)), confident=partial(mlp, steps=2), chunk=2),
    "chunks_of_four": partial(TWO, chunk=4),
    "all_doubtful": partial(TWO, route="doubtful"),
    "all_confident": partial(TWO, route="confident"),
}
PADDING = pytest.mark.parametrize("mask", [None, ATTENTION], ids=["no_mask", "padding"])


def doubtful_tokens(core, confidence):
    """Positions of chunks that hold a token below the threshold, row by row."""
    if core.route != "chunks":
        return [set(range(SEQ)) if core.route == "doubtful" else set() for _ in range(3)]
    found = []
    for row in confidence.tolist():
        chunks = [range(start, min(start + core.chunk, SEQ)) for start in range(0, SEQ, core.chunk)]
        found.append({i for chunk in chunks if min(row[i] for i in chunk) < core.threshold for i in chunk})
    return found


def by_hand(core, given, mask, positions=None):
    """Every row by itself, every refiner by itself on its tokens alone, which know where they stood."""
    found = [given["x"].clone() for _ in range(core.n_steps)]
    for row, doubtful in enumerate(doubtful_tokens(core, given.get("confidence"))):
        for refiner, wanted in ((core.doubtful, True), (core.confident, False)):
            own = [i for i in range(SEQ) if (i in doubtful) is wanted and (mask is None or mask[row, i])]
            if refiner is None or not own:
                continue
            alone = {name: given[name][row, own][None] for name in ("x", "embedding", "heads") if name in given}
            allowed = None if positions is None else positions[row, own][None]
            condition, carry, layout = begun(refiner, alone, Layout(None, allowed, torch.tensor([own])))
            for number, hidden in enumerate(found):
                state = refiner.step(number, carry, condition, layout)
                hidden[row, own], carry = state.hidden[0], state.carry
    return found


def skipped(core, given, mask=None):
    """True where no refiner is."""
    doubtful = torch.tensor([[i in row for i in range(SEQ)] for row in doubtful_tokens(core, given.get("confidence"))])
    left = ~doubtful if core.confident is None else torch.zeros_like(doubtful)
    return left if mask is None else left | ~mask


# Values


@PADDING
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_each_chunk_is_what_its_refiner_makes_of_its_tokens_alone(kind, mask):
    core = made(kind).double()
    given = inputs(core, dtype=torch.float64)
    if core.needs_confidence:
        given["confidence"][1] = torch.tensor([0.2, 1, 1, 1, 0.3, 1])  # with a gap, which distances must know of
    found, expected = states(core, mask, **given), by_hand(core, given, mask)
    assert len(found) == 2
    for state, hidden in zip(found, expected, strict=True):
        torch.testing.assert_close(state.hidden, hidden, rtol=1e-6, atol=1e-6)
        left = skipped(core, given, mask)
        assert torch.equal(state.hidden[left], given["x"][left])
        assert not torch.isclose(state.hidden[~left], given["x"][~left]).all(-1).any()


@PADDING
def test_positions_that_may_not_change_are_known_to_the_refiners(mask):
    core, positions = made(TWO).double(), torch.arange(SEQ).expand(3, SEQ) % 3 > 0
    given = inputs(core, dtype=torch.float64)
    for state, hidden in zip(states(core, mask, positions=positions, **given), by_hand(core, given, mask, positions), strict=True):
        torch.testing.assert_close(state.hidden, hidden, rtol=1e-6, atol=1e-6)
        assert torch.equal(state.hidden[~positions], given["x"][~positions])


@pytest.mark.parametrize("chunk", [1, 2, 3, 4, 5, 6, 50])
@pytest.mark.parametrize("threshold", [0.0, 0.25, 0.5, 0.92, 2.0])  # 0.5 itself is there: not below
def test_a_chunk_is_as_sure_as_its_least_sure_token(chunk, threshold):
    core = made(partial(ONE, chunk=chunk, threshold=threshold))
    given = inputs(core)
    changed = (states(core, **given)[0].hidden != given["x"]).any(-1)
    rows = doubtful_tokens(core, given["confidence"])
    assert [set(row.nonzero()[:, 0].tolist()) for row in changed] == rows


@pytest.mark.parametrize("level", [0.0, 1.0])
def test_of_all_chunks_alike_one_refiner_gets_none(level):
    core = made(TWO)
    given = {**inputs(core), "confidence": torch.full((3, SEQ), level)}
    (mine, other) = (core.doubtful, core.confident) if level == 0 else (core.confident, core.doubtful)
    alone = {name: given[name] for name in ("x", "embedding")}
    for state, expected in zip(states(core, **given), states(mine, **alone), strict=True):
        torch.testing.assert_close(state.hidden, expected.hidden)
    states(core, **given)[-1].hidden.sum().backward()
    assert not any(p.grad is not None and p.grad.any() for p in other.parameters())


@pytest.mark.parametrize("route", ["doubtful", "confident"])
def test_a_fixed_route_is_that_refiner_and_asks_for_no_confidence(route):
    core = made(partial(TWO, route=route))
    assert not core.needs_confidence and made(TWO).needs_confidence
    given = inputs(core)
    assert "confidence" not in given
    for state, expected in zip(states(core, **given), states(getattr(core, route), **given), strict=True):
        assert torch.equal(state.hidden, expected.hidden)


# Penalties and statistics


def test_penalties_of_both_are_added():
    core = made(
        partial(
            Hybrid,
            chunk=2,
            doubtful=partial(slots, steps=2, orthogonality=0.5),
            confident=partial(slots, steps=2, orthogonality=0.25),
        )
    ).double()
    given = {name: value[:1] for name, value in inputs(core, dtype=torch.float64).items()}  # chunks: doubtful, not, not
    parts = [
        states(refiner, **{name: given[name][:, own] for name in ("x", "embedding")})
        for refiner, own in ((core.doubtful, [0, 1]), (core.confident, [2, 3, 4, 5]))
    ]
    for state, one, other in zip(states(core, **given), *parts, strict=True):
        assert one.penalty > 0 and other.penalty > 0
        torch.testing.assert_close(state.penalty, one.penalty + other.penalty)


def test_without_a_penalty_there_is_none():
    core = made(TWO)
    assert all(state.penalty is None for state in states(core, **inputs(core)))


@PADDING
@pytest.mark.parametrize("kind", [ONE, TWO], ids=["selective", "hybrid"])
def test_shares_are_those_of_the_tokens(kind, mask):
    core = made(kind)
    given = inputs(core)
    kept = torch.ones(3, SEQ, dtype=torch.bool) if mask is None else mask
    doubtful = torch.tensor([[i in row for i in range(SEQ)] for row in doubtful_tokens(core, given["confidence"])])
    share = doubtful[kept].float().mean().item()
    for state in states(core, mask, statistics=True, **given):
        assert state.statistics["share/doubtful"].item() == pytest.approx(share)
        if core.confident is not None:
            assert state.statistics["share/confident"].item() == pytest.approx(1 - share)


def test_statistics_of_two_refiners_stand_side_by_side():
    core = made(TWO)
    given = {name: value[:1] for name, value in inputs(core).items()}
    parts = {
        name: states(refiner, statistics=True, **{key: given[key][:, own] for key in ("x", "embedding")})
        for name, refiner, own in (("doubtful", core.doubtful, [0, 1]), ("confident", core.confident, [2, 3, 4, 5]))
    }
    for number, state in enumerate(states(core, statistics=True, **given)):
        measured = {k: v.item() for k, v in state.statistics.items() if not k.startswith("share/")}
        expected = {f"{k}/{name}": v.item() for name, part in parts.items() for k, v in part[number].statistics.items()}
        assert measured == pytest.approx(expected, rel=1e-4, abs=1e-6)
        assert measured["delta/doubtful"] != pytest.approx(measured["delta/confident"], rel=1e-2)


def test_statistics_of_one_refiner_keep_their_names():
    for core in (made(ONE), made(partial(TWO, route="doubtful"))):
        (state, _) = states(core, statistics=True, **inputs(core))
        plain = states(core.doubtful, statistics=True, **{name: inputs(core)[name] for name in ("x", "embedding")})[0]
        assert set(state.statistics) == {*plain.statistics, "share/doubtful"}


# What is saved


def operations(core, confidence, backward):
    """Of the products, attention's too, which fused kernels hide."""
    g = torch.Generator().manual_seed(0)
    x, embedding = (torch.randn(*confidence.shape, DIM, generator=g) for _ in range(2))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        total = sum(state.hidden.sum() for state in core.refine(x, embedding, confidence=confidence))
        if backward:
            total.backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("inner", [partial(slots, steps=2, blocks=2), partial(recursive, steps=2)], ids=["slots", "recursive"])
def test_half_of_the_chunks_cost_half_of_the_products_and_a_quarter_of_the_attention(inner, backward):
    core, seq = made(partial(Hybrid, doubtful=inner, chunk=4)), 32
    half = (torch.arange(seq) // 4 % 2).float().expand(3, seq)
    everything, some, none = (operations(core, c, backward) for c in (torch.zeros(3, seq), half, torch.ones(3, seq)))
    assert 0.25 < some / everything < 0.5
    assert none <= everything / seq  # the tokens that stand in, one a row


@pytest.mark.parametrize("threshold", [-1.0, 0.9])
def test_no_gradient_passes_through_the_refiner_where_it_is_not(threshold):
    core = made(partial(ONE, threshold=threshold))
    given = inputs(core)
    given["x"].requires_grad_()
    last = states(core, **given)[-1].hidden
    left = skipped(core, given)
    assert left.any() and (threshold > 0) == (not left.all())
    last[left].sum().backward(retain_graph=True)
    assert torch.equal(given["x"].grad, left[..., None].expand(3, SEQ, DIM).float())
    assert not any(p.grad is not None and p.grad.any() for p in core.parameters())
    if threshold > 0:
        given["x"].grad = None
        last[~left].square().sum().backward()
        assert not given["x"].grad[left].any() and given["x"].grad[~left].all()
        assert core.doubtful.delta_out.weight.grad.any()


# Packing


def test_wanted_tokens_move_to_the_front_in_order():
    wanted = torch.rand(20, 9, generator=torch.Generator().manual_seed(0)) < torch.arange(20)[:, None] / 20
    places, valid = packed(wanted)
    assert places.shape[1] == valid.shape[1] == wanted.sum(1).max()
    for row in range(20):
        assert places[row][valid[row]].tolist() == wanted[row].nonzero()[:, 0].tolist()
        assert len(set(places[row].tolist())) == places.shape[1]  # no position twice: a scatter writes each once


def test_of_nothing_wanted_one_place_is_left():
    places, valid = packed(torch.zeros(3, 4, dtype=torch.bool))
    assert places.shape == (3, 1) and not valid.any()


def test_taken_are_the_tokens_at_the_places():
    x, places = torch.arange(24.0).view(2, 4, 3), torch.tensor([[3, 0], [1, 1]])
    assert torch.equal(taken(x, places), torch.stack([x[0, [3, 0]], x[1, [1, 1]]]))


# Errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"confident": partial(mlp, steps=3)}, r"both refiners need as many steps, got 2 and 3$"),
        ({"chunk": 0}, r"a chunk needs at least 1 token, got 0$"),
        ({"route": "confident"}, r"\(with a refiner for them\) 'confident', got 'confident'$"),
        ({"confident": partial(slots, steps=2, context_layers=(1,))}, r"the same layers, got \[0, 2\] and \[1\]$"),
    ],
)
def test_settings_that_do_not_fit_are_errors_naming_them(options, message):
    with pytest.raises(ValueError, match=message):
        Hybrid(DIM, **{"doubtful": partial(slots, steps=2, context_layers=(0, 2)), **options})


def test_an_unknown_route_is_an_error():
    with pytest.raises((ValueError, TypeError), match="both"):
        Hybrid(DIM, doubtful=slots, confident=mlp, route="both")


def test_chunks_without_confidence_are_an_error():
    core = made(ONE)
    given = inputs(core)
    del given["confidence"]
    with pytest.raises(ValueError, match="routed by the backbone's confidence, and none was given"):
        states(core, **given)
