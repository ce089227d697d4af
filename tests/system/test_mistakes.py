"""Mistakes as people make them: each ends with status 2 and one line that says where and what instead; nothing is written."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from stages.__main__ import main
from tests.conftest import ROOT
from tests.support.dvc import PATIENCE

SMOKE = "preset: smoke\n"
MINE = "from __gin__ import dynamic_registration\ninclude 'gin/presets/smoke.gin'\n"


@dataclass(frozen=True)
class Mistake:
    """What a user wrote and ran, and parts of what the error has to say."""

    told: tuple[str, ...]
    params: str | None = SMOKE
    command: tuple[str, ...] = ("configure",)
    mine: str = ""  # of gin/presets/mine.gin


def file(params: str | None, *told: str, command: str = "configure", mine: str = "") -> Mistake:
    """In params.yaml, or in the preset that it names."""
    return Mistake(told, params, (command,), mine)


def bound(section: str, line: str, *told: str, command: str = "") -> Mistake:
    """In a binding: line 4 of params.yaml. Found by the stage itself, or by configure where it concerns several stages."""
    text = f"{SMOKE}{section}:\n  bindings:\n    {line}\n"
    by = command or ("configure" if section == "common" else section)
    return file(text, f"params.yaml:4 {section}.bindings.", *told, command=by)


def shaped(section: str, line: str, *told: str) -> Mistake:
    """In a binding that shows when models are built: the stage is named, and no line."""
    return file(f"{SMOKE}{section}: {{bindings: {{{line}}}}}\n", *told)


def preset(lines: str, *told: str, command: str = "configure") -> Mistake:
    """In a preset of one's own, from its third line on."""
    return file("preset: mine\n", *told, command=command, mine=MINE + lines + "\n")


def typed(*command: str, told: tuple[str, ...]) -> Mistake:
    """On the command line."""
    return Mistake(told, SMOKE, command)


