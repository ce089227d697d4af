"""The result that a text comes to, found by patterns: what "right" means for generated answers.

Strict asks for the form that the answers were learned in, flexible takes the last number wherever it stands; the gap between the
two is form and not reasoning. Results are compared as numbers: 29.00 is 29, and $1,234 is 1234. The form in which
lm-evaluation-harness publishes figures compares texts, and stands beside them (``components.inference.exact_match``).
"""

import re
from collections.abc import Mapping
from decimal import Decimal

from components.inference.approximate_prefix import Prefix
from components.inference.exact_match import GSM8K_FILTERS
from components.ranges import Depth, PositiveInt

CURRENCY, MINUS = "$€£", "\N{MINUS SIGN}"
SIGN = rf"[-{MINUS}]"
DIGITS = r"[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+"  # a comma counts between thousands alone
# A dash after a digit, a word or a bracket is a range or a difference, and no sign.
BEFORE = rf"(?:[{CURRENCY}] ?{SIGN}|(?:(?<![\w)\]%]){SIGN})?(?:[{CURRENCY}] ?)?)"  # one sign, on either side of the currency
NUMBER = rf"{BEFORE}(?:(?:{DIGITS})(?:\.[0-9]+)?|(?<![0-9])\.[0-9]+)"
TAKEN = ("exact_match", "minus_frozen", "function_evaluations", "recursion_steps", "approximation")  # beside patterns in metrics
GSM8K = {"strict": (rf"#### ({NUMBER})", 0), "flexible": (rf"({NUMBER})", -1)}


class Answers:
    """How answers are generated, and how their results are read.

    Source: Cobbe et al., "Training Verifiers to Solve Math Word Problems" (GSM8K, 2021) for the strict pattern.

    Args:
        items: examples that are answered, the first of the split.
        passes: through the model for an answer.
        blocks: decoded left to right one after the other; 1 = pure diffusion. They divide the passes.
        split: that the examples are taken from.
        patterns: name -> (regular expression, which of its matches counts: 0 = the first, -1 = the last). Results are compared as
            numbers, or as texts where they are none.
        reference: the pattern that finds the result in the reference.
        exact_match: filters of lm-evaluation-harness, as ``patterns``; scored as it does, text against text. None = those of its
            task gsm8k beside GSM8K's patterns, and none beside others.
        prefix: what is kept of the tokens before a block while it is decoded, an approximation that metrics then name
            (``components.inference.approximate_prefix``); None = nothing, every pass reads everything.

    Raises:
        ValueError: a number is out of range, or a pattern is none.
    """

    def __init__(
        self,
        items: PositiveInt = 32,
        passes: Depth = 32,
        blocks: Depth = 1,
        split: str = "test",
        patterns: Mapping[str, tuple[str, int]] = GSM8K,
        reference: str = "strict",
        exact_match: Mapping[str, tuple[str, int]] | None = None,
        prefix: Prefix | None = None,
    ) -> None:
        if items < 1 or passes < 1 or blocks < 1 or passes % blocks:
            raise ValueError(
                f"items must be positive and passes a positive multiple of blocks, got {items} items, {passes} passes and "
                f"{blocks} blocks"
            )
        if reference not in patterns:
            raise ValueError(f"reference is '{reference}', which is none of the patterns {', '.join(patterns)}")
        if taken := [name for name in patterns if name in TAKEN]:
            raise ValueError(f"pattern '{taken[0]}' has the name of another metric; choose one that is none of {', '.join(TAKEN)}")
        if exact_match is None:
            exact_match = GSM8K_FILTERS if patterns == GSM8K else {}
        for name, (pattern, _) in [*patterns.items(), *exact_match.items()]:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"pattern '{name}' is no regular expression: {error}") from None
        self.items, self.passes, self.blocks, self.split = items, passes, blocks, split
        self.patterns, self.reference, self.exact_match, self.prefix = patterns, reference, exact_match, prefix

    @property
    def approximation(self) -> str | None:
        """Name what is kept in place of an exact decoding; None if nothing is."""
        return None if self.prefix is None else getattr(self.prefix, "__name__", type(self.prefix).__name__)

    def extracted(self, text: str) -> dict[str, str | None]:
        """The result by each pattern; None where it matches nowhere."""
        return {name: extracted(text, *pattern) for name, pattern in self.patterns.items()}

    def expected(self, reference: str, whole: bool = True) -> str | None:
        """The result that the reference comes to; None if it holds none.

        A reference that is not ``whole`` was cut: a number at its end may go on, and the last match may not be the last.
        """
        pattern, which = self.patterns[self.reference]
        if whole:
            return extracted(reference, pattern, which)
        return extracted(reference.rstrip("0123456789.,"), pattern, which) if which >= 0 else None


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
    """Write a result in its one form: equal numbers are equal texts; what is no number loses what only surrounds it.

    Without commas, currency and full stops at the end. Decimals are exact: no digit passes through a float.

    >>> normalised("$1,234.50"), normalised("7."), normalised("\\N{MINUS SIGN}05.0"), normalised("-$ 3"), normalised("(B).")
    ('1234.5', '7', '-5', '-3', '(B)')
    """
    plain = re.sub(rf",|[{CURRENCY}] ?", "", result).strip().rstrip(".")
    number = plain.replace(MINUS, "-")
    if not re.fullmatch(r"-?(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)", number):
        return plain
    text = f"{Decimal(number):f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text == "-0" else text
