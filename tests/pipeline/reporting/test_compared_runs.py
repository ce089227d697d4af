"""Runs by name: folders, commits and experiments, with what is missing said; nothing of the workspace changes."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import DataError, UserError
from pipeline.reporting.compared_runs import read_runs
from tests.conftest import ROOT
from tests.support.resealing import reseal


def git(*arguments):
    identity = ("-c", "user.name=a", "-c", "user.email=a@b")
    subprocess.run(["git", *identity, *arguments], check=True, capture_output=True)


def dvc(*arguments):
    environment = {**os.environ, "DVC_NO_ANALYTICS": "1", "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b"}
    environment |= {"GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b"}
    subprocess.run([sys.executable, "-m", "dvc", *arguments], check=True, capture_output=True, env=environment)


@pytest.fixture(scope="module")
def committed(finished, tmp_path_factory):
    """A finished run, committed: what DVC tracks is in its cache alone, the workspace holds no outputs."""
    folder = tmp_path_factory.mktemp("committed") / "run"
    shutil.copytree(finished, folder, symlinks=True, ignore=shutil.ignore_patterns(".tracking", ".scratch", "gin"))
    before = Path.cwd()
    os.chdir(folder)
    try:
        git("init", "-q")
        dvc("init", "-q")
        dvc("add", "-q", "outputs/evaluate/trace.json", "outputs/warmup", "outputs/joint", "data/backbone")
        git("add", "-A")
        git("commit", "-q", "-m", "a run")
        shutil.rmtree("outputs")
        shutil.rmtree("data/backbone")
        (folder / "params.yaml").write_text("preset: sudoku4\n")
        yield folder
    finally:
        os.chdir(before)


def snapshot(folder):
    files = (path for path in folder.rglob("*") if path.is_file() and not {".git", ".dvc"} & set(path.relative_to(folder).parts))
    return {str(path): path.read_bytes() for path in files}


def test_a_commit_holds_what_the_folder_held(committed, finished, monkeypatch):
    monkeypatch.chdir(committed)
    before = snapshot(committed)
    folder, commit = read_runs([str(finished), "HEAD"])
    assert snapshot(committed) == before
    assert (folder.name, folder.commit, commit.name, len(commit.commit)) == (finished.name, "", "HEAD", 40)
    assert commit.evaluation.content == folder.evaluation.content == json.loads(
        (finished / "outputs/evaluate/metrics.json").read_text()
    )  # fmt: skip
    assert commit.trace == folder.trace == json.loads((finished / "outputs/evaluate/trace.json").read_text())
    assert commit.preset == folder.preset == "smoke" and commit.remarks == folder.remarks == []
    assert commit.curves == folder.curves and commit.trained == folder.trained and commit.settings == folder.settings
    with (finished / "outputs/warmup/curves.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert folder.curves["warmup"]["loss/step_3"] == [float(row["loss/step_3"]) for row in rows]
    assert folder.settings["joint", "run.batch_size"] == "32" and folder.settings["warmup", "loop.fit.steps"] == "6"


def test_an_experiment_is_read_by_its_name(committed, monkeypatch):
    monkeypatch.chdir(committed)
    git("checkout", "-q", ".")
    dvc("checkout", "-q")
    dvc("exp", "save", "--name", "tried")
    head, experiment = read_runs(["HEAD", "tried"])
    assert experiment.name == "tried" and experiment.commit != head.commit
    assert experiment.evaluation.digest == head.evaluation.digest


def test_what_the_cache_lost_is_said_and_the_rest_is_compared(committed, finished, tmp_path, monkeypatch):
    monkeypatch.chdir(committed)
    shutil.move(committed / ".dvc/cache", tmp_path / "cache")
    try:
        _, run = read_runs([str(finished), "HEAD"])
    finally:
        shutil.move(tmp_path / "cache", committed / ".dvc/cache")
    (remark,) = run.remarks
    assert "neither in DVC's cache nor at a remote" in remark and "outputs/evaluate/trace.json" in remark
    assert run.trace is None and "warmup" not in run.curves and run.models and run.trained["control_backbone"]["steps"]


def test_a_phase_that_was_not_evaluated_gives_no_curve(copy_of, finished):
    """As after a phase was run again, and evaluate not."""
    file = copy_of / "outputs/evaluate/metrics.json"
    content = json.loads(file.read_text())
    content["evaluated"]["warmup"] = "0" * 64
    file.write_text(json.dumps(content))
    reseal(copy_of)
    run, _ = read_runs([str(copy_of), str(finished)])
    assert run.remarks == ["outputs/warmup is not the model that was evaluated: its curves are left out"]
    assert "warmup" not in run.curves and "joint" in run.curves


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "compare needs two runs at least, got 0"),
        (["{finished}"], "compare needs two runs at least, got 1"),
        (["{finished}", "HEAD", "HEAD"], "'HEAD' is given twice"),
        (["{finished}", "nonsense"], "'nonsense' is neither a folder of a run nor a revision: "),
        (["{finished}", "HEAD~3000"], "'HEAD~3000' is neither a folder of a run nor a revision: "),
        (["{finished}", "docs"], "'docs' is neither a folder of a run nor a revision: "),
        (["{finished}", ""], "the name of a run is empty"),
        (["{finished}", "{empty}"], "outputs/evaluate/metrics.json does not exist; run dvc repro evaluate in that folder"),
        (["{finished}", "{damaged}"], "outputs/evaluate/metrics.json is not valid JSON"),
        (["{finished}", "{other}"], "outputs/evaluate/metrics.json has no digest"),
    ],
)
def test_what_is_no_run_is_one_line(names, message, finished, tmp_path):
    for name, text in (("empty", None), ("damaged", "{"), ("other", "{}")):
        (tmp_path / name / "outputs/evaluate").mkdir(parents=True)
        (tmp_path / name / "params.yaml").write_text("preset: smoke\n")
        if text is not None:
            (tmp_path / name / "outputs/evaluate/metrics.json").write_text(text)
    places = {"finished": finished, **{name: tmp_path / name for name in ("empty", "damaged", "other")}}
    with pytest.raises(UserError) as refused:
        read_runs([name.format(**places) for name in names])
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_a_commit_without_an_evaluation_is_one_line(committed, finished, monkeypatch):
    monkeypatch.chdir(committed)
    git("checkout", "-q", "--orphan", "bare")
    git("commit", "-q", "--allow-empty", "-m", "nothing")
    git("rm", "-rqf", "--cached", ".")
    git("commit", "-q", "--allow-empty", "-m", "nothing at all")
    with pytest.raises(DataError, match=r"bare \(commit .*\) has no outputs/evaluate/metrics.json: no evaluation was committed"):
        read_runs([str(finished), "bare"])


def test_outside_of_a_repository_a_revision_is_one_line(finished, tmp_path, monkeypatch):
    assert ROOT not in tmp_path.parents
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        DataError, match="'HEAD' is neither a folder of a run nor a revision: you are not inside of a DVC repository"
    ):
        read_runs([str(finished), "HEAD"])
