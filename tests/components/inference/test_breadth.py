"""Restarts: where they begin, and which of them each rule chooses."""

import math
from collections import Counter

import pytest
import torch

from components.batch import Batch
from components.inference.breadth import BREADTH, Breadth, Restarts, by_change, by_majority, by_probability
from components.noise import identity, key, normal
from tests.support.cores import batch, model_of

RULES = {"change": by_change, "probability": by_probability, "majority": by_majority}


def answers(n, of, kinds, seed):
    """The answers of n restarts, each sequence's one of few kinds, so that some agree; tokens are below 50."""
    g = torch.Generator().manual_seed(seed)
    kind = torch.randint(kinds, (n, len(of)), generator=g)
    rows = of.masked.nonzero()
    return torch.stack([torch.stack([(kind[i, row] * 7 + place) % 50 for row, place in rows]) for i in range(n)]), kind


@pytest.mark.parametrize("seed", range(5))
def test_the_majority_is_that_of_whole_answers_and_the_first_of_equals(seed):
    of = batch(seed=seed, sequences=6)
    said, kind = answers(7, of, 3, seed)
    chosen = by_majority(Restarts(of, torch.zeros(7, 6), torch.zeros(7, 6), said))
    for row in range(6):
        votes = Counter(kind[:, row].tolist())
        expected = next(i for i, k in enumerate(kind[:, row].tolist()) if votes[k] == max(votes.values()))
        assert chosen[row] == (expected if of.masked[row].any() else 0)


@pytest.mark.parametrize("number", [1, 2, 5])
def test_the_least_change_and_the_highest_probability_are_chosen_among_the_first(number):
    of, g = batch(sequences=6), torch.Generator().manual_seed(3)
    change, probability = (torch.rand(5, 6, generator=g) for _ in range(2))
    restarts = Restarts(of, change, probability, answers(5, of, 2, 0)[0]).first(number)
    for row in range(6):
        assert by_change(restarts)[row] == min(range(number), key=lambda i: change[i, row])
        assert by_probability(restarts)[row] == max(range(number), key=lambda i: probability[i, row])
    equal = Restarts(of, torch.ones(5, 6), torch.ones(5, 6), answers(5, of, 1, 0)[0])
    assert all(rule(equal).tolist() == [0] * 6 for rule in RULES.values())


@pytest.mark.parametrize("name", ["slots", "slots_added", "recursive", "tapped_mlp"])
def test_a_restart_begins_at_noised_states_and_the_first_where_recursions_begin(name):
    """Noise of the stated size over each token's rms, the same whatever the sequence is beside; the rest of the carry as it is."""
    model, of, breadth = model_of(name), batch(), Breadth(RULES, noise=0.7)
    _, fresh, _ = model.begin(of)
    assert breadth.start(0, fresh, model, of, 5) is fresh
    carry, other = breadth.start(3, fresh, model, of, 5), breadth.start(4, fresh, model, of, 5)
    for stream, state in enumerate(model.carried_states):
        size = fresh[state].square().mean(-1, keepdim=True).sqrt()
        numbers = normal(key(5, BREADTH, 3), stream, identity(of.tokens, of.attention), fresh[state][0].numel())
        assert torch.allclose(carry[state], fresh[state] + 0.7 * size * numbers.view(fresh[state].shape))
        assert not torch.allclose(carry[state], other[state])
    assert all(torch.equal(carry[rest], fresh[rest]) for rest in fresh.keys() - {*model.carried_states})
    alone = Batch(*(x[1:2, :3] for x in (of.tokens, of.targets, of.masked, of.weights, of.attention)))
    begun = breadth.start(3, model.begin(alone)[1], model, alone, 5)
    assert all(torch.allclose(begun[state][0], carry[state][1, :3], rtol=1e-9) for state in model.carried_states)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"choices": {}}, "choices must name a rule"),
        ({"restarts": ()}, "restarts different positive numbers"),
        ({"restarts": (0, 4)}, "restarts different positive numbers"),
        ({"restarts": (4, 4)}, "restarts different positive numbers"),
        ({"noise": 0.0}, "noise must be above 0"),
        ({"noise": -1.0}, "noise must be above 0"),
        ({"noise": math.nan}, "noise must be above 0"),
        ({"steps": 1}, "steps at least 2 or None"),
        ({"steps": 0}, "steps at least 2 or None"),
    ],
)
def test_what_means_nothing_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Breadth(**{"choices": RULES, **settings})
