"""Random settings of the smoke preset, within and outside their ranges: configure refuses them, or the stages take their steps.

`python -m tests.support.random_settings --settings 2000 --pipelines 40 [--seed 0] [--first 0]` runs the whole fuzz and prints every
setting that did neither, and how many ended how.
"""

import contextlib
import gc
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import types
import typing
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from inspect import signature
from pathlib import Path
from typing import Annotated, Any, Literal
from unittest import mock

import fire
import torch

from components.ranges import Range
from pipeline.command_line import SECTIONS, STAGES
from pipeline.errors import ConfigError, UserError
from pipeline.settings import config, ginstate, params, rehearsal
from pipeline.settings.ginfiles import MACRO, namespace
from pipeline.settings.layers import files_of_layers
from pipeline.settings.typecheck import annotation, takes_reference
from pipeline.training import flops
from stages.__main__ import main
from tests.conftest import ROOT, TRAINING, workspace

Bindings = dict[str, dict[str, Any]]  # by section
FEW = {
    "common": {"BACKBONE_STEPS": 2, "WARMUP_STEPS": 2, "JOINT_STEPS": 2, "VALIDATE_EVERY": 2},
    "finetune": {"finetune.run.steps": 2},
}
DRAWN = ("prepare", "backbone", "extract", *("warmup",) * 4, *("joint",) * 2, "finetune", *("controls",) * 2, *("evaluate",) * 2,
    "generate")  # fmt: skip
PLACES = {"out", "prepared", "backbone", "warmup", "joint", "shards", "models", "urls", "model", "prompt", "prompts", "confidence",
    "length", "budget"}  # the last: an answer's length is known where its model is opened, and training may last  # fmt: skip
WORDS = {
    "headline": ("test_5", "test_7", "mean"), "device": ("cpu", "tpu", ""), "split": ("test_5", "validation", "x"),
    "unfreeze": ("refiner", "backbone", "backbone.blocks.*", "backbone.norm", "", "refiner.*", "nothing", "blocks.*"),
    "unfreeze_backbone": ("", "blocks.*", "blocks.1", "norm", "refiner"),
    "slots": ("mood", "drift", "context", "state", "change", "variance", "attention", "backbone", "0", ""),
}  # fmt: skip
SPLITS = ("test_5", "test_7", "validation", "train", "test")
LARGEST = {"threads": 3, "train": 400, "test": 60, "validation": 60, "size": 6, "processes": 2, "dim": 48, "grids": 288}
WRONG = ("word", True, None, [1], [], {}, {"a": 1}, 1.5, "3", "@loop.fit", "%SEED", "%NOTHING", "@nothing.here", "@optim.adamw()",
    [["a", 1]], float("nan"), float("inf"), -1, 0, 10**30)  # fmt: skip
ROOM = 4096  # bounds above are allowed to a setting, and more than a test may take: ten thousand steps fill any memory
SECONDS = 30  # of processor time, of one stage, and a tenth of the time on the clock: more is told as "slow"
MEMORY = 8 << 30
ANSWERED = ("--model=outputs/joint", "--prompt=12../..../..4./..2.")


@dataclass(frozen=True)
class Site:
    """A parameter that settings can bind: its key, what may stand there, and the macro through which the preset binds it."""

    key: str
    expected: Any
    macro: str = ""


@dataclass(frozen=True)
class Case:
    """Settings that were drawn, by section, over ``FEW``."""

    stage: str
    bindings: Bindings

    @property
    def text(self) -> str:
        """Write params.yaml; JSON is YAML, but for what is no number."""
        merged = {section: {**FEW.get(section, {}), **self.bindings.get(section, {})} for section in {*FEW, *self.bindings}}
        sections = {section: {"bindings": bound} for section, bound in sorted(merged.items())}
        text = json.dumps({"preset": "smoke", **sections}, default=str)
        return text.replace("NaN", ".nan").replace("-Infinity", "-.inf").replace("Infinity", ".inf") + "\n"


@dataclass
class Outcome:
    """How a case ended: "refused", "ran", "diverged", "slow", "refused late" or "traceback"; what was said, and what changed."""

    kind: str
    told: str = ""
    changed: tuple[str, ...] = ()
    took: float = field(default=0.0, compare=False)


@cache
def _sites(stage: str, chosen: str) -> tuple[Site, ...]:
    """Everything that can be set of a stage whose references are ``chosen`` (JSON), which configure takes.

    Raises:
        ConfigError: it does not.
    """
    sections = {"preset": "smoke", stage: {"bindings": json.loads(chosen)}}
    config.resolve(stage, params.Params(ROOT / "params.yaml", "smoke", sections), root=ROOT)
    sites = []
    for call in ginstate.built(f"stages.{stage}.run"):
        if call.selector == MACRO:
            continue
        function = ginstate.wrapped(call.selector)
        for name, parameter in signature(function).parameters.items():
            given = parameter.default is parameter.empty and name not in call.bindings
            if given or name in PLACES or (call.selector.startswith("stages.") and name in ("verify", "limit")):
                continue
            macro = ginstate.value_of(call.bindings[name])[1].removeprefix("%") if name in call.bindings else ""
            sites.append(Site(f"{call.name}.{name}", annotation(function, name, ranges=True), macro))
    return tuple(sites)


