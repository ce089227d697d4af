"""Proposed sizes: each rule against a plain count."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import DataError
from pipeline.planning import proposed_sizes
from pipeline.planning.proposed_sizes import CAUSAL, DIFFUSION, FROM_SCRATCH, buckets_for, draws_for, power_of_two, sequence_for
from pipeline.text.jsonl import held_out

LENGTHS = st.lists(st.integers(1, 3000), min_size=1, max_size=300)


@given(LENGTHS)
def test_a_sequence_holds_99_of_100_examples_and_no_needless_16_tokens_more(lengths):
    sequence = sequence_for(lengths)
    assert sequence % 16 == 0 and 32 <= sequence <= 1024
    fit = [sum(length <= most for length in lengths) >= 0.99 * len(lengths) for most in (sequence, sequence - 16)]
    assert (fit[0] or sequence == 1024) and (not fit[1] or sequence == 32)


@pytest.mark.parametrize(("most", "sequence"), [(512, 512), (100, 100), (4096, 1024)])
def test_a_sequence_is_no_longer_than_the_model_knows(most, sequence):
    assert sequence_for([2000] * 10, most) == sequence


@given(LENGTHS)
def test_buckets_ascend_below_the_sequence(lengths):
    buckets = buckets_for(lengths, sequence_for(lengths))
    assert list(buckets) == sorted(set(buckets)) and all(32 <= end < sequence_for(lengths) and end % 16 == 0 for end in buckets)


@pytest.mark.parametrize(("most", "power"), [(0.2, 1), (1, 1), (1.9, 1), (2, 2), (63, 32), (64, 64), (1000, 512)])
def test_powers_of_two(most, power):
    assert power_of_two(most) == power


@pytest.mark.parametrize(("epochs", "draws"), [(0.1, 1), (2, 1), (6, 2), (16.1, 5), (300, 8)])
def test_each_stored_draw_is_seen_about_three_times(epochs, draws):
    assert draws_for(epochs) == draws


@pytest.mark.parametrize("pace", [FROM_SCRATCH, CAUSAL, DIFFUSION])
@given(st.integers(32, 1024), st.integers(1, 100_000))
def test_a_step_is_within_its_tokens_and_never_more_than_there_are(pace, sequence, examples):
    batch = pace.batch(sequence, examples)
    assert 1 <= batch <= max(examples, 1) and (batch == 1 or batch * sequence <= pace.tokens) and math.log2(batch).is_integer()
    assert pace.least <= pace.steps(batch, examples) <= pace.most
    assert pace.joint_steps(pace.steps(batch, examples)) >= 10


def test_steps_and_batch_of_gsm8k_are_those_of_its_presets():
    assert FROM_SCRATCH.batch(256, 7099) == 16 and FROM_SCRATCH.steps(16, 7099) == 888 and FROM_SCRATCH.joint_steps(1000) == 100
    assert CAUSAL.batch(320, 475) == 8 and CAUSAL.steps(8, 475) == 89 and CAUSAL.joint_steps(80) == 10


@pytest.mark.parametrize(("examples", "share"), [(300, 0.1), (120, 0.2), (70, 0.3), (20, 0.3)])
def test_few_examples_are_held_out_by_a_larger_share(examples, share):
    prompts = [f"question {i}" for i in range(examples)]
    assert proposed_sizes.test_share(prompts, held_out) == share
    assert 0 < sum(held_out(prompt, share) for prompt in prompts) < examples


@pytest.mark.parametrize("prompts", [[], ["one"], ["the same"] * 50])
def test_examples_that_no_share_divides_are_refused(prompts):
    with pytest.raises(DataError, match=f"^{len(prompts)} examples are too few to hold some out for the validation split"):
        proposed_sizes.validation_share(prompts, held_out)
