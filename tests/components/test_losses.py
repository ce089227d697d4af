import pytest
import torch

from components.batch import Batch
from components.losses import masked_cross_entropy


def make(seed=0, batch=6, seq=5, vocab=7, dim=4):
    g = torch.Generator().manual_seed(seed)
    masked = torch.rand(batch, seq, generator=g) < 0.4
    weights = torch.where(masked, torch.rand(batch, seq, generator=g), 0.0)
    targets = torch.randint(vocab, (batch, seq), generator=g)
    state = torch.randn(batch, seq, dim, generator=g, requires_grad=True)
    head = torch.randn(vocab, dim, generator=g)
    return (lambda rows: rows @ head.T), state, Batch(targets, targets, masked, weights)


def part(batch, rows):
    return Batch(batch.tokens[rows], batch.targets[rows], batch.masked[rows], batch.weights[rows])


def test_loss_equals_weighted_log_softmax_over_all_positions():
    readout, state, batch = make()
    log_p = readout(state).log_softmax(-1).gather(-1, batch.targets[..., None])[..., 0]
    torch.testing.assert_close(masked_cross_entropy(readout, state, batch), -(log_p * batch.weights).sum())


def test_gradient_equals_that_of_the_full_computation_and_is_zero_elsewhere():
    readout, state, batch = make()
    log_p = readout(state).log_softmax(-1).gather(-1, batch.targets[..., None])[..., 0]
    (expected,) = torch.autograd.grad(-(log_p * batch.weights).sum(), state)
    (gradient,) = torch.autograd.grad(masked_cross_entropy(readout, state, batch), state)
    torch.testing.assert_close(gradient, expected)
    assert gradient[~batch.masked].abs().max() == 0


@pytest.mark.parametrize("sizes", [[6], [3, 3], [1, 2, 3], [1] * 6])
def test_loss_is_the_same_however_the_batch_is_cut(sizes):
    readout, state, batch = make()
    parts = zip(state.split(sizes), torch.arange(6).split(sizes), strict=True)
    total = sum(masked_cross_entropy(readout, s, part(batch, rows)) for s, rows in parts)
    torch.testing.assert_close(total, masked_cross_entropy(readout, state, batch))


def test_only_supervised_rows_reach_the_readout():
    readout, state, batch = make()
    seen = []
    masked_cross_entropy(lambda rows: seen.append(rows) or readout(rows), state, batch)
    assert len(seen) == 1
    assert torch.equal(seen[0], state[batch.masked])


def test_a_batch_without_supervised_positions_costs_nothing():
    readout, state, batch = make()
    empty = Batch(batch.tokens, batch.targets, torch.zeros_like(batch.masked), torch.zeros_like(batch.weights))
    assert masked_cross_entropy(readout, state, empty).item() == 0.0


def test_half_precision_logits_are_summed_in_float32():
    readout, state, batch = make()
    loss = masked_cross_entropy(lambda rows: readout(rows).bfloat16(), state, batch)
    rounded = readout(state).bfloat16().float().log_softmax(-1).gather(-1, batch.targets[..., None])[..., 0]
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, -(rounded * batch.weights).sum())
