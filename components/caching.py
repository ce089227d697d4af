"""What caching the trunk's states is worth: masked diffusion draws its masks anew, so a cache pays only by being used again."""


def gain(trunk: float, step: float, draws: int, epochs: float) -> float:
    """Cost of training with the trunk live over that of training from cached states: E (F + C) / (M F + E C).

    Above 1 the cache is cheaper, below 1 the live trunk; with as many draws as epochs or more it always is the live trunk.

    Args:
        trunk: F, the trunk's forward pass of an example.
        step: C, everything else of a training step, for an example; in the unit of F.
        draws: M, mask draws that are stored of each example.
        epochs: E, how often training sees each example; above 0.

    >>> [round(gain(7.28, 3.11, 1, epochs), 2) for epochs in (2.0, 5.0, 10.0)]
    [1.54, 2.28, 2.71]
    """
    return epochs * (trunk + step) / (draws * trunk + epochs * step)


def most_draws(epochs: float) -> int:
    """The largest number of stored draws that still pays: the largest whole number below ``epochs``; 0 = none does.

    >>> [most_draws(epochs) for epochs in (0.9, 1.0, 1.1, 5.0)]
    [0, 0, 1, 4]
    """
    whole = int(epochs)
    return whole - 1 if whole == epochs and whole else whole
