"""What code a result depends on: the files that a module and its settings import, followed to the end but never run, and a hash of
each that a comment does not change.
"""

import ast
import hashlib
import os
import re
import tokenize
from collections.abc import Collection, Iterable, Iterator
from functools import cache
from importlib.util import resolve_name
from pathlib import Path
from typing import Any

PACKAGES = ("components", "pipeline", "stages")
PARTS = (".html", ".css", ".js")  # of a module, beside it
# Messages and progress bars: imported everywhere, without influence on what is written.
NEUTRAL = ("pipeline/errors.py", "pipeline/progress.py")

# Strings, which stay (group 1), as text within them can look like either of the others; blank lines, with a comment or without;
# comments behind code.
_LEFT_OUT = re.compile(
    r"""(\"{3}[^"\\]*(?:(?:\\.|"(?!""))[^"\\]*)*"{3}|'{3}[^'\\]*(?:(?:\\.|'(?!''))[^'\\]*)*'{3}"""
    r"""|"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')|^[ \t\f]*(?:\#[^\n]*)?(?:\n|\Z)|[ \t\f]*\#[^\n]*""",
    re.MULTILINE | re.DOTALL,
)


def closure(files: Iterable[str], code: Path, without: Collection[str] = ()) -> list[str]:
    """List the given files and all they import of this project, sorted; paths relative to ``code``.

    Args:
        files: where to begin.
        code: folder that holds the packages.
        without: files, and folders (with a slash at the end), that are neither listed nor followed, as ``NEUTRAL`` never is.
    """
    left_out = (*NEUTRAL, *without)
    queue, seen = set(files), set[str]()
    while queue:
        path = queue.pop()
        if path in seen or any(path.startswith(other) if other.endswith("/") else path == other for other in left_out):
            continue
        seen.add(path)
        queue |= imports(code / path, code)
    return sorted(seen)


def beside(files: Iterable[str], code: Path) -> list[str]:
    """List what lies beside Python files under their own names, sorted: templates and the like, which they read.

    Args:
        files: Python files, relative to ``code``.
        code: folder that holds the packages.
    """
    names = {folder: os.listdir(code / folder) for folder in {os.path.dirname(file) for file in files}}
    modules = {os.path.splitext(file)[0] for file in files}
    paths = (f"{folder}/{name}" for folder, inside in names.items() for name in inside)
    return sorted(path for path in paths if os.path.splitext(path)[0] in modules and path.endswith(PARTS))


def imports(path: Path, code: Path) -> set[str]:
    """List the files of this project that a Python file imports, within functions too."""
    return {file for module in imported_modules(path) if (file := project_file(module, code))}


def imported_modules(path: Path, package: str = "") -> frozenset[str]:
    """Name the modules that a Python file may import; of ``from a import b`` both ``a`` and ``a.b``.

    Args:
        path: of the file.
        package: that relative imports are relative to.
    """
    return _imported_modules(path, package, _stamp(path))


@cache
def _imported_modules(path: Path, package: str, stamp: tuple[int, int]) -> frozenset[str]:
    modules = set[str]()
    for node in _statements(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            modules |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and (package or not node.level):
            module = resolve_name("." * node.level + (node.module or ""), package)
            modules |= {module, *(f"{module}.{name.name}" for name in node.names)}
    return frozenset(modules)


def _stamp(path: Path) -> tuple[int, int]:
    """Size and time of change: a long-lived process reads a file anew after an edit, and once between two."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _statements(tree: ast.Module) -> Iterator[ast.stmt]:
    """Yield every statement, however deep; ``ast.walk`` would visit every expression too and take four times as long."""
    queue: list[Any] = list(tree.body)
    while queue:
        node = queue.pop()
        if isinstance(node, ast.stmt):
            yield node
        for block in ("body", "orelse", "finalbody", "handlers", "cases"):
            queue += getattr(node, block, ())


def gin_modules(text: str) -> list[str]:
    """Name the modules that a gin text imports, gin's own switches aside.

    >>> gin_modules("from __gin__ import dynamic_registration\\nfrom torch import nn\\nimport mine.corpus as corpus\\n")
    ['torch.nn', 'mine.corpus']
    """
    lines = re.findall(r"^(?:from ([\w.]+) )?import ([\w.]+)(?: as \w+)?$", text, re.MULTILINE)
    return [f"{package}.{name}" if package else name for package, name in lines if package != "__gin__"]


def project_file(module: str, code: Path) -> str:
    """The file of a module of this project, relative to ``code``; "" if it is none."""
    if module.partition(".")[0] not in PACKAGES:
        return ""
    file = f"{module.replace('.', '/')}.py"
    return file if os.path.isfile(f"{code}/{file}") else ""


def source_hash(path: Path) -> str:
    """Hash a Python file without its comments and blank lines (sha256, in hex), docstrings count; any other file as it is.

    The text is hashed and not the tokens, which differ from one Python to the next, and take five times as long to find.
    """
    return _source_hash(path, _stamp(path))


@cache
def _source_hash(path: Path, stamp: tuple[int, int]) -> str:
    if path.suffix in PARTS:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    with tokenize.open(path) as file:
        return hashlib.sha256(_LEFT_OUT.sub(r"\1", file.read()).encode()).hexdigest()
