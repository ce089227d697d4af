from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from components.inference.sampling import Sampler, low_confidence_remasking
from tests.support.lookup import MASK, VOCAB, Model, at, every, puzzles

hypothesis_settings = settings(max_examples=25, deadline=None)


def plain_decode(table, row, steps, blocks):
    """One row, one place at a time, in Python lists."""
    row = list(row)
    wanted = [i for i, token in enumerate(row) if token == MASK]
    for block in range(blocks):
        places = wanted[len(wanted) * block // blocks : len(wanted) * (block + 1) // blocks]
        passes = steps // blocks
        size = len(places)
        for p in range(passes):
            logits = table[sum((i + 1) * token for i, token in enumerate(row)) % 64]
            guesses = {}
            for i in places:
                if row[i] == MASK:
                    probabilities = logits[i, :MASK].softmax(-1).tolist()
                    guesses[i] = (max(probabilities), probabilities.index(max(probabilities)))
            share = size // passes + (p < size % passes)
            for i in sorted(guesses, key=lambda i: -guesses[i][0])[:share]:
                row[i] = guesses[i][1]
    return row


@hypothesis_settings
@given(puzzles())
def test_one_step_fills_every_mask_in_one_pass_with_the_most_likely_other_token(tokens):
    model = Model()
    out = low_confidence_remasking(at(model), tokens, MASK, steps=1).tokens
    assert len(model.seen) <= 1  # of no mask there is nothing to ask
    likely = Model()(tokens)[..., :MASK].argmax(-1)
    assert out.tolist() == [
        [likely[b, s].item() if tokens[b, s] == MASK else tokens[b, s].item() for s in range(tokens.shape[1])]
        for b in range(len(tokens))
    ]
    assert not (out == MASK).any()


def test_a_mask_id_in_the_middle_of_the_vocabulary_is_never_predicted_either():
    logits = torch.zeros(1, 3, 5)
    logits[..., 2], logits[..., 4] = 9.0, 1.0
    tokens = torch.tensor([[2, 0, 2]])
    for steps in (1, 2):
        assert low_confidence_remasking(at(lambda _: logits), tokens, 2, steps=steps).tokens.tolist() == [[4, 0, 4]]


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0}, {"temperature": 9.0, "seed": 4}, {"guidance": 2.0}, {"blocks": 3}])
@pytest.mark.parametrize(
    "known",
    [
        [1, 1, 1, 1, 1, 1, 1],
        [1, 1, 1, 1],
        [0, 1, 0, 1, 0, 1, 1],
        [1, 0, 0, 0, 0],
        [1, 1, 0, 1, 1, 1, 1, 1, 1],
        [1, 0, 1, 0, 0, 0, 0],
    ],
)
def test_an_id_without_a_token_is_never_predicted_however_likely(known, settings):
    logits = torch.randn(6, 9, VOCAB, generator=torch.Generator().manual_seed(1))
    of_tokens = [i for i in range(VOCAB) if i < len(known) and known[i] and i != MASK]
    logits[..., [i for i in range(VOCAB) if i not in of_tokens]] += 9
    ids = {"uid": torch.arange(6), "known": torch.tensor(known, dtype=torch.bool)}
    *_, last = Sampler(**settings).passes(at(lambda t: logits), torch.full((6, 9), MASK), MASK, **ids)
    assert {*last.tokens.flatten().tolist()} <= {*of_tokens} and bool(torch.isfinite(last.probability).all())
    if not settings:
        likely = torch.tensor(of_tokens)[logits[..., of_tokens].argmax(-1)]
        assert torch.equal(last.tokens, likely)
        assert torch.equal(
            low_confidence_remasking(at(lambda t: logits), torch.full((6, 9), MASK), MASK, 2, known=ids["known"]).tokens, likely
        )
        assert torch.allclose(last.probability, logits[..., of_tokens].softmax(-1).amax(-1))


@hypothesis_settings
@given(puzzles(), st.integers(1, 3), st.integers(1, 4))
def test_remasking_equals_a_plain_decoder_row_by_row(tokens, blocks, passes):
    model = Model()
    out = low_confidence_remasking(at(model), tokens, MASK, steps=blocks * passes, blocks=blocks).tokens
    assert out.tolist() == [plain_decode(model.table, row, blocks * passes, blocks) for row in tokens.tolist()]