MISTAKES = {
    # names
    "preset": file("# mine\npreset: smok\n", "params.yaml:2", "unknown preset 'smok'", "did you mean 'smoke'?"),
    "section": file(SMOKE + "warmpu: {}\n", "params.yaml:2", "unknown section 'warmpu'", "did you mean 'warmup'?"),
    "key of a section": file(SMOKE + "warmup: {bindngs: {SEED: 1}}\n", "params.yaml:2 warmup", "'gin'", "'bindings' (a map)"),
    "bindings forgotten": file(SMOKE + "warmup: {loop: {fit: {steps: 3}}}\n", "params.yaml:2 warmup", "'bindings' (a map)"),
    "module": bound("warmup", "lop: {fit: {steps: 1}}", "lop.fit.steps", "'lop.fit'", "did you mean 'loop.fit'?"),
    "function": bound("warmup", "loop: {fti: {steps: 1}}", "loop.fti.steps", "'loop.fti'", "did you mean 'loop.fit'?"),
    "parameter": bound("warmup", "loop: {fit: {stpes: 1}}", "loop.fit has no parameter 'stpes'", "did you mean 'steps'?"),
    "scope": bound("controls", "trained_onn: {optim: {adamw: {lr: 0.1}}}", "'trained_onn' is never entered", "in use: trained_on"),
    "macro": bound("warmup", "WARMUP_STPES: 1", "no macro is called 'WARMUP_STPES'", "did you mean 'WARMUP_STEPS'?"),
    "reference": bound("warmup", "loop: {fit: {schedule: '@optim.warmup_cosin'}}", "did you mean 'optim.warmup_cosine'?"),
    "setting of another task": file(
        "preset: gsm8k\nprepare: {bindings: {sudoku: {Sudoku: {train: 5}}}}\n", "params.yaml:2", "'sudoku.Sudoku'",
        "jsonl.QuestionAnswers", command="prepare"
    ),
    "gin file": file(SMOKE + "warmup: {gin: [gin/sizes/tinny.gin]}\n", "params.yaml:2 warmup.gin",
        "did you mean 'gin/sizes/tiny.gin'?", command="warmup"),
    "name in a preset": preset("from pipeline.training import loop\nloop.fti.steps = 3", "gin/presets/mine.gin",
        "did you mean 'loop.fit'?", command="warmup"),
    # values
    "word for a number": bound("warmup", "loop: {fit: {steps: many}}", "loop.fit.steps expects int, got 'many' (str)"),
    "word behind a macro": bound("common", "WARMUP_STEPS: many", "WARMUP_STEPS", "loop.fit.steps expects int, got 'many' (str)",
        command="warmup"),
    "choice": bound("warmup", "runtime: {Runtime: {precision: fp16}}", "precision expects 'fp32' or 'bf16', got 'fp16'"),
    "number in quotes": bound("warmup", "optim: {adamw: {lr: '5e-4'}}", "optim.adamw.lr", "'5e-4'", "write it without quotes"),
    "word for a list": bound("warmup", "warmup: {run: {unfreeze: refiner}}", "unfreeze expects Sequence[str], got 'refiner' (str)"),
    "bool for a number": bound("warmup", "loop: {fit: {steps: true}}", "loop.fit.steps expects int, got True (bool)"),
    "null": bound("warmup", "loop: {fit: {steps: null}}", "loop.fit.steps expects int, got None"),
    "fraction for a whole number": bound("common", "DRAWS: 1.5", "extract.run.draws expects int, got 1.5 (float)",
        command="extract"),
    "tuple too long": bound("prepare", "sudoku: {Sudoku: {clues: [4, 6, 8]}}", "clues expects tuple[int, int], got [4, 6, 8]"),
    "item of a map": bound("evaluate", "MEASURES: {test_5: [1.0, test_5]}", "measures expects Mapping[str, tuple[str, float]]",
        "[1.0, 'test_5']"),
    "infinity": bound("warmup", "optim: {adamw: {lr: .inf}}", "optim.adamw.lr", "expected a finite number, got inf"),
    "function of another kind": bound("warmup", "loop: {fit: {optimizer: '@supervision.constant'}}", "optimizer expects Callable",
        "got @supervision.constant"),
    "@ forgotten": bound("warmup", "objective: {Objective: {supervision: supervision.constant}}",
        "expects Callable (a reference such as '@module.name')"),
    "() forgotten": bound("warmup", "warmup: {run: {runtime: '@runtime.Runtime'}}",
        "runtime expects Runtime, got @runtime.Runtime"),
    "() too many": bound("warmup", "objective: {Objective: {bptt: '@recursion.one_step_gradient()'}}", "bptt expects Callable",
        "got @recursion"),
    "required": preset("WARMUP_STEPS = %gin.REQUIRED", "loop.fit.steps is required",
        "bind it in params.yaml or on the command line", command="warmup"),
    # settings that reach nothing
    "what no setting asks for": bound("warmup", "supervision: {constant: {weight: 0.3}}",
        "'supervision.constant.weight' is valid, but nothing that stage warmup"),
    "scope without a use": bound("warmup", "trained_on: {optim: {adamw: {lr: 0.1}}}", "scope 'trained_on' is never entered",
        "in use: none"),
    "something more specific": bound("controls", "optim: {adamw: {lr: 0.1}, }\n    controls.run.fit: '@trained_on/loop.fit'",
        "'trained_on/optim.adamw.lr' is more specific and wins"),
    "macro of no stage": bound("common", "SEEED: 1", "SEEED: no stage uses this, or it is misspelt"),
    "binding of no stage": bound("common", "masking: {bernoulli: {eps: 0.1}}", "masking.bernoulli.eps: no stage uses this"),
    "macro of a preset": preset("\nWARMUP_STPES = 3", "gin/presets/mine.gin:4", "nothing uses the macro 'WARMUP_STPES'"),
    "preset too weak": preset("from components.training import optim\noptim.adamw.weight_decay = 0.3", "gin/presets/mine.gin:4",
        "'optim.adamw.weight_decay' has no effect", "bind it in params.yaml"),
    "size under joint": bound("joint", "refiner: {SlotRefiner: {heads: 8}}", "'refiner.SlotRefiner.heads' is valid",
        "nothing that stage joint builds uses it"),
    "size file under joint": file(SMOKE + "joint: {gin: [gin/sizes/base.gin]}\n", "gin/sizes/base.gin:7",
        "'refiner.SlotRefiner.blocks'", "stage joint", command="joint"),
    # the file itself
    "key twice": bound("warmup", "loop.fit.steps: 1\n    loop: {fit: {steps: 2}}", "loop.fit.steps", "params.yaml:5",
        "bound twice"),
    "preset twice": file(SMOKE + "preset: sudoku4\n", "params.yaml", 'duplicate key "preset"', "line 2"),
    "one file for a list": file(SMOKE + "warmup: {gin: gin/sizes/tiny.gin}\n", "params.yaml:2 warmup.gin",
        "expected a list of gin files"),
    "a list of bindings": file(SMOKE + "warmup: {bindings: [SEED=1]}\n", "params.yaml:2 warmup.bindings", "expected a map",
        "SEED=1"),
    "brackets": file(SMOKE + "warmup: {bindings: [}\n", "params.yaml is not valid YAML", "line 2"),
    "tab": file(SMOKE + "warmup:\n\tbindings: {}\n", "params.yaml is not valid YAML", "'\\t'", "line 3"),
    "no preset": file("warmup: {}\n", "params.yaml must hold a map with 'preset: <name>'"),
    "no params.yaml": file(None, "params.yaml does not exist", "run from the folder that holds it"),
    # settings that do not fit together
    "heads and width": shaped("common", "HEADS: 5", "backbone: heads must divide dim", "dim 16 and heads 5"),
    "heads of the refiner": shaped("warmup", "refiner: {SlotRefiner: {heads: 3}}", "warmup: heads must divide dim",
        "dim 16 and heads 3"),
    "slots": shaped("warmup", "refiner: {SlotRefiner: {slots: [[mood, state, 3]]}}", "warmup: a slot refiner needs at least 2",
        "got 1"),
    "two ways to say heads": shaped("warmup", "refiner: {SlotRefiner: {head_width: 8}}", "warmup: give heads or head_width",
        "got heads 2 and head_width 8"),
    "tail": shaped("common", "TAIL_LAYERS: 3", "extract: a tail of 3 layers cannot be cut from a backbone of 2"),
    "unfreeze": shaped("joint", "joint: {run: {unfreeze: [refnier]}}", "joint: no module matches 'refnier'",
        "the nearest are refiner"),
    "nothing to train": shaped("warmup", "warmup: {run: {unfreeze: []}}", "warmup.run.unfreeze names nothing to train"),
    "loss that is none": bound("warmup", "objective: {Objective: {loss: '@masking.chunks'}}",
        "@masking.chunks takes (response, noise, size), and is called with (model, hidden, batch, compute)"),
    "model for an execution": bound("backbone", "loop: {fit: {execution: '@pretrained.build'}}",
        "@pretrained.build takes Source as source, and is called with Model"),
    "function of a tensor for an activation policy": bound("warmup", "objective: {Objective: {activations: '@hybrid.packed'}}",
        "@hybrid.packed takes Bool[Tensor, 'batch seq'] as selected, and is called with Callable"),
    "steps for a loop that takes none": bound("finetune", "finetune: {run: {steps: 2, fit: '@loop.as_it_is'}}",
        "@loop.as_it_is takes (run, budget, objective), and is called with (run, steps)"),
    "object for a schedule": bound("controls", "loop: {fit: {schedule: '@lora.Lora()'}}",
        "@lora.Lora() takes (model, ", "and is called with (int, int)"),
    "object for a table": bound("warmup", "warmup: {run: {table: '@runtime.Runtime()'}}", "table expects Callable",
        "got @runtime.Runtime()"),
    "masking without its ratio": bound("extract", "MASKING: '@masking.fixed_ratio'", "masking.fixed_ratio.ratio is required"),
    "states of tokens": bound("joint", "joint: {run: {states: '@sources.tokens'}}", "sources.tokens.", "is required; bind it"),
    "corpus for a source": bound("warmup", "warmup: {run: {states: '@sources.cached()'}}", "states expects Callable"),
    "weights for places": bound("warmup", "objective: {Objective: {bptt: '@supervision.constant'}}", "bptt expects Callable"),
    "answers of puzzles": shaped("evaluate", "ANSWERS: '@answers.Answers'", "evaluate.run.answers is for text corpora",
        "set ANSWERS: null"),
    "halting that is not learned": shaped("evaluate", "HALTS: {a: '@halting.by_learning'}", "evaluate.run.halts: 'a' is",
        "the refiner does not learn to halt"),
    "device of no machine": shaped("warmup", "runtime: {Runtime: {device: tpu}}", "warmup: runtime.Runtime.device is 'tpu'",
        "use 'cpu' or 'cuda'"),
    "device that computes nothing": shaped("generate", "runtime: {Runtime: {device: meta}}", "generate: ", "computes nothing"),
    "layers that are not there": shaped("common", "TAIL_LAYERS: 0, loop: {fit: {execution: '@execution.checkpointed'}}",
        "warmup: loop.fit.execution = @execution.checkpointed: a RefinedLM has no layers", "use @execution.eager"),
    "batch beyond the data": shaped("common", "BATCH: 301", "warmup: a step of 301 rows", "there will be 300"),
    "batch beyond the questions": file(
        "preset: gsm8k\ncommon: {bindings: {jsonl.QuestionAnswers.limits: {train: 20}, BATCH: 21}}\n",
        "warmup: a step of 21 rows", "there will be 20 at most"),
    "batches beyond the data": shaped("joint", "loop: {fit: {accumulation: 10}}", "joint: a step of 320 rows"),
    "batch of a control": shaped("controls", "controls: {run: {backbone_batch_size: 9223372036854775808}}",
        "controls: a step of 9223372036854775808 rows"),
    # command line
    "unknown flag": typed("warmup", "--chekc", told=("unknown flag --chekc", "did you mean 'check'?")),
    "setting as a flag": typed("warmup", "--loop.fit.steps=3",
        told=("unknown flag --loop.fit.steps=3", "a setting stands without dashes: loop.fit.steps=3")),
    "flag twice": typed("warmup", "--out=a", "--out=b", told=("--out is given twice",)),
    "flag without a value": typed("warmup", "--out", "--check", told=("--out needs a value",)),
    "limit of another stage": typed("warmup", "--limit", "3", told=("--limit belongs to: python -m stages evaluate",)),
    "limit without a number": typed("evaluate", "--limit", "few", told=("run.limit expects int or None, got 'few' (str)",)),
    "answers of nothing": file("preset: gsm8k\nevaluate: {bindings: {answers: {Answers: {items: 0}}}}\n",
        "params.yaml:2 evaluate.bindings.answers.Answers.items", "answers.Answers.items must be at least 1, got 0"),
    "one sample of a likelihood": file("preset: gsm8k\nevaluate: {bindings: {likelihood: {Likelihood: {samples: 1}}}}\n",
        "likelihood.Likelihood.samples must be at least 2, got 1"),
    "pattern that is none": file("preset: gsm8k\nevaluate: {bindings: {answers.Answers.patterns: {strict: ['(', 0]}}}\n",
        "evaluate: pattern 'strict' is no regular expression"),
    "flag of another stage": typed("warmup", "--ship", told=("--ship belongs to: python -m stages track",)),
    "device for no machine": typed("prepare", "--device=cpu", told=("stage prepare builds no runtime.Runtime",
        "bound under backbone")),
    "unknown stage": typed("warmpu", told=("unknown stage 'warmpu'", "did you mean 'warmup'?")),
    "no stage": typed(told=("name a stage: configure, prepare",)),
    "flag before the stage": typed("--out=a", "prepare",
        told=("name a stage: configure, prepare", "it comes first, before --out=a")),
    "switch with a value": typed("warmup", "--check=5", told=("--check is a switch", "got '5'")),
    "flag cut short": typed("warmup", "-c", told=("unknown flag -c",)),
    "override without =": typed("warmup", "loop.fit.steps", "3", told=("command line 'loop.fit.steps'",
        "expected name.param=value")),
    "override of nothing": typed("warmup", "loop.fit.stpes=3", told=("command line 'loop.fit.stpes=3'", "did you mean 'steps'?")),
    "override with a word": typed("warmup", "loop.fit.steps=many", told=("command line 'loop.fit.steps=many'",
        "expects int, got 'many'")),
    "override without use": typed("joint", "supervision.constant.weight=0.3", told=("command line",
        "nothing that stage joint builds uses it")),
    "override of another stage": typed("prepare", "lora.Lora.rank=3", told=("command line 'lora.Lora.rank=3'",
        "bound under controls")),
    "override that another stage uses": typed("prepare", "optim.adamw.lr=3.0", told=("command line 'optim.adamw.lr=3.0'",
        "nothing that stage prepare builds uses it", "bound under backbone or")),
    "override for all": typed("configure", "SEED=1", told=("name.param=value", "for one stage")),
    "config that is not there": typed("warmup", "--config=none.gin", told=("none.gin does not exist", "run: dvc repro configure")),
    # what only the whole of the settings shows
    "parameter that the stage gives": bound("warmup", "refiner: {SlotRefiner: {dim: 8}}", "dim", command="configure"),
    "name that the stage gives": bound("warmup", "loop: {fit: {run: mine}}", "loop.fit.run", command="configure"),
    "learned weights with a curriculum": shaped("warmup",
        "objective: {Objective: {curriculum: 0.5, supervision: '@supervision.learned'}}",
        "warmup: objective.Objective.curriculum grows given weights", "use one of the two"),
    "weights for another number of steps": shaped("warmup",
        "objective.Objective.supervision: '@supervision.custom', supervision.custom.weights: [0.5, 1.0]",
        "warmup: supervision.custom needs", "got [0.5, 1.0]"),
    "binding of a preset for no stage": preset("from components.objective import supervision\nsupervision.constant.weight = 0.3",
        "mine.gin:4", "weight"),
    "macro of a preset, its nearest": preset("WARMUP_STPES = 3", "mine.gin:3", "did you mean 'WARMUP_STEPS'?"),
    "macro as a value, its nearest": bound("warmup", "loop: {fit: {steps: '%WARMUP_STPES'}}", "did you mean 'WARMUP_STEPS'?"),
    "module in a preset": preset("from pipeline import lop\nlop.fit.steps = 3", "mine.gin", "pipeline.lop", command="warmup"),
    "corpus without its files": preset("from pipeline.text import jsonl\nCORPUS = @jsonl.QuestionAnswers()", "QuestionAnswers",
        "train"),
    "gin file elsewhere": file(SMOKE + "warmup: {gin: [/nowhere/mine.gin]}\n", "params.yaml:2 warmup.gin", "does not exist",
        command="warmup"),
    "half a reference": bound("warmup", "loop: {fit: {optimizer: '@optim/'}}", "loop.fit.optimizer", "'@optim/'"),
    "tracker by name": bound("track", "track: {run: {trackers: [clearml]}}", "trackers expects", "'clearml'"),
    "corpus by number": bound("prepare", "CORPUS: 3", "corpus expects Corpus", "got 3 (int)"),
    "override twice": typed("warmup", "loop.fit.steps=3", "loop.fit.steps=4", "--check", told=("loop.fit.steps", "twice")),
    "no way to answer": bound("generate", "sampling: {Sampler: {stepps: 4}}", "sampling.Sampler has no parameter 'stepps'"),
    "rule of halting": bound("generate", "generation: {Generator: {halt: '@sampling.Sampler'}}", "halt expects Callable"),
    "model for a number": bound("generate", "generation: {Generator: {prefix: '@refiner.SlotRefiner'}}",
        "@refiner.SlotRefiner takes int as dim, and is called with Model"),
    "kept prefix with a rule of halting": shaped("generate",
        "generation: {Generator: {prefix: '@approximate_prefix.approximate_prefix', halt: '@halting.by_change'}}",
        "generation.Generator.prefix goes with neither halt nor"),
    "steps and blocks": shaped("generate", "sampling: {Sampler: {steps: 5, blocks: 2}}",
        "steps must be a positive multiple of blocks, got steps 5 and blocks 2"),
    "threshold that is no probability": shaped("generate",
        "sampling: {Sampler: {revise: '@revising.below_threshold'}}, revising: {below_threshold: {threshold: 1.5}}",
        "revising.below_threshold.threshold must be at least 0, at most 1"),
    "rule of revising that is one of halting": bound("generate", "sampling: {Sampler: {revise: '@halting.by_change'}}",
        "sampling.Sampler.revise"),
    "model of a stage that has none": typed("warmup", "--model=outputs/joint",
        told=("--model belongs to: python -m stages generate or export",)),
    "answers in a folder": typed("generate", "--prompt=a", "--out=b",
        told=("--out belongs to: python -m stages configure or prepare or",)),
    "two ways to ask": typed("generate", "--prompt=a", "--prompts=b", told=("give --prompt or --prompts, not both",)),
    "overwriting what is exported": typed("export", "--model=a", "--out=a", told=("a is read here", "--out DIR")),
    "settings of configure": typed("configure", "--print-config", told=("--print-config belongs to: python -m stages prepare",)),
}  # fmt: skip


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A workspace of one's own as the current folder, outside DVC."""
    monkeypatch.delenv("DVC_STAGE", raising=False)
    monkeypatch.setenv("SLOTLOOP_TRACKING", "off")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(folder: Path, mistake: Mistake) -> set[Path]:
    """Make the workspace; returns all that is in it."""
    shutil.copytree(ROOT / "gin", folder / "gin")
    if mistake.mine:
        (folder / "gin/presets/mine.gin").write_text(mistake.mine)
    if mistake.params is not None:
        (folder / "params.yaml").write_text(mistake.params)
    return set(folder.rglob("*"))


