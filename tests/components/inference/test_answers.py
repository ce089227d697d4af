"""Results in text: found in any surroundings, compared without what is only spelling."""

import functools
import json
import re
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.inference.answers import GSM8K, Answers, extracted, normalised
from components.inference.approximate_prefix import approximate_prefix, approximate_surroundings
from components.inference.exact_match import GSM8K_FILTERS, is_exact_match
from tests.conftest import RAW, ROOT

ANSWERS = Answers(items=1, passes=1)
NUMBERS = st.integers(-(10**9), 10**9)
PROSE = st.text(st.characters(codec="utf-8", exclude_characters="#0123456789"))


@given(PROSE, NUMBERS, st.sampled_from(["", ".", "\n", " apples", "\n<rest>"]))
def test_a_result_in_the_learned_form_is_found_by_both(before, number, after):
    for written in (f"{number}", f"{number:,}"):
        found = ANSWERS.extracted(f"{before}\n#### {written}{after}")
        assert found == {"strict": str(number), "flexible": str(number)}


@given(PROSE, st.lists(NUMBERS, min_size=1), st.sampled_from(["", ".", " dollars.", "!", " = that"]))
def test_flexible_takes_the_last_number_and_strict_none(before, numbers, after):
    text = before + " and ".join(f" ${number:,}" if number >= 0 else f" {number:,}" for number in numbers) + after
    assert ANSWERS.extracted(text) == {"strict": None, "flexible": str(numbers[-1])}


@given(st.text() | st.text("0123456789.,-$€ #\N{MINUS SIGN}()x"))
def test_any_text_has_a_number_in_its_one_form_or_none(text):
    for result in ANSWERS.extracted(text).values():
        assert result is None or (result == normalised(result) and re.fullmatch(r"-?(0|[1-9][0-9]*)(\.[0-9]*[1-9])?", result))


@given(PROSE)
def test_without_a_digit_there_is_no_result(text):
    assert ANSWERS.extracted(text) == {"strict": None, "flexible": None}


@pytest.mark.parametrize(
    ("text", "strict", "flexible"),
    [
        ("She makes 9 * 2 = $18.\n#### 18", "18", "18"),
        ("#### 1,234.50", "1234.5", "1234.5"),
        ("That is $29.00.", None, "29"),
        ("10-8", None, "8"),  # a range has no sign
        ("so \N{MINUS SIGN}5", None, "-5"),
        ("#### \N{MINUS SIGN}5", "-5", "-5"),
        ("#### $18", "18", "18"),
        ("#### -$18", "-18", "-18"),
        ("#### $-18", "-18", "-18"),
        ("#### -$ 18", "-18", "-18"),
        ("-$-18", None, "-18"),  # one sign is the number's
        ("#### ...", None, None),
        ("1,234", None, "1234"),
        ("well, no", None, None),
        ("It costs -$5 or $-6", None, "-6"),
        ("#### -$1,234.50.", "-1234.5", "-1234.5"),
        ("#### $ 18 a week", "18", "18"),
        ("#### €1,000,000", "1000000", "1000000"),
        ("rooms 3,4", None, "4"),  # no thousands
        ("in 1,2345", None, "2345"),
        ("f(5)-3 and x-2", None, "2"),
        ("x = -.50", None, "-0.5"),
        ("-0.0", None, "0"),
        ("007", None, "7"),
        ("2.0.0", None, "0"),
        ("0.30000000000000000004", None, "0.30000000000000000004"),  # no float holds it
        ("#### -3", "-3", "-3"),
        ("so it costs $.75", None, "0.75"),
        ("3-4", None, "4"),
        ("#### 5\n#### 7", "5", "7"),  # the first in the form, the last anywhere
        ("#### five of 6", None, "6"),
        ("####18", None, "18"),
        ("It is 20...", None, "20"),
        ("", None, None),
    ],
)
def test_results_as_people_write_them(text, strict, flexible):
    assert ANSWERS.extracted(text) == {"strict": strict, "flexible": flexible}


@given(st.decimals(allow_nan=False, allow_infinity=False, places=4), st.integers(0, 5))
def test_equal_numbers_are_equal_results_however_they_are_written(number, zeros):
    assert Fraction(normalised(f"{number:f}")) == Fraction(number)
    assert normalised(f"{number:f}" + "0" * zeros) == normalised(f"${number:,f}.") == normalised(str(Decimal(number)))


