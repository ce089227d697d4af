"""One measurement in a process of its own, of whichever checkout is on the path: `python memory_probes.py WHAT NUMBER`.

Modules are looked for by the names of their files, which moved between rooms; what is measured is called alike in all of them.
"""

import contextlib
import importlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROUNDS = 3  # of what is timed within one process: the quickest counts
LAYERS = 24


def module(package: str, stem: str) -> Any:
    """Import the module of a package whose file has this name, in whichever room it lies."""
    (file,) = (path for path in Path(package).rglob(f"{stem}.py") if "tests" not in path.parts)
    return importlib.import_module(".".join(file.with_suffix("").parts))


def memory(field: str) -> int:
    """Bytes of this process: what it holds ("VmRSS"), or the most that it ever held ("VmHWM")."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def measured(work: Callable[[], object], rounds: int = 1) -> dict[str, float]:
    """Measure seconds of the quickest of some rounds, and most bytes beyond what was there before."""
    before, taken = memory("VmRSS"), []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return {"seconds": min(taken), "bytes": max(memory("VmHWM") - before, 1)}


def intervals(groups: int) -> dict[str, float]:
    """Measure the bootstrap of a mean over as many groups, of one example each."""
    correct = torch.rand(groups, generator=torch.Generator().manual_seed(0)).round().double()
    metrics, ones, group = module("components", "metrics"), torch.ones(groups).double(), torch.arange(groups)
    return measured(lambda: metrics.interval(correct, ones, group, generator=torch.Generator().manual_seed(0)))


def trunk(dim: int) -> dict[str, float]:
    """Measure a warmup of two steps on states of a live trunk of 24 layers; the backbone is trained for one step before."""
    os.environ.update(SLOTLOOP_TRACKING="off", DVC_STAGE="bench")
    main, checkout = importlib.import_module("stages.__main__").main, Path.cwd()
    common = {
        "DIM": dim,
        "LAYERS": LAYERS,
        "BACKBONE_STEPS": 1,
        "WARMUP_STEPS": 2,
        "JOINT_STEPS": 2,
        "BATCH": 8,
        "BACKBONE_BATCH": 8,
    }
    sections = {"common": {"bindings": common}, "warmup": {"bindings": {"warmup.run.states": "@sources.live"}}}
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        Path("gin").symlink_to(checkout / "gin")
        Path("params.yaml").write_text(json.dumps({"preset": "smoke", **sections}))
        for stage in ("prepare", "backbone"):
            subprocess.run([sys.executable, "-m", "stages", stage], stdout=subprocess.DEVNULL, check=True)
        importlib.import_module("stages.warmup")
        with contextlib.redirect_stdout(io.StringIO()):
            taken = measured(lambda: main(["warmup"]))
        assert Path("outputs/warmup/metrics.json").is_file()
        os.chdir(checkout)
    return taken


def saving(dim: int) -> dict[str, float]:
    """Measure a checkpoint of a model of 24 layers, all of which are trained."""
    return _saved(dim, trained=LAYERS)


def saving_tail(dim: int) -> dict[str, float]:
    """Measure a checkpoint of a model of 24 layers, the last of which is trained."""
    return _saved(dim, trained=1)


def _saved(dim: int, trained: int) -> dict[str, float]:
    tiny_lm, refined, refiner = (module("components", name) for name in ("tiny_lm", "refined_lm", "refiner"))
    backbones, checkpoint, prepared = (module("pipeline", name) for name in ("backbones", "checkpoint", "prepared"))
    vocabulary = prepared.Vocabulary(size=5, mask_id=4, pad_id=4, sequence=16, rendering="sudoku")
    base = tiny_lm.TinyLM(vocab=5, seq=16, dim=dim, layers=LAYERS, heads=4)
    base.init_weights(generator := torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as name:
        backbones.save_backbone(Path(name) / "backbone", base, vocabulary)
        backbone = backbones.Backbone(Path(name) / "backbone")
        model = refined.RefinedLM(backbone.model(), refiner.SlotRefiner(dim=dim, heads=4))
        model.refiner.init_weights(1.0, generator)
        paths = tuple(f"backbone.blocks.{number}." for number in range(LAYERS - trained, LAYERS))
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                parameter.requires_grad_(trained == LAYERS or parameter_name.startswith(("refiner.", *paths)))
                parameter.add_(0.01 if parameter.requires_grad else 0.0)
        return measured(lambda: checkpoint.save_model(Path(name) / "model", model, backbone), ROUNDS)


if __name__ == "__main__":
    torch.set_num_threads(1)
    what, number = sys.argv[1:]
    probes = {"intervals": intervals, "trunk": trunk, "saving": saving, "saving_tail": saving_tail}
    print(json.dumps(probes[what](int(number))))
