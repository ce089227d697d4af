import subprocess
import sys

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from components.nn.attention import rotate
from components.refiners.core import Layout, causal_mask
from components.refiners.recursive_core import RecursiveCore
from components.refiners.recursive_network import PostNormBlock, RecursiveNetwork
from tests.conftest import ROOT

DIM, HEADS, SEQ = 12, 2, 5
PADDING = torch.tensor([[True] * 5, [True, True, True, False, False]])
PLACES = torch.tensor([[0, 2, 3, 7, 9], [1, 2, 3, 4, 5]])
layouts = pytest.mark.parametrize(
    "layout",
    [Layout(), Layout(PADDING), Layout(PADDING, places=PLACES), Layout(PADDING, past=causal_mask(torch.zeros(2, SEQ, DIM)))],
    ids=["plain", "padding", "places", "causal"],
)


def made(rotary=True, dtype=torch.float64):
    level = RecursiveNetwork(DIM, HEADS, 2, 4.0, rotary)
    level.init_weights(torch.Generator().manual_seed(0))
    return level.to(dtype)


def given(dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, SEQ, DIM, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for _ in range(3)]


def plain(level, state, other, question, layout, rotary=True):
    """The formulas from the bare weights, differentiated by autograd."""
    z = state + other if question is None else state + other + question
    for block in level.blocks:
        q, k, v = (z @ block.attention.qkv.weight.T).view(2, SEQ, 3, HEADS, DIM // HEADS).permute(2, 0, 3, 1, 4)
        if rotary:
            q, k = rotate(q, layout.places), rotate(k, layout.places)
        scores = q @ k.mT / (DIM // HEADS) ** 0.5
        if layout.attention is not None:
            scores = scores.masked_fill(~layout.attention[:, None, None], -torch.inf)
        if layout.causal:
            scores = scores.masked_fill(torch.ones(SEQ, SEQ).triu(1).bool(), -torch.inf)
        z = plain_norm(z + (scores.softmax(-1) @ v).transpose(1, 2).flatten(2) @ block.out.weight.T)
        gate, up = (z @ block.gate_up.weight.T).chunk(2, -1)
        z = plain_norm(z + gate * gate.sigmoid() * up @ block.down.weight.T)
    return z


def plain_norm(x):
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()


def with_gradients(function, level, inputs):
    value = function(*inputs)
    weights = torch.linspace(-1, 1, value.numel(), dtype=value.dtype).view_as(value)
    inputs = [x for x in inputs if x is not None]
    return [value, *torch.autograd.grad((value * weights).sum(), [*inputs, *level.parameters()])]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5), (torch.bfloat16, 0.15)])
@pytest.mark.parametrize("rotary", [True, False])
@layouts
def test_values_and_gradients_equal_the_plain_formulas(layout, rotary, dtype, tolerance):
    level, inputs = made(rotary), given()
    expected = with_gradients(lambda *x: plain(level, *x, layout, rotary), level, inputs)
    level = level.to(dtype)
    found = with_gradients(lambda *x: level(*x, layout), level, [x.detach().to(dtype).requires_grad_() for x in inputs])
    for a, b in zip(found, expected, strict=True):
        assert (a.double() - b).norm() <= tolerance * b.norm()


def test_without_a_question():
    level, (state, other, _) = made(), given()
    torch.testing.assert_close(level(state, other, None, Layout()), plain(level, state, other, None, Layout()), rtol=1e-12, atol=0)


def test_states_come_out_with_rms_1():
    z = made()(*given(), Layout())
    torch.testing.assert_close(z.square().mean(-1), torch.ones(2, SEQ, dtype=torch.float64), rtol=1e-4, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_are_the_same_with_and_without_gradient(dtype):
    level, inputs = made(dtype=dtype), given(dtype)
    with torch.no_grad():
        expected = level(*inputs, Layout(PADDING))
    assert torch.equal(level(*inputs, Layout(PADDING)), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_under_autocast_products_are_in_half_precision_and_weights_learn_in_single(dtype):
    level, inputs = made(dtype=torch.float32), given(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        z = level(*inputs, Layout(PADDING))
    assert z.dtype == dtype
    z.float().square().sum().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in level.parameters())
    exact = made(dtype=torch.float32)(*(x.detach().float() for x in inputs), Layout(PADDING))
    assert (z - exact).norm() < 0.05 * exact.norm()


def test_weights_are_named_as_ever():
    names = ("attention.qkv", "out", "gate_up", "down")
    assert list(PostNormBlock(DIM, HEADS, 4.0, True).state_dict()) == [f"{name}.weight" for name in names]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@layouts
def test_a_level_that_runs_once_more_has_the_same_gradients_bit_for_bit(layout, dtype):
    level, inputs = made(dtype=dtype), given(dtype)
    kept = with_gradients(lambda *x: level(*x, layout), level, inputs)
    again = with_gradients(lambda *x: checkpoint(level, *x, layout, use_reentrant=False), level, inputs)
    assert all(torch.equal(a, b) for a, b in zip(kept, again, strict=True))


def trained(keep, sequences=3, **options):
    """Answers and gradients of a core; three sequences do not come in halves."""
    core = RecursiveCore(DIM, HEADS, steps=2, rotary=True, keep=keep, **options).double()
    core.init_weights(1.0, torch.Generator().manual_seed(0))
    torch.nn.init.constant_(core.out.weight, 0.1)
    x = torch.cat(given())[:sequences].detach().requires_grad_()
    padding, positions = torch.cat([PADDING] * 2)[:sequences], torch.ones(sequences, SEQ, dtype=torch.bool)
    hidden = torch.stack([state.hidden for state in core.refine(x, x, padding, positions=positions)])
    return [hidden, *torch.autograd.grad(hidden.sin().sum(), [x, *core.level.parameters()])]


@pytest.mark.parametrize("sequences", [1, 3])
@pytest.mark.parametrize("options", [{"h_cycles": 2, "gradient_cycles": 1}, {"supervise": "updates"}], ids=["cycles", "updates"])
def test_updates_that_keep_states_have_the_same_gradients(options, sequences):
    found, again, expected = (trained(keep, sequences, **options) for keep in ("states", "states", "graph"))
    for a, b, c in zip(found, again, expected, strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, c, rtol=1e-9, atol=1e-9)


def compiled_equals_eager():
    for layout in (Layout(), Layout(PADDING, places=PLACES)):
        level, inputs = made(dtype=torch.float32), given(torch.float32)
        compiled = torch.compile(level, fullgraph=True)
        expected = with_gradients(lambda *x, layout=layout, level=level: level(*x, layout), level, inputs)
        found = with_gradients(lambda *x, layout=layout, compiled=compiled: compiled(*x, layout), level, inputs)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_compiled_values_and_gradients_are_the_same():
    # in a process of its own, where shapes are not checked
    script = "from tests.components.refiners.test_recursive_network import compiled_equals_eager as run; run()"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
