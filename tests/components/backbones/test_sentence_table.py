"""The table of a frozen sentence encoder: its rows, what stands at the place to be predicted, and what it refuses."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from components.backbones.ridge import Ridge
from components.backbones.sentence_table import SentenceTable
from components.batch import Batch
from components.objective.losses import squared_error
from components.refined_lm import RefinedLM
from components.refiners.refiner import SlotRefiner

DIM, SENTENCES = 16, 9
PAD = SENTENCES + 1
NOTHING = torch.zeros(1, 3, dtype=torch.bool)
EMPTY = Batch(NOTHING.long(), NOTHING.long(), NOTHING, NOTHING.float())


@pytest.fixture
def embeddings():
    return 0.2 * torch.randn(SENTENCES, DIM, generator=torch.Generator().manual_seed(0)) + 1


@pytest.fixture
def table(embeddings):
    made = SentenceTable(SENTENCES + 2, 5, DIM)
    made.fill(embeddings, torch.arange(SENTENCES))
    weight = torch.cat([torch.eye(DIM), 2 * torch.eye(DIM), 3 * torch.eye(DIM)])
    made.regress(Ridge(1.0, weight, torch.full((DIM,), 0.5)))
    return made


def example(*ids, length=5):
    """A document as a causal batch: each sentence but the first is asked for, where the one before it stands."""
    tokens = torch.full((1, length), PAD)
    tokens[0, : len(ids)] = torch.tensor(ids)
    targets = torch.cat([tokens[:, 1:], torch.full((1, 1), PAD)], 1)
    return Batch(tokens, targets, targets != PAD, (targets != PAD).float(), tokens != PAD)


def refined(table, steps=3):
    core = SlotRefiner(DIM, heads=2, steps=steps, rotary=True)
    core.init_weights(1.0, torch.Generator().manual_seed(0))
    return RefinedLM(table, core)


def test_rows_are_normalised_and_come_back_as_they_were(table, embeddings):
    rows = table.embed(torch.tensor([[3, 1, 4]]))
    assert torch.allclose(table.raw(rows[0]), embeddings[[3, 1, 4]], atol=1e-6)
    assert torch.equal(rows[0], table.normaliser(embeddings)[[3, 1, 4]])
    assert table.head.weight[SENTENCES:].abs().max() == 0


def test_only_what_is_fitted_on_moves_the_normaliser(embeddings):
    one, other = (SentenceTable(SENTENCES + 2, 5, DIM) for _ in range(2))
    one.fill(embeddings, torch.arange(6))
    other.fill(torch.cat([embeddings[:6], 100 * embeddings[6:]]), torch.arange(6))
    assert torch.equal(one.normaliser.scale, other.normaliser.scale)
    assert torch.equal(one.head.weight[:6], other.head.weight[:6])


@pytest.mark.parametrize("ids", [(3,), (3, 1), (3, 1, 4, 0, 2)])
def test_the_frozen_prediction_is_the_regression_of_previous_mean_and_first(table, ids):
    batch = example(*ids)
    said = table.trunk(batch.tokens, batch.attention, 0)[0]
    for place in range(len(ids)):
        rows = table.head.weight[list(ids[: place + 1])]
        assert torch.allclose(said[place], rows[-1] + 2 * rows.mean(0) + 3 * rows[0] + 0.5, atol=1e-5)


def test_what_comes_after_a_sentence_has_no_influence_on_its_prediction(table):
    model = refined(table)
    for parameter in model.refiner.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    one, other = example(3, 1, 4, 0, 2), example(3, 1, 4, 7, 8)
    for a, b in zip(model.steps(one), model.steps(other), strict=True):
        assert torch.equal(a.hidden[:, :3], b.hidden[:, :3]) and not torch.allclose(a.hidden[:, 3], b.hidden[:, 3])
    assert not torch.allclose(a.hidden, table.states(one))


def test_cached_and_live_states_are_the_same(table):
    batch = example(3, 1, 4)
    cached = replace(batch, hidden=table.trunk(batch.tokens, batch.attention, 0))
    assert torch.equal(table.states(batch), table.states(cached))
    assert torch.equal(table.normed(table.states(batch)), table.states(batch))


def test_a_refiner_starts_from_the_frozen_prediction_and_learns(table):
    model, batch = refined(table), example(3, 1, 4, 7)
    states = [state.hidden for state in model.steps(batch)]
    assert all(torch.equal(state, table.states(batch)) for state in states)
    optimiser = torch.optim.AdamW(model.refiner.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        optimiser.zero_grad()
        loss, _ = squared_error(model, model.states(batch), batch, compute=True)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
    assert not list(table.parameters())  # nothing of it could be trained


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(SentenceTable, 4, 3, 2, layers=1), "no layers to cut, got layers 1"),
        (partial(SentenceTable, 4, 3, 2, first_layer=2), "and first_layer 2"),
        (lambda: SentenceTable(4, 3, 2).trunk(torch.zeros(1, 3, dtype=torch.long), None, 1), "has no layer 1"),
        (
            lambda: SentenceTable(4, 3, 2).states_and_heads(EMPTY, [0]),
            "no heads",
        ),
    ],
)
def test_what_it_cannot_do_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_cut_table_is_an_empty_one_of_its_sizes(table):
    cut = table.cut(0)
    assert cut.architecture == table.architecture and cut.head.weight.abs().max() == 0
