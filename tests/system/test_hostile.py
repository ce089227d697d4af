"""Gin files and params.yaml from strangers: read, checked, refused; nothing that they name runs."""

import contextlib
import importlib
import os
import re
import shutil
import signal
import sys
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.command_line import SECTIONS
from pipeline.errors import ConfigError
from pipeline.settings import allowed_modules, config, params
from stages.__main__ import main
from tests.conftest import ROOT

HEADER = "from __gin__ import dynamic_registration\n"
SMOKE = "preset: smoke\n"
NAMED = SMOKE + "warmup: {gin: [gin/hostile.gin]}\n"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A workspace of one's own, on the path as `python -m` puts it there, with a module that leaves a file when it is imported."""
    monkeypatch.delenv("DVC_STAGE", raising=False)
    monkeypatch.delenv("SLOTLOOP_ALLOW", raising=False)
    monkeypatch.setenv("SLOTLOOP_TRACKING", "off")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    shutil.copytree(ROOT / "gin", tmp_path / "gin")
    for module in ("evil.py", "__gin__evil.py"):
        (tmp_path / module).write_text("from pathlib import Path\nPath('was_here').touch()\n")
    (tmp_path / "params.yaml").write_text(SMOKE)
    yield tmp_path
    for module in ("evil", "__gin__evil"):
        sys.modules.pop(module, None)


def resolve(text=None, stage="warmup", *overrides):
    if text is not None:
        Path("params.yaml").write_text(text)
    return config.resolve(stage, params.read(Path("params.yaml"), SECTIONS), overrides).text


def hostile(*lines, file="gin/hostile.gin", header=HEADER):
    Path(file).write_text(header + "".join(f"{line}\n" for line in lines))


def refused(match, *arguments):
    """``resolve`` refuses, and nothing has run."""
    with pytest.raises(ConfigError, match=match):
        resolve(*arguments)
    assert not Path("was_here").exists()


def outcome(seconds, *arguments):
    """How ``resolve`` ends, as a word: what it held on to may be too large to be shown by a failing test."""

    def late(*_):
        raise TimeoutError

    before = signal.signal(signal.SIGVTALRM, late)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        resolve(*arguments)
    except Exception as error:
        return type(error).__name__
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
    return "resolved"


def test_the_module_that_leaves_a_file_leaves_it(here):
    importlib.import_module("evil")
    assert Path("was_here").exists()


# Imports

IMPORTS = (
    "import evil", "import os", "import os.path", "import os as torch", "import os as loop", "from os import path",
    "from os import system as loop", "import\tos", "import os  # torch", "import subprocess", "import builtins", "import importlib",
    "import gin", "from gin import config", "import __main__", "from ruamel import yaml", "import torch", "import torch as nn",
    "import torch.hub", "import torch.hub as nn", "from torch import hub", "from torch import load",
    "from torch import serialization",
    "from torch.utils import cpp_extension", "import torch.nnx", "from torch import nnx", "import torchnn",
    "import components_evil",
    "import pipelinex.loop", "from pipelinex import loop", "import tests.conftest", "from bench import seeds",
)  # fmt: skip
PLACES = ("section", "common", "preset", "include", "include of the preset")


def place(line, where):
    """Put a line where a stranger may put it; returns params.yaml."""
    if where == "preset":
        hostile(line, "include 'gin/presets/smoke.gin'", file="gin/presets/mine.gin")
        return "preset: mine\n"
    hostile(line, file="gin/inner.gin" if "include" in where else "gin/hostile.gin")
    if where == "include of the preset":
        hostile("include 'gin/presets/smoke.gin'", "include 'gin/inner.gin'", file="gin/presets/mine.gin")
        return "preset: mine\n"
    if where == "include":
        hostile("include 'gin/sizes/tiny.gin'", "include 'gin/inner.gin'")
    return SMOKE + f"{'common' if where == 'common' else 'warmup'}: {{gin: [gin/hostile.gin]}}\n"


