"""Ablations: which jobs run for which compute, what of them is run again, and what is made of their numbers.

Jobs are faked: their numbers are known functions of variant and seed. One real run, of the smallest preset, is slow.
"""

import json
import re
import subprocess
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from ruamel.yaml import YAML

from pipeline import ablation
from pipeline.errors import ConfigError, UserError
from pipeline.reporting import figures
from stages.__main__ import main
from tests.conftest import workspace

DRAWN = figures.ablations
STAGES = ("prepare", "backbone", "extract", "warmup", "evaluate")
VALIDATION = {"default": (0.5, 0.7), "better": (0.3, 0.4), "same": (0.4, 0.7), "own_body": (0.9, 1.0)}
EXACT = {"default": (0.6, 0.7), "better": (0.8, 0.92), "same": (0.5, 0.9), "own_body": (0.1, 0.21)}
NLL = {name: tuple(1 - value for value in values) for name, values in EXACT.items()}


class Jobs:
    """What stands in for the processes: writes the numbers of a job where the job would, and remembers it."""

    def __init__(self):
        self.ran, self.exact, self.failing = [], EXACT, None
        self.metrics = ("exact", "nll")

    def run(self, command, cwd, env, capture_output, text):
        assert command[1:3] == ["-m", "stages"] and capture_output and text and env["SLOTLOOP_PROCESSES"] == "1"
        stage, *arguments = command[3:]
        seed, folder = int(cwd.name.removeprefix("seed-")), cwd / arguments[-1].removeprefix("--out=")
        self.ran.append((seed, stage, folder.relative_to(cwd).as_posix(), arguments[:-1]))
        if self.failing == (stage, folder.name):
            return SimpleNamespace(returncode=1, stdout="", stderr="warning: slow\nerror: the loss became nan\n")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "metrics.json").write_text(json.dumps({**self.numbers(stage, folder.name, seed), "of": arguments}))
        return SimpleNamespace(returncode=0, stdout="", stderr="")

    def settings(self, place, stage, bindings):
        read = {"prepare": "raw/train.txt", "backbone": "data/prepared", "extract": "data/backbone"}.get(stage, "data/shards")
        return "\n".join([f"from stages import {stage}", *bindings, f"x.read = '{read}'\n"])

    def numbers(self, stage, folder, seed):
        if stage in ("prepare", "extract"):
            return {"raw": Path("../raw/train.txt").read_text()} if stage == "prepare" else {}
        if stage == "evaluate":
            name = folder.removesuffix("-evaluated")
            found = {"exact": self.exact[name][seed], "cosine": self.exact[name][seed], "nll": NLL[name][seed]}
            measured = {metric: {"mean": found[metric]} for metric in self.metrics}
            frozen = {"exact": {"mean": 0}}
            return {"models": {"frozen": measured} if name == "own_body" else {"frozen": frozen, name: measured}}
        if folder == "backbone":
            return {"flops": 1000 + seed}
        size = {"total": 99, "trainable": 10 * len(folder)}
        return {"flops": 300 + seed, "steps": 20 + seed, "best_loss": VALIDATION[folder][seed], "parameters": size}

    def stages(self):
        return sorted({(stage, folder) for _, stage, folder, _ in self.ran})


@pytest.fixture
def jobs(tmp_path, monkeypatch):
    """Fake jobs in a workspace, over code of a file a stage."""
    made = Jobs()
    monkeypatch.chdir(workspace(tmp_path / "work", "smoke"))
    monkeypatch.setattr(subprocess, "run", made.run)
    monkeypatch.setattr(ablation, "settings", made.settings)
    monkeypatch.setattr(figures, "ablations", lambda rows, path: path.touch())
    monkeypatch.setattr(ablation, "ROOT", tmp_path / "code")
    monkeypatch.setenv("SLOTLOOP_RAW", str(tmp_path))
    for file, content in {"raw/train.txt": "one", **{f"code/stages/{stage}.py": "1" for stage in STAGES}}.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(content)
    yield made


VARIANTS = {"better": ["a.b=1", "c=@d.e"], "same": ["a.b=2"]}
ablate = partial(
    ablation.ablate, Path("out"), variants=VARIANTS, scratch={"own body": ["BACKBONE=@m.M"]}, seeds=(0, 1), processes=2
)


def rows():
    return {row["variant"]: row for row in json.loads(Path("out/metrics.json").read_text())["rows"]}


# Jobs


def test_every_seed_has_a_workspace_of_its_own(jobs):
    ablate()
    for seed in (0, 1):
        common = YAML(typ="safe").load(Path(f"out/seed-{seed}/params.yaml").read_text())["common"]
        assert common["bindings"] == {"SEED": seed, "THREADS": 1}
        assert Path(f"out/seed-{seed}/gin").resolve() == Path("gin").resolve()


