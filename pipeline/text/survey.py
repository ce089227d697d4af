"""What a file of examples holds, looked at before anything is made of it: fields, known formats, what stands there twice."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError, DataError
from pipeline.files import absence
from pipeline.progress import watched
from pipeline.text.fields import fields_of
from pipeline.text.filled_rows import Pair, filler
from pipeline.text.row_formats import CONVERSATION, INSTRUCTION, MESSAGES, REPLY, TASK
from pipeline.text.tables import Row, rows

FORMATS = {".parquet": "Parquet", ".csv": "CSV with a header", ".json": "JSON"}
KNOWN = (  # names of a row's fields -> the field that is the prompt, and the one that is the response
    (("question", "answer"), ("question", "answer")),
    (("prompt", "response"), ("prompt", "response")),
    (("prompt", "completion"), ("prompt", "completion")),
    ((INSTRUCTION, "output"), (TASK, "output")),
    ((INSTRUCTION, "response"), (TASK, "response")),
    ((MESSAGES,), (CONVERSATION, REPLY)),
)
KINDS = {str: "text", bool: "true or false", int: "number", float: "number", list: "list", dict: "object", type(None): "nothing"}
SHOWN = 12  # fields that a line names


@dataclass(frozen=True)
class Templates:
    """Two templates over the fields of a row, and what they were chosen by."""

    prompt: str
    response: str
    origin: str


def read_table(path: Path) -> list[Row]:
    """Read all rows of a file of examples.

    Raises:
        DataError: there is no such file, it is empty, or a line of it is none (the mend is named where it is known).
    """
    if not path.is_file():
        raise DataError(f"{path} {absence(path)}; expected a file of examples: JSON lines, *.json, *.csv or *.parquet")
    try:
        table = list(watched(rows(path), f"read {path.name}", 0, "row"))
    except DataError as error:
        with path.open("rb") as file:
            is_list = path.suffix != ".json" and file.read(64).lstrip().startswith(b"[")
        mend = f"; the file holds one list, which is read under a name that ends with .json: {path.stem}.json"
        raise DataError(f"{error}{mend * is_list}") from None
    if not table:
        raise DataError(f"{path} holds no examples; expected one a line, or a list of them: JSON lines, *.json, *.csv or *.parquet")
    return table


def format_of(path: Path) -> str:
    """Name the format that a file is read in."""
    return FORMATS.get(path.suffix, "JSON lines")


def fields_in_words(table: Sequence[Row]) -> str:
    """Describe the fields of all rows: kinds of values, lengths of texts in bytes, and how often one is blank or missing."""
    names = list(dict.fromkeys(name for _, row in table for name in row))
    parts = [_field_in_words(name, [row.get(name) for _, row in table]) for name in names[:SHOWN]]
    return ", ".join(parts) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _field_in_words(name: str, values: Sequence[Any]) -> str:
    kinds = Counter(KINDS.get(type(value), type(value).__name__) for value in values)
    sizes = [len(value.encode(errors="replace")) for value in values if isinstance(value, str)]
    words = [" or ".join(kind for kind, _ in kinds.most_common())]
    words += [f"{min(sizes):,} to {max(sizes):,} bytes"] if sizes else []
    blank = sum(value is None or (isinstance(value, str) and not value.strip()) for value in values)
    words += [f"{blank} blank"] if blank else []
    return f"{shown(name)} ({', '.join(words)})"


def shown(name: str) -> str:
    """Write a field's name as it is, or quoted and cut where it is no plain word."""
    return name if name.isidentifier() and name.isascii() and len(name) <= 40 else f"{name!r:.40}"


def known_templates(table: Sequence[Row]) -> Templates | None:
    """Choose templates by the names of the first row's fields, in any case of letters; None where no known pair is among them."""
    names = {name.strip().lower(): name for name in table[0][1]}
    for needed, pair in KNOWN:
        if all(name in names and names[name].isidentifier() for name in needed):
            prompt, response = (names.get(name, name) for name in pair)
            return Templates(f"{{{prompt}}}\n", f"{{{response}}}", f"the known fields {' and '.join(needed)}")
    return None


def given_templates(prompt: str, response: str) -> Templates | None:
    """Take the templates of a command line; None where none are given.

    Raises:
        ConfigError: one of them alone, or one that is no template.
    """
    if not prompt and not response:
        return None
    if not prompt or not response:
        raise ConfigError(f"--{'response' if prompt else 'prompt'} is missing: give both templates, or none where fields are known")
    for template in (prompt, response):
        fields_of(template)
    return Templates(prompt, response, "--prompt and --response")


def pairs_of(table: Sequence[Row], templates: Templates, reserved: Sequence[str]) -> list[Pair]:
    """Fill templates with every row.

    Raises:
        DataError: rows lack a field, or hold something else than text there: the first, and how many there are.
    """
    fill = filler((templates.prompt, templates.response), reserved)
    pairs, wrong = list[Pair](), list[str]()
    for origin, row in table:
        try:
            filled = fill(row, origin)
        except DataError as error:
            wrong.append(str(error))
            continue
        pairs.append(Pair(filled.texts[0], filled.texts[1], filled.fields, origin))
    if wrong:
        raise DataError(f"{wrong[0]} ({len(wrong):,} of {len(table):,} rows are like that, and prepare would refuse them)")
    return pairs


@dataclass(frozen=True)
class Repeats:
    """Examples that are not the first of their kind: the same prompt and response again, or a prompt with another response."""

    same: int
    other_response: int


def repeats(pairs: Sequence[Pair]) -> Repeats:
    """Count the examples whose prompt stands in the file before."""
    first: dict[str, str] = {}
    again = list[bool]()
    for pair in pairs:
        prompt = pair.prompt.strip()
        if prompt in first:
            again.append(first[prompt] == pair.response)
        first.setdefault(prompt, pair.response)
    return Repeats(again.count(True), again.count(False))


def shared_prompts(train: Sequence[Pair], test: Sequence[Pair]) -> int:
    """Count the test examples whose prompt is learned from too."""
    learned = {pair.prompt.strip() for pair in train}
    return sum(pair.prompt.strip() in learned for pair in test)


def names_of(row: Mapping[str, Any]) -> str:
    """List a row's fields, so that a template can name them."""
    return ", ".join(shown(name) for name in list(row)[:SHOWN]) or "none"