@pytest.mark.parametrize("line", IMPORTS)
def test_a_forbidden_import_is_refused_in_every_spelling(here, line):
    refused(r"gin/hostile.gin:2: may not import '[\w.]+'.*; allowed are components", place(line, "section"))


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("line", ["import evil", "from torch import hub"])
def test_a_forbidden_import_is_refused_in_every_place(here, where, line):
    refused(r"gin/[\w/]+.gin:2: may not import", place(line, where))


@pytest.mark.parametrize("header", ["", "from components.training import optim\n", HEADER + HEADER])
def test_a_forbidden_import_is_refused_whatever_stands_before(here, header):
    hostile("import evil", header=header)
    refused("may not import 'evil'", NAMED)


def test_an_import_before_a_forbidden_one_does_not_run_either(here, monkeypatch):
    monkeypatch.setenv("SLOTLOOP_ALLOW", "evil")
    hostile("import evil", "evil.nothing.at = 1", "import os")
    refused("may not import 'os'", NAMED)


@pytest.mark.parametrize(
    "line", ["import os, sys", "from os import *", "from . import os", "from .. import os", "import evil; x = 1"]
)
def test_an_import_that_gin_does_not_know_is_refused(here, line):
    hostile(line)
    refused(r"gin/hostile.gin:2: ", NAMED)


@pytest.mark.parametrize(
    "line",
    ["from pipeline.machine.runtime import os", "from stages.os import path", "import __gin__.os", "from __gin__ import evil"],
)
def test_a_module_that_an_allowed_one_only_uses_is_not_found(here, line):
    hostile(line)
    refused("gin/hostile.gin", NAMED)


def test_a_module_whose_name_begins_like_gins_own_is_refused(here):
    hostile("import __gin__evil")
    refused("may not import '__gin__evil'", NAMED)


@pytest.mark.parametrize("package", ["pipeline", "components", "stages", "torch"])
def test_a_module_of_the_workspace_does_not_shadow_an_allowed_package(here, package):
    (here / package).mkdir()
    for module in ("mine", "nn"):
        (here / package / f"{module}.py").write_text("from pathlib import Path\nPath('was_here').touch()\n")
    hostile("from torch.nn import mine" if package == "torch" else f"from {package} import mine")
    refused(r"gin/hostile.gin: No module named '[\w.]+mine'|may not import 'pipeline.mine'", NAMED)


# More modules are allowed by whoever runs it

CORPUS = """
class Corpus:
    causal = False

    def shape(self) -> tuple[int, int]:
        return 5, 16

    def raw_files(self):
        return ()

    def prepare(self, seed, out):
        raise NotImplementedError
"""


@pytest.fixture
def corpus(here):
    (here / "minecorpus.py").write_text(CORPUS)
    hostile("import minecorpus", "include 'gin/presets/smoke.gin'", "CORPUS = @minecorpus.Corpus()", file="gin/presets/mine.gin")
    return "preset: mine\n"


@pytest.mark.parametrize("value", ["minecorpus", "os , minecorpus", ",minecorpus,"])
def test_the_environment_allows_further_modules(corpus, monkeypatch, value):
    monkeypatch.setenv("SLOTLOOP_ALLOW", value)
    text = resolve(corpus, "prepare")
    assert "import minecorpus\n" in text and "prepare.run.corpus = %CORPUS\n" in text
    config.load_text(text, "prepare")
    assert config.argument("stages.prepare.run", "corpus").shape() == (5, 16)


@pytest.mark.parametrize("value", ["", ",", " ", "mine", "minecorpus2", "minecorpus.Corpus", "*", "."])
def test_what_the_environment_does_not_name_stays_refused(corpus, monkeypatch, value):
    monkeypatch.setenv("SLOTLOOP_ALLOW", value)
    refused("may not import 'minecorpus'", corpus, "prepare")


