"""Deep supervision: the weight of each recursion step's loss. The last step always weighs 1 before normalisation.

``weight`` is what the project's founding note on deep supervision calls ``deep_supervision_weight`` (0.3 to 0.7 there).
"""


def constant(steps: int, weight: float = 0.5) -> list[float]:
    """Every intermediate step weighs the same: ``weight``.

    >>> constant(3)
    [0.5, 0.5, 1.0]
    """
    return [*([weight] * (steps - 1)), 1.0]


def linear_decay(steps: int, weight: float = 0.5) -> list[float]:
    """Intermediate step k of K (from 1) weighs ``weight * k / K``: later steps matter more.

    >>> [round(w, 2) for w in linear_decay(3)]
    [0.17, 0.33, 1.0]
    """
    return [*(weight * k / steps for k in range(1, steps)), 1.0]


def exponential_decay(steps: int, weight: float = 0.5) -> list[float]:
    """Intermediate step k of K (from 1) weighs ``weight * 2^(k - K)``: halved with each step away from the last.

    >>> exponential_decay(3)
    [0.125, 0.25, 1.0]
    """
    return [*(weight * 2.0 ** (k - steps) for k in range(1, steps)), 1.0]


def last_only(steps: int) -> list[float]:
    """No deep supervision: the last step alone.

    >>> last_only(3)
    [0.0, 0.0, 1.0]
    """
    return [*([0.0] * (steps - 1)), 1.0]


def normalised(weights: list[float]) -> list[float]:
    """Weights divided by their sum, so that the loss keeps its scale whatever the number of steps.

    >>> normalised([0.5, 0.5, 1.0])
    [0.25, 0.25, 0.5]
    """
    total = sum(weights)
    return [w / total for w in weights]
