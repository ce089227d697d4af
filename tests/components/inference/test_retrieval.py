"""Scores of predicted embeddings, against what a loop finds."""

import torch

from components.inference import retrieval
from components.inference.retrieval import METRICS, nearest, scores


def made(n=40, candidates=25, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 6, generator=g), torch.randint(candidates, (n,), generator=g), torch.randn(candidates, 6, generator=g)


def test_scores_are_those_of_a_loop(monkeypatch):
    monkeypatch.setattr(retrieval, "CHUNK_ROWS", 7)
    predicted, truth, candidates = made()
    found = scores(predicted, truth, candidates)
    for row, (guess, own) in enumerate(zip(predicted, truth.tolist(), strict=True)):
        cosines = [float(torch.cosine_similarity(guess, c, dim=0)) for c in candidates]
        rank = sum(c > cosines[own] for c in cosines)
        assert abs(found.cosine[row].item() - cosines[own]) < 1e-6
        assert abs(found.squared_error[row].item() - float((guess - candidates[own]).square().sum())) < 1e-4
        assert (found.retrieval_1[row], found.retrieval_5[row]) == (rank < 1, rank < 5)
        assert nearest(guess[None], candidates).item() == cosines.index(max(cosines))
    assert METRICS == ("cosine", "squared_error", "retrieval_1", "retrieval_5")


def test_the_truth_itself_is_found_at_any_length():
    _, truth, candidates = made()
    found = scores(3 * candidates[truth], truth, candidates)
    assert found.retrieval_1.min() == 1 and torch.allclose(found.cosine, torch.ones(40, dtype=torch.float64))
    assert nearest(candidates, candidates).tolist() == list(range(25))