def test_the_environment_alone_allows(corpus):
    hostile("SLOTLOOP_ALLOW = 'os'", "import os")
    refused("may not import 'os'", NAMED)
    refused(
        "SLOTLOOP_ALLOW", SMOKE + "common: {bindings: {SLOTLOOP_ALLOW: minecorpus}}\nwarmup: {bindings: {SLOTLOOP_ALLOW: os}}\n"
    )
    refused("unknown section 'SLOTLOOP_ALLOW'", corpus + "SLOTLOOP_ALLOW: minecorpus\n", "prepare")
    refused("may not import 'minecorpus'", corpus, "prepare", "SLOTLOOP_ALLOW=minecorpus")
    assert allowed_modules.allowed() == allowed_modules.ALLOWED


# A configuration that is given as a whole: --config, and what export or a killed run left


def stored(*lines, file="given.gin"):
    """A text as configure writes it, of the stage prepare, with lines of a stranger."""
    config.load_text(text := resolve(SMOKE, "prepare"), "prepare")
    Path(file).write_text(text + "".join(f"{line}\n" for line in lines))
    return file


@pytest.mark.parametrize(
    ("line", "flags"),
    [*((line, ()) for line in IMPORTS), *(("import evil", (flag,)) for flag in ("--check", "--print-config", "--help"))],
)
def test_a_given_configuration_imports_nothing_that_is_forbidden(here, capsys, line, flags):
    assert main(["prepare", "--config", stored(line), *flags]) == 2
    error = capsys.readouterr().err
    assert re.match(r"error: given.gin:\d+: may not import '[\w.]+'.*; allowed are components", error) and error.count("\n") == 1
    assert not Path("was_here").exists()


STRANGE = {
    "include 'other.gin'": r"given.gin:\d+: a text that configure wrote includes no other",
    "prepare.run.seed = 3": r"given.gin:\d+: 'prepare.run.seed' is bound twice; also in line \d+",
    "from pipeline.machine import runtime\na/prepare.run.out = @runtime.os.getcwd()": "nothing configurable is called 'runtime.os",
    "a/prepare.run.seed = @prepare.run()": "'prepare.run' would run a stage",
    "sudoku.Sudoku.cluse = 3": "Sudoku",
    "a/sudoku.Sudoku.train = 3": "'sudoku.Sudoku.train' reaches nothing that stages.prepare.run builds: scope 'a' is never entered",
    "x = (lambda: 1)()": r"given.gin:\d+: ",
    "x = [1, 2": r"given.gin:\d+: ",
    "import\tevil": "may not import 'evil'",
}


@pytest.mark.parametrize(("lines", "match"), STRANGE.items(), ids=STRANGE)
@pytest.mark.parametrize("flags", [("--check",), ()])
def test_a_given_configuration_is_checked_as_a_whole(here, capsys, lines, match, flags):
    Path("other.gin").write_text("import evil\n")
    assert main(["prepare", "--config", stored(*lines.split("\n")), *flags]) == 2
    error = capsys.readouterr().err
    assert re.search(match, error) and error.count("\n") == 1 and "Traceback" not in error
    assert not Path("was_here").exists() and not Path("data").exists()


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ("prepare.run.seed = %DATA_SEED", "prepare.run.seed = 'x'", "given.gin: .*prepare.run.seed expects int, got 'x'"),
        ("DATA_SEED = 0", "DATA_SEED = 0.5", "given.gin: .*prepare.run.seed expects int, got 0.5"),
        ("DATA_SEED = 0\n", "", "given.gin: .*"),
        ("stages import prepare", "stages import warmup", "given.gin"),
    ],
)
def test_values_of_a_given_configuration_are_checked(here, capsys, old, new, match):
    text = resolve(SMOKE, "prepare")
    assert old in text
    Path("given.gin").write_text(text.replace(old, new))
    assert main(["prepare", "--config", "given.gin", "--check"]) == 2
    assert re.search(match, capsys.readouterr().err)


