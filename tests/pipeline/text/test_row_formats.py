"""Formats of examples whose fields are not one text each: what becomes of them, and what is refused."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import DataError
from pipeline.text.filled_rows import read_texts
from pipeline.text.row_formats import with_formats

U, A, S = (
    {"role": role, "content": content} for role, content in (("user", "2 + 2?"), ("assistant", "4"), ("system", "Be brief."))
)


def made(row, *fields):
    return [with_formats(row, "f:1", fields).get(field) for field in fields]


@pytest.mark.parametrize(
    ("row", "task"),
    [
        ({"instruction": "Add.", "input": "2 2"}, "Add.\n2 2"),
        ({"instruction": "Add.", "input": ""}, "Add."),
        ({"instruction": "Add.", "input": "  \n"}, "Add."),
        ({"instruction": "Add.", "input": None}, "Add."),
        ({"instruction": "Add."}, "Add."),
        ({"instruction": "", "input": "2 2"}, ""),
        ({"instruction": 7, "input": "2 2"}, 7),
        ({"input": "2 2"}, None),
        ({"instruction": "Add.", "input": "2 2", "task": "mine"}, "mine"),
    ],
)
def test_a_task_is_an_instruction_with_its_input(row, task):
    assert made(row, "task") == [task]


@pytest.mark.parametrize(
    ("messages", "conversation", "reply"),
    [
        ([U, A], "2 + 2?", "4"),
        ([S, U, A], "system: Be brief.\n\nuser: 2 + 2?", "4"),
        ([U, A, U, {**A, "content": "Still 4"}], "user: 2 + 2?\n\nassistant: 4\n\nuser: 2 + 2?", "Still 4"),
        ([U, A, U], "2 + 2?", "4"),
    ],
)
def test_a_conversation_is_what_stands_before_the_last_reply(messages, conversation, reply):
    assert made({"messages": messages}, "conversation", "reply") == [conversation, reply]


@pytest.mark.parametrize(
    "messages", [[], [U], [A], [A, U], "words", 3, {}, [1], [{}], [U, {"role": "assistant"}], [U, {**A, "content": None}], [[U], A]]
)
def test_messages_that_are_none_are_refused_with_their_line(messages):
    with pytest.raises(DataError, match=r'^f:1: "messages" must be a list of') as refused:
        made({"messages": messages}, "reply")
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 300


@pytest.mark.parametrize("given", [3, ["a"], {"a": 1}, True])
def test_an_input_that_is_no_text_is_refused(given):
    with pytest.raises(DataError, match=r'^f:1: "input" must be a string, got'):
        made({"instruction": "Add.", "input": given}, "task")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "x"]), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["instruction", "input", "messages", "task", "x"]), JSON))
def test_any_row_gives_its_own_fields_untouched_or_is_refused(row):
    before = json.dumps(row)
    try:
        after = with_formats(row, "f:1", ["task", "conversation", "reply", "x"])
    except DataError:
        after = row
    assert json.dumps(row) == before and {name: after[name] for name in row} == row


def test_a_file_of_such_rows_is_read_by_templates(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ({"messages": [U, A]}, {"messages": [S, U, A]})))
    assert [one.texts for one in read_texts(file, "", ["{conversation}>", "{reply}"])] == [
        ["2 + 2?>", "4"], ["system: Be brief.\n\nuser: 2 + 2?>", "4"],
    ]  # fmt: skip
    file.write_text(json.dumps({"question": "no messages"}))
    with pytest.raises(DataError, match=r'a.jsonl:1: "conversation" must be a non-empty string, got None'):
        read_texts(file, "", ["{conversation}>", "{reply}"])
