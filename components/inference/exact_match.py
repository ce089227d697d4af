"""Exact match as lm-evaluation-harness publishes it for its task ``gsm8k``: text against text, for comparison with the literature.

Its filters are narrower than what a person would read (29.00 is not 29, the last number of "10-8" is -8), so ``Answers`` scores
numbers; these figures stand beside, under the harness's own names.
Source: EleutherAI, lm-evaluation-harness 0.4, task gsm8k, version 3: filters and metric exact_match.
"""

import re

GSM8K_FILTERS = {"strict-match": (r"#### (\-?[0-9\.\,]+)", 0), "flexible-extract": (r"(-?[$0-9.,]{2,})|(-?[0-9]+)", -1)}
IGNORED = (",", r"\$", r"(?s).*#### ", r"\.$")  # taken off both texts, one after the other
NOTHING = "[invalid]"  # stands for a result where the filter matches nowhere


def is_exact_match(text: str, reference: str, pattern: str, which: int) -> bool:
    """Whether a text's result by a filter is the whole reference, once what the metric ignores is taken off both.

    >>> [is_exact_match("It is $18.", f"9 * 2\\n#### {n}", *GSM8K_FILTERS["flexible-extract"]) for n in ("18", "18.00")]
    [True, False]
    """
    return _compared(_filtered(text, pattern, which)) == _compared(reference)


def _filtered(text: str, pattern: str, which: int) -> str:
    matches = list(re.finditer(pattern, text))
    if not -len(matches) <= which < len(matches):
        return NOTHING
    match = matches[which]
    groups = match.groups() or (match[0],)
    return next((group for group in groups if group), NOTHING if len(groups) > 1 else "").strip()


def _compared(text: str) -> str:
    for ignored in IGNORED:
        text = re.sub(ignored, "", text)
    return text.lower()
