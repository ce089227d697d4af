"""What a stage's code is made of: the files that its module and its .gin files import, followed to the end.

`python -m tests.closure` writes dvc.yaml's code dependencies; tests/test_house.py asserts that they are exact.
"""

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("components", "pipeline", "stages")
# Used by every stage and without influence on numbers: an edit of these re-runs nothing but configure.
NEUTRAL = {"pipeline/errors.py", "pipeline/progress.py"}


@cache
def imports(path: Path) -> frozenset[str]:
    """Project files that a Python file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in PACKAGES:
            for name in node.names:
                found |= _file(f"{node.module}.{name.name}") or _file(node.module)
        elif isinstance(node, ast.Import):
            for name in node.names:
                found |= _file(name.name)
    return frozenset(found)


def gin_imports(path: Path) -> set[str]:
    """Project files that a .gin file imports, with those of what it includes."""
    text = path.read_text()
    found = set()
    for package, name in re.findall(r"^from (\w+) import (\w+)$", text, re.MULTILINE):
        found |= _file(f"{package}.{name}")
    for included in re.findall(r"^include '(.+)'$", text, re.MULTILINE):
        found |= gin_imports(ROOT / included)
    return found


def closure(stage: str) -> list[str]:
    """Files whose edit may change what ``stage`` writes."""
    queue = {f"stages/{stage}.py", *gin_imports(ROOT / "gin" / f"{stage}.gin")}
    if stage == "prepare":
        for preset in (ROOT / "gin" / "presets").glob("*.gin"):
            queue |= {f for f in gin_imports(preset) if f.startswith("pipeline/")}
    seen: set[str] = set()
    while queue:
        path = queue.pop()
        if path not in seen:
            seen.add(path)
            queue |= imports(ROOT / path)
    return sorted(seen - NEUTRAL)


def _file(module: str) -> set[str]:
    path = Path(*module.split(".")).with_suffix(".py")
    return {str(path)} if (ROOT / path).is_file() and path.parts[0] in PACKAGES else set()


if __name__ == "__main__":
    for path in sorted((ROOT / "stages").glob("*.py")):
        if path.stem not in ("__init__", "__main__", "configure"):
            print(f"{path.stem}:", *closure(path.stem), sep="\n      - ")
