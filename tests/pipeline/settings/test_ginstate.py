"""gin's configuration: reachability, values behind macros, canonical text. Fails loudly where gin's private parts change."""

import gin
import pytest

from pipeline.errors import ConfigError
from pipeline.settings import ginstate
from pipeline.settings.canonical import canonical
from pipeline.settings.ginfiles import MACRO
from pipeline.settings.params import Binding

HEADER = """from __gin__ import dynamic_registration
from components.objective import supervision
from components.training import optim
from pipeline.data import sources
from pipeline.machine import runtime
from pipeline.training import loop
"""
LOOP = "pipeline.training.loop.fit"


@pytest.fixture
def parse():
    """``parse(line, ...)``: the current configuration, cleared afterwards."""
    gin.clear_config()
    yield lambda *lines: gin.parse_config(HEADER + "\n".join(lines) + "\n")
    gin.clear_config()


def text():
    return canonical(gin.config_str, ginstate.line_width())


def test_gin_is_the_version_whose_private_parts_are_used():
    from importlib.metadata import version

    assert version("gin-config") == "0.5.0"


def test_arguments_that_a_root_gives_are_resolved_and_defaults_are_those_of_the_signature(parse):
    parse(
        "STEPS = 3", "loop.fit.steps = %STEPS", "loop.fit.schedule = @optim.warmup_cosine", "loop.fit.optimizer = @optim.adamw",
        "optim.warmup_cosine.floor = 0.25", "optim.adamw.lr = 0.1",
    )  # fmt: skip
    found = ginstate.arguments(LOOP, LOOP, ("steps", "schedule", "clip"))
    assert found["steps"] == 3 and found["clip"] == 1.0 and found["schedule"](100, 100) == 0.25
    assert ginstate.arguments(LOOP, "components.training.optim.adamw", ("lr", "backbone_lr")) == {"lr": 0.1, "backbone_lr": None}
    assert ginstate.arguments(LOOP, "pipeline.machine.runtime.Runtime", ("device",)) is None


def test_macros_are_listed(parse):
    parse("STEPS = 3", "LR = 0.1", "loop.fit.steps = %STEPS")
    assert sorted(ginstate.macros()) == ["LR", "STEPS"]


def test_what_the_root_cannot_reach_is_dropped(parse):
    parse("loop.fit.steps = %STEPS", "STEPS = 3", "OTHER = 4", "optim.adamw.lr = 0.1", "runtime.Runtime.threads = 1")
    assert ginstate.prune(LOOP) == {("", LOOP, "steps"), ("STEPS", "gin.macro", "value")}
    assert text().splitlines()[-2:] == ["STEPS = 3", "loop.fit.steps = %STEPS"]


def test_references_are_followed_through_macros_and_containers(parse):
    parse("loop.fit.optimizer = %OPT", "OPT = @optim.adamw", "optim.adamw.lr = %LR", "LR = 0.1")
    parse("loop.fit.run = [1, {'a': @runtime.Runtime()}]", "runtime.Runtime.threads = 1")
    ginstate.prune(LOOP)
    for kept in ("OPT = @optim.adamw", "optim.adamw.lr = %LR", "LR = 0.1", "runtime.Runtime.threads = 1"):
        assert f"{kept}\n" in text()


def test_a_scope_is_kept_where_it_is_entered(parse):
    parse("loop.fit.optimizer = @a/optim.adamw", "optim.adamw.lr = 0.1", "a/optim.adamw.lr = 0.2", "b/optim.adamw.lr = 0.3")
    used = ginstate.prune(LOOP)
    assert ("a", "components.training.optim.adamw", "lr") in used and ("b", "components.training.optim.adamw", "lr") not in used
    assert ("", "components.training.optim.adamw", "lr") not in used  # the more specific one always wins


def test_a_call_runs_within_the_scopes_of_its_caller(parse):
    parse(
        "loop.fit.optimizer = @a/optim.adamw",
        "optim.adamw.parameters = @supervision.constant",
        "loop.fit.run = @supervision.constant",
    )
    parse("supervision.constant.weight = 0.1", "a/supervision.constant.weight = 0.2", "b/supervision.constant.weight = 0.3")
    used = ginstate.prune(LOOP)
    assert {scope for scope, selector, _ in used if selector == "components.objective.supervision.constant"} == {"", "a"}


