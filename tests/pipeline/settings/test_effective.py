"""Every value in effect: defaults said, macros replaced, scopes apart; the same bytes however and wherever it is written."""

import copy
import os
import random
import shutil
import subprocess
import sys

import gin
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.command_line import SECTIONS
from pipeline.settings import config, effective, params
from pipeline.settings.ginfiles import parse_value
from stages.__main__ import main
from tests.conftest import ROOT

PRESETS = sorted(path.stem for path in (ROOT / "gin/presets").glob("*.gin") if path.stem != "defaults")
SMOKE = "preset: smoke\n"


@pytest.fixture
def values_of(tmp_path):
    """``values_of(stage, text, override, ...)``: the settings of a stage as it would load them."""

    def values_of(stage, text=SMOKE, *overrides):
        (tmp_path / "params.yaml").write_text(text)
        return loaded(config.resolve(stage, params.read(tmp_path / "params.yaml", SECTIONS), overrides).text, stage)

    yield values_of
    gin.clear_config()


def loaded(text, stage):
    config.load_text(text, stage)
    return effective.settings(f"stages.{stage}.run")


def under(stage, yaml, preset="smoke"):
    """params.yaml with a config.yaml pasted under a stage's bindings."""
    return f"preset: {preset}\n{stage}:\n  bindings:\n" + "".join(f"    {line}\n" for line in yaml.splitlines())


@pytest.mark.parametrize(("number", "preset"), list(enumerate(PRESETS)))
def test_the_gin_text_is_the_same_once_it_is_read_again(values_of, number, preset):
    """Every preset with some stages, so that every stage meets some presets; two of them with all."""
    for stage in SECTIONS if preset in ("smoke", "gsm8k") else SECTIONS[number % 4 :: 4]:
        values = values_of(stage, f"preset: {preset}\n")
        text = effective.gin_text(values)
        again = loaded(text, stage)
        assert effective.gin_text(again) == text and again == values, stage
        assert effective.yaml_text(again) == effective.yaml_text(values) and effective.digest(again) == effective.digest(values)


@pytest.mark.parametrize("preset", ["smoke", "gsm8k"])
def test_the_yaml_text_pasted_into_params_gives_the_same_settings(values_of, preset):
    for stage in SECTIONS:
        text = effective.yaml_text(values_of(stage, f"preset: {preset}\n"))
        assert effective.yaml_text(values_of(stage, under(stage, text, preset))) == text, stage


@pytest.mark.parametrize("stage", ["prepare", "controls", "evaluate"])
def test_the_yaml_text_wins_over_another_preset(values_of, stage):
    text = effective.yaml_text(values_of(stage))
    assert effective.yaml_text(values_of(stage, "preset: sudoku4\n")) != text
    assert effective.yaml_text(values_of(stage, under(stage, text, "sudoku4"))) == text


def test_nothing_is_left_to_look_up(values_of):
    for stage in SECTIONS:
        text = effective.gin_text(values_of(stage))
        assert "%" not in text and "include" not in text and f"{stage}.run." in text
        lines = text.splitlines()
        start = next(i for i, line in enumerate(lines) if not line.startswith(("from ", "import ")))
        assert all(" = " in line for line in lines[start:]) and lines[start:] == sorted(lines[start:])


def test_defaults_are_said_aloud(values_of):
    fit = values_of("warmup")["loop.fit"]
    assert (fit["clip"], fit["accumulation"], fit["patience"], fit["budget"]) == (1.0, 1, 0, None)
    assert values_of("warmup")["optim.adamw"]["betas"] == (0.9, 0.95)
    assert values_of("warmup")["optim.warmup_cosine"] == {"lr_warmup_steps": 50, "floor": 0.05}  # nobody bound any of it


def test_macros_are_replaced_and_references_kept(values_of):
    values = values_of("warmup")
    assert values["loop.fit"]["steps"] == 6 and values["warmup.run"]["batch_size"] == 32
    assert values["warmup.run"]["runtime"] == "@runtime.Runtime()" and values["loop.fit"]["optimizer"] == "@optim.adamw"
    assert isinstance(values["loop.fit"]["optimizer"], effective.Source) and repr(values["loop.fit"]["optimizer"]) == "@optim.adamw"
    assert values_of("prepare")["prepare.run"]["corpus"] == "@sudoku.Sudoku()"  # behind a macro
    assert values_of("track")["track.run"]["trackers"] == ["@clearml.ClearML()"]