def test_bytes_that_are_no_text_are_no_configuration(here, capsys):
    Path("given.gin").write_bytes(b"\xff\xfe\x00")
    assert main(["prepare", "--config", "given.gin"]) == 2
    assert capsys.readouterr().err.startswith("error: given.gin is not text")


def test_every_text_that_configure_and_a_stage_write_is_accepted_again(finished, capsys):
    for stage in SECTIONS:
        text = config.resolve(stage, params.read(finished / "params.yaml", SECTIONS), root=finished).text
        config.load_text(text, stage)
    written = sorted((finished / "outputs").rglob("config.gin"))
    assert len(written) >= 6
    for file in written:
        assert main([file.parent.name, "--config", str(file), "--check"]) == 0, capsys.readouterr().err


def test_a_key_bound_twice_in_a_file_is_refused(here):
    hostile("from pipeline.training import loop", "loop.fit.clip = 2.0", "loop.fit.steps = 3", "loop.fit.clip = 1.0")
    refused("gin/hostile.gin:5: 'loop.fit.clip' is bound twice; also in line 3", NAMED)
    hostile("BATCH = 3", "", "BATCH = 4", file="gin/hostile.gin")
    refused("gin/hostile.gin:4: 'BATCH' is bound twice; also in line 2", NAMED)


# References

BEHIND = (
    "runtime.os.system", "runtime.os.path.join", "runtime.os", "runtime.contextlib.suppress", "loop.torch.load",
    "loop.torch.hub.load",
    "loop.torch.set_num_threads", "loop.Path", "loop.Path.unlink", "loop.snapshots.shutil.rmtree", "loop.snapshots.os.system",
    "loop.fit.__globals__", "loop.fit.__class__", "loop.fit.__call__", "runtime.Runtime.__subclasses__",
    "runtime.Runtime.__class__",
    "optim.torch.load", "optim.math.sqrt", "nn.modules.module.torch.load", "nn.init.torch.hub.load",
    "nn.functional.importlib.import_module", "loop.nn.modules.module.torch.load", "refiner.torch.nn.modules.module.torch.load",
)  # fmt: skip
IMPORTED = (
    "from pipeline.machine import runtime",
    "from pipeline.training import loop",
    "from components.training import optim",
    "from torch import nn",
)


@pytest.mark.parametrize("name", BEHIND)
def test_nothing_behind_an_allowed_module_can_be_named(here, name):
    told = f"nothing configurable is called '{name}'"
    hostile(*IMPORTED, f"warmup.run.unfreeze = [@a/{name}()]")
    refused(told, NAMED)
    hostile(*IMPORTED)
    refused(told, NAMED, "warmup", f"loop.fit.optimizer=@{name}")


@pytest.mark.parametrize(
    "value", ["'@runtime.os.system()'", "['@a/nn.init.torch.hub.load']", "{a: '@loop.Path()'}", "{'@runtime.os': 1}"]
)
@pytest.mark.parametrize("section", ["warmup", "common"])
def test_nothing_behind_an_allowed_module_can_be_named_in_params(here, section, value):
    hostile(*IMPORTED)
    told = f"params.yaml:2 {section}.bindings.loop.fit.optimizer: nothing configurable is called"
    refused(told, f"{SMOKE}{section}: {{gin: [gin/hostile.gin], bindings: {{loop.fit.optimizer: {value}}}}}\n")


def test_a_parameter_of_something_behind_a_module_cannot_be_bound(here):
    hostile(*IMPORTED, "runtime.os.system.command = 'touch was_here'")
    refused("nothing configurable is called 'runtime.os.system'", NAMED)
    refused(
        "nothing configurable is called 'runtime.os.system'",
        SMOKE + "warmup: {bindings: {runtime: {os: {system: {command: x}}}}}\n",
    )
    refused("nothing configurable is called 'runtime.os.system'", SMOKE, "warmup", "runtime.os.system.command=touch was_here")


