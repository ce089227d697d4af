"""What runs have left, read: of a workspace or one phase, finished or going on, whole or damaged."""

import subprocess
import sys

import pytest

from pipeline.diagnosis import recorded
from pipeline.errors import DataError
from tests.conftest import ROOT
from tests.support.made_runs import HEALTHY, STEPS, validations, write_record, write_run


def test_a_workspace_names_its_phases_in_the_pipelines_order(tmp_path):
    for name in ("controls/warmup", "joint", "controls/optional/lora", "warmup"):
        write_run(tmp_path / "outputs" / name, name.partition("/")[0])
    write_run(tmp_path / "data/backbone", "backbone")
    (tmp_path / "outputs/finetune").mkdir()
    (tmp_path / "outputs/finetune/curves.csv").write_text("step,loss\n")  # a phase that is off
    runs, evaluation = recorded.workspace(tmp_path)
    assert list(runs) == ["backbone", "warmup", "joint", "controls/optional/lora", "controls/warmup"] and evaluation == {}
    assert all(run.steps == STEPS and run.ended and run.clip == 1.0 and run.unit == 1.0 for run in runs.values())


@pytest.mark.parametrize("place", ["outputs/joint", "outputs/controls/backbone", "data/backbone", "runs/joint/0123456789ab"])
def test_a_phases_own_folder_is_enough(tmp_path, place):
    write_run(tmp_path / place, "joint")
    runs, _ = recorded.workspace(tmp_path / place)
    assert list(runs) == [{"outputs/controls/backbone": "controls/backbone", "data/backbone": "backbone"}.get(place, "joint")]


def test_the_clip_is_that_of_the_loop_that_the_phase_took(tmp_path):
    folder = write_run(
        tmp_path / "outputs/controls/backbone", "controls", metrics={"rate": 0.3, "rates": [{"rate": 0.3}, {"rate": 1.0}]}
    )
    (folder / "config.gin").unlink()
    lines = ["controls.run.fit = @loop.fit", "controls.run.fit_backbone = @trained_on/loop.fit", "controls.run.fit_lora = None"]
    lines += ["loop.fit.clip = 1.0", "trained_on/loop.fit.clip = 4.0", "trained_on/loop.fit.steps = 7"]
    (tmp_path / "outputs/controls/config.gin").write_text("\n".join(lines))
    (run,) = recorded.workspace(tmp_path)[0].values()
    assert (run.clip, run.trials) == (4.0, ([0.3, 1.0], 0.3))
    write_run(tmp_path / "outputs/controls/lora", "controls")
    (tmp_path / "outputs/controls/lora/config.gin").unlink()
    assert recorded.workspace(tmp_path)[0]["controls/lora"].clip == 1.0


def test_the_folder_of_all_controls_is_enough(tmp_path):
    for name in ("warmup", "optional/lora"):
        write_run(tmp_path / "outputs/controls" / name, "controls")
    assert list(recorded.workspace(tmp_path / "outputs/controls")[0]) == ["controls/optional/lora", "controls/warmup"]


@pytest.mark.parametrize("mark", [True, False])
def test_validations_of_a_run_that_goes_on_are_those_of_its_file(tmp_path, mark):
    """Metrics of an earlier run are not believed while the phase's mark says that it has not ended."""
    folder = write_run(tmp_path / "warmup", ended=False, validation=validations(1.0, 0.9))
    if mark:
        (folder / "metrics.json").write_text('{"validation": []}')
        (folder / "unfinished").touch()
    (run,) = recorded.workspace(folder)[0].values()
    assert not run.ended and [(v.step, len(v.losses)) for v in run.validations] == [(100, 4), (200, 4)]
    assert run.validations[-1].losses == pytest.approx(HEALTHY[-1]["loss_by_step"])


def test_settings_of_a_run_that_goes_on_are_those_of_its_newest_record(tmp_path):
    """A config.gin beside it is of an earlier run."""
    folder = write_run(tmp_path / "outputs/controls/warmup", "controls", ended=False, settings={"loop.fit.clip": "9.0"})
    other = tmp_path / "outputs/joint"
    for began, place, clip in ((2.0, folder.parent, "2.0"), (3.0, folder.parent, "3.0"), (4.0, other, "4.0"), (1.0, other, "1.0")):
        write_record(tmp_path, place, {"controls.run.fit": "@loop.fit", "loop.fit.clip": clip, "loop.fit.steps": "77"}, began)
    run = recorded.run_at(folder, "controls/warmup", tmp_path)
    assert (run.clip, run.planned, run.ended) == (3.0, 77, False)
    (folder / "config.gin").unlink()
    assert recorded.run_at(folder, "controls/warmup", tmp_path) == run


@pytest.mark.parametrize("text", ["", "step", "step,loss\n", "step,loss\n0,1", "step,loss\n0,1.5\n1", "step,loss\n0,1.5\n1,2"])
def test_what_is_half_written_is_left_out(tmp_path, text):
    (tmp_path / "curves.csv").write_text(text)
    whole = text.count("\n") - 1
    assert recorded.columns(tmp_path / "curves.csv") == ({"step": [0.0], "loss": [1.5]} if whole > 0 else {})


@pytest.mark.parametrize("text", ["step,loss\n0,1,2\n", "step,loss\n0\n", "step,loss\n0,a\n", "step,loss\n0,1\n1,1,1\n"])
def test_damaged_rows_are_one_line(tmp_path, text):
    (tmp_path / "curves.csv").write_text(text)
    with pytest.raises(DataError, match=r"curves.csv is not what a training run writes \(.*\); run that phase again") as refused:
        recorded.columns(tmp_path / "curves.csv")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("text", ["{", "[1]", "3", "{}"])
def test_damaged_metrics_are_one_line(tmp_path, text):
    folder = write_run(tmp_path / "warmup")
    (folder / "metrics.json").write_text(text)
    if text == "{}":
        assert recorded.workspace(folder)[0]["warmup"].ended
        return
    with pytest.raises(DataError, match=r"metrics.json is damaged"):
        recorded.workspace(folder)


@pytest.mark.parametrize("place", ["", "nowhere", "outputs", "data/backbone"])
def test_a_folder_without_a_run_is_one_line(tmp_path, place):
    (tmp_path / "outputs").mkdir()
    with pytest.raises(
        DataError, match=r"holds no run \(no curves.csv in it or below\); name a workspace or the folder of a phase"
    ):
        recorded.workspace(tmp_path / place)


def test_reading_and_judging_brings_no_torch():
    """What has to answer in two seconds cannot wait for it."""
    code = "import sys; from pipeline.diagnosis import diagnosis, recorded; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
