"""The command line: what a stage's Fire CLI understands, what it leaves as it was typed, what it refuses before anything runs."""

import ast
import inspect

import pytest

from pipeline import command_line
from pipeline.command_line import COMMANDS, SECTIONS, STAGES, TOOLS, Request, parse
from pipeline.errors import ConfigError
from tests.conftest import ROOT

STRANGE = (
    "1e5", "12", "007", "-5", "{}", "[1, 2]", "None", "True", "(1,)", "'quoted'", '"twice"', "a=b", "a b", "\n", "#", "\\n",
    "0x10", "1_000", "{a: 1}", "@x", "%X", "-", "*", "--5", "--", "---", "--help", "-x",
)  # fmt: skip


@pytest.mark.parametrize("text", STRANGE)
def test_a_value_arrives_as_it_was_typed(text):
    assert parse("generate", [f"--prompt={text}"]) == Request("generate", own={"prompt": text})
    assert parse("warmup", [f"--out={text}"]) == Request("warmup", out=text)


@pytest.mark.parametrize("text", [text for text in STRANGE if not text.startswith("--")])
def test_the_word_after_a_flag_is_its_value(text):
    assert parse("generate", ["--model", text]) == Request("generate", own={"model": text})


@pytest.mark.parametrize("text", [text for text in STRANGE if not text.startswith("-")])
def test_overrides_arrive_as_they_were_typed(text):
    words = [text, f"loop.fit.steps={text}", "loop.fit.steps=20"]
    assert parse("warmup", words) == Request("warmup", tuple(words))


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2]])
def test_flags_and_overrides_stand_in_any_order(order):
    pieces = [["--check"], ["SEED=1"], ["--out", "a"], ["--device=cpu"]]
    arguments = [word for piece in order for word in pieces[piece]]
    assert parse("warmup", arguments) == Request("warmup", ("SEED=1",), out="a", device="cpu", check=True)


@pytest.mark.parametrize("words", [[], ["outputs/warmup"], ["a", "b"], ["True"], ["12"]])
def test_a_tools_words_arrive_as_they_were_typed(words):
    """Though it has no switch at all."""
    assert parse("doctor", words) == Request("doctor", tuple(words))


def test_a_switch_takes_no_word_from_the_overrides():
    assert parse("warmup", ["--check", "SEED=1", "--print-config", "BATCH=2"]) == Request(
        "warmup", ("SEED=1", "BATCH=2"), check=True, print_config=True
    )


@pytest.mark.parametrize(
    ("typed", "meant"), [("--check=True", True), ("--check=true", True), ("--check=False", False), ("--check", True)]
)
def test_a_switch_can_be_said_aloud(typed, meant):
    assert parse("warmup", [typed]).check is meant


@pytest.mark.parametrize(("typed", "meant"), [("-o", {"out": "a"}), ("-d", {"device": "a"}), ("--out", {"out": "a"})])
def test_an_initial_that_is_unique_is_enough(typed, meant):
    assert parse("warmup", [typed, "a"]) == parse("warmup", [f"{typed}=a"]) == Request("warmup", **meant)


def defaulted(stage):
    """Names and defaults of a stage's own flags, read from its file."""
    tree = ast.parse((ROOT / "stages" / f"{stage}.py").read_text())
    [run] = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "run"]
    pairs = zip(run.args.kwonlyargs, run.args.kw_defaults, strict=True)
    return {argument.arg: ast.literal_eval(default) for argument, default in pairs if default is not None}


OWN = {
    "compare": {"out"},
    "configure": {"plan", "peak", "mfu", "processes", "memory", "link", "reading", "price", "storage"},
    "extract": {"verify"}, "evaluate": {"limit"},
    "export": {"model", "push"}, "generate": {"model", "prompt", "prompts", "confidence"}, "track": {"ship", "follow"},
    "new": {"train", "test", "prompt", "response", "backbone", "overwrite"},
    "serve": {"backbone", "address", "device"}, "visualise": {"model", "evaluation", "out"}, "watch": {"once"},
}  # fmt: skip


@pytest.mark.parametrize("stage", COMMANDS)
def test_the_flags_of_a_stage_are_the_defaulted_parameters_of_its_run(stage):
    own = {name: value for name, value in defaulted(stage).items() if name != "overrides"}
    assert own.keys() == OWN.get(stage, set())
    for name, default in own.items():
        typed = [f"--{name}"] if isinstance(default, bool) else [f"--{name}", "3"]
        assert parse(stage, typed).own == {name: True if isinstance(default, bool) else "3"}


