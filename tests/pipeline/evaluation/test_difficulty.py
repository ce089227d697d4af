"""Bands of difficulty: every example in one band of each kind, and means counted by hand."""

import torch

from pipeline.corpora.prepared import Split
from pipeline.evaluation.difficulty import by_difficulty


def split(clues, rounds, guesses):
    n = len(clues)
    response = torch.arange(81) >= torch.tensor(clues)[:, None]
    difficulty = torch.tensor([rounds, guesses], dtype=torch.int32).T
    return Split(torch.zeros(n, 81, dtype=torch.int32), response, torch.arange(n), difficulty=difficulty)


def means(bands):
    return {kind: {band: (value["mean"], value["n"]) for band, value in of_kind.items()} for kind, of_kind in bands.items()}


def test_every_example_is_in_one_band_of_each_kind():
    rows = split([17, 19, 24, 27, 28, 60], [4, 11, 2, 16, 99, 10], [0, 1, 3, 2, 16, 7])
    exact = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 1.0])
    assert means(by_difficulty(exact, rows)) == {
        "clues": {"0..19": (0.5, 2), "24..27": (1.0, 2), "28..31": (0.0, 1), "48..": (1.0, 1)},
        "rounds": {"2": (1.0, 1), "4": (1.0, 1), "10..11": (0.5, 2), "16..": (0.5, 2)},
        "guesses": {"0": (1.0, 1), "1": (0.0, 1), "2..3": (1.0, 2), "4..7": (1.0, 1), "16..": (0.0, 1)},
    }


def test_bands_hold_intervals_of_their_own_examples():
    rows = split([30] * 40, [6] * 20 + [8] * 20, [0] * 40)
    bands = by_difficulty(torch.tensor([1.0] * 20 + [0.0, 1.0] * 10), rows)
    first, second = bands["rounds"]["6..7"], bands["rounds"]["8..9"]
    assert 0.8 < first["low"] < first["high"] == first["mean"] == 1 and second["low"] < second["mean"] == 0.5 < second["high"]
    assert bands["clues"]["28..31"]["n"] == bands["guesses"]["0"]["n"] == 40


def test_a_corpus_that_states_no_difficulty_has_no_bands():
    rows = Split(torch.zeros(2, 81, dtype=torch.int32), torch.ones(2, 81, dtype=torch.bool), torch.arange(2))
    assert by_difficulty(torch.ones(2), rows) == {}
