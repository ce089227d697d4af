"""Sizes that are proposed for examples of one's own, each by a rule that the preset's header states."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.errors import DataError

MULTIPLE, SHORTEST, LONGEST = 16, 32, 1024
HOLDS = 0.99  # of the examples fit the sequence
TEST_SHARES, VALIDATION_SHARES = (0.1, 0.2, 0.3), (0.05, 0.1, 0.2, 0.3)
ENOUGH = 20  # examples of a split: below, intervals say little


def quantile(lengths: Sequence[int], share: float) -> int:
    """Find the smallest length that at least this share of the examples do not pass.

    >>> quantile([3, 1, 2, 9], 0.75), quantile([3, 1, 2, 9], 0.76)
    (3, 9)
    """
    ordered = sorted(lengths)
    return next(length for number, length in enumerate(ordered, 1) if number >= share * len(ordered))


def rounded_up(length: int) -> int:
    """Round up to a multiple of 16."""
    return -(-length // MULTIPLE) * MULTIPLE


def sequence_for(lengths: Sequence[int], most: int = LONGEST) -> int:
    """Propose a sequence: what 99 % of the examples fit, rounded up to a multiple of 16, from 32 to ``most``."""
    return min(max(rounded_up(quantile(lengths, HOLDS)), SHORTEST), min(most, LONGEST))


def buckets_for(lengths: Sequence[int], sequence: int) -> tuple[int, ...]:
    """Propose lengths that batches are padded to: those of a quarter, half, three quarters and nine tenths of the examples."""
    ends = {max(rounded_up(quantile(lengths, share)), SHORTEST) for share in (0.25, 0.5, 0.75, 0.9)}
    return tuple(sorted(end for end in ends if end < sequence))


def draws_for(epochs: float) -> int:
    """Propose stored mask draws: each is seen three times, which costs little (docs/performance.md), and there are 8 at most."""
    return min(max(round(epochs / 3), 1), 8)


def power_of_two(most: float) -> int:
    """Find the largest power of two that is at most this, 1 at least."""
    return 1 << max(int(most), 1).bit_length() - 1


@dataclass(frozen=True)
class Pace:
    """How long a kind of model is trained: what the shipped presets of that kind do, over examples of any number.

    Attributes:
        tokens: of a step at most; ``widest``: examples of a step at most.
        epochs: that the first phase walks; ``least`` and ``most``: steps that it takes.
        joint: share of these steps that joint takes.
        examples: of the training file that are used, the first; ``tests``: of the test file.
    """

    tokens: int
    widest: int
    epochs: float
    least: int
    most: int
    joint: float
    examples: int
    tests: int

    def batch(self, sequence: int, examples: int) -> int:
        """Propose the examples of a step: a power of two, a sixteenth of them all at most."""
        return min(power_of_two(self.tokens / sequence), self.widest, power_of_two(examples / 16))

    def steps(self, batch: int, examples: int) -> int:
        """Propose the steps of the first phase."""
        return min(max(-(-round(self.epochs * examples) // batch), self.least), self.most)

    def joint_steps(self, steps: int) -> int:
        """Propose the steps of joint, 10 at least: within half of them the rate rises."""
        return max(round(self.joint * steps), 10)


FROM_SCRATCH = Pace(4096, 64, 2.0, 300, 1000, 0.1, 20_000, 1_000)  # gsm8k
CAUSAL = Pace(2560, 8, 1.5, 40, 200, 0.125, 1_000, 128)  # gsm8k_smol
DIFFUSION = Pace(2048, 4, 5.0 / 4, 40, 2200, 0.4, 20_000, 1_000)  # gsm8k_llada: a step of it is four of these batches


def test_share(prompts: Sequence[str], held_out: Callable[[str, float], bool]) -> float:
    """Propose the share that is held out for the test, see ``share``."""
    return share(prompts, held_out, TEST_SHARES, "test")


def validation_share(prompts: Sequence[str], held_out: Callable[[str, float], bool]) -> float:
    """Propose the share that is held out for validation, see ``share``."""
    return share(prompts, held_out, VALIDATION_SHARES, "validation")


def share(prompts: Sequence[str], held_out: Callable[[str, float], bool], shares: Sequence[float], split: str) -> float:
    """Choose the smallest share that holds enough examples out; of too few the one that holds most of them.

    Args:
        prompts: of the examples.
        held_out: whether a prompt is, at a share.
        shares: that are tried, in ascending order.
        split: that they are for.

    Raises:
        DataError: no share leaves examples on both sides.
    """
    counts = {one: sum(held_out(prompt, one) for prompt in prompts) for one in shares}
    halves = {one: count for one, count in counts.items() if 0 < count < len(prompts)}
    if not halves:
        raise DataError(f"{len(prompts)} examples are too few to hold some out for the {split} split; give more of them")
    return next((one for one, count in halves.items() if count >= ENOUGH), max(halves))
