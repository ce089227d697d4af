"""Counter-based noise: a pure function of its keys, the same on any device, batch size or process count.

Nothing random has to be saved or restored: the noise of (seed, stream, uid) is always the same numbers.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)
_MASK_64 = (1 << 64) - 1


def _shift(x: Int[Tensor, "..."], bits: int) -> Int[Tensor, "..."]:
    """Logical (unsigned) right shift of int64 bit patterns."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
    """SplitMix64's finaliser on int64 bit patterns; int64 multiplication wraps as uint64 does."""
    x = (x ^ _shift(x, 30)) * _MIX_1
    x = (x ^ _shift(x, 27)) * _MIX_2
    return x ^ _shift(x, 31)


def _mix_int(x: int) -> int:
    """``_mix`` of one Python integer, as a signed 64-bit number."""
    x &= _MASK_64
    x = ((x ^ (x >> 30)) * (_MIX_1 & _MASK_64)) & _MASK_64
    x = ((x ^ (x >> 27)) * (_MIX_2 & _MASK_64)) & _MASK_64
    x ^= x >> 31
    return x - (1 << 64) if x >> 63 else x


def uniform(seed: int, stream: int | Int[Tensor, "batch"], uid: Int[Tensor, "batch"], n: int) -> Float[Tensor, "batch n"]:
    """``n`` numbers in [0, 1) for each uid, as float64 with 53 random bits.

    Source: Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators" (2014), SplitMix64.

    Args:
        seed: the run's seed.
        stream: what the noise is for (an epoch, a draw), of all sequences or of each; another stream is independent noise.
        uid: identity of each sequence, any int64.
        n: numbers per sequence.

    >>> a = uniform(0, 3, torch.tensor([7, 8]), 4)
    >>> bool((uniform(0, 3, torch.tensor([8]), 4) == a[1:]).all())
    True
    """
    first = _mix_int(seed + 1)
    key = _mix_int(first + stream + 1) if isinstance(stream, int) else _mix(stream + (first + 1))
    base = _mix(uid.to(torch.int64) * _GOLDEN + key)
    counter = torch.arange(1, n + 1, device=uid.device, dtype=torch.int64) * _GOLDEN
    return _shift(_mix(base[:, None] + counter[None, :]), 11).to(torch.float64) * 2.0**-53


def normal(seed: int, stream: int | Int[Tensor, "batch"], uid: Int[Tensor, "batch"], n: int) -> Float[Tensor, "batch n"]:
    """``n`` numbers of the standard normal distribution for each uid: the quantiles of those that ``uniform`` gives.

    >>> two = normal(0, 3, torch.tensor([7]), 2)
    >>> bool((normal(0, 3, torch.tensor([7]), 9)[:, :2] == two).all())
    True
    """
    return torch.special.ndtri(uniform(seed, stream, uid, n) + 2.0**-54)


def identity(tokens: Int[Tensor, "batch seq"], attention: Bool[Tensor, "batch seq"] | None = None) -> Int[Tensor, "batch"]:
    """Number each sequence by its tokens and their places, whatever it is beside and however far it is padded.

    >>> one, other = identity(torch.tensor([[5, 6], [6, 5]])).tolist()
    >>> one != other and one == identity(torch.tensor([[5, 6, 0]]), torch.tensor([[True, True, False]])).item()
    True
    """
    places = torch.arange(1, tokens.shape[1] + 1, device=tokens.device, dtype=torch.int64)
    each = _mix(_mix(tokens.to(torch.int64) + 1) + places * _GOLDEN)
    return (each if attention is None else each * attention).sum(1)


def key(*numbers: int) -> int:
    """One number for several: what to seed a generator with at (seed, step, microbatch), so that nothing of it has to be saved.

    >>> 0 <= key(0, 3, 1) < 2**63 and key(0, 3, 1) != key(0, 1, 3)
    True
    """
    mixed = 0
    for number in numbers:
        mixed = _mix_int(mixed + number + 1)
    return mixed & (_MASK_64 >> 1)


def permutation(seed: int, stream: int, n: int) -> Int[Tensor, "n"]:
    """A permutation of 0..n-1 that is a pure function of (seed, stream, n).

    >>> sorted(permutation(0, 1, 5).tolist())
    [0, 1, 2, 3, 4]
    """
    return uniform(seed, stream, torch.arange(n), 1)[:, 0].argsort(stable=True)
