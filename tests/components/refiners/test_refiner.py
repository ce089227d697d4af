import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from components.refiners.cascade import Cascade
from components.refiners.chunk_masking import ChunkMasking
from components.refiners.core import Inputs, Layout
from components.refiners.delta import Clamped
from components.refiners.hybrid import Hybrid
from components.refiners.memory import Memory
from components.refiners.refiner import SlotRefiner
from components.refiners.tapped import Tapped
from tests.support import plain
from tests.support.cores import CORES, DESIGNS, begun, made

DIM, HEADS, RMS = 16, 2, 1.7
NAMES = ("context", "reasoning", "refinement", "confidence")
OWN_WIDTHS = [("context", "context", 3), ("reasoning", "attention", 5), ("refinement", "change", 7), ("confidence", "variance", 2)]
ATTENTION = torch.arange(5) < torch.tensor([5, 3, 4])[:, None]


def make(seed=0, awake=True, **options):
    """A refiner with initial weights, or with every weight random: norms, gates and output layer too."""
    refiner = SlotRefiner(DIM, HEADS, **{"steps": 3, **options})
    g = torch.Generator().manual_seed(seed)
    refiner.init_weights(RMS, g)
    if awake:
        for p in refiner.parameters():
            torch.nn.init.normal_(p, std=0.4, generator=g)
    return refiner


