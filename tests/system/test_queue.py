"""Experiments through DVC's queue: a grid runs to its end, and a killed one that is queued again continues. `make test-slow`."""

import contextlib
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import SUMS
from tests.support.dvc import (
    LONG,
    bind,
    clone_to,
    committed_clone,
    content,
    dvc,
    dvc_json,
    git,
    kept_by_dvc,
    locked,
    long_warmup,
    nothing_left,
    processes,
    ran,
    snapshot,
    steps_of,
    wait_until,
    worked_off,
)
from tests.support.once import shared_folder

pytestmark = pytest.mark.slow


@pytest.fixture
def clone(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Iterator[Path]:
    with nothing_left(committed_clone(shared_folder(tmp_path_factory), tmp_path / "slotloop")) as folder:
        yield folder


@pytest.fixture
def with_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A new clone set to the smoke preset of text, committed, with raw files that git does not see and nowhere else."""
    monkeypatch.delenv("SLOTLOOP_RAW", raising=False)
    with nothing_left(clone_to(tmp_path / "slotloop", "gsm8k_smoke")) as folder:
        bind(folder / "params.yaml", "common", "{jsonl: {QuestionAnswers: {sequence: 48, vocabulary: 300}}}")
        git(folder, "add", "--all")
        git(folder, "commit", "--quiet", "--message", "text")
        raw = folder / "data/raw/gsm8k"
        raw.mkdir()
        for name, pairs in (("train", SUMS), ("test", SUMS[:12])):
            (raw / f"{name}.jsonl").write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in pairs))
        yield folder


def status(folder: Path) -> dict[str, str]:
    """State of each queued experiment, by name."""
    rows = [line.split() for line in dvc(folder, "queue", "status").partition("Status\n")[2].partition("\n\n")[0].splitlines()]
    return {row[1]: row[-1] for row in rows}


def work_off(folder: Path) -> None:
    """Start one worker and wait until it has done everything."""
    dvc(folder, "queue", "start", "-j", "1")
    worked_off(folder)


def stop(folder: Path) -> None:
    """Stop the workers and wait until their processes are gone."""
    dvc(folder, "queue", "stop", "--kill")
    wait_until(lambda: not processes(folder), "workers end", pause=0.5)


def command(process: psutil.Process) -> list[str]:
    """Of what ends meanwhile, nothing."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.cmdline()
    return []


def experiments(folder: Path) -> dict[str, dict[str, Any]]:
    """What ``dvc exp show`` says of each finished experiment, by name."""
    found = [one for baseline in dvc_json(folder, "exp", "show") for one in baseline["experiments"] or ()]
    return {one["name"]: one["revs"][0]["data"] for one in found}


def test_a_grid_of_learning_rates(clone):
    before = content(clone / "outputs")
    output = dvc(clone, "exp", "run", "--queue", "-S", "+joint.bindings.optim.adamw.lr=1e-3,5e-4", "joint")
    assert output.count("Queued experiment") == 2
    assert list(status(clone).values()) == ["Queued", "Queued"]
    work_off(clone)
    names = status(clone)
    assert list(names.values()) == ["Success", "Success"]
    for name in names:
        assert ran(dvc(clone, "queue", "logs", name)) == ["configure", "joint"]
    stop(clone)
    shown = experiments(clone)
    assert set(shown) == set(names)
    rates = {data["params"]["params.yaml"]["data"]["joint"]["bindings"]["optim"]["adamw"]["lr"] for data in shown.values()}
    assert rates == {1e-3, 5e-4}
    assert len({str(data["metrics"]["outputs/joint/metrics.json"]["data"]) for data in shown.values()}) == 2
    assert len({data["outs"]["outputs/joint/model.safetensors"]["hash"] for data in shown.values()}) == 2
    assert content(clone / "outputs") == before and git(clone, "status", "--porcelain") == ""
    assert not (clone / ".scratch").exists()


def test_a_killed_experiment_queued_again_continues_to_the_same_bytes(clone, tmp_path_factory):
    settings = [f"-S+warmup.bindings.loop.fit.steps={LONG}", "-S+warmup.bindings.loop.fit.save_every=1"]
    dvc(clone, "exp", "run", "--queue", "--name", "killed", *settings, "warmup")
    dvc(clone, "queue", "start", "-j", "1")
    wait_until(lambda: snapshot(clone, "warmup") >= 5, "warmup trains")  # in the main repository, not in the experiment's copy
    [stage] = [process for process in processes(clone) if command(process)[1:4] == ["-m", "stages", "warmup"]]
    stage.send_signal(signal.SIGSTOP)  # time for DVC to start; what it sends is the first thing that is seen afterwards
    reached = snapshot(clone, "warmup")
    dvc(clone, "queue", "kill", "--force", "killed")
    with contextlib.suppress(psutil.NoSuchProcess):
        stage.send_signal(signal.SIGCONT)
    wait_until(lambda: status(clone)["killed"] == "Failed", "the experiment failed", pause=1)
    wait_until(lambda: stage not in processes(clone), "its stage ended")
    kept = snapshot(clone, "warmup")
    assert 5 <= reached <= kept <= reached + 2 < LONG  # a step that was being saved, and the one in which the end was asked for
    dvc(clone, "exp", "run", "--queue", "--name", "again", *settings, "warmup")
    work_off(clone)
    assert status(clone)["again"] == "Success"
    assert steps_of(dvc(clone, "queue", "logs", "again"), "warmup") == list(range(kept + 1, LONG + 1))
    stop(clone)
    dvc(clone, "exp", "apply", "again")
    expected = long_warmup(shared_folder(tmp_path_factory))
    assert kept_by_dvc(clone / "outputs/warmup") == kept_by_dvc(expected / "outputs/warmup")
    assert locked(clone, "warmup") == locked(expected, "warmup")
    assert not (clone / ".scratch").exists()


def test_raw_files_that_git_ignores_are_read_in_the_checkout(with_text):
    clone = with_text
    told = [
        f"data/raw/gsm8k/{name}.jsonl is not in this experiment's folder; it is read in {clone}\n" for name in ("train", "test")
    ]
    output = dvc(clone, "exp", "run", "--temp", "--name", "beside", "prepare")
    assert ran(output) == ["configure", "prepare"] and all(output.count(line) == 1 for line in told)
    dvc(clone, "exp", "run", "--queue", "--name", "queued", "-S", "common.bindings.jsonl.QuestionAnswers.sequence=56", "prepare")
    work_off(clone)
    logs = dvc(clone, "queue", "logs", "queued")
    assert status(clone)["queued"] == "Success" and all(line in logs for line in told), logs
    stop(clone)
    shown = experiments(clone)
    assert ran(dvc(clone, "repro", "prepare")) == []  # the same names, raw bytes and code: all comes from DVC's run cache
    assert locked(clone, "prepare")["data/prepared"] == shown["beside"]["outs"]["data/prepared"]["hash"]
    assert locked(clone, "prepare")["data/prepared"] != shown["queued"]["outs"]["data/prepared"]["hash"]


def test_a_raw_file_that_is_nowhere_ends_an_experiment_in_one_line(with_text):
    (with_text / "data/raw/gsm8k/test.jsonl").unlink()
    output = dvc(with_text, "exp", "run", "--temp", "prepare", expect=255)
    assert "error: data/raw/gsm8k/test.jsonl does not exist; fetch it with: make data-gsm8k" in output


@pytest.mark.parametrize(("where", "target"), [((), "prepare"), ((), "backbone"), (("--temp",), "prepare")])
def test_a_part_of_the_pipeline_in_a_new_clone(where, target, tmp_path):
    """The lock names outputs of every stage, and none of them is in the cache."""
    with nothing_left(clone_to(tmp_path / "slotloop", "sudoku4")) as clone:
        git(clone, "add", "--all")
        git(clone, "commit", "--quiet", "--allow-empty", "--message", "new")
        output = dvc(clone, "exp", "run", *where, "--name", "part", "-S", "preset=smoke", target)
        assert ran(output)[-1] == target and "Ran experiment(s): part" in output
        assert experiments(clone)["part"]["params"]["params.yaml"]["data"]["preset"] == "smoke"
        if not where:
            assert ran(dvc(clone, "repro", target)) == []
