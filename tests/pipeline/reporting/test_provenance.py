"""Settings over the preset, the machine and the commands, against files written here."""

import hashlib
from pathlib import Path

import pytest
import torch

from pipeline.reporting.provenance import commands, machine, settings_over_preset
from pipeline.settings import params

SECTIONS = ("common", "warmup", "report")


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("common: {}\n", []),
        ("common: {bindings: {SEED: 1}}\n", [("common", "SEED", "1")]),
        (
            "warmup: {gin: [gin/sizes/base.gin], bindings: {loop: {fit: {steps: 100}}, optim: {adamw: {lr: 2e-3}}}}\n",
            [("warmup", "gin", "gin/sizes/base.gin"), ("warmup", "loop.fit.steps", "100"), ("warmup", "optim.adamw.lr", "0.002")],
        ),
        (
            "report: {bindings: {a: '@b.c()'}}\ncommon: {bindings: {X: [1, two]}}\n",
            [("common", "X", "[1, 'two']"), ("report", "a", "@b.c()")],
        ),
    ],
)
def test_settings_over_the_preset_are_listed_by_section(tmp_path, text, rows):
    (tmp_path / "params.yaml").write_text("preset: smoke\n" + text)
    assert settings_over_preset(params.read(tmp_path / "params.yaml", SECTIONS), SECTIONS) == rows


def test_without_params_nothing_is_listed():
    assert settings_over_preset(None, SECTIONS) == []


def test_the_machine_is_told_without_host_or_path():
    rows = machine({"device": "cpu", "threads": 2})
    assert rows[:3] == [("device", "cpu"), ("threads", "2"), ("torch", torch.__version__)] and rows[3][1].startswith("3.")


def test_commands_name_the_numbers_and_no_absolute_path(tmp_path):
    digest = hashlib.sha256(b"").hexdigest()
    text = commands(Path("outputs/evaluate"), digest, "sudoku6")
    assert f"git log --oneline -S {digest} -- outputs/evaluate/metrics.json" in text and "dvc exp run -S preset=sudoku6" in text
    absolute = commands(tmp_path / "evaluate", digest, "")
    assert str(tmp_path) not in absolute and "-- evaluate/metrics.json" in absolute and "\ndvc repro" in absolute
