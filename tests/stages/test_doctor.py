"""The doctor as a command: what it prints, where, and its exit status."""

import pytest

from stages.__main__ import main
from tests.support.made_runs import write_run


@pytest.mark.parametrize("words", [[], ["."], ["outputs/warmup"]])
def test_status_0_of_a_run_that_is_well(tmp_path, monkeypatch, capsys, words):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "outputs/warmup")
    assert main(["doctor", *words]) == 0
    assert capsys.readouterr() == ("no findings in warmup (200 steps)\n", "")


@pytest.mark.parametrize(
    ("ill", "count"), [({"confidence": 0.01}, 1), ({"confidence": 0.01, "gate/context": 0.9, "delta": 9.0}, 3)]
)
def test_status_3_of_one_that_is_not(tmp_path, capsys, ill, count):
    write_run(tmp_path / "outputs/warmup", **ill)
    assert main(["doctor", str(tmp_path)]) == 3
    out, err = capsys.readouterr()
    assert "warmup: confidence uniform: mean confidence ends at 0.010, it was 0.010 at first. Near 0" in out
    assert len(out.splitlines()) == count + 1 and err.startswith(f"error: {count} of what docs/doctor.md lists")


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["nowhere"], 1, "nowhere holds no run"),
        ([], 1, ". holds no run"),
        (["params.yaml"], 1, "params.yaml holds no run"),
        (["a", "b"], 2, "doctor looks at one folder, got 2: a b"),
        (["--run=a"], 2, "unknown flag --run=a"),
    ],
)
def test_what_it_cannot_look_at_is_one_line(tmp_path, monkeypatch, capsys, words, status, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text("preset: smoke\n")
    assert main(["doctor", *words]) == status
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"error: {message}") and len(err.splitlines()) == 1


def test_the_pipeline_of_preset_smoke_has_no_finding(finished, capsys):
    assert main(["doctor", str(finished)]) == 0
    assert "warmup (6 steps)" in capsys.readouterr().out
