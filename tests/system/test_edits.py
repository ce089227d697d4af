"""What DVC runs after an edit of code, of a comment and of a raw file, in a temporary clone. `make test-slow`."""

import json
from pathlib import Path

import pytest

from tests.conftest import SUMS
from tests.support.dvc import bind, clone_to, committed_clone, dvc, dvc_json, git, ran
from tests.support.once import shared_folder

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """A clone after one `dvc repro`, committed."""
    return committed_clone(shared_folder(tmp_path_factory), tmp_path_factory.mktemp("clone") / "slotloop")


def append(file: Path, line: str) -> None:
    file.write_text(file.read_text() + line)


def test_a_comment_in_code_runs_configure_alone(clone):
    for name in ("components/refiners/core.py", "pipeline/training/loop.py", "stages/prepare.py", "stages/__main__.py"):
        append(clone / name, "\n\n# a comment\n")
    assert ran(dvc(clone, "repro")) == ["configure"]
    git(clone, "checkout", "--quiet", "components", "pipeline", "stages")


def test_an_edit_of_the_loop_trains_again_and_prepares_nothing(clone):
    append(clone / "pipeline/training/loop.py", "\n_NOTHING = 1\n")
    output = dvc(clone, "repro", "backbone")
    assert ran(output) == ["configure", "backbone"] and "Stage 'prepare' didn't change" in output
    git(clone, "checkout", "--quiet", "pipeline")
    assert ran(dvc(clone, "repro")) == []  # both come back from the run cache, and what follows was never touched


def test_settings_in_effect_are_compared_before_a_stage_has_run(clone):
    bind(clone / "params.yaml", "joint", "{optim: {adamw: {lr: 5e-4}}}")
    assert ran(dvc(clone, "repro", "configure")) == ["configure"]
    assert dvc_json(clone, "params", "diff")["build/config/joint.yaml"]["optim.adamw.lr"]["new"] == 5e-4
    for stage, output in (("warmup", "outputs/warmup"), ("prepare", "data/prepared")):
        assert (clone / f"build/config/{stage}.yaml").read_bytes() == (clone / output / "config.yaml").read_bytes()
    git(clone, "checkout", "--quiet", "params.yaml", "dvc.lock")


def test_a_raw_file_outside_the_repository_is_prepared_again_when_lines_go(tmp_path):
    folder, raw = clone_to(tmp_path / "text", "gsm8k_smoke"), tmp_path / "corpora"
    (folder / "dvc.lock").unlink(missing_ok=True)
    (raw / "gsm8k").mkdir(parents=True)
    lines = [json.dumps({"question": question, "answer": answer}) + "\n" for question, answer in SUMS]
    for name in ("train", "test"):
        (raw / f"gsm8k/{name}.jsonl").write_text("".join(lines))
    assert ran(dvc(folder, "repro", "prepare", SLOTLOOP_RAW=str(raw))) == ["configure", "prepare"]
    assert ran(dvc(folder, "repro", "prepare", SLOTLOOP_RAW=str(raw))) == []
    (raw / "gsm8k/train.jsonl").write_text("".join(lines[10:]))
    assert "data/raw" in dvc(folder, "status", "configure", SLOTLOOP_RAW=str(raw))
    assert ran(dvc(folder, "repro", "prepare", SLOTLOOP_RAW=str(raw))) == ["configure", "prepare"]
    assert str(tmp_path) not in (folder / "build/config/prepare.code").read_text()
    elsewhere = dvc(folder, "repro", "--force", "--single-item", "prepare", expect=255, SLOTLOOP_RAW=str(tmp_path))
    assert "raw/gsm8k/test.jsonl changed after configure listed what stage prepare depends on" in elsewhere