@pytest.mark.parametrize("digits", [50, 5000])
def test_long_numbers_keep_every_digit(digits):
    assert normalised("1" * digits + ".0") == "1" * digits != normalised("1" * (digits - 1) + "2")


def test_what_is_no_number_is_compared_as_text():
    own = Answers(1, 1, patterns={"choice": (r"answer is (\S+)", 0)}, reference="choice")
    assert own.exact_match == {} and own.expected("the answer is 1e999999999.") == "1e999999999"
    assert [own.expected(f"answer is {x}") for x in ("(B)", "NaN", "Infinity", "1_000", "7.0")] == [
        "(B)",
        "NaN",
        "Infinity",
        "1_000",
        "7",
    ]


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_reference_of_gsm8k_has_its_result(split):
    """It stands behind the last ####, a whole number with or without commas; by each pattern, and as the harness reads it."""
    raw = Path(RAW or ROOT / "data/raw")
    if not (file := raw / "gsm8k" / f"{split}.jsonl").is_file():
        pytest.skip("GSM8K is not here")
    references = [json.loads(line)["answer"] for line in file.read_text().splitlines()]
    plain = [str(int(text.rpartition("####")[2].replace(",", ""))) for text in references]
    assert len(references) == {"train": 7473, "test": 1319}[split]
    assert [ANSWERS.expected(text) for text in references] == plain
    for name, (pattern, which) in GSM8K_FILTERS.items():
        assert all(is_exact_match(text, text, pattern, which) for text in references), name


def test_patterns_are_settings():
    own = Answers(
        items=1, passes=1, patterns={"last": (r"answer is (\w+)|result: (\w+)", -1), "second": (r"\d", 1)}, reference="last"
    )
    assert own.extracted("answer is yes; result: 12") == {"last": "12", "second": "2"}
    assert own.extracted("answer is 7") == {"last": "7", "second": None} and own.expected("answer is no") == "no"


def test_the_reference_is_read_by_its_pattern():
    assert ANSWERS.expected("2 + 2 = 4\n#### 4") == "4" and ANSWERS.expected("2 + 2 = 4") is None
    assert extracted("2 + 2 = 4", *GSM8K["flexible"]) == "4"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"items": 0}, "items must be positive"),
        ({"passes": 6, "blocks": 4}, "got 1 items, 6 passes and 4 blocks"),
        ({"reference": "strct"}, "reference is 'strct', which is none of the patterns strict, flexible"),
        ({"exact_match": {"mine": ("(", 0)}}, "pattern 'mine' is no regular expression: missing"),
        ({"patterns": {"minus_frozen": (".", 0)}, "reference": "minus_frozen"}, "pattern 'minus_frozen' has the name of another"),
        (
            {"patterns": {"approximation": (".", 0)}, "reference": "approximation"},
            "pattern 'approximation' has the name of another",
        ),
        ({"patterns": {"strict": ("(", 0)}}, "pattern 'strict' is no regular expression: missing"),
    ],
)
def test_what_makes_no_sense_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Answers(**{"items": 1, "passes": 1, **settings})


@pytest.mark.parametrize(
    ("reference", "result"),
    [
        ("2 + 2 = 4\n#### 4", None),  # perhaps 42
        ("2 + 2 = 4\n#### 4 apples", "4"),
        ("2 + 2 = 4\n#### ", None),
        ("2 + 2 = 4\n#### 1,0", None),
        ("#### 5.\nthat is 5", "5"),
        ("2 + 2", None),
    ],
)
def test_a_reference_that_was_cut_has_only_the_result_that_nothing_behind_it_changes(reference, result):
    assert ANSWERS.expected(reference, whole=False) == result
    assert Answers(1, 1, reference="flexible").expected(reference, whole=False) is None


@pytest.mark.parametrize(
    ("prefix", "name"),
    [
        (None, None),
        (approximate_prefix, "approximate_prefix"),
        (approximate_surroundings, "approximate_surroundings"),
        (functools.wraps(approximate_prefix)(lambda *given: approximate_prefix(*given)), "approximate_prefix"),
        (functools.partial(approximate_prefix), "partial"),
    ],
)
def test_an_approximation_is_named(prefix, name):
    assert Answers(1, 1, prefix=prefix).approximation == name
