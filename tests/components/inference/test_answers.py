"""Results in text: found in any surroundings, compared without what is only spelling."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.inference.answers import GSM8K, Answers, extracted, normalised

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


@given(st.text())
def test_any_text_has_normal_results_or_none(text):
    for result in ANSWERS.extracted(text).values():
        assert result is None or (result == normalised(result) and not set(result) & set(",$ "))


@given(PROSE)
def test_without_a_digit_there_is_no_result(text):
    assert ANSWERS.extracted(text) == {"strict": None, "flexible": None}


@pytest.mark.parametrize(
    ("text", "strict", "flexible"),
    [
        ("She makes 9 * 2 = $18.\n#### 18", "18", "18"),
        ("#### 1,234.50", "1234.50", "1234.50"),
        ("#### -3", "-3", "-3"),
        ("so it costs $.75", None, ".75"),
        ("3-4", None, "-4"),  # as the harness reads it
        ("#### 5\n#### 7", "5", "7"),  # the first in the form, the last anywhere
        ("#### five of 6", None, "6"),
        ("####18", None, "18"),
        ("It is 20...", None, "20"),
        ("", None, None),
    ],
)
def test_results_as_people_write_them(text, strict, flexible):
    assert ANSWERS.extracted(text) == {"strict": strict, "flexible": flexible}


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
        ({"patterns": {"strict": ("(", 0)}}, "pattern 'strict' is no regular expression: missing"),
    ],
)
def test_what_makes_no_sense_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Answers(**{"items": 1, "passes": 1, **settings})