@pytest.mark.parametrize(
    "name", ["gin.singleton", "gin.macro", "gin.constant", "gin.REQUIRED", "print", "os.system", "torch.hub.load"]
)
def test_what_nobody_imported_is_not_called(here, name):
    hostile(f"warmup.run.unfreeze = [@{name}()]")
    refused(None, NAMED)


# Functions of this project that do something

PLACED = {
    "list": ("warmup.run.unfreeze = [@{}()]",),
    "callable": ("loop.fit.optimizer = @{}",),
    "called for a callable": ("loop.fit.optimizer = @{}()",),
    "macro": ("HOSTILE = @{}()", "warmup.run.out = %HOSTILE"),
    "macro in a list": ("HOSTILE = [@{}()]", "warmup.run.unfreeze = %HOSTILE"),
    "value of a map": ("refiner.SlotRefiner.slots = {{'context': @{}()}}",),
    "key of a map": ("refiner.SlotRefiner.slots = {{@{}(): 3}}",),
    "whole number": ("loop.fit.steps = @{}()",),
    "in a scope": ("loop.fit.runtime = @hostile/{}()",),
}
DOING = {
    "files.write_atomic": ("files.write_atomic.path = @records.root()", "files.write_atomic.data = b'x'"),
    "files.write_json": ("files.write_json.path = @records.root()", "files.write_json.value = 3"),
    "shipping.follow": ("shipping.follow.folder = @records.root()",),
    "config.load_text": ("config.load_text.text = 'import evil'", "config.load_text.stage = 'warmup'"),
    "configure.run": ("configure.run.out = 'was_here'", "configure.run.stages = ('report',)"),
    "process.die_with_parent": (),
}
TOOLS = (
    *(f"from pipeline import {name}" for name in ("files", "records", "shipping", "process")),
    "from pipeline.settings import config",
)
STAGES = tuple(f"from stages import {name}" for name in ("configure", "warmup"))


@pytest.mark.parametrize("where", PLACED)
def test_a_function_that_does_something_is_not_called(here, where):
    for name, lines in DOING.items():
        hostile(*TOOLS, *STAGES, *(line.format(name) for line in PLACED[where]), *lines)
        refused(None, NAMED)
    assert not Path(".tracking").exists() and len(DOING) == 6


CALLED = {
    "it returns nothing, and nothing is wanted": (
        "config.load_text.text = 'import evil'",
        "config.load_text.stage = 'warmup'",
        "refiner.SlotRefiner.slots = @config.load_text()",
    ),
    "it writes a file": (*DOING["files.write_atomic"], "refiner.SlotRefiner.slots = @files.write_atomic()"),
    "it returns a whole number": (
        "__main__.main.arguments = ['prepare', '--out=was_here']",
        "refiner.SlotRefiner.blocks = @__main__.main()",
    ),
    "it returns a list": ("shipping.ship.trackers = [@clearml.ClearML()]", "warmup.run.unfreeze = @shipping.ship()"),
}


@pytest.mark.parametrize("lines", CALLED.values(), ids=CALLED)
def test_a_function_that_does_something_is_not_called_though_its_result_would_fit(here, lines):
    more = ("from stages import __main__", "from components.refiners import refiner", "from pipeline.tracking import clearml")
    hostile(*TOOLS, *STAGES, *more, *lines)
    refused(None, NAMED)


# Text that is code to somebody else

CODE = (
    "__import__('os').system('touch was_here')", "os.system('touch was_here')", "(lambda: 1)()", "1\nimport evil",
    "1\r\nimport evil",
    "'\nimport evil\nx = '", "'''\nimport evil", "1 # x\nimport evil", "@loop.fit()\nimport evil", "%SEED\nimport evil",
    "\\\nimport evil",
    "1; import evil", "$(touch was_here)", "`touch was_here`", "{{x}}", "${oc.env:HOME}", "!!python/name:os.system",
)  # fmt: skip