def test_a_word_that_looks_like_a_reference_stays_a_word(values_of):
    text = effective.gin_text(values_of("prepare", SMOKE, "prepare.run.out='@odd place'"))
    assert "prepare.run.out = '@odd place'\n" in text


def test_a_call_within_a_scope_has_values_of_its_own(values_of):
    values = values_of("controls")
    assert values["optim.adamw"]["lr"] == 2e-3 and values["trained_on/optim.adamw"]["lr"] == 3e-3
    assert values["objective.Objective"]["supervision"] == "@supervision.linear_decay"
    assert values["controls.run"]["fit"] == "@loop.fit" and values["controls.run"]["fit_backbone"] == "@trained_on/loop.fit"
    both = ("ema", "validate_every", "clip", "optimizer")
    assert [values["loop.fit"][key] for key in both] == [values["trained_on/loop.fit"][key] for key in both]
    assert values["trained_on/optim.adamw"]["weight_decay"] == 0.05  # what the scope does not bind comes from outside it


def test_what_is_given_by_the_stage_or_has_no_form_is_left_out():
    gin.clear_config()
    gin.parse_config("from __gin__ import dynamic_registration\nfrom pipeline.training import loop\nloop.fit.clip = 2.0\n")
    fit = effective.settings("pipeline.training.loop.fit")["loop.fit"]
    assert fit["clip"] == 2.0 and fit["steps"] == 1000
    assert not {"run", "optimizer", "schedule", "objective"} & set(fit)  # without a default; functions
    gin.clear_config()


def test_what_does_not_reach_the_stage_is_left_out(values_of):
    assert set(values_of("prepare")) == {"prepare.run", "sudoku.Sudoku"}
    assert set(values_of("warmup")) == {
        "warmup.run", "sources.cached", "refiner.SlotRefiner", "loop.fit", "optim.adamw", "optim.warmup_cosine",
        "objective.Objective", "supervision.linear_decay", "runtime.Runtime", "losses.masked_cross_entropy",
    }  # fmt: skip
    assert set(values_of("warmup")["losses.masked_cross_entropy"]) == {"chunk"}
    swapped = values_of("warmup", SMOKE, "warmup.run.states=@sources.live")
    assert "sources.live" in swapped and "sources.cached" not in swapped


# Digest


@pytest.mark.parametrize(
    "overrides",
    [
        ("loop.fit.clip=1.0",),  # its default
        ("WARMUP_STEPS=6",),  # the preset's value
        ("loop.fit.steps=6",),  # the same past the macro
        ("loop.fit.steps=%BATCH", "BATCH=6", "warmup.run.batch_size=32"),
        ("optim.adamw.lr=0.004",),
    ],
)
def test_the_digest_stays_if_every_value_stays(values_of, overrides):
    assert effective.digest(values_of("warmup", SMOKE, *overrides)) == effective.digest(values_of("warmup"))


@pytest.mark.parametrize(
    "override", ["loop.fit.clip=1.5", "WARMUP_STEPS=7", "SEED=1", "refiner.SlotRefiner.steps=5", "warmup.run.out=elsewhere",
                 "objective.Objective.bptt=@recursion.one_step_gradient", "optim.adamw.betas=(0.9, 0.96)",
                 "optim.warmup_cosine.floor=0.1"]
)  # fmt: skip
def test_the_digest_changes_with_a_value(values_of, override):
    assert effective.digest(values_of("warmup", SMOKE, override)) != effective.digest(values_of("warmup"))


def test_the_digest_changes_with_each_value_and_with_nothing_else(values_of):
    values = values_of("controls")
    shuffled = [(name, random.Random(0).sample(list(held.items()), len(held))) for name, held in reversed(values.items())]
    assert effective.digest({name: dict(held) for name, held in shuffled}) == effective.digest(values)
    seen = {effective.digest(values)}
    for name, held in values.items():
        for parameter in held:
            other = copy.deepcopy(values)
            other[name][parameter] = "another"
            seen.add(effective.digest(other))
    assert len(seen) == 1 + sum(map(len, values.values())) >= 60


