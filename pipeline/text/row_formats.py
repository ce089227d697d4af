"""Formats of examples that people share whose fields are not one text each, as texts that a template can name.

| a row that holds | gives |
|---|---|
| ``instruction``, and ``input``, which may be empty | ``task``: both, a line break between them |
| ``messages``, each with ``role`` and ``content`` | ``reply``: the assistant's last; ``conversation``: what stands before it |

A conversation of one message is its content; of several, a paragraph each: ``role: content``.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipeline.errors import DataError

TASK, CONVERSATION, REPLY = "task", "conversation", "reply"
INSTRUCTION, INPUT, MESSAGES = "instruction", "input", "messages"
ASSISTANT = "assistant"


def with_formats(row: Mapping[str, Any], origin: str, fields: Sequence[str]) -> Mapping[str, Any]:
    """Add the fields that a template names and only the row's format gives; a field of the row itself goes first.

    Raises:
        DataError: ``input`` is no text, or ``messages`` are no messages.
    """
    made = {field: MAKERS[field](row, origin) for field in fields if field in MAKERS and field not in row}
    return {**row, **{field: text for field, text in made.items() if text is not None}} if made else row


def _task(row: Mapping[str, Any], origin: str) -> Any:
    """The instruction as it is, whatever it is, with the input behind it unless that is blank."""
    instruction, given = row.get(INSTRUCTION), row.get(INPUT)
    if given is None or (isinstance(given, str) and not given.strip()):
        return instruction
    if not isinstance(given, str):
        raise DataError(f'{origin}: "{INPUT}" must be a string, got {given!r:.100}')
    return f"{instruction}\n{given}" if isinstance(instruction, str) and instruction.strip() else instruction


def _conversation(row: Mapping[str, Any], origin: str) -> str | None:
    before, _ = _last_turn(row, origin)
    if before is None:
        return None
    return before[0]["content"] if len(before) == 1 else "\n\n".join(f"{one['role']}: {one['content']}" for one in before)


def _reply(row: Mapping[str, Any], origin: str) -> str | None:
    return _last_turn(row, origin)[1]


def _last_turn(row: Mapping[str, Any], origin: str) -> tuple[list[dict[str, str]] | None, str | None]:
    """Messages before the assistant's last, and that; None and None of a row without messages."""
    if (messages := row.get(MESSAGES)) is None:
        return None, None
    well_formed = isinstance(messages, list) and all(
        isinstance(one, Mapping) and isinstance(one.get("role"), str) and isinstance(one.get("content"), str) for one in messages
    )
    ends = [i for i, one in enumerate(messages) if one["role"] == ASSISTANT] if well_formed else []
    if not ends or not ends[-1]:
        expected = f'a list of {{"role", "content"}} with texts, one of the {ASSISTANT} behind another'
        raise DataError(f'{origin}: "{MESSAGES}" must be {expected}, got {messages!r:.100}')
    return messages[: ends[-1]], messages[ends[-1]]["content"]


MAKERS: dict[str, Callable[[Mapping[str, Any], str], Any]] = {TASK: _task, CONVERSATION: _conversation, REPLY: _reply}
