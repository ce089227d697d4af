"""The founding baseline once more, token by token and chunk by chunk."""

import pytest
import torch
from torch.nn import functional as F

from components.refiners.mlp_refiner import MLPRefiner, chunk_means
from tests.support import plain
from tests.support.cores import ATTENTION, DIM, RMS, SEQ, inputs, made, states

DRAWN = torch.Generator().manual_seed(0)


def means(u, chunk, mask):
    """Of every chunk that holds a token, over its tokens alone."""
    found = torch.zeros_like(u)
    for row in range(len(u)):
        for start in range(0, u.shape[1], chunk):
            members = [i for i in range(start, min(start + chunk, u.shape[1])) if mask is None or mask[row, i]]
            if members:
                found[row, start : start + chunk] = sum(u[row, i] for i in members) / len(members)
    return found


def steps_of(w, given, chunk, mask, steps, positions=None):
    hidden, found = given["x"], []
    injected = plain.injection(plain.below(w, "injection."), given["x"], given["embedding"])
    for _ in range(steps):
        u = plain.layer_norm(hidden, w["state_norm.weight"]) + injected
        wide = plain.gelu(F.linear(torch.cat([u, means(u, chunk, mask)], -1), w["up.weight"], w["up.bias"]))
        hidden = hidden + RMS * F.linear(wide, w["down.weight"], w["down.bias"])
        if positions is not None:
            hidden = torch.where(positions[..., None], hidden, given["x"])
        found.append(hidden)
    return found


@pytest.mark.parametrize("positions", [None, torch.arange(SEQ).expand(3, SEQ) % 3 > 0], ids=["everywhere", "somewhere"])
@pytest.mark.parametrize("mask", [None, ATTENTION], ids=["no_mask", "padding"])
@pytest.mark.parametrize("chunk", [1, 2, 4, 6, 16])
def test_every_step_equals_a_plain_recomputation_from_the_weights(chunk, mask, positions):
    core = made(lambda dim: MLPRefiner(dim, steps=3, chunk=chunk, ratio=2)).double()
    given = inputs(core, dtype=torch.float64)
    expected = steps_of(plain.bare(core), given, chunk, mask, 3, positions)
    found = states(core, mask, positions=positions, statistics=True, **given)
    before = given["x"]
    assert len(found) == 3
    for state, hidden in zip(found, expected, strict=True):
        torch.testing.assert_close(state.hidden, hidden, rtol=1e-5, atol=1e-5)
        if positions is None:
            moved = (hidden - before) if mask is None else (hidden - before)[mask]
            assert state.statistics["delta"].item() == pytest.approx(moved.square().mean().sqrt().item(), rel=1e-4)
        assert list(state.statistics) == ["delta"]
        before = hidden


@pytest.mark.parametrize("mask", [None, ATTENTION], ids=["no_mask", "padding"])
@pytest.mark.parametrize("chunk", range(1, SEQ + 2))
def test_means_are_over_the_tokens_of_a_chunk(chunk, mask):
    x = torch.randn(3, SEQ, 5, generator=DRAWN)
    torch.testing.assert_close(chunk_means(x, chunk, mask), means(x, chunk, mask))


def test_a_chunk_of_padding_alone_has_the_mean_zero():
    mask = torch.tensor([[True, False, False, False]])
    found = chunk_means(torch.full((1, 4, 2), 7.0), 2, mask)
    assert found[0, :, 0].tolist() == [7, 7, 0, 0]


def test_a_token_sees_its_own_chunk_and_no_other():
    core = made(lambda dim: MLPRefiner(dim, steps=3, chunk=2))
    given = inputs(core)
    given["x"].requires_grad_()
    states(core, **given)[-1].hidden[0, 3].sum().backward()
    reached = given["x"].grad.abs().sum(-1) > 0
    assert reached.tolist() == [[False, False, True, True, False, False], [False] * SEQ, [False] * SEQ]


@pytest.mark.parametrize(("steps", "chunk"), [(0, 4), (3, 0), (-1, 4)])
def test_no_step_and_empty_chunks_are_errors_naming_both(steps, chunk):
    with pytest.raises(ValueError, match=rf"got steps {steps}, chunk {chunk}$"):
        MLPRefiner(DIM, steps=steps, chunk=chunk)
