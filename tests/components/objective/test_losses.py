import math

import pytest
import torch
from torch import nn

from components.backbones.sentence_table import SentenceTable
from components.batch import Batch
from components.model import Model
from components.objective.losses import cosine_distance, halting_loss, masked_cross_entropy, squared_error


class Halves(Model):
    """Half the states, and a head; notes what it norms."""

    def __init__(self, head):
        super().__init__()
        self.head, self.seen = nn.Linear(*head.T.shape, bias=False), []
        self.head.weight = nn.Parameter(head)

    def normed(self, state):
        self.seen.append(state)
        return state / 2


def make(seed=0, batch=6, seq=5, vocab=7, dim=4):
    g = torch.Generator().manual_seed(seed)
    masked = torch.rand(batch, seq, generator=g) < 0.4
    weights = torch.where(masked, torch.rand(batch, seq, generator=g), 0.0)
    targets = torch.randint(vocab, (batch, seq), generator=g)
    state = torch.randn(batch, seq, dim, generator=g, requires_grad=True)
    return Halves(torch.randn(vocab, dim, generator=g)), state, Batch(targets, targets, masked, weights)


def part(batch, rows):
    return Batch(batch.tokens[rows], batch.targets[rows], batch.masked[rows], batch.weights[rows])


def plain(model, state, batch):
    log_p = (state / 2 @ model.head.weight.T).log_softmax(-1).gather(-1, batch.targets[..., None])[..., 0]
    return -(log_p * batch.weights).sum()


def test_loss_equals_weighted_log_softmax_over_all_positions():
    model, state, batch = make()
    torch.testing.assert_close(masked_cross_entropy(model, state, batch, compute=True)[0], plain(model, state, batch))


def test_gradient_equals_that_of_the_full_computation_and_is_zero_elsewhere():
    model, state, batch = make()
    expected = torch.autograd.grad(plain(model, state, batch), (state, model.head.weight))
    found = torch.autograd.grad(masked_cross_entropy(model, state, batch, compute=True)[0], (state, model.head.weight))
    for ours, full in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, full)
    assert found[0][~batch.masked].abs().max() == 0


def test_what_is_right_is_what_has_the_largest_logit():
    model, state, batch = make()
    _, right = masked_cross_entropy(model, state, batch, compute=True)
    expected = (model.readout(state).argmax(-1) == batch.targets)[batch.masked]
    assert torch.equal(right, expected) and expected.any() and not expected.all()


@pytest.mark.parametrize("sizes", [[6], [3, 3], [1, 2, 3], [1] * 6])
def test_loss_is_the_same_however_the_batch_is_cut(sizes):
    model, state, batch = make()
    parts = zip(state.split(sizes), torch.arange(6).split(sizes), strict=True)
    total = sum(masked_cross_entropy(model, s, part(batch, rows), compute=True)[0] for s, rows in parts)
    torch.testing.assert_close(total, masked_cross_entropy(model, state, batch, compute=True)[0])


def test_only_supervised_rows_are_normed_and_read():
    model, state, batch = make()
    masked_cross_entropy(model, state, batch, compute=True)
    assert len(model.seen) == 1
    assert torch.equal(model.seen[0], state[batch.masked])


def test_a_batch_without_supervised_positions_costs_nothing():
    model, state, batch = make()
    empty = Batch(batch.tokens, batch.targets, torch.zeros_like(batch.masked), torch.zeros_like(batch.weights))
    loss, right = masked_cross_entropy(model, state, empty, compute=True)
    assert loss.item() == 0.0 and right.shape == (0,)
    loss.backward()
    assert not state.grad.any() and not model.head.weight.grad.any()


def test_half_precision_logits_are_summed_in_float32():
    model, state, batch = make()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = masked_cross_entropy(model, state, batch, compute=True)
        logits = model.readout(state)
    assert logits.dtype == torch.bfloat16 and loss.dtype == torch.float32
    rounded = logits.float().log_softmax(-1).gather(-1, batch.targets[..., None])[..., 0]
    torch.testing.assert_close(loss, -(rounded * batch.weights).sum())


