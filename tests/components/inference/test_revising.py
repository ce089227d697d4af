"""Revising: what a plain decoder of one row does, place by place; it ends, leaves no mask, and no row knows of another."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from components.inference import revising
from components.inference.sampling import Sampler
from tests.support.lookup import MASK, VOCAB, Model, every, puzzles

hypothesis_settings = settings(max_examples=40, deadline=None)
END = 1
RULES = {
    "never": lambda now, decided: decided & False,
    "always": lambda now, decided: decided,
    "below": lambda now, decided: revising.below_threshold(now, decided, 0.3),
    "lowest": lambda now, decided: revising.least_probable(now, decided, 2),
}
PLAIN_RULES = {  # probability of each place that may be masked again -> places that are
    "never": lambda now: [],
    "always": lambda now: list(now),
    "below": lambda now: [i for i, p in now.items() if p < 0.3],
    "lowest": lambda now: sorted(now, key=lambda i: (now[i], i))[:2],
}


def probabilities(table, row, guidance, hidden):
    """Of every token at every place, the mask left out; where guided, away from what is said without the prompt."""

    def logits(tokens):
        return table[sum((i + 1) * token for i, token in enumerate(tokens)) % 64][: len(row), :MASK]

    said = logits(row)
    if guidance:
        blind = logits([token if i in hidden else MASK for i, token in enumerate(row)])
        said = blind + (guidance + 1) * (said - blind)
    return said.softmax(-1).tolist()


def ended(row, hidden):
    """Whether the answer holds an end with nothing undecided before it."""
    answer = [row[i] for i in hidden]
    return END in answer and MASK not in answer[: answer.index(END)]


def plain_decode(table, row, rule, *, steps, blocks, revisions, guidance=0.0, threshold=None, end=False):
    """One row, one place at a time, in Python lists; also how many passes it takes."""
    row, taken = list(row), 0
    hidden = [i for i, token in enumerate(row) if token == MASK]
    again = dict.fromkeys(hidden, 0)
    for block in range(blocks):
        places = hidden[len(hidden) * block // blocks : len(hidden) * (block + 1) // blocks]
        passes = min(steps // blocks if steps else len(places), len(places))
        for number in range(passes):
            masked = [i for i in places if row[i] == MASK]
            if not masked:
                break
            taken += 1
            of_place = probabilities(table, row, guidance, hidden)
            best = {i: max(range(MASK), key=lambda token, i=i: of_place[i][token]) for i in masked}
            later = range(number + 1, passes)
            share = len(masked) - sum(len(places) // passes + (p < len(places) % passes) for p in later)
            if threshold is not None:
                share = max(share, 1, sum(of_place[i][best[i]] >= threshold for i in masked))
            decided = {i: of_place[i][row[i]] for i in places if row[i] != MASK and again[i] < revisions}
            for i in sorted(masked, key=lambda i: -of_place[i][best[i]])[: max(share, 0)]:
                row[i] = best[i]
            for i in PLAIN_RULES[rule](decided) if number < passes - 1 else []:
                row[i], again[i] = MASK, again[i] + 1
            if end and ended(row, hidden):
                return [END if token == MASK else token for token in row], taken
    return row, taken


@st.composite
def samplers(draw, rules=tuple(RULES)):
    blocks = draw(st.integers(1, 3))
    return {
        "rule": draw(st.sampled_from(rules)),
        "blocks": blocks,
        "steps": draw(st.sampled_from([None, blocks, 2 * blocks, 3 * blocks, 5 * blocks])),
        "revisions": draw(st.integers(1, 3)),
        "guidance": draw(st.sampled_from([0.0, 1.5])),
        "threshold": draw(st.sampled_from([None, 0.35, 0.6])),
    }


def made(rule, **rest):
    return Sampler(revise=RULES[rule], **rest)


@hypothesis_settings
@given(puzzles(), samplers(), st.booleans())
def test_revising_equals_a_plain_decoder_row_by_row(tokens, how, end):
    """With blocks, guidance, thresholds and ends."""
    model = Model()
    *_, last = every(made(**how), model, tokens, end_id=END if end else None) or [None]
    for row, before in enumerate(tokens.tolist()):
        expected, taken = plain_decode(model.table, before, end=end, **how)
        if last is None:
            assert MASK not in before
            continue
        assert last.tokens[row].tolist() == expected
        assert last.evaluations[row].item() == taken * (2 if how["guidance"] else 1)


@hypothesis_settings
@given(puzzles(), samplers(), st.sampled_from([0.0, 0.8]), st.booleans())
def test_rows_do_not_know_of_each_other(tokens, how, temperature, finished_by_another):
    sampler, uid = made(temperature=temperature, seed=3, **how), torch.arange(len(tokens)) + 5
    given = {"end_id": END, **({"finish": Model(1), "finishing": 1} if finished_by_another else {})}
    together = every(sampler, Model(), tokens, uid=uid, **given)
    assert len(together) <= (how["steps"] or how["blocks"] * tokens.shape[1])
    if not together:
        return
    assert MASK not in together[-1].tokens
    for row in range(len(tokens)):
        alone = every(sampler, Model(), tokens[row : row + 1], uid=uid[row : row + 1], **given)
        if alone:
            for name in ("tokens", "probability", "evaluations"):
                assert torch.equal(getattr(alone[-1], name)[0], getattr(together[-1], name)[row]), name
    again = every(sampler, Model(), tokens, uid=uid, **given)
    assert torch.equal(again[-1].tokens, together[-1].tokens) and torch.equal(again[-1].probability, together[-1].probability)


@hypothesis_settings
@given(puzzles(), samplers())
def test_a_place_is_masked_again_so_often_at_most_and_never_in_the_prompt(tokens, how):
    before, often = tokens, torch.zeros_like(tokens)
    for step in every(made(**how), Model(), tokens):
        masked_again = (step.tokens == MASK) & (before != MASK)
        often += masked_again
        assert not (masked_again & step.committed).any() and (step.probability[masked_again] == 0).all()
        before = step.tokens
    assert often.max() <= how["revisions"] and not often[tokens != MASK].any() and MASK not in before


@hypothesis_settings
@given(puzzles(), samplers(rules=("never",)), st.sampled_from([None, END]))
def test_a_rule_that_never_doubts_changes_nothing(tokens, how, end):
    """Pass by pass, bit by bit, as without a rule."""
    revised = every(made(**how), Model(), tokens, end_id=end)
    plain = every(
        Sampler(**{name: value for name, value in how.items() if name not in ("rule", "revisions")}), Model(), tokens, end_id=end
    )
    assert len(revised) == len(plain)
    for a, b in zip(revised, plain, strict=True):
        assert all(
            torch.equal(getattr(a, name), getattr(b, name)) for name in ("tokens", "probability", "committed", "evaluations")
        )


@hypothesis_settings
@given(puzzles(), samplers(rules=("always", "lowest")))
def test_revising_takes_the_passes_that_are_taken_without(tokens, how):
    """Where no threshold saves any."""
    how |= {"threshold": None}
    model, plain = Model(), Model()
    every(made(**how), model, tokens)
    every(Sampler(how["steps"], how["blocks"], guidance=how["guidance"]), plain, tokens)
    assert len(model.seen) == len(plain.seen)
    last = [(seen == MASK).sum(1) for seen in model.seen]
    assert all((b <= a + tokens.shape[1]).all() for a, b in pairwise(last))


@pytest.mark.parametrize(("steps", "mended"), [(1, False), (2, False), (3, True), (4, True), (6, True)])
def test_an_early_mistake_is_mended_where_there_are_passes_for_it(steps, mended):
    """The first place says 3 as long as nothing stands beside it, and 2 from then on."""

    def predict(tokens):
        logits = torch.full((1, 4, VOCAB), -9.0)
        logits[0, 0, 3 if (tokens[0, 1:] == MASK).all() else 2] = 9.0
        logits[0, 1, 4], logits[0, 2, 5], logits[0, 3, 5] = 1.0, 0.8, 0.5
        return logits

    masked = torch.full((1, 4), MASK)
    sampler = Sampler(steps, revise=revising.below_threshold)
    assert every(sampler, predict, masked)[-1].tokens.tolist() == [[2 if mended else 3, 4, 5, 5]]
    assert every(Sampler(steps), predict, masked)[-1].tokens.tolist() == [[3, 4, 5, 5]]


@pytest.mark.parametrize(
    ("probability", "decided", "threshold", "number", "below", "least"),
    [
        ([0.1, 0.6, 0.4], [1, 1, 1], 0.5, 1, [1, 0, 1], [1, 0, 0]),
        ([0.1, 0.6, 0.4], [0, 1, 1], 0.5, 1, [0, 0, 1], [0, 0, 1]),
        ([0.5, 0.5, 0.5], [1, 1, 1], 0.5, 2, [0, 0, 0], [1, 1, 0]),
        ([0.2, 0.9, 0.1], [1, 1, 1], 0.0, 9, [0, 0, 0], [1, 1, 1]),
        ([0.2, 0.9, 0.1], [0, 0, 0], 1.0, 2, [0, 0, 0], [0, 0, 0]),
        ([1.0, 1.0, 0.99], [1, 1, 1], 1.0, 1, [0, 0, 1], [0, 0, 1]),
    ],
)
def test_rules_choose_among_what_is_decided(probability, decided, threshold, number, below, least):
    now, may = torch.tensor([probability]), torch.tensor([decided]).bool()
    assert revising.below_threshold(now, may, threshold).int().tolist() == [below]
    assert revising.least_probable(now, may, number).int().tolist() == [least]


def test_no_noise_is_used_twice(noise_keys):
    sampler = Sampler(blocks=2, temperature=1.0, revise=RULES["always"], revisions=3)
    every(sampler, Model(), torch.full((2, 10), MASK), uid=torch.tensor([3, 9]))
    assert len(set(noise_keys)) == len(noise_keys) > 2 * 2 * 15


def test_what_another_model_finishes_it_may_revise_too():
    """The backbone commits 2 with certainty; the last two of three passes are the refined model's, which doubts and says 3."""

    def sure_of(token):
        return lambda tokens: torch.full((1, 6, VOCAB), -9.0).index_fill(2, torch.tensor([token]), 9.0)

    given = {"finish": sure_of(3), "finishing": 2}
    plain = every(Sampler(3), sure_of(2), torch.full((1, 6), MASK), **given)[-1]
    revised = every(Sampler(3, revise=revising.below_threshold), sure_of(2), torch.full((1, 6), MASK), **given)[-1]
    assert plain.tokens.tolist() == [[2, 2, 3, 3, 3, 3]] and revised.tokens.tolist() == [[3] * 6]


@pytest.mark.parametrize("revisions", [0, -1, -(10**9)])
def test_no_revision_is_no_number_of_revisions(revisions):
    with pytest.raises(ValueError, match=f"revisions must be at least 1, got {revisions}"):
        every(Sampler(revise=revising.below_threshold, revisions=revisions), Model(), torch.tensor([[MASK]]))
