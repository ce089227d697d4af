"""`python -m bench`: every bench is in the suite or left out by name, and a table has its ratios beside a baseline's."""

import doctest
import json
import re

import pytest

from bench import __main__ as collection
from bench import baseline, ratios, suite
from bench.suite import SUITE, Bench
from tests.conftest import ROOT

FAKE = """
import json, sys
from pathlib import Path
options = sys.argv[1:]
if "--fail" in options:
    raise ValueError("no luck | today")
rows = [{"way": "plain", "s_vs_plain": 1.0}, {"way": "ours", "s": 1.0, "s_vs_plain": float(options[0]), "s_vs_none": None}]
Path(options[options.index("--json") + 1]).write_text(json.dumps(rows if "--empty" not in options else [{"way": "ours"}]))
"""
GOOD = Bench("fake", ("way",), "here", "0.25", "0.5")


@pytest.fixture
def benches(tmp_path, monkeypatch):
    """``benches(*list)``: these are the suite; scripts of their names lie beside the real ones."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "bench").mkdir()

    def benches(*listed):
        for bench in listed:
            (tmp_path / f"bench/{bench.name}.py").write_text(FAKE)
        monkeypatch.setattr(suite, "SUITE", listed)

    return benches


def test_every_bench_is_in_the_suite_or_left_out_by_name():
    scripts = {path.stem for path in (ROOT / "bench").glob("*.py") if "fire.Fire(main)" in path.read_text()} - {"__main__"}
    listed = [bench.name for bench in SUITE] + [name for name in suite.LEFT_OUT if " " not in name]
    assert sorted(listed) == sorted(scripts) and len(scripts) >= 15
    for bench in SUITE:
        text = (ROOT / f"bench/{bench.name}.py").read_text()
        flags = re.findall(r"--(\w+)", f"{bench.quick} {bench.whole} --json")
        assert all(re.search(rf"\b{flag}: ", text) for flag in flags), bench.name
        assert "_vs_" in text and all(column in text for column in bench.case), bench.name


def test_where_ratios_are_stated_there_is_such_a_heading():
    for bench in SUITE:
        for place in bench.stated.split(", "):
            page, _, heading = place.partition("#")
            lines = (ROOT / page).read_text().splitlines()
            headings = [re.sub(r"[^a-z0-9]+", "-", line.lstrip("# ").lower()) for line in lines if line.startswith("#")]
            assert not heading or heading in headings, place


def test_ratios_stand_beside_those_of_the_machine(tmp_path, benches, capsys):
    benches(GOOD)
    file, rows = tmp_path / "base.json", tmp_path / "rows.json"
    collection.main(quick=True, baseline=str(file), save=True)
    assert f"no baseline of quick runs in {file}" in capsys.readouterr().out
    entry = json.loads(file.read_text())["quick"]
    assert entry["ratios"] == {"fake: ours: s_vs_plain": 0.25} and set(entry) == {"commit", "date", "ratios", "torch"}
    collection.main(baseline=str(file), save=True)  # of the other mode nothing is compared, and both stay
    assert {mode: list(entry["ratios"].values()) for mode, entry in json.loads(file.read_text()).items()} == {
        "quick": [0.25],
        "whole": [0.5],
    }
    baseline.write_baseline(file, "quick", {"fake: ours: s_vs_plain": 0.5, "fake: gone: s_vs_plain": 2.0, "other: a: b_vs_c": 1.0})
    capsys.readouterr()
    collection.main(quick=True, baseline=str(file), json=str(rows))
    out = capsys.readouterr().out
    assert re.search(r"\| fake +\| ours +\| s_vs_plain \| 0.25 +\| 0.5 +\| 0.5 OFF +\| here", out), out
    assert "1 ratios" in out and "left out: gpu: takes a GPU" in out and f"baseline: {file}" in out
    assert [(row["case"], row["here"], row["baseline"], row["here / baseline"]) for row in json.loads(rows.read_text())] == [
        ("gone", None, 2.0, None),
        ("ours", 0.25, 0.5, 0.5),
    ]


@pytest.mark.parametrize(("options", "why"), [("--fail", "no luck \\| today"), ("1 --empty", "no column of its rows is a ratio")])
def test_a_bench_that_fails_is_a_row_and_the_others_run(tmp_path, benches, capsys, options, why):
    benches(Bench("broken", ("way",), "there", options), GOOD)
    with pytest.raises(SystemExit) as ended:
        collection.main(quick=True, baseline=str(tmp_path / "base.json"), save=True)
    out = capsys.readouterr().out
    assert ended.value.code == 1 and not (tmp_path / "base.json").exists()
    (row,) = (line for line in out.splitlines() if line.startswith("| broken"))
    assert "FAILED: " in row and why in row and "| s_vs_plain | 0.25" in out


def test_some_benches_can_be_chosen(tmp_path, benches, capsys):
    benches(GOOD, Bench("slow", ("way",), "there", "1", "1", slow="too long"))
    file = str(tmp_path / "base.json")
    collection.main(quick=True, baseline=file)
    out = capsys.readouterr().out
    assert "left out: slow: not quick: too long" in out and "| slow" not in out
    collection.main(quick=True, only=("slow", "fake"), baseline=file)
    out = capsys.readouterr().out
    assert "| slow" in out and "not quick" not in out
    with pytest.raises(SystemExit, match="--only fast: there is fake, slow"):
        collection.main(only="fast")
    with pytest.raises(SystemExit, match="leave out --only or --save"):
        collection.main(only="fake", save=True)


@pytest.mark.parametrize("module", [ratios, baseline])
def test_examples_in_docstrings_hold(module):
    assert doctest.testmod(module) == (0, 2 if module is ratios else 3)


@pytest.mark.parametrize("file", sorted(baseline.FOLDER.glob("*.json")), ids=lambda file: file.stem)
def test_a_baseline_has_rows_of_every_bench_of_its_mode(file):
    for mode in json.loads(file.read_text()):
        run = {bench.name for bench in SUITE if mode == "whole" or not bench.slow}
        assert {ratio.partition(":")[0] for ratio in baseline.read_baseline(file, mode)} == run
