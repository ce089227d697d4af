import pytest
import torch
from torch.nn import functional as F

from components.nn import fused
from components.nn.attention import angles
from components.nn.fused import Linear, attended, gated, heads_of, normed_sum

HEADS, HEAD, SEQ = 2, 6, 5
DIM = HEADS * HEAD
PADDING = torch.tensor([[True] * 5, [True, True, True, False, False]])
PLACES = torch.tensor([[0, 2, 3, 7, 9], [1, 2, 3, 4, 5]])


def numbers(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype).requires_grad_()


def plain_normed_sum(z, change):
    return F.rms_norm(z + change, (z.shape[-1],), eps=1e-5)


def plain_gated(x):
    gate, up = x.chunk(2, -1)
    return gate / (1 + (-gate).exp()) * up


def plain_heads(qkv, turn):
    batch, seq, _ = qkv.shape
    q, k, v = qkv.view(batch, seq, 3, HEADS, HEAD).permute(2, 0, 3, 1, 4)
    if turn is None:
        return q, k, v
    found = []
    for x in (q, k):
        pairs = torch.complex(x[..., : HEAD // 2], x[..., HEAD // 2 :]) * torch.complex(*turn)
        found.append(torch.cat([pairs.real, pairs.imag], -1))
    return *found, v


def plain_attended(q, k, v, visible):
    scores = torch.einsum("bhqc,bhkc->bhqk", q, k) / HEAD**0.5
    if visible is not None:
        scores = scores.masked_fill(~visible, -torch.inf)
    return torch.einsum("bhqk,bhkc->bqhc", scores.softmax(-1), v).flatten(2)


def turn_of(places, dtype=torch.float64):
    position = torch.arange(SEQ) if places is None else places[:, None]
    return tuple(table.to(dtype) for table in angles(position, HEAD))


def flat(found):
    return torch.cat([part.flatten() for part in found]) if isinstance(found, tuple) else found.flatten()


def same(function, plain, *inputs, **tolerance):
    """Both values and both gradients, for a loss that weighs every number differently."""
    results = []
    for f in (function, plain):
        value = flat(f(*inputs))
        weights = torch.linspace(-1, 1, len(value), dtype=value.dtype)
        results.append([value, *torch.autograd.grad((value * weights).sum(), inputs)])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, **tolerance)


EXACT, SINGLE, HALF = {"rtol": 1e-12, "atol": 1e-12}, {"rtol": 1e-5, "atol": 1e-5}, {"rtol": 3e-2, "atol": 3e-2}
precisions = pytest.mark.parametrize(
    ("dtype", "close"), [(torch.float64, EXACT), (torch.float32, SINGLE), (torch.bfloat16, HALF)], ids=["double", "single", "half"]
)


@precisions
def test_normed_sum_equals_the_plain_formula(dtype, close):
    same(normed_sum, plain_normed_sum, numbers(2, 3, 8, dtype=dtype), numbers(2, 3, 8, dtype=dtype, seed=1), **close)


@precisions
def test_gated_equals_the_plain_formula(dtype, close):
    same(gated, plain_gated, numbers(2, 3, 16, dtype=dtype), **close)


@pytest.mark.parametrize("places", [None, PLACES], ids=["all", "places"])
def test_heads_are_turned_as_complex_numbers_are(places):
    turn = turn_of(places)
    same(lambda x: heads_of(x, HEADS, turn), lambda x: plain_heads(x, turn), numbers(2, SEQ, 3 * DIM), **EXACT)


def test_heads_that_see_no_distances_are_as_they_are():
    qkv = numbers(2, SEQ, 3 * DIM)
    assert all(torch.equal(a, b) for a, b in zip(heads_of(qkv, HEADS, None), plain_heads(qkv, None), strict=True))


KEYS = PADDING[:, None, None]
PAST = torch.ones(SEQ, SEQ, dtype=torch.bool).tril()


@pytest.mark.parametrize("visible", [None, KEYS, PAST[None, None], PAST & KEYS], ids=["all", "padding", "causal", "both"])
@precisions
def test_attended_equals_explicit_softmax(visible, dtype, close):
    q, k, v = (numbers(2, HEADS, SEQ, HEAD, dtype=dtype, seed=seed) for seed in range(3))
    same(lambda *x: attended(*x, visible), lambda *x: plain_attended(*x, visible), q, k, v, **close)


def test_attention_written_out_ignores_what_padding_holds():
    q, k, v = (numbers(2, HEADS, SEQ, HEAD, dtype=torch.bfloat16, seed=seed) for seed in range(3))
    changed = [torch.where(PADDING[:, None, :, None], x, 7.0) for x in (k, v)]
    assert torch.equal(attended(q, k, v, KEYS), attended(q, *changed, KEYS))


def test_long_sequences_are_not_written_out(monkeypatch):
    called = []
    fusing = F.scaled_dot_product_attention
    monkeypatch.setattr(fused.F, "scaled_dot_product_attention", lambda *a, **k: called.append(a) or fusing(*a, **k))
    for seq in (3 * HEAD, 3 * HEAD + 1):
        attended(*(numbers(1, 1, seq, HEAD, dtype=torch.bfloat16) for _ in range(3)), None)
    assert len(called) == 1


@pytest.mark.parametrize("outputs", [4, 32], ids=["narrow", "wide"])
@precisions
def test_a_linear_layer_equals_the_plain_product(outputs, dtype, close):
    layer = Linear(8, outputs).to(dtype)
    same(lambda x, w: torch.func.functional_call(layer, {"weight": w}, x), lambda x, w: x @ w.T,
         numbers(2, 3, 8, dtype=dtype), numbers(outputs, 8, dtype=dtype, seed=1), **close)  # fmt: skip


def test_a_linear_layer_reckons_a_gradient_only_where_one_is_wanted():
    x, layer = numbers(3, 8, dtype=torch.float32), Linear(8, 4)
    layer.requires_grad_(False)(x).sum().backward()
    assert layer.weight.grad is None
    torch.testing.assert_close(x.grad, layer.weight.sum(0).expand(3, 8))
    layer.requires_grad_(True)(x.detach()).sum().backward()
    torch.testing.assert_close(layer.weight.grad, x.detach().sum(0).expand(4, 8))


def test_a_linear_layer_takes_no_rows_and_any_layout():
    layer = Linear(8, 4)
    assert layer(torch.zeros(0, 5, 8)).shape == (0, 5, 4)
    x = numbers(8, 3, 2, dtype=torch.float32).detach().permute(2, 1, 0)
    torch.testing.assert_close(layer(x), x.contiguous() @ layer.weight.T)


def test_a_linear_layer_follows_autocast_and_does_without_onednn(monkeypatch):
    x, layer = numbers(3, 8, dtype=torch.float32), Linear(8, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    monkeypatch.setattr(fused, "BY_ONEDNN", False)
    assert torch.equal(layer(x), F.linear(x, layer.weight))


@pytest.mark.parametrize(
    ("name", "by_onednn"),
    [("Intel(R) Xeon(R) Platinum 8488C", False), ("AMD EPYC 9R14", True), ("Neoverse-V2", True), ("", True), (None, True)],
)
def test_products_are_those_that_are_faster_on_the_processor(monkeypatch, name, by_onednn):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"cpu_name": name} if name else {}, raising=False)
    monkeypatch.setattr(fused, "BY_ONEDNN", not fused.mkl_is_faster())
    x, layer, called = numbers(3, 8, dtype=torch.float32), Linear(8, 4), []
    plain = fused.onednn
    monkeypatch.setattr(fused, "onednn", lambda *given: called.append(given) or plain(*given))
    same(lambda x, w: torch.func.functional_call(layer, {"weight": w}, x), lambda x, w: x @ w.T,
         x, numbers(4, 8, dtype=torch.float32, seed=1), **SINGLE)  # fmt: skip
    assert bool(called) == by_onednn


def test_mkl_multiplies_where_torch_has_no_onednn_and_onednn_where_it_does_not_tell_the_processor(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert not fused.mkl_is_faster()
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert fused.mkl_is_faster()


def test_gradients_are_right_by_differences():
    z, change = numbers(2, 8), numbers(2, 8, seed=1)
    assert torch.autograd.gradcheck(normed_sum, (z, change))
    assert torch.autograd.gradcheck(gated, (numbers(2, 8),))
    assert torch.autograd.gradcheck(lambda x: heads_of(x, HEADS, turn_of(PLACES)), (numbers(2, SEQ, 3 * DIM),))
