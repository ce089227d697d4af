"""docs/notebook.ipynb: its cells run in order over a finished run, and say what its files say."""

import json

import matplotlib
import matplotlib.pyplot as plt
import pytest

from tests.conftest import ROOT

NOTEBOOK = json.loads((ROOT / "docs/notebook.ipynb").read_text())
CELLS = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def test_it_is_a_notebook_without_outputs():
    assert NOTEBOOK["nbformat"] == 4 and len(CELLS) >= 6
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in NOTEBOOK["cells"] if "outputs" in cell)
    assert len({cell["id"] for cell in NOTEBOOK["cells"]}) == len(NOTEBOOK["cells"])


@pytest.fixture(autouse=True)
def _no_window():
    matplotlib.use("Agg")
    yield
    plt.close("all")


def test_its_cells_run_and_say_what_the_run_says(finished, capsys, monkeypatch):
    monkeypatch.chdir(finished / "outputs")  # from any folder within
    names = {}
    for cell in CELLS:
        exec(cell, names)
    out = capsys.readouterr().out
    metrics = json.loads((finished / "outputs/evaluate/metrics.json").read_text())
    for name, model in metrics["models"].items():
        assert any(line.startswith(name) and f"{model['exact']['mean']:.3f}" in line for line in out.splitlines())
    assert {line.rpartition("  ")[2] for line in out.splitlines() if " - " in line} <= {"clear", "noise"}
    drawn = {line.get_label(): list(line.get_ydata()) for line in names["losses"].get_lines()}
    assert list(drawn) == [f"step_{k}" for k in range(4)] and drawn["step_3"] == names["curves"]["loss/step_3"]
    steps = [line.split() for line in out.splitlines() if line[:1].isdigit()]
    assert [int(number) for number, _ in steps[:13]] == list(range(13)) and steps[0][1] == "12../..../4.../...1"
    assert "." not in steps[12][1] and names["deeper"].model.n_steps == 16