@cache
def _references(stage: str) -> tuple[tuple[str, Any], ...]:
    """Everything that settings of a stage may refer to: name, and what it is."""
    files = files_of_layers(stage, params.Params(ROOT / "params.yaml", "smoke", {}), ROOT)
    names = namespace(file.scan for layer in files.values() for file in layer)
    made = ((name, names.find(tuple(name.split(".")))) for name in names.names())
    return tuple(
        (name, what)
        for name, what in made
        if what is not None and what.__module__.split(".")[0] != "stages" and name != "execution.compiled"  # takes a minute
    )


def _options(stage: str, expected: Any, *, plausible: bool = True) -> list[str]:
    """References that fit an annotation; plausible ones make what is wanted, and need nothing that nobody gives. What generate asks
    of a model that it is handed shows when it is.
    """
    if expected is Any or not any(_is_made(part) for part in _parts(expected)):
        return []
    callables = any(_is_callable(part) for part in _parts(expected))
    forms = [(f"@{name}{'()' if called else ''}", what, called) for name, what in _references(stage) for called in (False, True)]
    fitting = [form for form in forms if takes_reference(expected, form[1], form[2])]
    if plausible:
        fitting = [form for form in fitting if form[2] != callables and not (form[2] and _required(form[1]))]
    return sorted(text for text, *_ in fitting if (stage, text) != ("generate", "@halting.by_learning"))


def _required(function: Any) -> list[str]:
    return [name for name, parameter in signature(function).parameters.items() if parameter.default is parameter.empty]


def _is_callable(part: Any) -> bool:
    return (typing.get_origin(part) or part) is Callable


def _is_made(part: Any) -> bool:
    """Whether a reference is how a setting says it: a function, or an object of a class of ours."""
    return _is_callable(part) or (isinstance(part, type) and part.__module__.split(".")[0] in ("components", "pipeline"))


