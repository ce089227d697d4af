"""The benches of training steps run and say what they promise; their numbers are for who runs them."""

import json
import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bench import depth, seeds, stage
from bench.subject import batch_of, graph_bytes, naive, recursive, step_flops
from components.objective.deep_supervision import backward
from pipeline import ablation
from tests.conftest import ROOT
from tests.support.dvc import PATIENCE
from tests.support.jobs import InThisProcess
from tests.support.optional import needs
from tests.support.script import printed


def run(tmp_path, name, *options):
    path = tmp_path / "rows.json"
    command = [sys.executable, "-m", f"bench.{name}", "--quick", "--json", str(path), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
    return rows_of(path), done.stdout


@pytest.fixture
def at_once(tmp_path, capsys, monkeypatch):
    """``at_once(name)``: as ``run``, its stages in this process, one at a time, without the seconds in which each starts."""
    monkeypatch.setattr(ablation, "subprocess", InThisProcess())
    monkeypatch.setattr(ablation, "ThreadPoolExecutor", lambda processes: ThreadPoolExecutor(1))

    def at_once(name, *options):
        out = printed(capsys, str(ROOT / f"bench/{name}.py"), "--quick", "--json", str(tmp_path / "rows.json"), *options)
        return rows_of(tmp_path / "rows.json"), out

    return at_once


def rows_of(path):
    """Rows that a bench wrote; every ratio is one."""
    rows = json.loads(path.read_text())
    for row in rows if isinstance(rows, list) else []:
        for column, value in row.items():
            if "_vs_" in column and value is not None:
                assert math.isfinite(value) and value > 0, (column, row)
    return rows


def test_what_is_measured_trains_the_same_as_naive_does():
    model, batch = recursive(32, vocab=100), batch_of(2, 16, 32, 100, 0.5)
    naive(model, batch, 3)
    expected = [p.grad.clone() for p in model.parameters() if p.requires_grad and p.grad is not None]
    model.zero_grad()
    backward(model, batch, [1.0] * 3, sequences=2)
    found = [p.grad for p in model.parameters() if p.requires_grad and p.grad is not None]
    assert len(found) == len(expected) >= 8
    assert all((a - b).norm() <= 1e-4 * b.norm() for a, b in zip(found, expected, strict=True))


def test_sizes_are_those_of_the_shapes():
    model, batch = recursive(32, vocab=100, blocks=1, heads=2), batch_of(2, 16, 32, 100, 0.5)
    width, tokens = 88, 2 * 16  # 4 * 32 * 2 / 3, rounded up to a multiple of 8
    block = 2 * tokens * (4 * 32 * 32 + 3 * 32 * width) + 4 * tokens * 16 * 32
    assert step_flops(model.refiner, 2, 16) == 2 * block + 2 * tokens * 32 * 32
    assert graph_bytes(model, batch) > 2 * tokens * (3 * 32 + 3 * width) * 4


@pytest.mark.slow
def test_deep_supervision(tmp_path):
    rows, _ = run(tmp_path, "deep_supervision")
    modes = {row["mode"] for row in rows}
    assert modes == {"naive", "plain", "keep", "checkpoint", "detach"}
    timed = [row for row in rows if "seconds" in row]
    assert len(timed) == 5 and all(row["memory_mb"] > 0 and row["seconds"] > 0 for row in timed)
    for ratio in ("memory_vs_naive", "time_vs_naive", "memory_vs_plain", "time_vs_plain", "flops_vs_floor", "memory_vs_floor"):
        assert all(row[ratio] > 0 for row in timed)
    growing = [row for row in rows if "memory_per_step_vs_carry" in row]
    assert [row["mode"] for row in growing] == ["checkpoint"]


@pytest.mark.slow
def test_selective(tmp_path):
    rows, _ = run(tmp_path, "selective")
    assert {(row["pass"], row["refined"]) for row in rows} == {(p, s) for p in ("training", "evaluation") for s in (1, 0.5, 0.25)}
    assert all(row["saved"] == 1 - row["time_vs_all"] for row in rows)


@pytest.mark.slow
def test_evaluation(tmp_path):
    rows, _ = run(tmp_path, "evaluation")
    assert [row["rules"] for row in rows] == [0] * 4 + [2] * 4 and len({row["models"] for row in rows}) == 4
    assert all(row["alone_vs_shared"] > 0 for row in rows)


@pytest.mark.slow
def test_read_depths(tmp_path):
    [row], _ = run(tmp_path, "read_depths")
    assert (row["read"], row["to"]) == ("7 depths", 64) and row["time_vs_deepest_alone"] > 0


@pytest.mark.slow
def test_cache(tmp_path):
    rows, _ = run(tmp_path, "cache")
    assert [(row["phase"], row["recursion steps"]) for row in rows] == [(p, k) for p in ("warmup", "joint") for k in (2, 4)]
    assert all(row["loss difference"] <= 1e-6 and row["held_live_vs_cached"] > 3 for row in rows)


@pytest.mark.slow
def test_draws(at_once):
    rows, out = at_once("draws")
    assert [row["masks"] for row in rows] == ["live, never repeated", "4 draws", "2 draws", "1 draw"]
    assert {(row["steps"], row["epochs"]) for row in rows} == {(20, 10.0)}
    measured = ("validation nll", "test nll", "exact")
    assert all(row[what]["n"] == 2 and row[what]["low"] <= row[what]["mean"] for row in rows for what in measured)
    assert [row["test nll - live"] is None for row in rows] == [True, False, False, False]
    assert len({row["validation nll"]["mean"] for row in rows}) == 4  # other masks, other weights
    assert "smoke, 2 seeds, 20 steps, 10.0 epochs" in out


def seed_run(value):
    models = ("frozen", "warmup", "joint")
    means = {name: {"exact": {"mean": value + i}, "nll": {"mean": -value - i}} for i, name in enumerate(models)}
    return {"headline": "h", "differences": {}, "models": means}


@pytest.mark.parametrize("n", [1, 2, 12])
def test_any_number_of_seeds_makes_a_table(n):
    rows = {(row["model"], row["metric"]): row for row in seeds.table([seed_run(seed / n) for seed in range(n)])}
    middle = (n - 1) / n / 2
    assert math.isclose(rows["joint", "exact"]["mean"], middle + 2) and math.isclose(rows["frozen", "nll"]["mean"], -middle)
    assert math.isclose(rows["joint - frozen", "exact"]["mean"], 2) and ("joint - control_warmup", "exact") not in rows
    assert all(row["n"] == n and ("low" in row) == (n > 1) for row in rows.values())
    assert n == 1 or math.isclose(rows["joint - frozen", "nll"]["low"], -2)


def test_depths_make_a_table_of_means_and_paired_gains():
    by_seed = [{steps: shift + 0.01 * steps for steps in (1, 4, 64, 256)} for shift in (0.0, 0.1)]
    _, _, damped, added = depth.table({"test_5": {"damped": by_seed, "added": by_seed[:1] * 2}}, 4).splitlines()
    assert [cell.strip() for cell in damped.split("|")][1:8] == [
        "test_5",
        "damped",
        "0.060",
        "0.090",
        "0.690",
        "2.610",
        ".600 [.600, .600]",
    ]
    assert [cell.strip() for cell in added.split("|")][3:] == [
        "0.010",
        "0.040",
        "0.640",
        "2.560",
        ".600 [.600, .600]",
        "2.520 [2.520, 2.520]",
        "",
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "models"),
    [((), {"damped", "added"}), (("--models=phases",), {"warmup", "joint"}), (("--models=core",), {"core"})],
)
def test_depth(at_once, tmp_path, more, models):
    done, out = at_once("depth", "--processes=1", f"--picture={tmp_path}/depth.png", *more)
    assert done["trained"] == 4 and set(done["splits"]["test_7"]) == models
    for by_seed in done["splits"]["test_7"].values():
        assert [set(curve) for curve in by_seed] == [{str(steps) for steps in depth.DEPTHS}] * 2
    assert "smoke, exact, 2 seeds; trained with 4 steps" in out and (tmp_path / "depth.png").stat().st_size > 2000


