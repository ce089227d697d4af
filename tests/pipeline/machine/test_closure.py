"""The files that a file's imports lead to, read and not run, and their hashes."""

import hashlib
import io
import tokenize

import pytest

from pipeline.machine.closure import beside, closure, gin_modules, imported_modules, imports, project_file, source_hash
from tests.conftest import ROOT


@pytest.fixture
def code(tmp_path):
    files = {
        "stages/a.py": "from pipeline import b, missing\nimport os\nraise SystemExit\n",
        "pipeline/b.py": "def late():\n    try:\n        pass\n    except OSError:\n        from components.c import thing\n",
        "components/c.py": "import pipeline.errors\n",
        "components/d.py": "",
        "pipeline/errors.py": "import components.d\n",
        "pipeline/inner/e.py": "from pipeline.b import x\n",
        "pipeline/inner/f.py": "match 1:\n    case 1:\n        with x, y:\n            import pipeline.inner.e\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_imports_are_followed_to_the_end_late_ones_too(code):
    assert closure({"stages/a.py"}, code) == ["components/c.py", "pipeline/b.py", "stages/a.py"]
    assert closure({"pipeline/inner/f.py"}, code) == [
        "components/c.py", "pipeline/b.py", "pipeline/inner/e.py", "pipeline/inner/f.py",
    ]  # fmt: skip


def test_files_without_influence_are_neither_listed_nor_followed(code):
    assert "pipeline/errors.py" in imports(code / "components/c.py", code)
    assert closure({"components/c.py"}, code) == ["components/c.py"]
    assert closure({"stages/a.py"}, code, ["pipeline/b.py"]) == ["stages/a.py"]
    assert closure({"pipeline/inner/f.py", "components/d.py"}, code, ["pipeline/inner/"]) == ["components/d.py"]


def test_templates_belong_to_the_module_of_their_name(code):
    """A page's template, style and script are read by the module beside them; a change of one is a change of its code."""
    for name in ("pipeline/b.html", "pipeline/b.js", "pipeline/other.css", "pipeline/b.txt", "components/c.css", "b.html"):
        (code / name).write_text("# one\n")
    files = closure({"stages/a.py"}, code)
    assert beside(files, code) == ["components/c.css", "pipeline/b.html", "pipeline/b.js"]
    before = source_hash(code / "pipeline/b.js")
    (code / "pipeline/b.js").write_text("# other\n")
    assert source_hash(code / "pipeline/b.js") == hashlib.sha256(b"# other\n").hexdigest() != before


def test_relative_imports_are_those_of_the_package(tmp_path):
    file = tmp_path / "x.py"
    file.write_text("from . import one\nfrom .two import three\nimport four.five\n")
    inner = {"mine", "mine.one", "mine.two", "mine.two.three"}
    assert imported_modules(file, "mine") == inner | {"four.five"}
    assert imported_modules(file) == {"four.five"}


def test_gin_text_names_files(code):
    text = (
        "from __gin__ import dynamic_registration\nfrom components import d\nfrom pipeline.inner import e\nfrom torch import nn\n"
        "import mine\nimport mine.more as other\nx.text = 'from a import b'\n"
    )
    assert gin_modules(text) == ["components.d", "pipeline.inner.e", "torch.nn", "mine", "mine.more"]
    assert [project_file(module, code) for module in gin_modules(text)] == ["components/d.py", "pipeline/inner/e.py", "", "", ""]


SOURCE = '''"""Says # what."""

import os

TEXT = """a

# no comment
"""


def f(x):
    return [
        x,
        "#",  # a comment
    ]
'''
SAME = {
    "a comment on top": "# top\n" + SOURCE,
    "a comment at a line's end": SOURCE.replace("import os", "import os  # why"),
    "a comment in a list": SOURCE.replace("        x,\n", "        x,\n        # then\n\n"),
    "without its comment": SOURCE.replace("  # a comment", ""),
    "blank lines": SOURCE.replace("\n\n\ndef", "\n\n\n\n\ndef"),
    "none of them": SOURCE.replace("\n\n\ndef", "\ndef"),
    "blank lines at the end": SOURCE + "\n\n",
}
OTHER = {
    "a name": SOURCE.replace("x", "y"),
    "a docstring": SOURCE.replace("what", "more"),
    "a blank line in a string": SOURCE.replace('"""a\n\n', '"""a\n'),
    "what looks like a comment in a string": SOURCE.replace("no comment", "a comment"),
    "a sign in a string": SOURCE.replace('"#"', '"##"'),
    "another level": SOURCE.replace("    return [", "    if x: return ["),
}


@pytest.mark.parametrize("change", [*SAME, *OTHER])
def test_a_hash_changes_with_the_code_and_not_with_comments(tmp_path, change):
    (tmp_path / "a.py").write_text(SOURCE)
    (tmp_path / "b.py").write_text((SAME | OTHER)[change])
    assert (SAME | OTHER)[change] != SOURCE
    assert (source_hash(tmp_path / "a.py") == source_hash(tmp_path / "b.py")) == (change in SAME)


def test_without_comments_and_blank_lines_the_hash_is_of_the_text(tmp_path):
    (tmp_path / "a.py").write_text("x = f'{1}#'\nif x:\n    y = 2\n")
    assert source_hash(tmp_path / "a.py") == hashlib.sha256(b"x = f'{1}#'\nif x:\n    y = 2\n").hexdigest()


def test_an_edit_is_seen_by_a_process_that_read_the_file_before(code):
    file = code / "components/d.py"
    before = source_hash(file)
    file.write_text("import components.c\n")
    assert source_hash(file) != before and closure({"components/d.py"}, code) == ["components/c.py", "components/d.py"]


def tokenised(source):
    """The source without what Python's own tokenizer calls comments and blank lines."""
    lines = source.splitlines(keepends=True)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        row, column = token.start[0] - 1, token.start[1]
        if token.type == tokenize.COMMENT:
            lines[row] = lines[row][:column].rstrip() + "\n"
        if token.type in (tokenize.COMMENT, tokenize.NL) and not lines[row].strip():
            lines[row] = ""
    return "".join(lines)


@pytest.mark.parametrize("package", ["components", "pipeline", "stages", "tests"])
def test_what_is_left_out_is_what_the_tokenizer_calls_comments_and_blank_lines(package):
    for file in sorted((ROOT / package).rglob("*.py")):
        assert source_hash(file) == hashlib.sha256(tokenised(file.read_text()).encode()).hexdigest(), file


QUOTES = '''a = r"\\" + 'it"s' # "b"
b = "\\"#" '#'  # c
c = """x "" \\""" # y

""" + \'\'\' \' "# \'\'\'
if a:  #
\t# tab

    d = f"{a}#{b!r}"  # d
'''


def test_quotes_within_quotes_hide_no_comment(tmp_path):
    (tmp_path / "a.py").write_text(QUOTES)
    assert source_hash(tmp_path / "a.py") == hashlib.sha256(tokenised(QUOTES).encode()).hexdigest()
    assert "# y\n\n" in tokenised(QUOTES) and "c\n" not in tokenised(QUOTES).splitlines()[1]