@settings(max_examples=25, deadline=None)
@given(
    st.recursive(
        st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.booleans() | st.none() | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3) | st.tuples(inner),
    )
)
def test_any_value_is_written_so_that_it_is_read_back(value):
    text = effective.gin_text({"report.run": {"out": value}})
    read = parse_value(text.partition("report.run.out = ")[2]).literal
    assert read == value and type(read) is type(value)


# Across processes, and run again

PRINTED = """
from pathlib import Path
from pipeline.settings import config, effective, params
from pipeline.command_line import SECTIONS
read = params.read(Path("params.yaml"), SECTIONS)
for stage in SECTIONS:
    config.load_text(config.resolve(stage, read).text, stage)
    values = effective.settings(f"stages.{stage}.run")
    print(effective.digest(values), effective.gin_text(values), effective.yaml_text(values))
"""


def test_the_bytes_are_the_same_in_another_process(tmp_path, monkeypatch, capsys):
    (tmp_path / "gin").symlink_to(ROOT / "gin")
    (tmp_path / "params.yaml").write_text("preset: smoke\ncommon: {bindings: {SEED: 3, JOINT_LR: 0.5}}\n")
    monkeypatch.chdir(tmp_path)
    seed = str((int(os.environ.get("PYTHONHASHSEED", "0").replace("random", "0")) + 1) % 1000)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed}
    done = subprocess.run([sys.executable, "-c", PRINTED], env=environment, capture_output=True, text=True, timeout=600, check=True)
    exec(PRINTED, {})
    assert capsys.readouterr().out == done.stdout and len(done.stdout) > 10_000


def content(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


@pytest.fixture
def run_again(finished, tmp_path, monkeypatch):
    """``run_again(stage, out, argument, ..., text=...)``: what a stage leaves over the inputs of the finished run."""

    def run_again(stage, out, *arguments, text=SMOKE):
        folder = tmp_path / "again"
        for part in ("data", "outputs"):
            shutil.copytree(finished / part, folder / part)
        shutil.rmtree(folder / out)
        (folder / "gin").symlink_to(ROOT / "gin")
        (folder / "params.yaml").write_text(text)
        monkeypatch.chdir(folder)
        monkeypatch.setenv("DVC_STAGE", stage)
        assert main([stage, *arguments]) == 0
        return content(folder / out)

    return run_again


@pytest.mark.parametrize(
    ("stage", "out"), [("prepare", "data/prepared"), ("warmup", "outputs/warmup"), ("controls", "outputs/controls")]
)
def test_a_run_from_its_own_config_leaves_the_same_bytes(finished, run_again, stage, out):
    before = content(finished / out)
    assert {"config.gin", "config.yaml"} <= set(before)
    after = run_again(stage, out, "--config", str(finished / out / "config.gin"), text="preset: sudoku4\n")
    assert after == before


def test_a_run_from_its_own_yaml_leaves_the_same_bytes(finished, run_again):
    """config.gin aside: there a pair is a tuple, and YAML has none."""
    before = content(finished / "data/prepared")
    after = run_again("prepare", "data/prepared", text=under("prepare", before["config.yaml"].decode(), "sudoku4"))
    del before["config.gin"], after["config.gin"]
    assert after == before


@pytest.mark.parametrize("stage", ["prepare", "warmup"])
def test_a_list_where_a_tuple_is_wanted_is_that_tuple(values_of, stage):
    values = values_of(stage)
    assert effective.digest(values_of(stage, under(stage, effective.yaml_text(values)))) == effective.digest(values)


def test_what_a_run_leaves_is_what_was_resolved(finished):
    text = (finished / "outputs/warmup/config.gin").read_text()
    resolved = config.resolve("warmup", params.read(finished / "params.yaml", SECTIONS), root=finished).text
    assert effective.gin_text(loaded(resolved, "warmup")) == text
    assert (finished / "outputs/warmup/config.yaml").read_text() == effective.yaml_text(loaded(text, "warmup"))
