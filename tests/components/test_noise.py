import math
from statistics import NormalDist

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from components.noise import identity, key, normal, permutation, uniform

hypothesis_settings = settings(max_examples=25, deadline=None)
INT64 = st.integers(-(2**63), 2**63 - 1)
KEYS = st.integers(0, 2**40)


class SplitMix64:
    """The published generator in plain Python integers."""

    def __init__(self, state):
        self.state = state % 2**64

    @staticmethod
    def mix(z):
        z %= 2**64
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        return z ^ (z >> 31)

    def next(self):
        self.state = (self.state + 0x9E3779B97F4A7C15) % 2**64
        return self.mix(self.state)


def reference(seed, stream, uid, n):
    key = SplitMix64.mix(SplitMix64.mix(seed + 1) + stream + 1)
    generator = SplitMix64(SplitMix64.mix(uid * 0x9E3779B97F4A7C15 + key))
    return [(generator.next() >> 11) / 2**53 for _ in range(n)]


def test_the_reference_gives_the_published_first_numbers_of_seed_zero():
    generator = SplitMix64(0)
    assert [generator.next() for _ in range(3)] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


@hypothesis_settings
@given(INT64, KEYS, INT64, st.integers(1, 6))
def test_uniform_equals_splitmix64_in_python_integers(seed, stream, uid, n):
    assert uniform(seed, stream, torch.tensor([uid]), n)[0].tolist() == reference(seed, stream, uid, n)


@hypothesis_settings
@given(KEYS, KEYS, st.lists(INT64, min_size=1, max_size=6), st.data())
def test_a_sequence_gets_the_same_noise_in_any_batch(seed, stream, uids, data):
    whole = uniform(seed, stream, torch.tensor(uids), 4)
    order = data.draw(st.permutations(range(len(uids))))
    for place, row in zip(uniform(seed, stream, torch.tensor([uids[i] for i in order]), 4), order, strict=True):
        assert torch.equal(place, whole[row])


@hypothesis_settings
@given(KEYS, st.lists(st.tuples(KEYS, INT64), min_size=1, max_size=6))
def test_a_stream_of_each_sequence_gives_what_it_gives_alone(seed, keys):
    streams, uids = torch.tensor([stream for stream, _ in keys]), torch.tensor([uid for _, uid in keys])
    together = uniform(seed, streams, uids, 3)
    for row, (stream, uid) in zip(together, keys, strict=True):
        assert torch.equal(row, uniform(seed, stream, torch.tensor([uid]), 3)[0])
        assert row.tolist() == reference(seed, stream, uid, 3)


def test_fewer_numbers_are_a_prefix_of_more():
    uid = torch.arange(5)
    assert torch.equal(uniform(0, 1, uid, 3), uniform(0, 1, uid, 8)[:, :3])


def test_noise_is_uniform():
    noise = uniform(0, 0, torch.arange(1000), 100)
    assert noise.min() >= 0
    assert noise.max() < 1
    for power in (1, 2, 3, 4):
        sd = math.sqrt(1 / (2 * power + 1) - 1 / (power + 1) ** 2)
        assert abs(noise.pow(power).mean().item() - 1 / (power + 1)) < 4 * sd / math.sqrt(100_000)
    shares = torch.histc(noise.float(), 16, 0, 1) / 100_000
    assert (shares - 1 / 16).abs().max() < 5 * math.sqrt(1 / 16 * 15 / 16 / 100_000)


@pytest.mark.parametrize(("seed", "stream", "shift"), [(1, 0, 0), (0, 1, 0), (0, 0, 10_000)], ids=["seed", "stream", "uid"])
def test_another_key_gives_uncorrelated_noise(seed, stream, shift):
    uid = torch.arange(10_000)
    pair = torch.stack([uniform(0, 0, uid, 1)[:, 0], uniform(seed, stream, uid + shift, 1)[:, 0]])
    assert abs(torch.corrcoef(pair)[0, 1].item()) < 4 / math.sqrt(10_000)


def test_numbers_of_one_sequence_are_uncorrelated():
    correlation = torch.corrcoef(uniform(0, 0, torch.arange(10_000), 8).T)
    assert (correlation - torch.eye(8)).abs().max() < 5 / math.sqrt(10_000)


@hypothesis_settings
@given(KEYS, KEYS, st.integers(0, 50))
def test_permutation_holds_each_number_once(seed, stream, n):
    assert sorted(permutation(seed, stream, n).tolist()) == list(range(n))


def test_permutation_is_a_function_of_its_keys():
    orders = [permutation(seed, stream, 50).tolist() for seed, stream in ((0, 0), (0, 1), (1, 0))]
    assert orders[0] == permutation(0, 0, 50).tolist()
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert list(range(50)) not in orders


def test_permutation_puts_every_number_in_every_place_equally_often():
    places = torch.stack([permutation(0, stream, 4) for stream in range(2000)])
    for number in range(4):
        shares = (places == number).double().mean(0)
        assert (shares - 0.25).abs().max() < 4 * math.sqrt(0.25 * 0.75 / 2000)


@hypothesis_settings
@given(st.lists(INT64, max_size=4))
def test_key_mixes_its_numbers_one_after_the_other(numbers):
    mixed = 0
    for number in numbers:
        mixed = SplitMix64.mix(mixed + number + 1)
    assert key(*numbers) == mixed % 2**63


def test_keys_of_neighbouring_numbers_all_differ_and_seed_a_generator():
    keys = {key(seed, step, part) for seed in range(10) for step in range(50) for part in range(10)}
    assert len(keys) == 5000
    draws = torch.tensor([torch.rand((), generator=torch.Generator().manual_seed(k)) for k in sorted(keys)])
    assert abs(draws.double().mean().item() - 0.5) < 4 / math.sqrt(12 * 5000)


def test_key_tells_order_and_number_of_its_numbers_apart():
    assert len({key(*numbers) for numbers in ((0,), (0, 0), (0, 1), (1, 0), (1,), (0, 0, 0), (0, 1, 0), (0, 0, 1))}) == 8


def test_normal_numbers_are_the_quantiles_of_the_uniform_ones():
    numbers = normal(3, 1, torch.arange(40), 100)
    flat = uniform(3, 1, torch.arange(40), 100).flatten().tolist()
    expected = torch.tensor([NormalDist().inv_cdf(u + 2.0**-54) for u in flat], dtype=torch.float64)
    assert torch.allclose(numbers.flatten(), expected, rtol=1e-9, atol=1e-12) and numbers.isfinite().all()
    assert abs(numbers.mean()) < 0.06 and abs(numbers.std() - 1) < 0.05  # 4 deviations of 4,000 draws


@hypothesis_settings
@given(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=9), st.integers(0, 4), st.integers(0, 2**31 - 1))
def test_identity_is_of_the_tokens_and_their_places_alone(tokens, padding, fill):
    """The sum, modulo 2^64, of what two rounds of mixing make of every token and its place."""
    expected = sum(SplitMix64.mix(SplitMix64.mix(t + 1) + p * 0x9E3779B97F4A7C15) for p, t in enumerate(tokens, 1)) % 2**64
    row = torch.tensor([tokens + [fill] * padding], dtype=torch.int32)
    attention = torch.arange(row.shape[1])[None] < len(tokens)
    assert identity(row, attention).item() % 2**64 == expected == identity(row[:, : len(tokens)]).item() % 2**64


def test_identities_of_like_sequences_differ():
    rows = torch.cartesian_prod(*[torch.arange(5)] * 4)
    assert identity(rows).unique().numel() == 5**4