def inputs(seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(3, 5, DIM, generator=g), 0.1 * torch.randn(3, 5, DIM, generator=g)


def whole(x, embedding, **given):
    return Inputs(x, embedding, **given), Layout()


def hidden(refiner, *args, **options):
    return [state.hidden for state in refiner.refine(*args, **options)]


# One step once more, from the bare weights.


def plain_step(w, h, previous, x, embedding, attention, design, blocks, heads=None, places=None, rotary=False):
    def attend(u, qkv):
        return plain.attention(u, qkv, HEADS, attention, places, rotary)

    u = h
    if design != "literal":
        u = plain.layer_norm(h, w["state_norm.weight"]) + plain.injection(plain.below(w, "injection."), x, embedding)
    for i in range(blocks - 1):
        b = plain.below(w, f"blocks.{i}.")
        u = u + F.linear(attend(plain.rms_norm(u, b["attention_norm.weight"]), b["attention.qkv.weight"]), b["out.weight"])
        u = u + F.linear(plain.gelu(F.linear(plain.rms_norm(u, b["mlp_norm.weight"]), b["up.weight"])), b["down.weight"])
    context = attend(plain.layer_norm(u, w["attention_norm.weight"]), w["attention.qkv.weight"])
    channel = h if design == "literal" else h / RMS
    variance = torch.log(1 + (channel - channel.mean(-1, keepdim=True)) ** 2)
    previous = context if previous is None else previous
    source = context if heads is None else heads
    sources = {"context": source, "reasoning": context, "refinement": context - previous, "confidence": variance}
    slots = {name: F.linear(value, w[f"slots.project.{name}.weight"]) for name, value in sources.items()}
    for name in ("context", "reasoning", "confidence"):  # the bias of the refinement cancels
        slots[name] = slots[name] + w[f"slots.project.{name}.bias"]
    gates = 1 / (1 + torch.exp(-w["slots.gate_logits"]))
    gated = {n: gates[i] * plain.layer_norm(slots[n], w[f"slots.norms.{n}.weight"], eps=1.0) for i, n in enumerate(NAMES)}
    confidence = torch.sigmoid(F.linear(gated["confidence"], w["confidence.weight"], w["confidence.bias"]))
    wide = plain.gelu(F.linear(torch.cat([gated[n] for n in NAMES], -1), w["delta_in.weight"], w["delta_in.bias"]))
    delta = F.linear(wide, w["delta_out.weight"], w["delta_out.bias"])
    change = {"residual": delta * RMS, "damped": delta * RMS + x - h, "literal": (0.1 * delta.tanh()).clamp(-0.5, 0.5)}[design]
    update = confidence * change
    return {"hidden": h + update, "context": context, "slots": slots, "gates": gates, "confidence": confidence, "update": update}


def plain_steps(refiner, x, embedding, attention, design, blocks=1, positions=None, **given):
    w = plain.bare(refiner)
    entry = x
    if design == "literal":
        entry = plain.layer_norm(x, w["entry.weight"]) + w["entry.bias"]
    change = torch.ones(3, 5, 1) if positions is None else positions[..., None].float()
    results, h, context = [], entry * change + x * (1 - change), None
    for _ in range(3):
        results.append(plain_step(w, h, context, x, embedding, attention, design, blocks, **given))
        results[-1]["hidden"] = results[-1]["hidden"] * change + x * (1 - change)
        h, context = results[-1]["hidden"], results[-1]["context"]
    return results


def plain_overlap(slots):
    """Mean over pairs of the mean squared correlation; a slot that does not vary (refinement, step 1) is uncorrelated."""
    columns = [value.flatten(0, 1) for value in slots.values()]
    correlation = torch.corrcoef(torch.cat(columns, 1).T).nan_to_num(0).square()
    index = torch.arange(4).repeat_interleave(torch.tensor([c.shape[1] for c in columns]))
    pairs = [correlation[index == i][:, index == j].mean() for i in range(4) for j in range(i)]
    return torch.stack(pairs).mean()


@pytest.mark.parametrize("attention", [None, ATTENTION], ids=["no_mask", "padding"])
@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("design", DESIGNS)
def test_every_step_equals_a_plain_recomputation_from_the_weights(design, blocks, attention):
    refiner = make(**DESIGNS[design], blocks=blocks)
    x, embedding = inputs()
    expected = plain_steps(refiner, x, embedding, attention, design, blocks)
    states = list(refiner.refine(x, embedding, attention))
    assert len(states) == 3
    for state, by_hand in zip(states, expected, strict=True):
        torch.testing.assert_close(state.hidden, by_hand["hidden"], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(state.carry["context"], by_hand["context"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("attention", [None, ATTENTION], ids=["no_mask", "padding"])
@pytest.mark.parametrize("layers", [(0,), (2, 1)])
def test_heads_of_the_backbone_are_the_context_slots_source(layers, attention):
    refiner, (x, embedding) = make(context_layers=layers), inputs()
    heads = torch.randn(3, 5, DIM * len(layers), generator=torch.Generator().manual_seed(5))
    assert refiner.context_layers == layers and refiner.slots.project["context"].in_features == DIM * len(layers)
    expected = plain_steps(refiner, x, embedding, attention, "damped", heads=heads)
    for state, by_hand in zip(refiner.refine(x, embedding, attention, heads=heads), expected, strict=True):
        torch.testing.assert_close(state.hidden, by_hand["hidden"], rtol=1e-3, atol=1e-4)


def test_heads_that_are_missing_are_an_error_naming_the_layers():
    refiner, (x, embedding) = make(context_layers=(2, 1)), inputs()
    with pytest.raises(ValueError, match=r"heads of backbone layers \[2, 1\], and was given none"):
        hidden(refiner, x, embedding)


@pytest.mark.parametrize("places", [None, [[0, 1, 2, 3, 4], [1, 2, 7, 9, 30], [5, 4, 3, 2, 0]]], ids=["in_order", "given"])
@pytest.mark.parametrize("blocks", [1, 2])
def test_rotary_attention_equals_the_plain_recomputation(blocks, places):
    refiner, (x, embedding) = make(blocks=blocks, rotary=True), inputs()
    places = None if places is None else torch.tensor(places)
    expected = plain_steps(refiner, x, embedding, ATTENTION, "damped", blocks, rotary=True, places=places)
    condition, carry, layout = begun(refiner, {"x": x, "embedding": embedding}, Layout(ATTENTION, places=places))
    for number, by_hand in enumerate(expected):
        state = refiner.step(number, carry, condition, layout)
        torch.testing.assert_close(state.hidden, by_hand["hidden"], rtol=1e-3, atol=1e-4)
        carry = state.carry
    without = plain_steps(refiner, x, embedding, ATTENTION, "damped", blocks)
    assert not torch.allclose(without[-1]["hidden"], state.hidden, rtol=1e-2)


@pytest.mark.parametrize("design", DESIGNS)
def test_steps_share_their_weights(design):
    sizes = {sum(p.numel() for p in SlotRefiner(DIM, HEADS, steps=steps, **DESIGNS[design]).parameters()) for steps in (1, 6)}
    assert len(sizes) == 1
    refiner = make(**DESIGNS[design])
    short, long = hidden(refiner, *inputs(), steps=2), hidden(refiner, *inputs(), steps=5)
    assert (len(short), len(long)) == (2, 5)
    assert all(torch.equal(a, b) for a, b in zip(short, long[:2], strict=True))


def test_at_the_start_damped_states_equal_x_bit_for_bit():
    x, embedding = inputs()
    states = hidden(make(awake=False), x, embedding, ATTENTION)
    assert [torch.equal(h, x) for h in states] == [True] * 3


def test_the_first_update_already_has_a_gradient_at_the_start():
    refiner = make(awake=False)
    x, embedding = inputs()
    (gradient,) = torch.autograd.grad(hidden(refiner, x, embedding)[0].square().sum(), refiner.delta_out.weight)
    assert gradient.abs().max() > 0


def test_literal_states_enter_through_a_layer_norm_and_move_by_a_tenth_at_most():
    refiner = make(**DESIGNS["literal"])
    torch.nn.init.normal_(refiner.delta_out.weight, std=20, generator=torch.Generator().manual_seed(0))
    x, embedding = inputs()
    before = F.layer_norm(x, (DIM,), refiner.entry.weight, refiner.entry.bias)
    for after in hidden(refiner, x, embedding):
        largest = (after - before).abs().max().item()
        assert 0.05 < largest <= 0.1 + 1e-6
        before = after


@pytest.mark.parametrize(("design", "injected"), [("damped", True), ("residual", True), ("literal", False)])
def test_embeddings_enter_but_in_the_literal_design(design, injected):
    refiner = make(**DESIGNS[design])
    x, embedding = inputs()
    same = [torch.equal(a, b) for a, b in zip(hidden(refiner, x, embedding), hidden(refiner, x, -embedding), strict=True)]
    assert same == [not injected] * 3


def test_padding_does_not_influence_valid_positions():
    refiner = make(blocks=2)
    x, embedding = inputs()
    noise = torch.where(ATTENTION[..., None], 0.0, 5 * torch.randn(x.shape, generator=torch.Generator().manual_seed(9)))
    clean, dirty = hidden(refiner, x, embedding, ATTENTION), hidden(refiner, x + noise, embedding + noise, ATTENTION)
    for a, b in zip(clean, dirty, strict=True):
        torch.testing.assert_close(a[ATTENTION], b[ATTENTION])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 100}, r"divisible by 8, got 100\b"),
        ({"dim": 64, "heads": 3}, r"\b64\b.*\b3\b"),
        ({"dim": 64, "slots": [("a", "state", 8), ("b", "variance", 0)]}, r"at least 2 wide .* got 0 for 'b'"),
        ({"dim": 64, "heads": 4, "head_width": 16}, "heads 4 and head_width 16"),
        ({"dim": 64, "heads": None}, "heads None and head_width None"),
        ({"dim": 64, "heads": None, "head_width": 0}, "head_width must be at least 1, got 0"),
        ({"dim": 64, "steps": 0}, r"steps 0\b"),
        ({"dim": 64, "blocks": 0}, r"blocks 0\b"),
    ],
)
def test_sizes_that_do_not_fit_are_an_error_naming_them(options, message):
    with pytest.raises(ValueError, match=message):
        SlotRefiner(**options)