@pytest.mark.parametrize("seed", [0, 1])
def test_variants_get_the_defaults_compute_and_models_of_their_own_the_backbones_too(jobs, seed):
    ablate()
    nothing = ["evaluate.run.decodes={}", "evaluate.run.halts={}"]
    expected = {
        "data/prepared": [], "data/backbone": [], "data/shards": [], "outputs/default": [],
        "outputs/better": ["a.b=1", "c=@d.e", f"loop.fit.budget={300 + seed}"],
        "outputs/same": ["a.b=2", f"loop.fit.budget={300 + seed}"],
        "outputs/own_body": ["BACKBONE=@m.M", f"loop.fit.budget={1300 + 2 * seed}"],
        "outputs/own_body-evaluated": ["evaluate.run.backbone='outputs/own_body'", "evaluate.run.models={}", *nothing],
        **{
            f"outputs/{name}-evaluated": [f"evaluate.run.models={{'{name}': 'outputs/{name}'}}", *nothing]
            for name in ("default", "better", "same")
        },
    }  # fmt: skip
    mine = [(folder, arguments) for of, _, folder, arguments in jobs.ran if of == seed]
    assert dict(mine) == expected and len(mine) == len(expected)
    order = [folder for folder, _ in mine]
    assert order[:5] == [*list(expected)[:4], "outputs/default-evaluated"]
    assert all(order.index(f"{folder}-evaluated") > order.index(folder) for folder in order if f"{folder}-evaluated" in order)


def test_a_finished_job_is_never_run_again(jobs):
    table = ablate()
    jobs.ran.clear()
    assert ablate() == table and jobs.ran == []


def test_a_new_variant_and_one_with_other_bindings_run_alone(jobs):
    ablate(variants={"better": VARIANTS["better"]}, scratch={})
    jobs.ran.clear()
    ablate(scratch={})
    assert jobs.stages() == [("evaluate", "outputs/same-evaluated"), ("warmup", "outputs/same")]
    jobs.ran.clear()
    ablate(variants={"better": ["a.b=7"]}, scratch={})
    assert jobs.stages() == [("evaluate", "outputs/better-evaluated"), ("warmup", "outputs/better")]


WARMUPS = [("warmup", f"outputs/{name}") for name in ("better", "default", "same")]
EVALUATIONS = [("evaluate", f"outputs/{name}-evaluated") for name in ("better", "default", "own_body", "same")]


@pytest.mark.parametrize(
    ("edited", "again"),
    [
        ("code/stages/warmup.py", WARMUPS),
        ("code/stages/evaluate.py", EVALUATIONS),
        ("raw/train.txt", [("prepare", "data/prepared"), ("backbone", "data/backbone"), ("backbone", "outputs/own_body")]),
        ("work/out/seed-0/data/shards/index.json", [*EVALUATIONS, ("extract", "data/shards"), *WARMUPS]),
        ("work/out/seed-0/outputs/same/metrics.json", [("warmup", "outputs/same")]),
    ],
)
def test_what_an_edit_of_code_or_inputs_reaches_is_run_again(jobs, tmp_path, edited, again):
    ablate()
    jobs.ran.clear()
    (tmp_path / edited).write_text('{"edited": 1}' if edited.endswith("json") else "2")
    ablate()
    assert jobs.stages() == sorted(again)  # what is written anew and comes out the same goes no further
    assert {seed for seed, *_ in jobs.ran} == ({0} if "seed-0" in edited else {0, 1})
    jobs.ran.clear()
    ablate()
    assert jobs.ran == []


def test_a_job_whose_result_is_gone_is_run_again(jobs):
    ablate()
    jobs.ran.clear()
    Path("out/seed-1/outputs/better/metrics.json").unlink()
    ablate()
    assert (1, "warmup", "outputs/better") in [job[:3] for job in jobs.ran] and {seed for seed, *_ in jobs.ran} == {1}


def test_a_failed_job_says_why_and_is_run_again_with_what_had_to_wait(jobs):
    jobs.failing = ("warmup", "same")
    with pytest.raises(UserError, match=r"^ablate: warmup in out/seed-\d failed: the loss became nan$"):
        ablate()
    assert not Path("out/metrics.json").exists()
    jobs.failing = None
    jobs.ran.clear()
    ablate()
    assert jobs.stages()[-1] == ("warmup", "outputs/same") and ("backbone", "data/backbone") not in jobs.stages()


def test_a_job_that_fails_without_a_word_tells_its_status(jobs, monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda command, **k: SimpleNamespace(returncode=9, stdout="", stderr=""))
    with pytest.raises(UserError, match=r"ablate: prepare in out/seed-0 failed: status 9$"):
        ablate()


