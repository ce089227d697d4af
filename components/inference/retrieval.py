"""How good predicted embeddings are: nearness to the true one, and whether that is found among candidates."""

from dataclasses import dataclass, fields

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

CHUNK_ROWS = 1024  # predictions that are compared with every candidate at a time


@dataclass(frozen=True)
class Scores:
    """Measures of each predicted embedding, one value a prediction.

    Attributes:
        cosine: of prediction and truth.
        squared_error: summed over channels.
        retrieval_1, retrieval_5: 1 where fewer than 1 (5) candidates are nearer to the prediction, by cosine, than the truth is.
    """

    cosine: Float[Tensor, "rows"]
    squared_error: Float[Tensor, "rows"]
    retrieval_1: Float[Tensor, "rows"]
    retrieval_5: Float[Tensor, "rows"]


METRICS = tuple(field.name for field in fields(Scores))


def scores(
    predicted: Float[Tensor, "rows dim"],
    truth: Int[Tensor, "rows"],
    candidates: Float[Tensor, "candidates dim"],
) -> Scores:
    """Scores of predictions; ``truth`` says which candidate each one should be."""
    true = candidates[truth]
    cosine = F.cosine_similarity(predicted, true, dim=-1)
    unit = F.normalize(candidates, dim=-1)
    nearer = []
    for part, own in zip(predicted.split(CHUNK_ROWS), truth.split(CHUNK_ROWS), strict=True):
        similarity = F.normalize(part, dim=-1) @ unit.T
        nearer.append((similarity > similarity.gather(1, own[:, None])).sum(1))
    rank = torch.cat(nearer)
    error = (predicted - true).square().sum(-1)
    return Scores(cosine.double(), error.double(), (rank < 1).double(), (rank < 5).double())


def nearest(predicted: Float[Tensor, "rows dim"], candidates: Float[Tensor, "candidates dim"]) -> Int[Tensor, "rows"]:
    """Number of the candidate nearest to each prediction, by cosine."""
    return (F.normalize(predicted, dim=-1) @ F.normalize(candidates, dim=-1).T).argmax(1)
