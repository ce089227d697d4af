"""Reading .gin text without running it: imports, includes, values and what a dotted key means."""

import pytest

from pipeline.errors import ConfigError
from pipeline.ginfiles import Name, Namespace, parse_value, scan

LINES = {"loop": "from pipeline import loop", "optim": "from components import optim", "torch": "import torch"}


@pytest.fixture
def write(tmp_path):
    def write(name, *lines):
        (tmp_path / name).write_text("from __gin__ import dynamic_registration\n" + "\n".join(lines) + "\n")
        return tmp_path / name

    return write


def test_imports_of_includes_count(write, tmp_path):
    write("inner.gin", "from components import optim")
    outer = write("outer.gin", "from pipeline import loop", "include 'inner.gin'", "loop.fit.steps = 3")
    assert scan(outer, tmp_path).imports == {"loop": "from pipeline import loop", "optim": "from components import optim"}


def test_reading_runs_nothing(write, tmp_path, monkeypatch):
    (tmp_path / "pipeline_like.py").write_text("raise SystemExit\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        ConfigError, match=r"a.gin: may not import 'pipeline_like'; allowed are components, pipeline, stages, torch"
    ):
        scan(write("a.gin", "import pipeline_like"), tmp_path)


@pytest.mark.parametrize("line", ["import os", "from os import path", "import subprocess", "import os as torch"])
def test_what_is_not_allowed_is_refused(write, tmp_path, line):
    with pytest.raises(ConfigError, match=r"a.gin: may not import '(os|os.path|subprocess)'"):
        scan(write("a.gin", line), tmp_path)


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
    assert parse_value(text)[0] == value and type(parse_value(text)[0]) is type(value)


@pytest.mark.parametrize("text", ["@loop.fit", "@a/loop.fit()", "%SEED"])
def test_references_are_read_as_names(text):
    assert isinstance(parse_value(text)[0], Name) and isinstance(parse_value(f"[{text}]")[0][0], Name)


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


def test_a_selector_is_the_full_name():
    assert Namespace(LINES).selector(("optim", "adamw")) == "components.optim.adamw"


def test_only_what_a_module_defines_is_offered():
    names = Namespace({"optim": LINES["optim"]}).names()
    assert {"optim.adamw", "optim.set_lr"} <= set(names) and "optim.nn" not in names