@pytest.mark.parametrize("design", DESIGNS)
def test_custom_widths_equal_the_plain_recomputation(design):
    refiner = make(**DESIGNS[design], slots=OWN_WIDTHS)
    x, embedding = inputs()
    expected = plain_steps(refiner, x, embedding, None, design)
    assert refiner.delta_in.in_features == 17
    for h, by_hand in zip(hidden(refiner, x, embedding), expected, strict=True):
        torch.testing.assert_close(h, by_hand["hidden"], rtol=1e-3, atol=1e-4)


def test_a_width_not_divisible_by_eight_works_with_custom_widths():
    refiner = SlotRefiner(100, slots=[(name, source, width + 1) for name, source, width in OWN_WIDTHS])
    assert hidden(refiner, torch.randn(1, 2, 100), torch.randn(1, 2, 100))[-1].shape == (1, 2, 100)


@pytest.mark.parametrize("design", DESIGNS)
@settings(max_examples=25, deadline=None)
@given(st.lists(st.booleans(), min_size=15, max_size=15))
def test_positions_outside_the_mask_stay_bit_identical_to_x_and_others_change(design, mask):
    positions = torch.tensor(mask).view(3, 5)
    x, embedding = inputs()
    for h in hidden(make(**DESIGNS[design]), x, embedding, ATTENTION, positions=positions):
        assert torch.equal(h[~positions], x[~positions])
        assert (h[positions] != x[positions]).any(-1).all()