def test_what_is_not_computed_is_zero_in_the_same_graph():
    model, state, batch = make()
    loss, right = masked_cross_entropy(model, state, batch, compute=False)
    assert loss.item() == 0.0 and loss.requires_grad and not right.any() and len(right) == int(batch.masked.sum())


# Halting


def plain_halting(halt, readout, batch):
    """One sequence and one position at a time."""
    total = 0.0
    for b, logit in enumerate(halt.tolist()):
        done = all(readout[b, s].item() for s in range(batch.masked.shape[1]) if batch.masked[b, s])
        total += math.log1p(math.exp(-logit)) if done else math.log1p(math.exp(logit))
    return total


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9, 1.0])
def test_halting_loss_equals_a_plain_loop(share):
    _, _, batch = make()
    g = torch.Generator().manual_seed(3)
    right, halt = torch.rand(6, 5, generator=g) < share, torch.randn(6, generator=g)
    found = halting_loss(halt, right[batch.masked], batch)
    assert found.item() == pytest.approx(plain_halting(halt, right, batch), rel=1e-5)


def test_halting_loss_pulls_towards_halting_where_everything_is_right_and_away_elsewhere():
    tokens = torch.zeros(3, 2, dtype=torch.long)
    masked = torch.tensor([[True, True], [True, True], [False, False]])
    halt = torch.zeros(3, requires_grad=True)
    halting_loss(halt, torch.tensor([True, True, True, False]), Batch(tokens, tokens, masked, masked.float())).backward()
    assert halt.grad.tolist() == [-0.5, 0.5, -0.5]  # a sequence in which nothing is asked is right


def test_halting_loss_of_a_half_precision_logit_is_a_float32_number():
    _, _, batch = make()
    right = torch.ones(int(batch.masked.sum()), dtype=torch.bool)
    assert halting_loss(torch.zeros(6, dtype=torch.bfloat16), right, batch).item() == pytest.approx(6 * math.log(2))


# Distances of embeddings


@pytest.mark.parametrize(
    ("loss", "distance"),
    [
        (squared_error, lambda a, b: (a - b).square().mean()),
        (cosine_distance, lambda a, b: 1 - torch.cosine_similarity(a, b, dim=0)),
    ],
)
def test_a_distance_is_summed_over_the_supervised_positions(loss, distance):
    table = SentenceTable(vocab=7, seq=3, dim=4)
    table.fill(torch.randn(5, 4, generator=torch.Generator().manual_seed(0)), torch.arange(5))
    tokens = torch.tensor([[0, 1, 2], [3, 4, 0]])
    masked = torch.tensor([[False, True, True], [False, False, True]])
    weights = masked * torch.tensor([[9.0, 0.5, 2.0], [9.0, 9.0, 1.0]])
    batch = Batch(tokens, tokens, masked, weights)
    hidden = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1)).requires_grad_(True)
    total, close = loss(table, hidden, batch, compute=False)
    rows = ((0, 1), (0, 2), (1, 2))
    expected = sum(weights[i] * distance(hidden[i], table.head.weight[tokens[i]]) for i in rows)
    assert torch.allclose(total, expected) and not close.any()
    total.backward()
    assert hidden.grad.abs().sum(-1).gt(0).equal(masked)
    assert table.head.weight.grad is None


def test_embeddings_that_are_close_count_as_right():
    table = SentenceTable(vocab=4, seq=2, dim=2)
    table.fill(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([0, 1]))
    tokens, masked = torch.tensor([[0, 1]]), torch.tensor([[True, True]])
    batch = Batch(tokens, tokens, masked, masked.float())
    hidden = table.head.weight[tokens].clone()
    hidden[0, 1] = torch.tensor([0.2, 1.0])
    for loss in (squared_error, cosine_distance):
        assert loss(table, hidden, batch, compute=True)[1].tolist() == [True, False]
