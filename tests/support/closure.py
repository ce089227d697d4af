"""The code dependencies in dvc.yaml: exactly what a stage's module and its .gin files import, followed to the end.

`make deps` writes them; tests/test_house.py asserts that they are exact.
"""

import re
from pathlib import Path

from pipeline.machine import closure as code

ROOT = Path(__file__).resolve().parents[2]


def gin_imports(path: Path) -> set[str]:
    """Project files that a .gin file imports, with those of what it includes."""
    text = path.read_text()
    found = code.gin_imports(text, ROOT)
    for included in re.findall(r"^include '(.+)'$", text, re.MULTILINE):
        found |= gin_imports(ROOT / included)
    return found


def closure(stage: str) -> list[str]:
    """Files whose edit may change what ``stage`` writes."""
    files = {f"stages/{stage}.py", *gin_imports(ROOT / "gin" / f"{stage}.gin")}
    if stage == "prepare":
        for preset in (ROOT / "gin" / "presets").glob("*.gin"):
            files |= {f for f in gin_imports(preset) if f.startswith("pipeline/")}
    return code.closure(files, ROOT)


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