@pytest.mark.parametrize("stage", COMMANDS)
def test_help_names_every_flag_with_its_meaning_and_runs_nothing(stage):
    lines = command_line.stage_help(stage).splitlines()
    assert lines[0] == "NAME" and lines[1].startswith(f"    python -m stages {stage} - ") and "FIRE_METADATA" not in lines
    shown = {line.split("--")[1].partition("=")[0]: i for i, line in enumerate(lines) if line.lstrip(" ").startswith("-")}
    shared = {"device", "check"} if stage not in TOOLS else set()
    shared |= {"config", "print_config"} if stage in SECTIONS else set()
    shared |= {"queue"} if stage in STAGES else set()
    shared |= set() if stage in ("generate", "track", *TOOLS) else {"out"}
    assert shown.keys() == OWN.get(stage, set()) | shared
    for line in shown.values():
        kind, default, meaning = lines[line + 1 : line + 4]
        assert kind.startswith("        Type: ") and default.startswith("        Default: ") and len(meaning.split()) >= 3


def test_every_initial_in_a_help_is_understood():
    for stage in COMMANDS:
        for line in command_line.stage_help(stage).splitlines():
            initial, comma, name = line.strip().partition(", --")
            if comma and initial.startswith("-"):
                name = name.partition("=")[0]
                assert command_line._name(stage, initial, initial, command_line._flags(stage)) == name


def test_the_overview_has_a_line_for_each_stage():
    lines = [line.strip() for line in command_line.overview().splitlines()]
    for stage in COMMANDS:
        meaning = lines[lines.index(stage) + 1]
        assert len(meaning.split()) >= 5 and not meaning.startswith(stage)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["warmup", "--chekc"], "unknown flag --chekc; did you mean 'check'?"),
        (["warmup", "--chekc=1"], "unknown flag --chekc=1; did you mean 'check'?"),
        (["warmup", "-check"], "unknown flag -check; did you mean 'check'?"),
        (["warmup", "-x"], "unknown flag -x; known: check, config, device, help, out, print-config, queue"),
        (["warmup", "-"], "unknown flag -; known: check"),
        (["warmup", "--"], "unknown flag --; known: check"),
        (["warmup", "--", "--interactive"], "unknown flag --; known: check"),
        (["warmup", "--__class__"], "unknown flag --__class__; known: check"),
        (["warmup", "--nocheck"], "unknown flag --nocheck; did you mean 'check'?"),
        (["warmup", "--stage=joint"], "unknown flag --stage=joint"),
        (["warmup", "--own=a"], "unknown flag --own=a"),
        (["configure", "--overrides=a"], "unknown flag --overrides=a"),
        (["warmup", "--out=a", "-o", "b"], "--out is given twice"),
        (["warmup", "--check", "--check"], "--check is given twice"),
        (["warmup", "--out"], "--out needs a value (one that begins with dashes: --out=VALUE)"),
        (["warmup", "--out="], "--out needs a value"),
        (["generate", "--prompt", "--5"], "--prompt needs a value (one that begins with dashes: --prompt=VALUE)"),
        (["warmup", "--check=maybe"], "--check is a switch, it is there or not; got 'maybe'"),
        (["warmup", "--limit", "3"], "--limit belongs to: python -m stages evaluate"),
        (["warmup", "--model=a"], "--model belongs to: python -m stages generate or export"),
        (["track", "--verify"], "--verify belongs to: python -m stages extract"),
        (["configure", "--print-config"], "--print-config belongs to: python -m stages prepare or backbone or"),
        (["warmup", "--loop.fit.steps=3"], "unknown flag --loop.fit.steps=3; a setting stands without dashes: loop.fit.steps=3"),
        (["env", "a.b=3"], "env takes no words, got: a.b=3"),
        (["report", "--compare", "HEAD"], "--compare is no flag but a command of its own: python -m stages compare"),
        (["compare", "--limit", "3"], "--limit belongs to: python -m stages evaluate"),
        (["doctor", "--check"], "--check belongs to: python -m stages"),
        (["doctor", "--runs=a"], "unknown flag --runs=a; known: help"),
        (["env", "--check"], "--check belongs to: python -m stages"),
        (["warmpu"], "unknown stage 'warmpu'; did you mean 'warmup'?"),
        (["__main__"], "unknown stage '__main__'; known: ablate"),
        ([""], "name a stage: configure, prepare"),
        (["--check", "warmup"], "name a stage: configure, prepare"),
    ],
)
def test_what_is_not_understood_is_one_line(arguments, message):
    with pytest.raises(ConfigError) as refused:
        parse(arguments[0], arguments[1:])
    assert str(refused.value).startswith(message) and "\n" not in str(refused.value)


def test_reading_a_command_line_runs_nothing(monkeypatch):
    for stage in COMMANDS:
        signature = inspect.signature(command_line.run_function(stage))

        def run(**_):
            pytest.fail("a stage ran")

        run.__signature__, run.__doc__ = signature, command_line.run_function(stage).__doc__
        monkeypatch.setattr(f"stages.{stage}.run", run)
        parse(stage, ["--check"] if stage not in TOOLS else []), command_line.stage_help(stage)
        with pytest.raises(ConfigError):
            parse(stage, ["SEED=1", "--unknown"])
