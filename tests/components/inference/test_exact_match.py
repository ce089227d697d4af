"""Exact match in the harness's form: against its own filter and metric where it is installed, and by examples."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.inference.answers import GSM8K, Answers, extracted
from components.inference.exact_match import GSM8K_FILTERS, is_exact_match


@pytest.mark.parametrize(
    ("text", "result", "strict", "flexible"),
    [
        ("9 * 2 = 18\n#### 18", "18", True, True),
        ("9 * 2 = 18\n#### 18.", "18", True, True),
        ("#### 1,234", "1234", True, True),
        ("#### 1234", "1,234", True, True),
        ("It is $18.", "18", False, True),
        ("#### 18.00", "18", False, False),  # texts, and no numbers
        ("#### $18", "18", False, True),
        ("10-8", "8", False, False),
        ("so \N{MINUS SIGN}5", "-5", False, False),
        ("well, no...", "5", False, False),
        ("no number", "5", False, False),
        ("7 and 8.", "8", False, True),
        ("", "5", False, False),
    ],
)
def test_exact_match_is_the_published_one(text, result, strict, flexible):
    filters = {"strict-match": strict, "flexible-extract": flexible}
    for name, right in filters.items():
        assert is_exact_match(text, f"because\n#### {result}", *GSM8K_FILTERS[name]) is right


@given(st.text("0123456789.,-$# \nab") | st.text(), st.integers(-(10**6), 10**6))
def test_exact_match_is_what_the_harness_computes(text, result):
    extraction, metrics = pytest.importorskip("lm_eval.filters.extraction"), pytest.importorskip("lm_eval.api.metrics")
    reference = f"because\n#### {result:,}"
    for pattern, which in GSM8K_FILTERS.values():
        ((filtered,),) = extraction.RegexFilter(regex_pattern=pattern, group_select=which).apply([[text]], [{}])
        ignored = [",", r"\$", r"(?s).*#### ", r"\.$"]
        score = metrics.exact_match_hf_evaluate([filtered], [reference], regexes_to_ignore=ignored, ignore_case=True)
        assert is_exact_match(text, reference, pattern, which) == bool(score["exact_match"])


@given(st.integers(-(10**6), 10**6))
def test_what_the_harness_calls_right_in_the_learned_form_is_right_as_a_number(result):
    for text in (f"#### {result}", f"#### {result:,}.", f"it is {result} so\n#### {result}\n"):
        assert is_exact_match(text, f"#### {result}", *GSM8K_FILTERS["strict-match"])
        assert extracted(text, *GSM8K["strict"]) == str(result)


@pytest.mark.parametrize(("settings", "names"), [({}, ["strict-match", "flexible-extract"]), ({"exact_match": {}}, []),
    ({"patterns": {"strict": ("A", 0)}}, []), ({"exact_match": {"one": ("B", 0)}}, ["one"])])  # fmt: skip
def test_filters_are_settings_and_stand_beside_the_patterns_of_gsm8k(settings, names):
    assert list(Answers(1, 1, **settings).exact_match) == names


def test_the_filters_are_the_tasks_own():
    lm_eval = pytest.importorskip("lm_eval")
    text = (Path(lm_eval.__file__).parent / "tasks/gsm8k/gsm8k.yaml").read_text()
    own = [part.replace("\\\\", "\\") for part in re.findall(r'regex_pattern: "(.*)"', text)]
    assert own == [pattern for pattern, _ in GSM8K_FILTERS.values()]
