"""What a stage's code is made of: the files that its module and its .gin files import, followed to the end.

`make deps` writes them into dvc.yaml; tests/test_house.py asserts that they are exact.
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
    for package, name in re.findall(r"^from ([\w.]+) import (\w+)$", text, re.MULTILINE):
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


def rewritten(text: str) -> str:
    """dvc.yaml with the code dependencies of every stage but configure (which depends on whole folders) made exact."""
    lines, stage, depends = [], "", False
    for line in text.splitlines():
        if named := re.fullmatch(r"  (\w+):", line):
            stage = named[1]
        if depends and not line.startswith("      - "):
            lines += [f"      - {file}" for file in closure(stage)]
        depends = (line == "    deps:" and stage != "configure") or (depends and line.startswith("      - "))
        if not (depends and line.endswith(".py")):
            lines.append(line)
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    (ROOT / "dvc.yaml").write_text(rewritten((ROOT / "dvc.yaml").read_text()))