def check(mistake: Mistake, status: int, out: str, err: str) -> None:
    assert status == 2 and out == ""
    assert err.startswith("error: ") and len(err.splitlines()) == 1
    missing = [part for part in mistake.told if part not in err]
    assert not missing, err


def test_the_table_is_whole():
    assert len(MISTAKES) >= 75 and len({(m.params, m.command, m.mine) for m in MISTAKES.values()}) == len(MISTAKES)


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_in_one_line_and_nothing_is_written(here, capsys, name):
    before = write(here, MISTAKES[name])
    status = main([*MISTAKES[name].command])
    check(MISTAKES[name], status, *capsys.readouterr())
    assert set(here.rglob("*")) == before


def test_every_mistake_is_told_in_a_line_of_its_own(here, capsys):
    write(here, file(SMOKE + "warmup: {bindings: {SEEED: 1}}\njoint: {bindings: {loop.fit.stpes: 1}}\n"))
    assert main(["configure"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("error: params.yaml:2 ") and second.startswith("       params.yaml:3 ")


def test_a_process_of_its_own_tells_the_same(here):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    chosen = {name: MISTAKES[name] for name in ("gin file", "unknown flag")}
    started, before = {}, {}
    for name, mistake in chosen.items():
        folder = here / name
        folder.mkdir()
        before[name] = write(folder, mistake)
        command = [sys.executable, "-m", "stages", *mistake.command]
        started[name] = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    for name, process in started.items():
        out, err = process.communicate(timeout=PATIENCE)
        check(chosen[name], process.returncode, out, err)
        assert "Traceback" not in err and set((here / name).rglob("*")) == before[name]