@pytest.mark.parametrize("design", DESIGNS)
def test_positions_that_change_read_the_others_as_they_are(design):
    refiner, (x, embedding) = make(**DESIGNS[design]), inputs()
    positions = torch.arange(15).view(3, 5) % 3 == 0
    expected = plain_steps(refiner, x, embedding, ATTENTION, design, positions=positions)
    for h, by_hand in zip(hidden(refiner, x, embedding, ATTENTION, positions=positions), expected, strict=True):
        torch.testing.assert_close(h, by_hand["hidden"], rtol=1e-3, atol=1e-4)


def test_a_mask_that_lets_everything_change_is_no_mask():
    refiner, (x, embedding) = make(), inputs()
    masked = hidden(refiner, x, embedding, positions=torch.ones(3, 5, dtype=torch.bool))
    assert all(torch.equal(a, b) for a, b in zip(masked, hidden(refiner, x, embedding), strict=True))


@pytest.mark.parametrize("design", DESIGNS)
def test_statistics_equal_a_plain_computation(design):
    refiner, (x, embedding) = make(**DESIGNS[design]), inputs()
    expected = plain_steps(refiner, x, embedding, ATTENTION, design)
    for state, by_hand in zip(refiner.refine(x, embedding, ATTENTION, statistics=True), expected, strict=True):
        slots = {name: value[ATTENTION][None] for name, value in by_hand["slots"].items()}  # padding is left out
        measured = {
            **{f"slot/{name}": value.square().mean().sqrt().item() for name, value in slots.items()},
            **{f"gate/{name}": by_hand["gates"][i].item() for i, name in enumerate(NAMES)},
            "confidence": by_hand["confidence"][ATTENTION].mean().item(),
            "delta": by_hand["update"][ATTENTION].square().mean().sqrt().item(),
            "overlap": plain_overlap(slots).item(),
        }
        assert {name: value.item() for name, value in state.statistics.items()} == pytest.approx(measured, rel=1e-3, abs=1e-5)


def test_statistics_are_scalars_without_gradient():
    refiner, (x, embedding) = make(), inputs()
    for state in refiner.refine(x, embedding, statistics=True):
        assert len(state.statistics) == 11
        assert all(value.ndim == 0 and not value.requires_grad for value in state.statistics.values())


def test_statistics_do_not_change_the_states_and_come_only_on_request():
    refiner, (x, embedding) = make(), inputs()
    plain, measured = list(refiner.refine(x, embedding)), list(refiner.refine(x, embedding, statistics=True))
    assert [state.statistics for state in plain] == [{}] * 3
    assert all(torch.equal(a.hidden, b.hidden) for a, b in zip(plain, measured, strict=True))


def test_the_refinement_slot_is_zero_at_the_first_step_and_only_there():
    refiner, (x, embedding) = make(), inputs()
    sizes = [state.statistics["slot/refinement"].item() for state in refiner.refine(x, embedding, statistics=True)]
    assert sizes[0] == 0.0
    assert min(sizes[1:]) > 0.0


@pytest.mark.parametrize("weight", [0.5, 2.0])
def test_penalty_is_the_weighted_overlap_of_the_slots(weight):
    refiner, (x, embedding) = make(orthogonality=weight), inputs()
    expected = plain_steps(refiner, x, embedding, None, "damped")
    for state, by_hand in zip(refiner.refine(x, embedding), expected, strict=True):
        assert state.penalty.item() == pytest.approx(weight * plain_overlap(by_hand["slots"]).item(), rel=1e-3)


def test_penalty_has_a_finite_gradient_to_the_slots_at_every_step():
    refiner, (x, embedding) = make(orthogonality=0.5), inputs()
    for state in refiner.refine(x, embedding):
        gradients = torch.autograd.grad(state.penalty, list(refiner.slots.project.parameters()), retain_graph=True)
        assert all(g.isfinite().all() for g in gradients)
        assert gradients[0].abs().max() > 0


def test_without_orthogonality_there_is_no_penalty():
    assert all(state.penalty is None for state in make().refine(*inputs()))


