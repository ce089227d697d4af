"""Reading .gin text without running it: imports, includes, values and what a dotted key means."""

import pytest

from pipeline.errors import ConfigError
from pipeline.settings.ginfiles import Name, Namespace, parse_value, scan

LINES = {"loop": "from pipeline.training import loop", "optim": "from components.training import optim", "torch": "import torch"}


@pytest.fixture
def write(tmp_path):
    def write(name, *lines):
        (tmp_path / name).write_text("from __gin__ import dynamic_registration\n" + "\n".join(lines) + "\n")
        return tmp_path / name

    return write


def test_imports_of_includes_count(write, tmp_path):
    write("inner.gin", "from components.training import optim")
    outer = write("outer.gin", "from pipeline.training import loop", "include 'inner.gin'", "loop.fit.steps = 3")
    assert scan(outer, tmp_path).imports == {
        "loop": "from pipeline.training import loop",
        "optim": "from components.training import optim",
    }


def test_reading_runs_nothing(write, tmp_path, monkeypatch):
    (tmp_path / "pipeline_like.py").write_text("raise SystemExit\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        ConfigError,
        match=r"a.gin:2: may not import 'pipeline_like'; allowed are components, pipeline.corpora.sudoku",
    ):
        scan(write("a.gin", "import pipeline_like"), tmp_path)


@pytest.mark.parametrize("line", ["import os", "from os import path", "import subprocess", "import os as torch"])
def test_what_is_not_allowed_is_refused_with_its_line(write, tmp_path, line):
    with pytest.raises(ConfigError, match=r"a.gin:2: may not import '(os|os.path|subprocess)'"):
        scan(write("a.gin", line), tmp_path)


def test_bindings_of_the_file_and_of_its_includes_are_told_apart(write, tmp_path):
    write("inner.gin", "from pipeline.training import loop", "loop.fit.clip = %CLIP", "CLIP = 1.0")
    outer = write("outer.gin", "include 'inner.gin'", "", "a/loop.fit.steps = 3", "STEPS = [%ONE, {'a': %TWO}]")
    found = scan(outer, tmp_path)
    assert [(s.origin, s.key) for s in found.bindings] == [(f"{outer}:4", "a/loop.fit.steps"), (f"{outer}:5", "STEPS")]
    inner = tmp_path / "inner.gin"
    assert [(s.origin, s.key) for s in found.included] == [(f"{inner}:3", "loop.fit.clip"), (f"{inner}:4", "CLIP")]
    assert found.macros == {"CLIP", "ONE", "TWO"}


def test_names_that_are_bound_or_referred_to_are_listed(write, tmp_path):
    file = write(
        "a.gin",
        "from pipeline.training import loop",
        "from components.training import optim",
        "loop.fit.optimizer = @b/optim.adamw",
    )
    found = scan(file, tmp_path)
    assert found.names == [(str(file), "loop.fit")] and found.references == [(str(file), "b/optim.adamw")]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"gin file '.*nope.gin' does not exist"):
        scan(tmp_path / "nope.gin", tmp_path)


def test_a_missing_include_is_named(write, tmp_path):
    with pytest.raises(ConfigError, match=r"gin file '.*nope.gin' does not exist"):
        scan(write("a.gin", "include 'nope.gin'"), tmp_path)


def test_files_that_include_each_other_are_refused(write, tmp_path):
    write("b.gin", "include 'a.gin'")
    with pytest.raises(ConfigError, match=r"a.gin|b.gin"):
        scan(write("a.gin", "include 'b.gin'"), tmp_path)


@pytest.mark.parametrize("line", ["loop.fit.steps = ", "loop.fit.steps = [1, 2", "= 3", "loop.fit.steps == 3"])
def test_a_malformed_line_is_named(write, tmp_path, line):
    with pytest.raises(ConfigError, match=r"a.gin:\d+: "):
        scan(write("a.gin", line), tmp_path)


@pytest.mark.parametrize(
    ("text", "value"),
    [("3", 3), ("5e-4", 5e-4), ("'a'", "a"), ("None", None), ("[1, (2, 3)]", [1, (2, 3)]), ("{'a': 1}", {"a": 1})],
)
def test_values_are_parsed(text, value):
    read = parse_value(text)
    assert read.literal == value and type(read.literal) is type(value) and read.references == read.macros == []


@pytest.mark.parametrize(
    ("text", "references", "macros"),
    [("@loop.fit", ["loop.fit"], []), ("@a/loop.fit()", ["a/loop.fit"], []), ("%SEED", [], ["SEED"])],
)
def test_references_and_macros_are_read_as_names(text, references, macros):
    alone, inside = parse_value(text), parse_value(f"[{text}]")
    assert isinstance(alone.literal, Name) and inside.literal == [alone.literal] and isinstance(inside.literal[0], Name)
    assert alone.references == inside.references == references and alone.macros == inside.macros == macros


@pytest.mark.parametrize("text", ["words", "1 2", "[1, 2", "runs/a=b", "3\nloop.fit.steps = 4", "os.system('true')"])
def test_what_is_no_value_is_refused(text):
    with pytest.raises(SyntaxError):
        parse_value(text)


@pytest.mark.parametrize(
    ("key", "scopes", "target", "parameter"),
    [
        ("loop.fit.steps", (), ("loop", "fit"), "steps"),
        ("SEED", (), (), "SEED"),
        ("trained_on.optim.adamw.lr", ("trained_on",), ("optim", "adamw"), "lr"),
        ("trained_on/optim.adamw.lr", ("trained_on",), ("optim", "adamw"), "lr"),
        ("a.b.optim.adamw.lr", ("a", "b"), ("optim", "adamw"), "lr"),
        ("a/b/optim.adamw.lr", ("a", "b"), ("optim", "adamw"), "lr"),
    ],
)
def test_a_key_is_scopes_target_and_parameter(key, scopes, target, parameter):
    assert Namespace(LINES).split(key) == (scopes, target, parameter)


@pytest.mark.parametrize(
    ("target", "found"),
    [
        (("optim", "adamw"), "adamw"),
        (("optim", "nope"), None),
        (("nope", "adamw"), None),
        (("optim",), None),
        (("optim", "math"), None),
    ],
)
def test_find_gives_what_can_be_called(target, found):
    assert getattr(Namespace(LINES).find(target), "__name__", None) == found


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (("loop", "fit", "steps"), True),
        (("a", "loop", "fit", "steps"), True),
        (("MEASURES",), True),
        (("loop", "fit", "nope"), False),
        (("loop", "fit"), False),
        (("loop",), False),
    ],
)
def test_a_path_is_a_parameter_or_more_path(path, expected):
    assert Namespace(LINES).is_parameter(path) is expected


@pytest.mark.parametrize(
    ("key", "full"),
    [
        ("loop.fit.steps", ("", "pipeline.training.loop.fit", "steps")),
        ("a/b/optim.adamw.lr", ("a/b", "components.training.optim.adamw", "lr")),
        ("SEED", ("SEED", "gin.macro", "value")),
    ],
)
def test_a_key_has_a_full_form(key, full):
    assert Namespace(LINES).key(key) == full


def test_a_selector_is_the_full_name():
    assert Namespace(LINES).selector(("optim", "adamw")) == "components.training.optim.adamw"


def test_only_what_a_module_defines_is_offered():
    names = Namespace({"optim": LINES["optim"]}).names()
    assert {"optim.adamw", "optim.set_lr"} <= set(names) and "optim.nn" not in names
