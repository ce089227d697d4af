import math

import pytest
import torch
from torch.nn import functional as F

from components.nn.attention import Attention, Block, RMSNorm, rotate
from components.refiners.core import Layout, causal_mask


def plain_attention(x, qkv, heads, visible=None):
    """Softmax over explicit scores, one batch and one head at a time."""
    batch, _, dim = x.shape
    width = dim // heads
    out = torch.zeros_like(x)
    for b in range(batch):
        for h in range(heads):
            q, k, v = ((x[b] @ qkv[i * dim + h * width : i * dim + (h + 1) * width].T) for i in range(3))
            scores = torch.einsum("qc,kc->qk", q, k) / math.sqrt(width)
            if visible is not None:
                scores[~visible.expand(batch, 1, *scores.shape)[b, 0]] = -torch.inf
            out[b, :, h * width : (h + 1) * width] = torch.einsum("qk,kc->qc", scores.exp() / scores.exp().sum(-1, True), v)
    return out


def plain_rms_norm(x, weight, eps=1e-6):
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


PADDING = torch.tensor([[True] * 5, [True, True, True, False, False]])
PAST = causal_mask(torch.zeros(2, 5, 8))
LAYOUTS = {"all": Layout(), "padding": Layout(PADDING), "causal": Layout(past=PAST), "both": Layout(PADDING, past=PAST)}
VISIBLE = {name: layout.visible(torch.zeros(2, 5, 8)) for name, layout in LAYOUTS.items()}
every_layout = pytest.mark.parametrize("visible", VISIBLE.values(), ids=VISIBLE)


def test_a_token_sees_what_is_no_padding_and_if_causal_does_not_stand_behind_it():
    assert VISIBLE["all"] is None
    for query in range(5):
        for key in range(5):
            assert VISIBLE["both"][1, 0, query, key] == (key <= query and key < 3)
            assert VISIBLE["causal"][0, 0, query, key] == (key <= query)
            assert VISIBLE["padding"][1, 0, 0, key] == (key < 3)


@every_layout
@pytest.mark.parametrize("heads", [1, 2, 4])
def test_attention_equals_explicit_softmax(heads, visible):
    torch.manual_seed(0)
    layer = Attention(8, heads)
    x = torch.randn(2, 5, 8)
    torch.testing.assert_close(layer(x, visible), plain_attention(x, layer.qkv.weight, heads, visible), rtol=1e-5, atol=1e-6)


def test_attention_ignores_what_padding_holds():
    torch.manual_seed(0)
    layer = Attention(8, 2)
    x = torch.randn(2, 5, 8)
    changed = torch.where(PADDING[..., None], x, torch.randn(2, 5, 8))
    assert torch.equal(layer(x, VISIBLE["padding"])[PADDING], layer(changed, VISIBLE["padding"])[PADDING])


def test_attention_is_bidirectional():
    torch.manual_seed(0)
    layer = Attention(8, 2)
    x = torch.randn(1, 5, 8)
    changed = x.clone()
    changed[0, -1] += 1
    assert ((layer(x, None) - layer(changed, None)).abs().sum(-1) > 0).all()


@pytest.mark.parametrize(("dim", "heads"), [(64, 3), (8, 16)])
def test_heads_that_do_not_divide_dim_are_named(dim, heads):
    with pytest.raises(ValueError, match=rf"dim {dim} and heads {heads}\b"):
        Attention(dim, heads)


@pytest.mark.parametrize("eps", [1e-6, 1.0])
def test_rms_norm_equals_plain_formula(eps):
    torch.manual_seed(0)
    norm = RMSNorm(6, eps)
    norm.weight.data.normal_()
    x = 3 * torch.randn(4, 2, 6)
    torch.testing.assert_close(norm(x), plain_rms_norm(x, norm.weight, eps))


@every_layout
def test_block_equals_plain_formula(visible):
    torch.manual_seed(0)
    block = Block(8, 2, mlp_ratio=3)
    for p in block.parameters():
        p.data.normal_(std=0.5)
    x = torch.randn(2, 5, 8)
    normed = plain_rms_norm(x, block.attention_norm.weight)
    h = x + plain_attention(normed, block.attention.qkv.weight, 2, visible) @ block.out.weight.T
    up = plain_rms_norm(h, block.mlp_norm.weight) @ block.up.weight.T
    assert up.shape[-1] == 24
    expected = h + (0.5 * up * (1 + torch.erf(up / math.sqrt(2)))) @ block.down.weight.T
    torch.testing.assert_close(block(x, visible), expected, rtol=1e-4, atol=1e-5)


def test_block_weights_have_the_documented_spread_and_follow_the_generator():
    blocks = [Block(128, 4) for _ in range(3)]
    for block, seed in zip(blocks, (0, 0, 1), strict=True):
        block.init_weights(0.05, torch.Generator().manual_seed(seed))
    for linear in (blocks[0].attention.qkv, blocks[0].up):
        assert linear.weight.std().item() == pytest.approx(0.7 / math.sqrt(128), rel=0.03)
    for linear in (blocks[0].out, blocks[0].down):
        assert linear.weight.std().item() == pytest.approx(0.05, rel=0.03)
    x = F.normalize(torch.ones(1, 3, 128), dim=-1)
    assert torch.equal(blocks[0](x, None), blocks[1](x, None))
    assert not torch.equal(blocks[0](x, None), blocks[2](x, None))


def test_rotary_products_depend_on_distances_alone():
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 1, 1, 8, generator=generator).expand(1, 1, 6, 8) for _ in range(2))
    products = (rotate(q) @ rotate(k).transpose(-1, -2))[0, 0]
    for distance in range(-5, 6):
        diagonal = products.diagonal(distance)
        assert torch.allclose(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-5)
    assert not torch.allclose(products[0, 0], products[0, 1], atol=1e-3)


def test_rotary_at_position_zero_changes_nothing_and_keeps_lengths():
    x = torch.randn(2, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(rotate(x)[:, :, 0], x[:, :, 0])
    assert torch.allclose(rotate(x).norm(dim=-1), x.norm(dim=-1), atol=1e-5)


def test_rotary_heads_of_odd_width_are_an_error_naming_it():
    with pytest.raises(ValueError, match="even width, got 3"):
        Attention(6, 2, rotary=True)