@pytest.mark.parametrize("code", CODE)
def test_a_value_that_looks_like_code_is_a_word(here, code):
    quoted = code.encode("unicode_escape").decode().replace('"', '\\"')
    config.load_text(resolve(SMOKE + f'prepare:\n  bindings:\n    prepare.run.out: "{quoted}"\n', "prepare"), "prepare")
    assert config.query("stages.prepare.run.out") == code
    config.load_text(resolve(SMOKE, "prepare", f"prepare.run.out={code}"), "prepare")
    assert config.query("stages.prepare.run.out") == code
    refused("expects int", SMOKE + f'prepare:\n  bindings:\n    prepare.run.seed: "{quoted}"\n', "prepare")


@pytest.mark.parametrize(
    "code", ["loop.fit.steps = (lambda: 1)()", "loop.fit.steps = open('was_here', 'w')", "loop.fit.steps = f'{1}'", "exec('x')"]
)
def test_a_gin_file_holds_no_code(here, code):
    hostile("from pipeline.training import loop", code)
    refused("gin/hostile.gin:3: ", NAMED)


@pytest.mark.parametrize("key", ["x = 1\\nimport evil\\ny.loop.fit.clip", "x = 1\\nimport evil\\ny/loop.fit.clip"])
@pytest.mark.parametrize("section", ["warmup", "common"])
def test_a_name_that_looks_like_code_is_refused(here, section, key):
    with contextlib.suppress(ConfigError):
        resolve(SMOKE + f'{section}:\n  bindings:\n    "{key}": 3.0\n')
    assert not Path("was_here").exists()


def test_a_name_that_looks_like_code_is_refused_on_the_command_line(here):
    refused("command line", SMOKE, "warmup", "x = 1\nimport evil\ny/loop.fit.clip=3.0")


TAGS = (
    "!!python/object/apply:os.system ['touch was_here']", "!!python/object/new:os.system ['touch was_here']",
    "!!python/name:os.system",
    "!!python/module:evil", "!!python/object:evil.Evil {}", "!<tag:yaml.org,2002:python/object/apply:os.system> ['touch was_here']",
    "!!python/tuple [1, 2]", "!!set {a}", "!!binary aGk=", "!mine {a: 1}",
)  # fmt: skip


@pytest.mark.parametrize("tag", TAGS)
def test_a_tag_of_yaml_constructs_nothing(here, tag):
    refused("params.yaml:2 .*steps|params.yaml is not valid YAML", SMOKE + f"warmup: {{bindings: {{loop.fit.steps: {tag}}}}}\n")
    refused("params.yaml", f"preset: {tag}\n")
    with contextlib.suppress(ConfigError):  # a map is a map, whatever its tag
        resolve(SMOKE + f"warmup: {tag}\n")
    with contextlib.suppress(ConfigError):
        resolve(SMOKE + f"common: {{bindings: {tag}}}\n")
    assert not Path("was_here").exists() and "evil" not in sys.modules


# Files