@pytest.mark.slow
def test_seeds(at_once):
    rows, out = at_once("seeds", "--processes=1")
    assert {"frozen", "warmup", "joint", "joint - control_backbone"} <= {row["model"] for row in rows}
    assert all(row["n"] == 2 for row in rows) and "smoke" in out


@pytest.mark.slow
def test_seeds_above_one_backbone(at_once):
    """What is frozen is one model for all of them, and what is trained over it is not."""
    rows, _ = at_once("seeds", "--processes=1", "--above")
    width = {row["model"]: row["high"] - row["low"] for row in rows if row["metric"] == "nll"}
    assert width["frozen"] == 0 and min(width[name] for name in ("warmup", "joint", "control_warmup")) > 0


@pytest.mark.slow
def test_cores(tmp_path):
    rows, _ = run(tmp_path, "cores")
    sizes = [(512, "float32"), (128, "float32"), (512, "bfloat16")]
    assert [(row["hidden"], row["precision"], row["mode"]) for row in rows] == [
        (*size, mode) for size in sizes for mode in ("keep", "checkpoint")
    ]
    assert all(row["time_vs_keep"] > 0 and row["time_vs_floor"] > 0 for row in rows)
    assert all(row["memory_vs_keep"] < 0.8 for row in rows if row["mode"] == "checkpoint")


@pytest.mark.slow
def test_waiting(tmp_path):
    rows, _ = run(tmp_path, "waiting")
    assert [row["beside"] for row in rows] == ["nothing", "one busy program"]
    assert all(row["spinning, s"] > 0 and row["asleep, s"] > 0 and row["asleep_vs_spinning"] > 0 for row in rows)


@pytest.mark.slow
def test_the_memory_of_intervals_does_not_grow_with_their_groups():
    """Pieces of less than 32 MB that are freed and asked for again add up in glibc's heap: 300,000 groups came to gigabytes."""
    command = [sys.executable, "bench/memory_probes.py", "intervals", "300000"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=True)
    assert json.loads(done.stdout)["bytes"] < 4e8