@pytest.mark.parametrize("design", DESIGNS)
def test_a_step_from_detached_carries_learns_from_its_own_loss_alone(design):
    refiner, (x, embedding) = make(**DESIGNS[design]), inputs()
    matrices = [p for p in refiner.parameters() if p.ndim == 2]
    condition, carry, layout = begun(refiner, {"x": x, "embedding": embedding})
    for _ in range(2):
        carry = {name: value.detach() for name, value in refiner(carry, condition, layout).carry.items()}
    detached = refiner(carry, condition, layout).hidden.square().sum()
    with torch.no_grad():
        for number, state in enumerate(refiner.refine(x, embedding)):
            if number == 1:
                before = state.carry
    alone = refiner(before, refiner.condition(*whole(x, embedding)), layout).hidden.square().sum()
    full = hidden(refiner, x, embedding)[-1].square().sum()
    assert detached == alone == full
    one_step, by_hand, other = (torch.autograd.grad(loss, matrices) for loss in (detached, alone, full))
    for ours, expected, through in zip(one_step, by_hand, other, strict=True):
        torch.testing.assert_close(ours, expected)
        assert not torch.allclose(ours, through, rtol=1e-2)


def test_initial_weights_follow_the_generator_alone():
    first, again, other = (make(seed, awake=False).state_dict() for seed in (0, 0, 1))
    torch.manual_seed(123)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["confidence.weight"], other["confidence.weight"])


@pytest.mark.parametrize(("design", "silent"), [("residual", True), ("literal", False)])
def test_initial_weights_are_within_one_over_the_root_of_fan_in(design, silent):
    refiner = make(awake=False, **DESIGNS[design])
    wide = refiner.delta_in.weight
    assert 0.9 * wide.shape[1] ** -0.5 < wide.abs().max() <= wide.shape[1] ** -0.5
    assert (refiner.delta_out.weight.abs().max() == 0).item() == silent
    assert refiner.slots.gates().tolist() == [0.5] * 4


def test_initial_attention_is_normal_with_the_spread_of_a_block():
    refiner = SlotRefiner(128)
    refiner.init_weights(RMS, torch.Generator().manual_seed(0))
    assert refiner.attention.qkv.weight.std().item() == pytest.approx(0.7 / math.sqrt(128), rel=0.03)


def test_blocks_before_the_attention_keep_their_own_initialisation():
    refiner = SlotRefiner(64, blocks=2)
    refiner.init_weights(1.0, torch.Generator().manual_seed(0))
    assert refiner.blocks[0].out.weight.std().item() == pytest.approx(0.3 / 8, rel=0.1)
    assert refiner.blocks[0].attention.qkv.weight.std().item() == pytest.approx(0.7 / 8, rel=0.1)


def test_no_step_at_all_is_an_error():
    refiner = SlotRefiner(16)
    x = torch.zeros(1, 2, 16)
    with pytest.raises(ValueError, match="at least 1 step, got 0"):
        list(refiner.refine(x, x, steps=0))


# Parts of one's own


@pytest.mark.parametrize("scale", [0.05, 0.3])
def test_a_smaller_delta_scale_bounds_every_update(scale):
    refiner = make(**{**DESIGNS["literal"], "update": Clamped(scale)})
    torch.nn.init.normal_(refiner.delta_out.weight, std=20, generator=torch.Generator().manual_seed(0))
    x, embedding = inputs()
    before = F.layer_norm(x, (DIM,), refiner.entry.weight, refiner.entry.bias)
    for after in hidden(refiner, x, embedding):
        assert 0.5 * scale < (after - before).abs().max().item() <= scale + 1e-6
        before = after


def test_the_clamp_cuts_what_the_scale_allows():
    refiner, wide = (make(**{**DESIGNS["literal"], "update": Clamped(3.0, limit)}) for limit in (0.01, 9.0))
    x, embedding = inputs()
    before = F.layer_norm(x, (DIM,), refiner.entry.weight, refiner.entry.bias)
    assert 0.002 < (hidden(refiner, x, embedding)[0] - before).abs().max().item() <= 0.01 + 1e-6
    assert (hidden(wide, x, embedding)[0] - before).abs().max().item() > 0.1


MOODS = [
    ("doing", "attention", 6),
    ("mood", "state", 3),
    ("origin", "backbone", 5),
    ("drift", "change", 4),
    ("doubt", "variance", 2),
]