def test_an_include_from_outside_is_checked_too(here, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "evil.gin"
    outside.write_text("import evil\n")
    (here / "gin/sub").mkdir()
    for name in (str(outside), f"../{outside.parent.name}/evil.gin", f"gin/sub/../../../{outside.parent.name}/evil.gin"):
        hostile(f"include '{name}'")
        refused(r"evil.gin:1: may not import 'evil'", NAMED)
        refused(r"evil.gin:1: may not import 'evil'", SMOKE + f"warmup: {{gin: ['{name}']}}\n")


def test_what_was_checked_is_what_is_read(here, monkeypatch, tmp_path_factory):
    """The current folder holds files of the same names that would run something."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    shutil.copytree(ROOT / "gin", elsewhere / "gin")
    for name in ("refined", "warmup", "presets/sudoku4", "presets/defaults"):
        (elsewhere / f"gin/{name}.gin").write_text("import evil\n")
    monkeypatch.chdir(elsewhere)
    text = config.resolve("warmup", params.read(here / "params.yaml", SECTIONS), root=here).text
    assert "warmup.run.out = " in text and not (elsewhere / "was_here").exists()


@pytest.mark.parametrize("content", [b"\xff\xfe\x00\x01", b"\x00\x00", b"\x7fELF\x02\x01\x01", b"\x80abc", "x = '\u2028".encode()])
def test_a_gin_file_that_is_no_text_is_refused(here, content):
    (here / "gin/hostile.gin").write_bytes(content)
    refused(r"params.yaml:2 warmup.gin: gin/hostile.gin", NAMED)


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        ("folder", "is a folder, and a file is expected"),
        ("dangling link", "is a link that leads nowhere"),
        ("link to itself", "is a link that leads nowhere"),
        ("pipe", ""),
    ],
)
def test_a_gin_file_that_is_no_file_is_refused(here, kind, what):
    path = here / "gin/hostile.gin"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("nowhere.gin" if kind == "dangling link" else "hostile.gin")
    refused(r"params.yaml:2 warmup.gin: gin file 'gin/hostile.gin' " + what, NAMED)


@pytest.mark.parametrize("name", ["gin/hostile.gin", "gin/./hostile.gin", "gin/sizes/../hostile.gin"])
def test_a_file_that_includes_itself_ends(here, name):
    hostile(f"include '{name}'")
    refused("includes itself, through gin/hostile.gin", NAMED)


def test_a_circle_of_three_files_ends(here):
    for one, next_one in (("a", "b"), ("b", "c"), ("c", "a")):
        hostile(f"include 'gin/{next_one}.gin'", file=f"gin/{one}.gin")
    refused("gin/a.gin includes itself, through gin/a.gin and gin/b.gin and gin/c.gin", SMOKE + "common: {gin: [gin/a.gin]}\n")


@pytest.mark.parametrize("text", ["warmup: {bindings: &b {loop: *b}}", "warmup: {bindings: {loop: {fit: {steps: &b [*b]}}}}"])
def test_aliases_of_themselves_are_refused(here, text):
    refused("params.yaml:2", SMOKE + text + "\n")


DEEP = {
    "gin": ("gin/hostile.gin", HEADER + "from pipeline.training import loop\nloop.fit.steps = " + "[" * 500 + "]" * 500 + "\n"),
    "list": ("params.yaml", SMOKE + "warmup: {bindings: {loop.fit.steps: " + "[" * 500 + "]" * 500 + "}}\n"),
    "map": ("params.yaml", SMOKE + "warmup: {bindings: " + "{a: " * 500 + "1" + "}" * 500 + "}\n"),
}


@pytest.mark.parametrize("kind", DEEP)
def test_nesting_without_end_is_refused(here, kind):
    Path("params.yaml").write_text(NAMED)
    file, text = DEEP[kind]
    Path(file).write_text(text)
    assert outcome(5.0) == "ConfigError"


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"preset: smoke\n# \xe9\n"])
def test_a_params_file_that_is_no_text_is_refused(here, content):
    (here / "params.yaml").write_bytes(content)
    refused("params.yaml", None)


def test_a_map_that_takes_over_another_is_read_or_refused(here):
    text = SMOKE + "warmup: {bindings: &b {SEED: 1}}\njoint: {bindings: {<<: *b, JOINT_LR: 2e-3}}\n"
    with contextlib.suppress(ConfigError):
        assert "SEED = 1\n" in resolve(text, "joint")


@pytest.mark.parametrize("preset", ["../../secret", "/etc/hostname", "a b", "x\\ny", "smoke.gin", ""])
def test_a_preset_is_a_name(here, preset):
    refused("params.yaml", f'preset: "{preset}"\n')


def test_a_preset_with_a_long_name_is_refused(here):
    refused("params.yaml", f"preset: {'a' * 5000}\n")


# Whatever it is

GIN = st.text() | st.lists(
    st.sampled_from([
        HEADER, "from pipeline.training import loop\n",
        "from ", "import ", "include ", "'gin/sizes/tiny.gin'", "\n", "loop", ".", "fit",
        "steps",
        " = ", "3", "'", '"', "[", "]", "(", ")", "{", "}", ":", ",", "@", "%", "/", "()", "loop.fit", "@loop.fit", "%SEED", " ",
        "\t",
        "#", "\\", "\\\n", "\r", "\x0c", "\x00", "'''", "b'x'", "f'x'", "0x", "1e", "_", "...", "None", "-", "lambda", "if", "as ",
        "é",
        "gin.macro", "%gin.REQUIRED", "\u2028", "$", "==", "->", "*", ";",
    ]),
    max_size=12,
).map("".join)  # fmt: skip
YAML = st.text() | st.lists(
    st.sampled_from([
        SMOKE, "warmup:", "common: ", "\n", "  ", "bindings:", "gin:", " ", "loop", "fit", "steps", ": ", ":", "3", "3.5", "'",
        '"', "[",
        "]", "{", "}", ",", "- ", "&a ", "*a", "<<: ", "!!str ", "!x ", "|\n", ">\n", "#", "?", "@loop.fit", "%SEED", "()", "/",
        ".",
        "---\n", "...\n", "%YAML 1.1\n", "null", "~", "true", "2020-01-01", "0x1", "1e400", ".nan", "\t", "\x00", "é", "=", "1_0",
        "1:2",
    ]),
    max_size=14,
).map("".join)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("random")
    shutil.copytree(ROOT / "gin", made / "gin")
    return made


def survives(folder, stage):
    with contextlib.suppress(ConfigError):
        config.resolve(stage, params.read(folder / "params.yaml", SECTIONS), root=folder)


@settings(max_examples=120, deadline=None, derandomize=True)
@given(GIN)
@example(HEADER + "from pipeline.training import loop\nloop.fit.steps = 3\n")
def test_any_text_as_a_gin_file_is_read_or_refused(folder, text):
    (folder / "gin/random.gin").write_text(text, encoding="utf-8", newline="")
    (folder / "params.yaml").write_text(SMOKE + "report: {gin: [gin/random.gin]}\n")
    survives(folder, "report")


@settings(max_examples=120, deadline=None, derandomize=True)
@given(YAML)
@example(SMOKE)
def test_any_text_as_params_is_read_or_refused(folder, text):
    (folder / "params.yaml").write_text(text, encoding="utf-8", newline="")
    survives(folder, "warmup")


ODD = (
    "._", "preset: smoke\nwarmup: !!int x", "preset: !!int ''", "preset: !!float x", "preset: !!bool smoke", "preset: !!set smoke",
    "preset: !!omap smoke", SMOKE + "warmup: {bindings: !!omap [a: 1]}", "preset: smoke\nwarmup: {bindings: {SEED: 2020-99-99}}",
)  # fmt: skip


@pytest.mark.parametrize("text", ODD)
def test_text_that_yaml_itself_stumbles_over_is_refused(here, text):
    refused("params.yaml", text)


VALUES = (
    "3", "3.5", "null", "word", "'@loop.fit'", "'@runtime.Runtime()'", "'%SEED'", "'%gin.REQUIRED'", "[]", "[[a, 1]]",
    "{a: [b, 1]}",
    "['@runtime.Runtime()']", "['%SEED']", "{'%SEED': 1}", "2020-01-01", "'@gin.macro'", "'@gin.singleton()'", "'@runtime'",
    "'@SEED'",
)  # fmt: skip


@pytest.mark.parametrize("key", ["loop.fit.steps", "loop.fit.optimizer", "optim.adamw.betas", "refiner.SlotRefiner.slots"])
def test_any_value_of_any_setting_is_accepted_or_refused(here, key):
    for value in VALUES:
        with contextlib.suppress(ConfigError):
            resolve(SMOKE + f"warmup:\n  bindings:\n    {key}: {value}\n")
