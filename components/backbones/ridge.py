"""Ridge regression: the linear prediction that whatever is learned has to beat."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Ridge:
    """y = x W + b.

    Attributes:
        penalty: of the squared weights that it was fitted with.
        weight: W.
        bias: b.
    """

    penalty: float
    weight: Float[Tensor, "inputs outputs"]
    bias: Float[Tensor, "outputs"]

    def __call__(self, x: Float[Tensor, "rows inputs"]) -> Float[Tensor, "rows outputs"]:
        return x @ self.weight + self.bias


def ridges(x: Float[Tensor, "rows inputs"], y: Float[Tensor, "rows outputs"], penalties: Sequence[float]) -> list[Ridge]:
    """Least squares plus each penalty times the squared weights, the bias left free; solved in float64, given as ``x`` is.

    Source: Hoerl and Kennard, "Ridge Regression" (1970).
    """
    wide_x, wide_y = x.double(), y.double()
    x_mean, y_mean = wide_x.mean(0), wide_y.mean(0)
    wide_x = wide_x - x_mean
    gram, moment = wide_x.T @ wide_x, wide_x.T @ (wide_y - y_mean)
    solutions = []
    for penalty in penalties:
        weight = torch.linalg.solve(gram + penalty * torch.eye(len(gram), dtype=gram.dtype, device=gram.device), moment)
        solutions.append(Ridge(penalty, weight.to(x), (y_mean - x_mean @ weight).to(x)))
    return solutions