class Draw:
    """Draws settings, values within and outside their ranges, from one generator."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)

    def case(self) -> Case:
        """Draw a stage, up to two references of it, and up to three values of what is then set."""
        rng, stage = self.rng, self.rng.choice(DRAWN)
        sites, chosen = _sites(stage, "{}"), dict[str, Any]()
        made = [site for site in sites if _options(stage, site.expected)]
        for site in rng.sample(made, k=min(rng.choice((0, 0, 1, 2)), len(made))):
            chosen[site.key] = rng.choice(_options(stage, site.expected, plausible=rng.random() < 0.95))
        with contextlib.suppress(ConfigError):
            sites = _sites(stage, json.dumps(chosen))
        bindings: Bindings = {stage: chosen}
        wrong = rng.random() < 0.3
        for site in rng.sample(sites, k=min(len(sites), rng.choice((1, 1, 2, 3)))):
            value = self.outside(site) if wrong else self.inside(stage, site.key.rpartition(".")[2], site.expected)
            wrong = False
            if site.macro and rng.random() < 0.2:
                bindings.setdefault("common", {})[site.macro] = value
            else:
                bindings[stage][site.key] = value
        return Case(stage, bindings)

    def outside(self, site: Site) -> Any:
        """Draw what is of another type, or beyond a bound."""
        limits = [limit for part in _parts(site.expected) for limit in _ranges(part)]
        edges = [edge for limit in limits for edge in _beyond(limit)]
        return self.rng.choice(edges) if edges and self.rng.random() < 0.6 else self.rng.choice(WRONG)

    def inside(self, stage: str, name: str, expected: Any) -> Any:
        """Draw what an annotation allows; bounds and what lies beside them more often than the rest."""
        rng, parts = self.rng, _parts(expected)
        part = rng.choice(parts)
        origin, arguments = typing.get_origin(part) or part, typing.get_args(part)
        if part is type(None):
            return None
        if origin is Annotated:
            limits = _ranges(part)
            return self.number(name, arguments[0], limits[0] if limits else Range())
        if part in (int, float):
            return self.number(name, part, Range(ge=-3))
        if part is bool:
            return rng.random() < 0.5
        if part is str:
            return rng.choice(WORDS.get(name, SPLITS))
        if origin is Literal:
            return rng.choice(arguments)
        if options := _options(stage, part):
            return rng.choice(options)
        if origin is tuple and arguments[-1:] != (...,):
            return [self.inside(stage, name, item) for item in arguments]
        if origin in (tuple, list, Sequence):
            return [self.inside(stage, name, arguments[0]) for _ in range(rng.choice((0, 1, 1, 2, 3, 4)))]
        if origin in (dict, Mapping):
            return {rng.choice(SPLITS): self.inside(stage, name, arguments[1]) for _ in range(rng.choice((0, 1, 2)))}
        return rng.choice(WRONG)

    def number(self, name: str, kind: type, limit: Range) -> int | float:
        """Draw a number within a range: its bounds, what is small, and at times what no machine has room for."""
        rng = self.rng
        low = limit.ge if limit.ge is not None else limit.gt if limit.gt is not None else -3
        high = next((bound for bound in (limit.le, limit.lt) if bound is not None), None)
        if kind is int:
            most = high if high is not None and high <= ROOM else 64
            drawn = rng.choice((low, low + 1, low + 2, low + 3, low + rng.randrange(9), 8, 16, 37, most))
            if rng.random() < 0.04 and name not in LARGEST:
                drawn = rng.choice((2**31, 2**62, 2**63, 10**30))
            drawn = min(drawn, LARGEST.get(name, drawn))
        else:
            drawn = rng.choice((low, low + 10 ** rng.uniform(-9, 1), low + rng.random(), 1, 0.5, high or 1e3, 1e-30))
            if rng.random() < 0.04:
                drawn = rng.choice((1e30, 1e308, 10**30))
        return drawn if limit.holds(drawn) or rng.random() < 0.05 else max(low + (1 if kind is int else 1e-3), 1e-3)


def _parts(expected: Any) -> list[Any]:
    if typing.get_origin(expected) in (typing.Union, types.UnionType):
        return [part for option in typing.get_args(expected) for part in _parts(option)]
    return [expected]


def _ranges(part: Any) -> list[Range]:
    return [item for item in typing.get_args(part)[1:] if isinstance(item, Range)] if typing.get_origin(part) is Annotated else []


def _beyond(limit: Range) -> Iterator[int | float]:
    """What lies just outside a range, and far outside."""
    if (low := limit.ge if limit.ge is not None else limit.gt) is not None:
        yield from ([low] if limit.gt is not None else []) + [low - 1, low - 1e-9, -(10**9), -1e308]
    if (high := limit.le if limit.le is not None else limit.lt) is not None:
        yield from ([high] if limit.lt is not None else []) + [high + 1, 10**30, 1e308]
    yield from (float("nan"), float("inf"), float("-inf"))


def uncounted() -> contextlib.AbstractContextManager[object]:
    """Leave the count of operations out, four fifths of a short stage: any work is a million."""
    return mock.patch.object(flops, "count", lambda work: 1_000_000)


def base(folder: Path) -> Path:
    """Run smoke with few steps through every stage: what a case's stage finds. Counted as the cases are that will follow."""
    workspace(folder, "smoke")
    (folder / "params.yaml").write_text(Case("warmup", {}).text)
    status, told = run(folder, "configure", "--out=build/config")
    for stage in TRAINING:
        status, told = (status, told) if status else run(folder, stage, f"--config=build/config/{stage}.gin")
    assert status == 0, told
    return folder


def outcome(case: Case, finished: Path, folder: Path, *, steps: bool = True, whole: bool = False) -> Outcome:
    """Run configure on a case, and then the stages that it changes, from the first to the last of them.

    Args:
        case: the settings.
        finished: what ``base`` left; read only.
        folder: does not exist yet; for this case alone.
        steps: run the stages; else configure alone.
        whole: run every stage.
    """
    workspace(folder, "smoke")
    (folder / "params.yaml").write_text(case.text)
    shutil.copytree(finished / "build", folder / "build")
    if whole or "common" in case.bindings:
        status, told = run(folder, "configure", "--out=build/config")
    else:
        status, told = run(folder, case.stage, work=partial(_configure, case.stage))
    if status:
        return Outcome(_kind(status, told, "refused"), told)
    differs = [stage for stage in (*STAGES, "generate") if _settings(folder, stage) != _settings(finished, stage)]
    changed = [*TRAINING, "generate"] if whole else [] if not steps else differs
    if pipeline := [stage for stage in STAGES if stage in changed]:
        for part in ("data", "outputs"):
            shutil.copytree(finished / part, folder / part)
        for stage in STAGES[STAGES.index(pipeline[0]) : STAGES.index(pipeline[-1]) + 1]:
            status, told = run(folder, stage, f"--config=build/config/{stage}.gin")
            if status:
                return Outcome(_kind(status, told, "refused late"), f"{stage}: {told}", tuple(differs))
    if "generate" in changed:
        for part in () if pipeline else ("data", "outputs"):
            (folder / part).symlink_to(finished / part)
        status, told = run(folder, "generate", *ANSWERED)
    return Outcome(_kind(status, told, "refused late") if status else "ran", f"{told[-2000:] if status else ''}", tuple(differs))