@pytest.mark.parametrize(
    ("key", "used", "reason"),
    [
        (("z", LOOP, "clip"), {("a", LOOP, "clip")}, ": scope 'z' is never entered; scopes in use: a"),
        (("z", LOOP, "clip"), set(), ": scope 'z' is never entered; scopes in use: none"),
        (("", LOOP, "clip"), {("a", LOOP, "clip")}, ": 'a/loop.fit.clip' is more specific and wins"),
        (("", LOOP, "clip"), set(), ""),
        (("SEED", "gin.macro", "value"), set(), ""),
    ],
)
def test_why_a_binding_has_no_effect(parse, key, used, reason):
    parse("loop.fit.clip = 1.0")
    assert ginstate.why(LOOP, key, used) == reason


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["loop.fit.steps = 'a'"], r"gin files, loop.fit.steps: loop.fit.steps expects int, got 'a' \(str\)"),
        (["loop.fit.steps = %STEPS", "STEPS = 1.5"], r"loop.fit.steps expects int, got 1.5 \(float\)"),
        (["loop.fit.steps = %A", "A = %B", "B = 'a'"], r"loop.fit.steps expects int, got 'a' \(str\)"),
        (["loop.fit.steps = %STEPS", "STEP = 1"], r"loop.fit.steps: no macro is called 'STEPS'; did you mean 'STEP'\?"),
        (["loop.fit.steps = %A", "A = %B", "B = %A"], r"loop.fit.steps: macro 'A' refers to itself"),
        (["loop.fit.steps = %gin.REQUIRED"], r"loop.fit.steps is required; bind it in params.yaml or on the command line"),
        (["loop.fit.steps = @optim.adamw"], r"loop.fit.steps expects int, got @optim.adamw"),
        (["loop.fit.optimizer = @optim.adamw()"], r"loop.fit.optimizer expects Callable .*, got @optim.adamw\(\)"),
        (["sources.live.runtime = @runtime.Runtime"], r"sources.live.runtime expects Runtime, got @runtime.Runtime"),
        (["loop.fit.schedule = [1]"], r"loop.fit.schedule expects Callable .*, got \[1\] \(list\)"),
        (["loop.fit.optimizer = @supervision.constant"], r"loop.fit.optimizer expects Callable .*, got @supervision.constant"),
        (["loop.fit.schedule = @optim.set_lr"], r"loop.fit.schedule expects Callable .*, got @optim.set_lr"),
        (
            ["optim.adamw.betas = [0.9, @runtime.Runtime()]"],
            r"optim.adamw.betas expects tuple\[float, float\], got \[0.9, @runtime",
        ),
        (
            ["optim.adamw.betas = [0.9, %B]", "B = 'a'"],
            r"optim.adamw.betas expects tuple\[float, float\], got \[0.9, %B\] \(list\)",
        ),
        (["optim.adamw.betas = [0.9, %B]"], r"optim.adamw.betas: no macro is called 'B'"),
    ],
)
def test_a_value_that_does_not_fit_is_named(parse, lines, message):
    parse(*lines)
    with pytest.raises(ConfigError, match=message):
        ginstate.check_values({})


def test_the_origin_is_that_of_whoever_set_the_value(parse):
    parse("loop.fit.steps = %STEPS", "STEPS = 'a'")
    users = {("STEPS", "gin.macro", "value"): Binding("params.yaml:7", "STEPS", "'a'")}
    with pytest.raises(ConfigError, match=r"^params.yaml:7: loop.fit.steps expects int, got 'a'"):
        ginstate.check_values(users)


def test_values_that_fit_pass(parse):
    parse(
        "loop.fit.steps = %STEPS",
        "STEPS = 3",
        "loop.fit.clip = 1",
        "sources.live.runtime = @runtime.Runtime()",
        "loop.fit.budget = None",
    )
    parse(
        "loop.fit.optimizer = %OPT",
        "OPT = @optim.adamw",
        "optim.adamw.betas = [0.9, %B]",
        "B = 0.95",
        "loop.fit.schedule = @optim.warmup_cosine",
    )
    ginstate.check_values({})


