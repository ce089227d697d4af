"""The one form of a gin text: a binding a line, no comments, and the imports that they need."""

import re
from collections.abc import Callable


def canonical(text: Callable[..., str], width: int) -> str:
    """Write gin's text with one binding a line, without comments (their width follows the line length) and unused imports."""
    return only_used_imports([line for line in text(max_line_length=width).splitlines() if line and not line.startswith("#")])


def only_used_imports(lines: list[str]) -> str:
    """Imports and bindings as one text, without the imports that no binding needs."""
    used = "\n".join(line for line in lines if not _is_import(line))
    return "\n".join(line for line in lines if not _is_import(line) or _is_used(line, used)) + "\n"


def _is_import(line: str) -> bool:
    return line.startswith(("from ", "import "))


def _is_used(import_line: str, text: str) -> bool:
    name = import_line.split()[-1]
    return name == "dynamic_registration" or re.search(rf"(^|[^\w.]){name}\.", text, re.MULTILINE) is not None