def _configure(stage: str) -> int:
    """Do what configure does where one stage's settings alone may have changed, in a third of its time."""
    file = Path(f"build/config/{stage}.gin")
    try:
        text = config.resolve(stage, params.read(Path("params.yaml"), SECTIONS)).text
        rehearsal.rehearse({**{name: _settings(Path(), name) for name in SECTIONS}, stage: text})
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    file.write_text(text)
    return 0


def _settings(folder: Path, stage: str) -> str:
    return (folder / f"build/config/{stage}.gin").read_text()


def _kind(status: int | str, told: str, refused: str) -> str:
    """One word for how a command ended that did not end well."""
    if isinstance(status, str):
        return status
    errors = [line for line in told.splitlines() if line.startswith(("error: ", "       "))]
    if status not in (1, 2) or not errors or not errors[0].startswith("error: "):
        return "traceback"
    diverged = ("became nan", "became inf", "became -inf", "is not finite")
    return "diverged" if any(words in told for words in diverged) else refused


def run(folder: Path, *command: str, work: Callable[[], int] | None = None) -> tuple[int | str, str]:
    """Run a command, or ``work``, in this process, with a bound on its time; returns its status, or what should not be, and what
    it said.
    """

    def late(*_: object) -> None:
        raise TimeoutError(f"after {SECONDS} s of processor time, or ten times as many on the clock")

    before, out = Path.cwd(), io.StringIO()
    handlers = {number: signal.signal(number, late) for number in (signal.SIGVTALRM, signal.SIGALRM)}
    gc.disable()  # an abandoned loader that is collected by its own reading thread waits for itself
    os.chdir(folder)
    os.environ["DVC_STAGE"] = "test"
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    signal.setitimer(signal.ITIMER_REAL, 10 * SECONDS)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(out):
            status: int | str = work() if work else main([*command])
    except TimeoutError as error:
        status = "slow"
        out.write(f"{error}: {traceback.extract_tb(error.__traceback__)[-1]}")
    except Exception:
        status = "traceback"
        out.write(traceback.format_exc())
    finally:
        for timer in (signal.ITIMER_VIRTUAL, signal.ITIMER_REAL):
            signal.setitimer(timer, 0)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        gc.collect()
        gc.enable()
        os.chdir(before)
        os.environ.pop("DVC_STAGE")
        torch.use_deterministic_algorithms(False)
        torch.set_num_threads(1)
    return status, out.getvalue().strip()


def fuzz(
    settings: int = 2000, pipelines: int = 40, seed: int = 0, first: int = 0, show: str = "traceback,refused late,slow"
) -> None:
    """Run SETTINGS random settings, and PIPELINES of those that ran through the whole pipeline; print what should not be.

    Args:
        settings: how many are drawn; setting i is a function of SEED and i.
        pipelines: how many go through every stage.
        seed: of all of them.
        first: number of the first one.
        show: outcomes that are printed in full.
    """
    with tempfile.TemporaryDirectory() as name:
        counts, ran = Counter[str](), list[int]()
        with uncounted():
            finished = base(Path(name) / "finished")
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        gc.freeze()  # what is there stays: to search it after each stage would take longer than the stage
        for number in range(first, first + settings):
            with uncounted():
                counts[_one(seed, number, finished, Path(name) / "case", show, ran)] += 1
            if counts.total() % 50 == 0:
                print(f"{counts.total()} settings: {dict(counts.most_common())}", flush=True)
        print(f"{settings} settings: {dict(counts.most_common())}", flush=True)
        chosen = random.Random(seed).sample(ran, k=min(pipelines, len(ran)))
        whole = Counter(_one(seed, number, finished, Path(name) / "case", show, [], whole=True) for number in chosen)
        print(f"{len(chosen)} of them through the whole pipeline: {dict(whole)}")


def _one(seed: int, number: int, finished: Path, folder: Path, show: str, ran: list[int], whole: bool = False) -> str:
    case, began = Draw(seed * 1_000_003 + number).case(), time.monotonic()
    end = outcome(case, finished, folder, whole=whole)
    shutil.rmtree(folder)
    if end.kind == "ran" and end.changed:
        ran.append(number)
    if end.kind in show.split(",") or show == "all":
        lines = end.told.splitlines()
        print(f"#{number} {end.kind} {end.changed} {time.monotonic() - began:.1f} s\n  {case.bindings}\n  "
            + "\n  ".join(lines[-12:] if end.kind == "traceback" else lines[-3:]), flush=True)  # fmt: skip
    return end.kind


if __name__ == "__main__":
    os.environ["SLOTLOOP_TRACKING"] = "off"
    fire.Fire(fuzz)
