"""The files that a file's imports lead to, read and not run."""

import pytest

from pipeline.machine.closure import closure, gin_imports, imports


@pytest.fixture
def code(tmp_path):
    files = {
        "stages/a.py": "from pipeline import b, missing\nimport os\nraise SystemExit\n",
        "pipeline/b.py": "def late():\n    from components.c import thing\n",
        "components/c.py": "import pipeline.errors\n",
        "components/d.py": "",
        "pipeline/errors.py": "",
        "pipeline/inner/e.py": "from pipeline.b import x\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    imports.cache_clear()
    return tmp_path


def test_imports_are_followed_to_the_end_late_ones_too(code):
    assert closure({"stages/a.py"}, code) == ["components/c.py", "pipeline/b.py", "stages/a.py"]


def test_files_without_influence_on_numbers_are_left_out(code):
    assert "pipeline/errors.py" in imports(code / "components/c.py", code)
    assert closure({"components/c.py"}, code) == ["components/c.py"]


def test_gin_text_names_files(code):
    text = (
        "from __gin__ import dynamic_registration\nfrom components import d\nfrom pipeline.inner import e\nfrom torch import nn\n"
    )
    assert gin_imports(text, code) == {"components/d.py", "pipeline/inner/e.py"}