def test_slots_of_other_names_and_sources_equal_the_plain_recomputation():
    refiner, (x, embedding) = make(slots=MOODS), inputs()
    assert refiner.delta_in.in_features == 20 and refiner.confidence.in_features == 2
    w, h, previous = plain.bare(refiner), x, None
    for state in refiner.refine(x, embedding, ATTENTION, statistics=True):
        u = plain.layer_norm(h, w["state_norm.weight"]) + plain.injection(plain.below(w, "injection."), x, embedding)
        u = plain.layer_norm(u, w["attention_norm.weight"])
        now = plain.attention(u, w["attention.qkv.weight"], HEADS, ATTENTION)
        channel = h / RMS
        values = {"doing": now, "mood": channel, "origin": x / RMS, "drift": now - (now if previous is None else previous)}
        values["doubt"] = torch.log(1 + (channel - channel.mean(-1, keepdim=True)) ** 2)
        slots = {n: F.linear(v, w[f"slots.project.{n}.weight"]) for n, v in values.items()}
        slots |= {n: v + w[f"slots.project.{n}.bias"] for n, v in slots.items() if n != "drift"}
        gates = 1 / (1 + torch.exp(-w["slots.gate_logits"]))
        gated = [gates[i] * plain.layer_norm(slots[n], w[f"slots.norms.{n}.weight"], eps=1.0) for i, n in enumerate(slots)]
        confidence = torch.sigmoid(F.linear(gated[-1], w["confidence.weight"], w["confidence.bias"]))
        wide = plain.gelu(F.linear(torch.cat(gated, -1), w["delta_in.weight"], w["delta_in.bias"]))
        delta, previous = F.linear(wide, w["delta_out.weight"], w["delta_out.bias"]), now
        h = h + confidence * (delta * RMS + x - h)
        torch.testing.assert_close(state.hidden, h, rtol=1e-3, atol=1e-4)
        assert {name for name in state.statistics if "/" in name} == {f"{kind}/{n}" for kind in ("slot", "gate") for n in values}
        for i, name in enumerate(values):
            assert state.statistics[f"gate/{name}"].item() == pytest.approx(gates[i].item())
            size = slots[name][ATTENTION].square().mean().sqrt().item()
            assert state.statistics[f"slot/{name}"].item() == pytest.approx(size, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize(
    ("dim", "width", "heads"), [(64, 16, 4), (64, 17, 4), (64, 64, 1), (64, 100, 1), (24, 10, 3), (4096, 64, 64)]
)
def test_heads_are_the_widest_of_at_most_that_width(dim, width, heads):
    with torch.device("meta"):
        refiner = SlotRefiner(dim, heads=None, head_width=width)
    assert refiner.attention.heads == refiner.architecture["heads"] == heads


@pytest.mark.parametrize("seed", range(3))
def test_damped_states_stay_within_the_largest_proposal_of_x_and_added_ones_do_not(seed):
    """|h - x| is at most the largest |rms * delta| so far, channel by channel, after 300 steps as after one."""
    (x, embedding), largest = inputs(seed), 0.0
    refiner, adding = (make(seed, **DESIGNS[design]) for design in ("damped", "residual"))
    refiner.delta_out.register_forward_hook(lambda module, given, out: proposals.append(RMS * out.detach().abs()))
    proposals: list[torch.Tensor] = []
    with torch.no_grad():
        for state in refiner.refine(x, embedding, steps=300):
            largest = torch.maximum(proposals[-1], torch.as_tensor(largest))
            assert ((state.hidden - x).abs() <= largest * (1 + 1e-5)).all()
        *_, last = adding.refine(x, embedding, steps=300)
    assert (last.hidden - x).abs().max() > 5 * largest.max()


def test_damped_states_stay_where_the_recursion_started_if_nothing_is_proposed():
    core = made(CORES["slots"], awake=False)
    x, embedding = inputs()
    condition, _, layout = begun(core, {"x": x, "embedding": embedding})
    start = x + 3.0  # as another refiner, or a tap, has left them
    carry = core.initial_carry(start, condition)
    for number in range(9):
        carry = core.step(number, carry, condition, layout).carry
    assert torch.allclose(carry["hidden"], start)


def test_a_wrapper_is_anchored_where_what_it_wraps_is():
    def founding(dim):
        return SlotRefiner(dim, injection=None, update=Clamped())

    for of, anchored in ((founding, False), (SlotRefiner, True)):
        assert of(16).anchored == anchored
        wrappers = [ChunkMasking(16, of), Cascade(16, of, of), Hybrid(16, of), Tapped(16, of, [0]), Memory(16, of)]
        assert [wrapper.anchored for wrapper in wrappers] == [anchored] * 5
