"""Inputs and outputs of the wrong kind or at the wrong place: one line that names them, never a traceback, nothing half written."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from stages.__main__ import main
from tests.conftest import ROOT


def folder(path):
    path.unlink() if path.is_file() else shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)


def file(path):
    shutil.rmtree(path)
    path.write_text("mine")


def loop(path):
    path.unlink() if path.is_file() else shutil.rmtree(path)
    path.symlink_to(path.name)


CASES = [
    ("prepare", folder, "params.yaml"),
    ("prepare", loop, "params.yaml"),
    ("prepare", file, "gin"),
    ("backbone", folder, "data/prepared/manifest.json"),
    ("backbone", folder, "data/prepared/train.safetensors"),
    ("backbone", loop, "data/prepared"),
    ("backbone", file, "data/prepared"),
    ("extract", folder, "data/backbone/model.json"),
    ("extract", loop, "data/backbone/model.safetensors"),
    ("warmup", file, "data/shards"),
    ("warmup", folder, "data/shards/index.json"),
    ("joint", file, "outputs/warmup"),
    ("joint", folder, "outputs/warmup/model.safetensors"),
    ("evaluate", loop, "outputs/joint/model.json"),
    ("report", folder, "outputs/evaluate/metrics.json"),
    ("report", file, "outputs/evaluate"),
    ("export", folder, "outputs/joint/model.json"),
    ("generate", file, "outputs/joint"),
]


@pytest.mark.parametrize(("stage", "spoil", "place"), CASES, ids=lambda value: getattr(value, "__name__", value))
def test_an_input_of_the_wrong_kind_is_one_line_that_names_it(copy_of, monkeypatch, capsys, stage, spoil, place):
    monkeypatch.chdir(copy_of)
    spoil(copy_of / place) if place != "gin" else ((copy_of / "gin").unlink(), (copy_of / "gin").write_text("mine"))
    arguments = [stage, "--prompt=12../..../..4./..2."] if stage == "generate" else [stage]
    assert main(arguments) in (1, 2)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and place in error


@pytest.mark.parametrize("stage", ["prepare", "backbone", "report", "export"])
def test_an_output_that_is_a_file_is_one_line_that_names_it(copy_of, monkeypatch, capsys, stage):
    monkeypatch.chdir(copy_of)
    (copy_of / "mine").write_text("mine")
    assert main([stage, "--out", "mine/out"]) == 1
    assert "mine is a file, and a folder is expected" in capsys.readouterr().err.strip().splitlines()[-1]
    assert (copy_of / "mine").read_text() == "mine"


FULL, READ_ONLY = (errno.ENOSPC, "is full ("), (errno.EROFS, "its disk is read-only")


@pytest.mark.parametrize(
    ("stage", "number", "told"),
    [  # one stage with both, the others with one each
        ("prepare", *FULL), ("prepare", *READ_ONLY), ("extract", *READ_ONLY), ("joint", *FULL), ("report", *READ_ONLY),
        ("export", *FULL),
    ],
)  # fmt: skip
def test_a_disk_that_refuses_is_one_line_and_a_rerun_is_right(copy_of, monkeypatch, capsys, stage, number, told):
    monkeypatch.chdir(copy_of)
    replace, refused = os.replace, iter([True])

    def replace_but_once(source, target):
        if Path(target).resolve().is_relative_to(copy_of / "made") and next(refused, False):
            raise OSError(number, os.strerror(number), os.fspath(source))
        replace(source, target)

    monkeypatch.setattr(os, "replace", replace_but_once)
    assert main([stage, "--out", "made"]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: made/") and told in error
    assert not [path for path in (copy_of / "made").rglob("*") if path.name.endswith(".tmp") or path.name == "writing"]
    assert main([stage, "--out", "made"]) == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_standard_output_that_is_full_is_one_line():
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "stages", "--help"], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (done.returncode, done.stderr) == (1, "error: the standard output cannot be written: its disk is full\n")
