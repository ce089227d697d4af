"""Rows of a file in the words of templates: every line gives the texts that templates make of its fields."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import DataError
from pipeline.files import absence
from pipeline.progress import watched
from pipeline.text.fields import checked, fields_of
from pipeline.text.raw_files import RAW_VARIABLE
from pipeline.text.row_formats import with_formats
from pipeline.text.tables import rows


@dataclass(frozen=True)
class Texts:
    """What templates made of the fields of a line, and where it came from (``file:line``)."""

    texts: list[str]
    fields: Mapping[str, str]
    origin: str


@dataclass(frozen=True)
class Pair:
    """One example, the fields that it was made of, and where it came from (``file:line``)."""

    prompt: str
    response: str
    fields: Mapping[str, str]
    origin: str


def read_pairs(path: Path, download: str, prompt: str, response: str, reserved: Sequence[str]) -> list[Pair]:
    """Read every line by two templates, as ``read_texts`` does."""
    both = read_texts(path, download, (prompt, response), reserved)
    return [Pair(one.texts[0], one.texts[1], one.fields, one.origin) for one in both]


def read_texts(path: Path, download: str, templates: Sequence[str], reserved: Sequence[str] = ()) -> list[Texts]:
    """Read every line; nothing is skipped.

    Args:
        path: of the file.
        download: command that fetches it.
        templates: over the fields of a line.
        reserved: tokens that no field may hold.

    Raises:
        DataError: the file is missing, or a line is not a JSON object with non-empty strings for what the templates name.
    """
    if not path.is_file():
        raise DataError(f"{path} {absence(path)}; fetch it with: {download} (or set {RAW_VARIABLE} to the folder that holds it)")
    texts = list(watched(filled(path, templates, reserved), f"prepare {path.name}", 0, "row"))
    if not texts:
        fields = [field for template in templates for field in fields_of(template)]
        raise DataError(f"{path} holds no examples; expected one object with {' and '.join(fields)} a line")
    return texts


def filled(path: Path, templates: Sequence[str], reserved: Sequence[str] = ()) -> Iterator[Texts]:
    """Fill templates with the fields of one line after the other; see ``read_texts``."""
    fill = filler(templates, reserved)
    for origin, row in rows(path):
        yield fill(row, origin)


def filler(templates: Sequence[str], reserved: Sequence[str]) -> Callable[[Mapping[str, Any], str], Texts]:
    """Make what fills templates with the fields of a row that came from somewhere (``file:line``).

    It raises DataError where the row lacks a field, or holds something else than text there.
    """
    fields = [field for template in templates for field in fields_of(template)]

    def fill(row: Mapping[str, Any], origin: str) -> Texts:
        values = checked(with_formats(row, origin, fields), origin, fields, reserved)
        return Texts([template.format(**values) for template in templates], values, origin)

    return fill