def test_canonical_text_has_one_binding_a_line_and_no_unused_import(parse):
    parse("loop.fit.run = '" + "x" * 300 + "'")
    assert text().splitlines() == [
        "from __gin__ import dynamic_registration",
        "from pipeline.training import loop",
        "loop.fit.run = '" + "x" * 300 + "'",
    ]


def test_what_is_bound_is_known(parse):
    parse("loop.fit.steps = 3")
    assert ginstate.is_bound(LOOP) and not ginstate.is_bound("pipeline.training.loop.nothing")
    assert ginstate.wrapped(LOOP).__name__ == "fit"


def test_what_is_built_comes_root_first_with_the_binding_that_reaches_each_parameter(parse):
    parse("optim.adamw.lr = %LR", "LR = 0.1", "loop.fit.optimizer = @optim.adamw", "a/optim.adamw.lr = 0.2")
    parse("loop.fit.schedule = [@a/optim.adamw, @b/optim.adamw]", "optim.adamw.weight_decay = 0.3")
    calls = ginstate.built(LOOP)
    found = {call.name: call.bindings for call in calls if call.selector != MACRO}
    adamw = "components.training.optim.adamw"
    assert next(iter(found)) == "loop.fit"
    assert found["optim.adamw"] == {"lr": ("", adamw, "lr"), "weight_decay": ("", adamw, "weight_decay")}
    assert found["a/optim.adamw"] == {"lr": ("a", adamw, "lr"), "weight_decay": ("", adamw, "weight_decay")}
    assert set(found) == {"loop.fit", "optim.adamw", "a/optim.adamw"}  # scope b binds nothing: it is left out
    assert [call.scopes for call in calls if call.selector == MACRO] == [("LR",)]


def test_what_is_built_does_not_depend_on_the_order_of_bindings(parse):
    lines = [
        "loop.fit.optimizer = @a/optim.adamw",
        "a/optim.adamw.lr = 0.2",
        "loop.fit.schedule = @optim.warmup_cosine",
        "optim.adamw.lr = %LR",
    ]
    parse(*lines, "LR = 1.0")
    before = ginstate.built(LOOP)
    gin.clear_config()
    parse("LR = 1.0", *reversed(lines))
    assert ginstate.built(LOOP) == before and len(before) == 3


def test_a_value_is_found_behind_macros_in_containers_too(parse):
    parse("loop.fit.steps = %A", "A = %B", "B = 3", "loop.fit.run = [%B, {'x': (%A, @a/optim.adamw)}, @runtime.Runtime()]")
    assert ginstate.value_of(("", LOOP, "steps")) == (3, "%A")
    assert ginstate.value_of(("", LOOP, "run")) == ([3, {"x": (3, "@a/optim.adamw")}, "@runtime.Runtime()"], "")
    assert ginstate.value_of(("", LOOP, "run"), len)[0][2] == len("@runtime.Runtime()")


def test_imports_are_listed_sorted(parse):
    parse("loop.fit.steps = 3")
    assert ginstate.imports() == HEADER.splitlines()


def test_a_circle_through_scopes_is_refused(parse):
    parse("loop.fit.run = @a/loop.fit", "a/loop.fit.clip = 1.0")
    with pytest.raises(ConfigError, match=r"'pipeline.training.loop.fit' refers to itself through scopes a/a/a/"):
        ginstate.prune(LOOP)


def test_a_circle_through_scopes_that_bind_nothing_ends(parse):
    parse("loop.fit.run = @a/loop.fit")
    assert [call.name for call in ginstate.built(LOOP)] == ["loop.fit"]


def test_a_value_takes_one_line_however_long(parse):
    words = ["a word", *map(str, range(5000))]
    parse(f"loop.fit.steps = {words!r}")
    assert text().splitlines()[-1] == f"loop.fit.steps = {words!r}"
