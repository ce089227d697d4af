"""The result that a text comes to, found by patterns: what "right" means for generated answers.

Strict asks for the form that the answers were learned in, flexible takes the last number wherever it stands; the gap between the
two is form and not reasoning. Both are compared as text after commas, dollar signs and full stops at the end are taken off, as
lm-evaluation-harness does for its task ``gsm8k``.
"""

import re
from collections.abc import Mapping

from components.ranges import PositiveInt

GSM8K = {"strict": (r"#### (-?[0-9.,]+)", 0), "flexible": (r"(-?\$?\.?[0-9][0-9.,]*)", -1)}


class Answers:
    """How answers are generated, and how their results are found.

    Source: Cobbe et al., "Training Verifiers to Solve Math Word Problems" (GSM8K, 2021) for the strict pattern.

    Args:
        items: examples that are answered, the first of the split.
        passes: through the model for an answer.
        blocks: decoded left to right one after the other; 1 = pure diffusion. They divide the passes.
        split: that the examples are taken from.
        patterns: name -> (regular expression, which of its matches counts: 0 = the first, -1 = the last).
        reference: the pattern that finds the result in the reference.

    Raises:
        ValueError: a number is out of range, or a pattern is none.
    """

    def __init__(
        self,
        items: PositiveInt = 32,
        passes: PositiveInt = 32,
        blocks: PositiveInt = 1,
        split: str = "test",
        patterns: Mapping[str, tuple[str, int]] = GSM8K,
        reference: str = "strict",
    ) -> None:
        if items < 1 or passes < 1 or blocks < 1 or passes % blocks:
            raise ValueError(
                f"items must be positive and passes a positive multiple of blocks, got {items} items, {passes} passes and "
                f"{blocks} blocks"
            )
        if reference not in patterns:
            raise ValueError(f"reference is '{reference}', which is none of the patterns {', '.join(patterns)}")
        for name, (pattern, _) in patterns.items():
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"pattern '{name}' is no regular expression: {error}") from None
        self.items, self.passes, self.blocks, self.split = items, passes, blocks, split
        self.patterns, self.reference = patterns, reference

    def extracted(self, text: str) -> dict[str, str | None]:
        """The result by each pattern; None where it matches nowhere."""
        return {name: extracted(text, *pattern) for name, pattern in self.patterns.items()}

    def expected(self, reference: str) -> str | None:
        """The result that the reference comes to; None if it holds none (an answer that was cut, for example)."""
        return extracted(reference, *self.patterns[self.reference])


def extracted(text: str, pattern: str, which: int) -> str | None:
    """The result of one match of a pattern: its first group that took part, or all of it.

    >>> extracted("so 3 + 4 = $1,007.", *GSM8K["flexible"]), extracted("so 7", *GSM8K["strict"])
    ('1007', None)
    """
    matches = list(re.finditer(pattern, text))
    if not -len(matches) <= which < len(matches):
        return None
    match = matches[which]
    return normalised(next((group for group in match.groups() if group is not None), match[0]))


def normalised(result: str) -> str:
    """Without commas, dollar signs, and full stops at the end.

    >>> normalised("$1,234.50"), normalised("7.")
    ('1234.50', '7')
    """
    return result.replace(",", "").replace("$", "").rstrip(".")