@pytest.mark.slow
def test_memory(tmp_path):
    rows, out = run(tmp_path, "memory")
    assert [row["what"] for row in rows] == ["intervals", "trunk", "saving", "saving_tail"]
    assert all(
        row["seconds"] > 0 and row["bytes"] > 0 and row["seconds_vs_other"] > 0 and row["bytes_vs_other"] > 0 for row in rows
    )
    assert "| trunk" in out


@pytest.mark.slow
def test_gpu(tmp_path):
    rows, out = run(tmp_path, "gpu", "--reference", str(tmp_path))
    assert {row["section"] for row in rows} >= {"ceilings", "heads", "steps", "cache"}
    assert {row["what"] for row in rows if row["section"] == "heads"} >= {"full logits", "ours", "ours, compiled"}
    modes = {(row["mode"], row["execution"]) for row in rows if row["section"] == "steps"}
    assert modes >= {("naive", "eager"), ("keep", "eager"), ("checkpoint", "eager"), ("keep", "compiled")}
    assert all(row["time_vs_live"] > 0 for row in rows if row["section"] == "cache")
    assert "Error" not in out, out


def test_causal_generation(tmp_path, capsys):
    needs("transformers")
    out = printed(capsys, "bench.causal_generation", "--quick", "--json", str(tmp_path / "rows.json"))
    rows = rows_of(tmp_path / "rows.json")
    ways = [(model, way) for model in ("backbone", "refined") for way in ("plain", "reread", "cached")]
    assert [(row["model"], row["way"]) for row in rows] == ways and "| refined" in out
    assert all(row["seconds"] > 0 and row["ms_a_token"] > 0 and row["speed_vs_plain"] > 0 for row in rows)


WAYS = ("plain", "exact", "approximate prefix", "approximate surroundings")


def test_approximate_prefix(tmp_path, capsys):
    needs("transformers")
    out = printed(capsys, "bench.approximate_prefix", "--quick", "--json", str(tmp_path / "rows.json"))
    ways = [(model, way) for model in ("backbone", "refined") for way in WAYS]
    assert [(row["model"], row["way"]) for row in rows_of(tmp_path / "rows.json")] == ways and "| refined" in out


def test_ways_to_decode_are_measured(tmp_path, finished, capsys):
    out = printed(capsys, "bench.generation", "--quick", "--json", str(tmp_path / "rows.json"), "--root", str(finished))
    rows = rows_of(tmp_path / "rows.json")
    found = {row["way"]: row for row in rows}
    assert len(found) >= 10 and all(0 <= row["solved"]["mean"] <= 1 and row["ms"] > 0 for row in rows)
    assert found["one pass"]["evaluations"] == 1 and found["every cell a pass"]["evaluations"] == 11  # of 16, 5 are clues
    assert 2 <= found["threshold .9, guidance 1"]["evaluations"] <= 22 and "| solved" in out


@pytest.mark.slow
def test_sharing_out_is_measured_beside_holding_all(tmp_path, capsys):
    out = printed(capsys, "bench.sharding", "--quick", "--json", str(tmp_path / "rows.json"))
    rows = rows_of(tmp_path / "rows.json")
    assert [row["trained"] for row in rows] == ["all in each", "shared out"] and "| shared out" in out
    assert rows[1]["bytes_vs_all in each"] > 0
    assert all(row["bytes"] > 10**8 for row in rows)


PROGRAM = """
import sys
print(*sys.argv[1:], file=open("calls", "a"))
sys.exit("no luck" if sys.argv[1] == "joint" else 0)
"""


def test_a_stage_is_run_in_both_checkouts_and_leaves_nothing(tmp_path, monkeypatch):
    """What stands for their code says with what it was called."""
    for name in ("here", "other"):
        (tmp_path / name / "stages").mkdir(parents=True)
        (tmp_path / name / "stages/__main__.py").write_text(PROGRAM)
    monkeypatch.setattr(stage, "ROOT", tmp_path / "here")
    stage.main(str(tmp_path / "other"), "evaluate", pairs=2, json=str(tmp_path / "rows.json"))
    rows = rows_of(tmp_path / "rows.json")
    assert [(row["stage"], row["checkout"]) for row in rows] == [("evaluate", "other"), ("evaluate", "here")]
    assert rows[0]["seconds_vs_other"] == 1 and rows[1]["seconds_vs_other"] > 0 and rows[1]["seconds"] > 0
    calls = [(tmp_path / name / "calls").read_text().splitlines() for name in ("here", "other")]
    assert all(len(of) == 2 and all(call.startswith("evaluate --out ") for call in of) for of in calls)
    assert not any(Path(call.split()[2]).parent.exists() for of in calls for call in of)
    with pytest.raises(RuntimeError, match=r"joint in .*other: no luck"):
        stage.main(str(tmp_path / "other"), "joint")