@hypothesis_settings
@given(puzzles(), st.integers(1, 12))
def test_each_pass_commits_its_share_the_remainder_first(tokens, steps):
    model = Model()
    out = low_confidence_remasking(at(model), tokens, MASK, steps).tokens
    assert len(model.seen) == steps
    remaining = torch.stack([(seen == MASK).sum(1) for seen in [*model.seen, out]])
    for row, total in enumerate((tokens == MASK).sum(1).tolist()):
        shares = [total // steps + (step < total % steps) for step in range(steps)]
        assert remaining[:, row].diff().neg().tolist() == shares
    assert not (out == MASK).any()


@hypothesis_settings
@given(puzzles(), st.integers(1, 3), st.integers(1, 4))
def test_clues_and_committed_tokens_never_change(tokens, blocks, passes):
    model = Model()
    out = low_confidence_remasking(at(model), tokens, MASK, blocks * passes, blocks).tokens
    seen = [*model.seen, out]
    for before, after in pairwise(seen):
        assert torch.equal(after[before != MASK], before[before != MASK])


@hypothesis_settings
@given(puzzles(), st.integers(1, 4), st.integers(1, 3))
def test_blocks_are_filled_left_to_right(tokens, blocks, passes):
    model = Model()
    low_confidence_remasking(at(model), tokens, MASK, blocks * passes, blocks)
    for row in range(len(tokens)):
        wanted = (tokens[row] == MASK).nonzero().flatten().tolist()
        for block in range(1, blocks):
            left = len(wanted) * block // blocks
            at_start = model.seen[block * passes][row]
            assert [i for i in wanted if at_start[i] == MASK] == wanted[left:]


@hypothesis_settings
@given(puzzles(), st.integers(1, 5))
def test_a_row_decodes_the_same_alone_as_in_a_batch(tokens, steps):
    together = low_confidence_remasking(at(Model()), tokens, MASK, steps).tokens
    for row in range(len(tokens)):
        alone = low_confidence_remasking(at(Model()), tokens[row : row + 1], MASK, steps).tokens
        assert torch.equal(alone, together[row : row + 1])


@pytest.mark.parametrize(("steps", "blocks"), [(5, 2), (2, 4), (0, 1), (4, 0), (-2, 1)])
def test_blocks_that_do_not_divide_steps_are_an_error_naming_both(steps, blocks):
    with pytest.raises(ValueError, match=rf"steps {steps} and blocks {blocks}\b"):
        low_confidence_remasking(at(Model()), torch.tensor([[MASK]]), MASK, steps, blocks)


# The sampler itself

END = 1


def told(choices, probability=0.9, vocab=VOCAB):
    """``predict`` that is this sure of these tokens at every place, whatever it sees."""
    sure = torch.as_tensor(probability).expand(len(choices)).clone()
    rest = (1 - sure) / (vocab - 2)  # the mask has no chance
    logits = rest.log()[:, None].repeat(1, vocab)
    logits[torch.arange(len(choices)), choices] = sure.log()
    return lambda tokens: logits.expand(len(tokens), -1, -1).clone()


@hypothesis_settings
@given(puzzles(), st.integers(1, 2), st.sampled_from([None, 2, 6]), st.sampled_from([None, 0.2, 0.5]), st.sampled_from([0.0, 0.7]))
def test_rows_do_not_know_of_each_other(tokens, blocks, steps, threshold, temperature):
    """Nor of another row's length, its ends, its noise or the passes that it needs."""
    sampler = Sampler(steps, blocks, temperature, threshold=threshold, end_confidence=0.5, seed=3)
    uid = torch.arange(len(tokens)) + 5
    given = {"end_id": END, "finish": Model(1), "finishing": 1}
    together = every(sampler, Model(), tokens, uid=uid, **given)
    for row in range(len(tokens)):
        alone = every(sampler, Model(), tokens[row : row + 1], uid=uid[row : row + 1], **given)
        if not alone:
            assert MASK not in tokens[row]
            continue
        for name in ("tokens", "probability", "evaluations"):
            assert torch.equal(getattr(alone[-1], name)[0], getattr(together[-1], name)[row]), name


@hypothesis_settings
@given(puzzles(), st.sampled_from([None, 0.3]), st.sampled_from([None, END]))
def test_passes_tell_what_they_committed_and_how_sure_they_were(tokens, threshold, end):
    found = every(Sampler(threshold=threshold), Model(), tokens, end_id=end)
    before, probability = tokens, (tokens != MASK).float()
    for step in found:
        assert torch.equal(step.committed, (step.tokens != before) & (step.probability > 0))
        assert (step.committed.sum(1) <= 1).all() or threshold is not None
        assert torch.equal(step.probability[~step.committed], probability[~step.committed])
        before, probability = step.tokens, step.probability
    assert MASK not in before
    assert not found or torch.equal(found[-1].evaluations, torch.stack([step.committed.any(1) for step in found]).sum(0))


def test_confidence_is_the_probability_among_what_may_be_said():
    (step,) = every(Sampler(steps=1), lambda _: torch.tensor([[[0.0, 0.0, 0, 1, 0, 0, 50]]]), torch.tensor([[MASK]]))
    assert step.tokens.tolist() == [[3]] and step.probability.item() == pytest.approx(2.718281828 / 7.718281828)


# Ends


def test_a_row_is_done_when_all_before_its_first_end_is_decided():
    predict = told([2, 3, END, 4, 4, 4], [0.5, 0.6, 0.9, 0.1, 0.2, 0.3])
    *_, last = found = every(Sampler(), predict, torch.full((1, 6), MASK), end_id=END)
    assert len(found) == 3 and last.tokens.tolist() == [[2, 3, END, END, END, END]]
    assert last.probability[0, 3:].tolist() == [0, 0, 0] and last.evaluations.tolist() == [3]
    assert found[0].tokens.tolist() == [[MASK, MASK, END, MASK, MASK, MASK]]  # what precedes it may still become an end


def test_an_end_in_the_prompt_ends_nothing():
    *_, last = every(Sampler(), told([2] * 4), torch.tensor([[END, MASK, MASK, MASK]]), end_id=END)
    assert last.tokens.tolist() == [[END, 2, 2, 2]]


def test_a_flood_of_early_ends_is_kept_back():
    """Ends everywhere, the surer the more of them there are, and words only where a word stands before: LLaDA's failure."""

    def predict(tokens):
        word = torch.where(torch.arange(6) == 0, 0.5, torch.cat([torch.zeros(1), (tokens[0, :-1] == 2) * 0.6]))
        return torch.stack([told([2 if p else END], float(p) or 0.9)(tokens)[0, 0] for p in word])[None]

    hidden = torch.full((1, 6), MASK)
    plain = every(Sampler(), predict, hidden, end_id=END)[-1]
    kept_back = every(Sampler(end_confidence=0.0), predict, hidden, end_id=END)[-1]
    assert plain.tokens.tolist() == [[2, END, END, END, END, END]]
    assert kept_back.tokens.tolist() == [[2] * 6]
    only_ends = every(Sampler(end_confidence=0.0), told([END] * 3), hidden[:, :3], end_id=END)
    assert len(only_ends) == 1 and only_ends[0].tokens.tolist() == [[END] * 3]


# Adaptive steps


def test_all_that_is_sure_enough_is_committed_and_at_least_one():
    predict = told([2, 3, 4, 5], [0.95, 0.5, 0.97, 0.6])
    found = every(Sampler(threshold=0.9), predict, torch.full((1, 4), MASK))
    assert [step.committed[0].tolist() for step in found] == [
        [True, False, True, False], [False, False, False, True], [False, True, False, False],
    ]  # fmt: skip
    assert len(every(Sampler(threshold=0.1), predict, torch.full((1, 4), MASK))) == 1


def test_a_threshold_never_takes_more_passes_than_steps():
    found = every(Sampler(steps=2, threshold=0.9), told([2] * 6, 0.5), torch.full((1, 6), MASK))
    assert [step.committed.sum().item() for step in found] == [3, 3]


# Guidance


def test_guidance_is_the_way_from_the_logits_without_the_prompt():
    seen = []

    def predict(tokens):
        seen.append(tokens.tolist())
        return torch.tensor([[[0.0, 3, 2, 0, 0, 0, 0]]] if tokens[0, 0] == 0 else [[[0.0, 3, 0, 0, 0, 0, 0]]]).expand(1, 2, 7)

    hidden = torch.tensor([[0, MASK]])
    (plain,) = every(Sampler(), predict, hidden)
    (guided,) = every(Sampler(guidance=1.0), predict, hidden)
    assert plain.tokens.tolist() == [[0, 1]] and guided.tokens.tolist() == [[0, 2]]  # 0 + 2 (2 - 0) > 3
    assert seen[1:] == [[[MASK, MASK]], [[0, MASK]]] and guided.evaluations.tolist() == [2]
    assert guided.probability[0, 1] == pytest.approx(torch.tensor([0.0, 3, 4, 0, 0, 0]).softmax(0)[2])


# Temperature


def test_tokens_are_drawn_at_their_probabilities():
    probabilities = torch.tensor([0.5, 0.2, 0.1, 0.1, 0.05, 0.05])
    logits = torch.cat([probabilities.log(), torch.tensor([9.0])])  # the mask is most likely
    n = 4000
    for temperature in (1.0, 0.5):
        sampler = Sampler(temperature=temperature)
        (step,) = sampler.passes(at(lambda t: logits.expand(n, 1, 7)), torch.full((n, 1), MASK), MASK, uid=torch.arange(n))
        shares = step.tokens[:, 0].bincount(minlength=7) / n
        expected = probabilities ** (1 / temperature) / (probabilities ** (1 / temperature)).sum()
        assert (shares[:6] - expected).abs().max() < 4 * (0.25 / n) ** 0.5 and shares[6] == 0
        assert torch.allclose(step.probability[:, 0], probabilities[step.tokens[:, 0]])  # the model's, not the drawn one's


def test_the_seed_decides_what_is_drawn():
    def draw(seed, temperature=1.0):
        uid = torch.arange(8)
        return every(Sampler(temperature=temperature, seed=seed), told([2] * 10, 0.4), torch.full((8, 10), MASK), uid=uid)[
            -1
        ].tokens

    assert torch.equal(draw(0), draw(0)) and not torch.equal(draw(0), draw(1))
    assert len({tuple(row) for row in draw(0).tolist()}) == 8
    assert (draw(0, 1e-6) == 2).all()
    with pytest.raises(ValueError, match="every row needs a uid"):
        every(Sampler(temperature=1.0), told([2]), torch.tensor([[MASK]]))


def test_no_noise_is_used_twice(noise_keys):
    every(Sampler(blocks=2, temperature=1.0), Model(), torch.full((2, 10), MASK), uid=torch.tensor([3, 9]))
    assert len(noise_keys) == 2 * 2 * (5 + 4 + 3 + 2 + 1) and len(set(noise_keys)) == len(noise_keys)


# Another model for the last passes


@pytest.mark.parametrize(("finishing", "by_other"), [(1, 1), (2, 3), (9, 5)])
def test_the_last_passes_of_every_block_are_the_other_models(finishing, by_other):
    """Ten tokens, two blocks of three passes: shares 2, 2, 1."""
    found = every(Sampler(6, 2), told([2] * 10), torch.full((1, 10), MASK), finish=told([3] * 10), finishing=finishing)[-1]
    assert [(found.tokens[0, half] == 3).sum().item() for half in (slice(0, 5), slice(5, 10))] == [by_other] * 2


def test_a_threshold_leaves_the_other_model_its_share():
    found = every(Sampler(threshold=0.5), told([2] * 4), torch.full((1, 4), MASK), finish=told([3] * 4))
    assert [step.committed.sum().item() for step in found] == [3, 1] and (found[-1].tokens == 3).sum() == 1


def test_each_row_has_its_own_last_pass():
    hidden = torch.tensor([[MASK, 0, 0], [MASK, MASK, MASK]])
    calls = []

    def counted(name, predict):
        return lambda tokens: calls.append(name) or predict(tokens)

    first, last = counted("first", told([2] * 3)), counted("last", told([3] * 3))
    found = every(Sampler(), first, hidden, finish=last)
    assert found[-1].tokens.tolist() == [[3, 0, 0], [2, 2, 3]]
    assert calls == ["first", "last", "first", "last"] and found[-1].evaluations.tolist() == [1, 3]


@pytest.mark.parametrize(
    ("settings", "told_of"),
    [({"steps": 3, "blocks": 2}, "steps 3 and blocks 2"), ({"temperature": -1.0}, "at least 0"), ({"guidance": -1.0}, "at least 0"),
     ({"end_confidence": 1.5}, "within 0..1")],
)  # fmt: skip
def test_settings_that_do_not_fit_are_named(settings, told_of):
    with pytest.raises(ValueError, match=told_of):
        every(Sampler(**settings), told([2]), torch.tensor([[MASK]]))
