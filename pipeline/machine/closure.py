"""What code a stage's results depend on: the files that its module and its settings import, followed to the end but never run.

Unfinished work is continued as long as none of these changes; dvc.yaml names them as dependencies (`make deps`).
"""

import ast
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

PACKAGES = ("components", "pipeline", "stages")
# Used by every stage and without influence on numbers.
NEUTRAL = {"pipeline/errors.py", "pipeline/progress.py"}


def closure(files: Iterable[str], code: Path) -> list[str]:
    """The given files and all they import of this project, sorted; paths relative to ``code``."""
    queue, seen = set(files), set[str]()
    while queue:
        path = queue.pop()
        if path not in seen:
            seen.add(path)
            queue |= imports(code / path, code)
    return sorted(seen - NEUTRAL)


@cache
def imports(path: Path, code: Path) -> frozenset[str]:
    """Files of this project that a Python file imports."""
    found = set[str]()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in PACKAGES:
            for name in node.names:
                found |= _file(f"{node.module}.{name.name}", code) or _file(node.module, code)
        elif isinstance(node, ast.Import):
            for name in node.names:
                found |= _file(name.name, code)
    return frozenset(found)


def gin_imports(text: str, code: Path) -> set[str]:
    """Files of this project that gin text imports."""
    found = set[str]()
    for package, name in re.findall(r"^from ([\w.]+) import (\w+)$", text, re.MULTILINE):
        found |= _file(f"{package}.{name}", code)
    return found


def _file(module: str, code: Path) -> set[str]:
    path = Path(*module.split(".")).with_suffix(".py")
    return {path.as_posix()} if path.parts[0] in PACKAGES and (code / path).is_file() else set()