def test_settings_are_those_that_the_stage_resolves_and_nothing_where_it_refuses_them(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(workspace(tmp_path / "work", "smoke"))
    place = ablation.workspace(Path("out"), 7)
    found = ablation.settings(place, "warmup", ["RECURSION_STEPS=1", "loop.fit.budget=300"])
    monkeypatch.chdir(place)
    assert main(["warmup", "RECURSION_STEPS=1", "loop.fit.budget=300", "--out=x", "--print-config"]) == 0
    assert capsys.readouterr().out == found and "SEED = 7" in found
    assert ablation.settings(Path(), "warmup", ["loop.fit.bugdet=300"]) == ""


# Numbers


def interval(a, b):
    """Of two runs: 12.706 is Student's t with one degree of freedom; their standard error is half of what they differ by."""
    mean, half = (a + b) / 2, 12.7062047 * abs(a - b) / 2
    return pytest.approx({"mean": mean, "low": mean - half, "high": mean + half, "n": 2})


def test_rows_hold_each_variants_numbers_and_paired_differences(jobs):
    ablate()
    assert json.loads(Path("out/metrics.json").read_text())["seeds"] == [0, 1]
    assert [*rows()] == ["better", "same", "default", "own body"]  # by validation loss
    for name, row in rows().items():
        key = name.replace(" ", "_")
        assert row["metric"] == "exact" and row["parameters"] == 10 * len(key) and row["steps"] == 20
        assert row["validation"] == interval(*VALIDATION[key])
        assert row["test"] == interval(*EXACT[key]) and row["test_values"] == list(EXACT[key])
        assert row["difference"] == interval(*(a - b for a, b in zip(EXACT[key], EXACT["default"], strict=True)))
    assert {name: row["verdict"] for name, row in rows().items()} == {
        "better": "helps", "same": "noise", "default": "", "own body": "hurts"
    }  # fmt: skip


def test_where_nothing_is_ever_exact_the_loss_is_compared_and_less_of_it_helps(jobs):
    jobs.exact = {name: (0.0, 0.04) for name in EXACT}
    table = ablate()
    assert "test nll" in table
    assert {name: row["verdict"] for name, row in rows().items()} == {
        "better": "helps", "same": "noise", "default": "", "own body": "hurts"
    }  # fmt: skip
    assert rows()["better"]["test"] == interval(*NLL["better"])


def test_embeddings_are_compared_by_cosine_and_more_of_it_helps(jobs):
    jobs.metrics = ("cosine",)
    table = ablate()
    assert "test cosine" in table and "validation loss" in table
    assert rows()["better"]["verdict"] == "helps" and rows()["better"]["test"] == interval(*EXACT["better"])


def test_one_exact_run_is_enough_to_compare_by_it(jobs):
    jobs.exact = {**{name: (0.0, 0.0) for name in EXACT}, "same": (0.0, 0.05)}
    assert "test exact" in ablate()


def test_the_table_has_a_line_for_each_variant_in_order(jobs):
    table = ablate()
    assert Path("out/table.md").read_text() == table
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line.startswith("|")]
    assert lines[0] == ["variant", "trained parameters", "steps", "validation nll", "test exact", "test - default", "verdict"]
    body = {line[0]: line[1:] for line in lines[2:]}
    assert [*body] == ["better", "same", "default", "own body"]
    assert body["default"] == ["70", "20", ".600 [-.671, 1.871]", ".650 [.015, 1.285]", "", ""]
    assert body["better"][-2:] == [".210 [.083, .337]", "helps"]
    assert "over 2 seeds" in table


def test_a_picture_is_drawn(jobs, monkeypatch):
    monkeypatch.setattr(figures, "ablations", DRAWN)
    ablate()
    assert Path("out/ablations.png").read_bytes().startswith(b"\x89PNG")


# Errors


@pytest.mark.parametrize("seeds", [(), (3,), (1, 1), (0, 1, 0)])
def test_seeds_that_give_no_interval_are_refused_before_anything_runs(jobs, seeds):
    with pytest.raises(
        ConfigError, match=rf"needs at least two different seeds for an interval, got {re.escape(str(list(seeds)))}$"
    ):
        ablate(seeds=seeds)
    assert not Path("out").exists() and not jobs.ran


@pytest.mark.parametrize(
    ("variants", "scratch", "told"),
    [
        ({"x": []}, {"x": []}, "'x' and 'x' would share the folder x"),
        ({"default": []}, {}, "'default' and 'default'"),
        ({}, {"default": []}, "'default' and 'default'"),
        ({"two steps": [], "two-steps": []}, {}, "'two steps' and 'two-steps' would share the folder two_steps"),
    ],
)
def test_names_that_share_a_folder_are_refused(jobs, variants, scratch, told):
    with pytest.raises(ConfigError, match=rf"ablate names a variant twice: {told}"):
        ablate(variants=variants, scratch=scratch)
    assert not Path("out").exists()


# The whole


@pytest.mark.slow
def test_a_real_ablation_of_the_smallest_preset(tmp_path, monkeypatch):
    monkeypatch.chdir(workspace(tmp_path / "work", "smoke"))
    own = {"own": ["BACKBONE=@recursive_lm.RecursiveLM"]}
    table = ablate(variants={"one step": ["RECURSION_STEPS=1"]}, scratch=own, processes=1)
    assert {*rows()} == {"default", "one step", "own"} and "one step" in table
    assert rows()["one step"]["steps"] > rows()["default"]["steps"]  # cheaper steps, more of them for the same compute
    before = {file: file.stat().st_mtime_ns for file in Path("out").rglob("metrics.json")}
    assert ablate(variants={"one step": ["RECURSION_STEPS=1"]}, scratch=own, processes=1) == table
    kept = {file: file.stat().st_mtime_ns for file in before if file != Path("out/metrics.json")}
    assert kept.items() <= before.items() and len(kept) > 10
