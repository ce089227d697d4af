"""What is seen of a file of examples: fields, known formats, repeats; and what is refused with all the rows that are like it."""

import csv
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError, DataError
from pipeline.text import survey
from pipeline.text.filled_rows import Pair


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def table(*rows):
    return [(f"f:{number}", row) for number, row in enumerate(rows, 1)]


def pair(prompt, response):
    return Pair(prompt, response, {}, "f:1")


def test_fields_are_told_with_kinds_lengths_and_blanks():
    rows = table({"q": "caf\u00e9", "n": 1}, {"q": " ", "n": None}, {"q": 7, "l": []}, {"q": "a", "two words": True})
    assert survey.fields_in_words(rows) == (
        "q (text or number, 1 to 5 bytes, 1 blank), n (nothing or number, 3 blank), l (nothing or list, 3 blank), "
        "'two words' (nothing or true or false, 3 blank)"
    )


def test_of_many_fields_the_first_are_named():
    words = survey.fields_in_words(table({f"f{i}": "x" for i in range(20)}))
    assert words.endswith("f11 (text, 1 to 1 bytes) and 8 more") and "f12" not in words


@pytest.mark.parametrize(
    ("fields", "templates"),
    [
        (["question", "answer"], ("{question}\n", "{answer}")),
        (["id", "Answer", "Question"], ("{Question}\n", "{Answer}")),
        (["prompt", "response"], ("{prompt}\n", "{response}")),
        (["prompt", "completion"], ("{prompt}\n", "{completion}")),
        (["instruction", "input", "output"], ("{task}\n", "{output}")),
        (["instruction", "output"], ("{task}\n", "{output}")),
        (["messages"], ("{conversation}\n", "{reply}")),
        (["question", "answer", "messages"], ("{question}\n", "{answer}")),
        (["a", "b"], None),
        (["question"], None),
        ([" question", "answer "], None),  # a template cannot name them
        ([], None),
    ],
)
def test_known_fields_give_templates(fields, templates):
    made = survey.known_templates(table(dict.fromkeys(fields, "x")))
    assert (made and (made.prompt, made.response)) == templates


@pytest.mark.parametrize(
    ("prompt", "response", "message"),
    [
        ("{a}", "", "--response is missing: give both templates"),
        ("", "{b}", "--prompt is missing: give both templates"),
        ("{a", "{b}", "'{a' is no template"),
        ("{a}", "}", "'}' is no template"),
        ("{}", "{b}", "a template names fields of a line in braces"),
        ("{a.b}", "{b}", "a template names fields of a line in braces"),
        ("{a[0]}", "{b}", "a template names fields of a line in braces"),
        ("words", "{b}", "a template names fields of a line in braces"),
    ],
)
def test_templates_that_are_none_are_refused(prompt, response, message):
    with pytest.raises(ConfigError) as refused:
        survey.given_templates(prompt, response)
    assert str(refused.value).startswith(message)
    assert survey.given_templates("", "") is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no examples; expected one a line"),
        ("\n \n", "holds no examples; expected one a line"),
        ('[{"a": "b"},\n{"a": "c"}]', "the file holds one list, which is read under a name that ends with .json: a.json"),
        ("words", "a.jsonl:1: not valid JSON"),
        ('{"a": "b"}\n3\n', "a.jsonl:2: expected an object, got int"),
    ],
)
def test_a_file_that_is_none_is_refused_with_the_mend(tmp_path, content, message):
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(DataError) as refused:
        survey.read_table(tmp_path / "a.jsonl")
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_rows_that_do_not_fit_the_templates_are_counted():
    templates = survey.given_templates("{a}", "{b}")
    rows = table({"a": "x", "b": "y"}, {"a": 3, "b": "y"}, {"b": "y"}, {"a": "x", "b": ""})
    with pytest.raises(DataError, match=r'^f:2: "a" must be a non-empty string, got 3 \(3 of 4 rows are like that, and prepare'):
        survey.pairs_of(rows, templates, ())
    assert [one.prompt for one in survey.pairs_of(rows[:1], templates, ())] == ["x"]


def test_repeats_are_counted_by_prompt():
    pairs = [pair("a", "1"), pair("b", "2"), pair(" a\n", "1"), pair("a", "3"), pair("c", "1"), pair("a", "1")]
    assert survey.repeats(pairs) == survey.Repeats(same=2, other_response=1)
    assert survey.shared_prompts(pairs, [pair("a ", "9"), pair("d", "1"), pair("c", "1")]) == 2


@given(st.lists(st.tuples(st.sampled_from("ab "), st.sampled_from("12"))))
def test_repeats_are_what_is_left_of_all_once_the_first_are_taken(rows):
    pairs = [pair(*row) for row in rows]
    again = survey.repeats(pairs)
    assert again.same + again.other_response == len(rows) - len({prompt.strip() for prompt, _ in rows})


JSON = st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.text(), max_size=2)


@given(st.lists(st.dictionaries(st.text(), JSON), min_size=1, max_size=5))
def test_any_rows_are_described_in_one_line_and_give_templates_or_none(rows):
    numbered = table(*rows)
    assert "\n" not in survey.fields_in_words(numbered) and "\n" not in survey.names_of(rows[0])
    templates = survey.known_templates(numbered)
    if templates is not None:
        try:
            assert len(survey.pairs_of(numbered, templates, ())) == len(rows)
        except DataError as refused:
            assert "rows are like that" in str(refused)


@given(st.lists(st.lists(st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\0\r\n")), min_size=2, max_size=2)))
def test_a_csv_file_is_read_as_the_library_writes_it(tmp_path_factory, rows):
    text = io.StringIO()
    csv.writer(text).writerows([["question", "answer"], *rows])
    file = tmp_path_factory.mktemp("csv") / "a.csv"
    file.write_text(text.getvalue(), encoding="utf-8", newline="")
    try:
        read = [list(row.values()) for _, row in survey.read_table(file)]
    except DataError as refused:
        assert not rows and "holds no examples" in str(refused)
    else:
        assert read == rows
