import itertools
import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from components.objective.masking import bernoulli, chunks, exact_count, fixed_ratio, often_full, whole

hypothesis_settings = settings(max_examples=25, deadline=None)
SEEDS = st.integers(0, 2**31)
RATIOS = st.floats(0, 1)


@st.composite
def responses(draw):
    """True where a token may be masked: at least one per row, anywhere in the row."""
    seq, batch = draw(st.integers(1, 12)), draw(st.integers(1, 5))
    response = torch.tensor(draw(st.lists(st.lists(st.booleans(), min_size=seq, max_size=seq), min_size=batch, max_size=batch)))
    response[torch.arange(batch), draw(st.lists(st.integers(0, seq - 1), min_size=batch, max_size=batch))] = True
    return response


def noise_for(response, seed):
    batch, seq = response.shape
    return torch.rand(batch, seq + 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


PROCESSES = {
    "exact_count": exact_count,
    "bernoulli": bernoulli,
    "fixed_ratio": lambda r, n: fixed_ratio(r, n, 0.5),
    "often_full": often_full,
    "chunks": lambda r, n: chunks(r, n, 3),
    "whole": whole,
}


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
@hypothesis_settings
@given(responses(), SEEDS)
def test_prompt_is_never_masked_and_only_masked_positions_weigh(process, response, seed):
    masked, weights = process(response, noise_for(response, seed))
    assert not (masked & ~response).any()
    assert torch.equal(weights > 0, masked)


@pytest.mark.parametrize("process", ["exact_count", "fixed_ratio", "often_full", "chunks", "whole"])
@hypothesis_settings
@given(responses(), SEEDS)
def test_each_answer_has_a_masked_token_and_its_weights_sum_to_one(process, response, seed):
    masked, weights = PROCESSES[process](response, noise_for(response, seed))
    counts = masked.sum(1)
    assert (counts >= 1).all()
    torch.testing.assert_close(weights, masked / counts[:, None].float())


@hypothesis_settings
@given(responses(), SEEDS, st.integers(1, 5))
def test_chunks_are_masked_whole_and_as_many_as_exact_count_would_mask_tokens(response, seed, size):
    noise = noise_for(response, seed)
    masked, _ = chunks(response, noise, size)
    for row in range(len(response)):
        of_answer = masked[row, response[row]].split(size)
        assert all(chunk.all() or not chunk.any() for chunk in of_answer)
        drawn = int(noise[row, 0] * len(of_answer)) + 1
        assert sum(bool(chunk.any()) for chunk in of_answer) == drawn
        first = noise[row, 1:][response[row]][::size]
        assert {i for i, chunk in enumerate(of_answer) if chunk.any()} == set(first.argsort(stable=True)[:drawn].tolist())


def test_chunks_of_one_token_are_exact_count_and_of_none_are_refused():
    response = torch.rand(4, 9, generator=torch.Generator().manual_seed(0)) < 0.7
    for one, other in zip(chunks(response, noise_for(response, 1), 1), exact_count(response, noise_for(response, 1)), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(ValueError, match="at least 1 token, got 0"):
        chunks(response, noise_for(response, 1), 0)


@hypothesis_settings
@given(responses(), SEEDS)
def test_whole_masks_the_answer(response, seed):
    assert torch.equal(whole(response, noise_for(response, seed))[0], response)


@hypothesis_settings
@given(responses(), SEEDS)
def test_exact_count_masks_the_lowest_noise_of_the_response(response, seed):
    noise = noise_for(response, seed)
    masked, _ = exact_count(response, noise)
    for row in range(len(response)):
        answer = [i for i in range(response.shape[1]) if response[row, i]]
        number = int(noise[row, 0].item() * len(answer)) + 1
        lowest = sorted(answer, key=lambda i: noise[row, i + 1].item())[:number]
        assert masked[row].nonzero().flatten().tolist() == sorted(lowest)


@hypothesis_settings
@given(responses(), SEEDS, RATIOS)
def test_often_full_masks_whole_answers_below_full_and_else_as_exact_count(response, seed, full):
    noise = noise_for(response, seed)
    masked, _ = often_full(response, noise, full)
    whole = noise[:, 0] < full
    assert torch.equal(masked[whole], response[whole])
    rescaled = noise.clone()
    rescaled[:, 0] = (noise[:, 0] - full) / max(1 - full, 1e-6)
    assert torch.equal(masked[~whole], exact_count(response[~whole], rescaled[~whole])[0])


@hypothesis_settings
@given(responses(), SEEDS, st.floats(1e-3, 0.5))
def test_bernoulli_equals_its_formula_row_by_row(response, seed, eps):
    noise = noise_for(response, seed)
    masked, weights = bernoulli(response, noise, eps)
    for row in range(len(response)):
        p = (1 - eps) * noise[row, 0].item() + eps
        for i in range(response.shape[1]):
            expected = bool(response[row, i]) and noise[row, i + 1].item() < p
            assert bool(masked[row, i]) == expected
            assert weights[row, i].item() == pytest.approx(expected / (p * int(response[row].sum())))


@hypothesis_settings
@given(responses(), SEEDS, RATIOS, RATIOS)
def test_fixed_ratio_masks_are_nested(response, seed, one, other):
    noise = noise_for(response, seed)
    small, large = (fixed_ratio(response, noise, ratio)[0] for ratio in sorted((one, other)))
    assert not (small & ~large).any()


@pytest.mark.parametrize(("ratio", "expected"), [(0.0, 1), (0.04, 1), (0.1, 1), (0.3, 3), (0.5, 5), (0.99, 10), (1.0, 10)])
def test_fixed_ratio_masks_that_share_and_at_least_one(ratio, expected):
    response = torch.arange(14).expand(3, 14) >= 4
    masked, _ = fixed_ratio(response, noise_for(response, 0), ratio)
    assert masked.sum(1).tolist() == [expected] * 3


def test_exact_count_draws_every_number_of_tokens_equally_often():
    response = (torch.arange(9) >= 4).expand(20_000, 9)
    counts = Counter(exact_count(response, noise_for(response, 0))[0].sum(1).tolist())
    assert set(counts) == {1, 2, 3, 4, 5}
    for number in counts.values():
        assert abs(number - 4000) < 5 * math.sqrt(20_000 * 0.2 * 0.8)


@pytest.mark.parametrize("process", [exact_count, bernoulli])
def test_every_position_of_the_answer_is_masked_equally_often(process):
    response = (torch.arange(7) >= 3).expand(20_000, 7)
    masked, _ = process(response, noise_for(response, 0))
    share = masked[:, 3:].double().mean(0)
    assert (share - share.mean()).abs().max() < 5 * math.sqrt(0.25 / 20_000)


def test_an_answer_without_tokens_masks_nothing():
    response = torch.tensor([[False, False], [True, True]])
    for process in PROCESSES.values():
        masked, weights = process(response, noise_for(response, 0))
        assert masked[0].tolist() == [False, False]
        assert weights[0].tolist() == [0.0, 0.0]


# A made-up loss of each token of a 4-token answer, another one for every mask: LOSS[mask as a number, token].
LOSS = torch.rand(16, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
MASKS = list(itertools.product([False, True], repeat=4))


def enumerated_objective():
    """E over l ~ U{1..4} and masks of l tokens of the mean loss of masked tokens: every mask written out."""
    total = 0.0
    for number, mask in enumerate(MASKS):
        if size := sum(mask):
            loss = sum(LOSS[number, i].item() for i in range(4) if mask[i])
            total += 1 / 4 * 1 / math.comb(4, size) * loss / size
    return total


def draws_of_the_objective(process):
    response = torch.ones(50_000, 4, dtype=torch.bool)
    masked, weights = process(response, noise_for(response, 2))
    number = (masked * torch.tensor([8, 4, 2, 1])).sum(1)
    return (weights.double() * LOSS[number]).sum(1)


@pytest.mark.parametrize("process", [exact_count, lambda r, n: bernoulli(r, n, eps=1e-9)], ids=["exact_count", "bernoulli"])
def test_both_processes_have_the_enumerated_expectation(process):
    draws = draws_of_the_objective(process)
    error = draws.std().item() / math.sqrt(len(draws))
    assert error < 0.05  # else the next line proves nothing
    assert abs(draws.mean().item() - enumerated_objective()) < 4 * error


def test_exact_count_has_the_lower_variance():
    assert draws_of_the_objective(exact_count).std() < 0.5 * draws_of_the_objective(bernoulli).std()
