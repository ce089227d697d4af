"""Fields of a line or of a prompt: which a template names, and whether a person's text may stand in them."""

from collections.abc import Mapping, Sequence
from string import Formatter
from typing import Any

from pipeline.errors import ConfigError, DataError


def fields_of(template: str) -> list[str]:
    """List the names of a template's fields: ``fields_of("{a}, {b}!")`` gives a and b.

    Raises:
        ConfigError: it is not a template over plain names.
    """
    try:
        names = [name for _, name, _, _ in Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise ConfigError(f"'{template}' is no template: {error}") from None
    if not names or not all(name.isidentifier() for name in names):
        raise ConfigError(f"a template names fields of a line in braces, like '{{question}}'; got '{template}'")
    return list(dict.fromkeys(names))


def checked(row: Mapping[str, Any], origin: str, fields: Sequence[str], reserved: Sequence[str]) -> dict[str, str]:
    """Take these fields of a row, each a text.

    Raises:
        DataError: one is not there, is no text or a blank one, or holds a reserved token or half of a surrogate pair.
    """
    for key in fields:
        if not isinstance(row.get(key), str) or not row[key].strip():
            raise DataError(f'{origin}: "{key}" must be a non-empty string, got {row.get(key)!r}')
        try:
            row[key].encode()
        except UnicodeEncodeError as error:
            half = f"\\u{ord(row[key][error.start]):04x} at character {error.start}"
            raise DataError(f'{origin}: "{key}" holds {half}, half of a surrogate pair: no text; remove it or write both') from None
        if inside := [token for token in reserved if token in row[key]]:
            raise DataError(f'{origin}: "{key}" holds {inside[0]}, which is a reserved token; write it another way')
    return {key: row[key] for key in fields}
