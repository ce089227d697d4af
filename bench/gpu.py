"""Everything worth knowing from one GPU in under eight minutes: `python -m bench.gpu [--quick] [--json PATH] [--reference PATH]`.

Sections, each with a time of its own: what the device can do; head kernels beside others' (``bench.gpu_heads``); a training step
with deep supervision, naive and ours, eager, compiled and as a CUDA graph; warmup from cached states beside a live trunk of 8B's
shape; our core beside the Tiny Recursive Model's own code, if a checkout is given. What fails says why, and the rest goes on.
On CPU, and with --quick, at toy size: that only shows that it runs.

``mfu`` counts the FLOPs of the model (nothing twice for recomputation) against the maker's peak; of an unknown device, against the
largest product measured here.
"""

import json as js
from collections.abc import Callable
from functools import partial
from pathlib import Path

import fire
import torch
import torch._dynamo
from torch import nn

from bench.baseline import commit
from bench.deep_supervision import ours, shown
from bench.gpu_heads import head_rows
from bench.gpu_timing import CUDA, DEVICE, Budget, Row, captured, fused_softmax, launched, peak_flops, timed
from bench.subject import Subject, batch_of, naive, step_flops
from components.batch import Batch
from components.refiners.core import Core, Layout
from components.refiners.recursive_core import RecursiveCore
from components.refiners.recursive_network import RecursiveNetwork
from components.refiners.refiner import SlotRefiner
from pipeline.reporting.markdown import markdown

SECONDS = {"ceilings": 25, "heads": 140, "steps": 150, "cache": 45, "reference": 40}
CASES = {  # core, sequences, length, steps, vocabulary
    "RecursiveCore 1024": (partial(RecursiveCore, 1024, heads=16, l_cycles=1), 8, 256, 4, 126464),
    "SlotRefiner 2048": (partial(SlotRefiner, 2048, heads=16, blocks=2), 8, 256, 8, 157184),
    "RecursiveCore 2048": (partial(RecursiveCore, 2048, heads=16, l_cycles=1), 32, 256, 8, 126464),
}
TOYS = {
    "RecursiveCore 64": (partial(RecursiveCore, 64, heads=2, l_cycles=1), 2, 32, 3, 1000),
    "SlotRefiner 64": (partial(SlotRefiner, 64, heads=2), 2, 32, 3, 1000),
}
SUPERVISED = 0.2
TRUNK = {"dim": 4096, "heads": 32, "blocks": 32, "expansion": 4.5, "rotary": True}  # LLaDA-8B's layers: 13 dim^2 weights each
TOY_TRUNK = {"dim": 64, "heads": 2, "blocks": 2, "expansion": 4.5, "rotary": True}

Modes = dict[str, Callable[[], None]]


def main(quick: bool = False, json: str = "", reference: str = "") -> None:
    """Print a table for each section; --quick: toy size; --json: all rows; --reference: checkout of the Tiny Recursive Model."""
    quick = quick or not CUDA
    if not CUDA:
        torch.set_num_threads(1)
    torch._dynamo.config.recompile_limit = 64  # shapes are fixed, and there are many; beyond it nothing is compiled, silently
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name() if CUDA else 'CPU'}, {commit()}", flush=True)
    rows: list[Row] = []
    found = section("ceilings", lambda budget: ceiling_rows(budget, quick), rows)
    ceiling = next((float(row["value"] or 0) for row in found if row["what"] == "matmul, FLOP/s"), 1.0)
    section("heads", lambda budget: head_rows(budget, quick, ceiling), rows)
    section("steps", lambda budget: step_rows(budget, quick, peak_flops(ceiling)), rows)
    section("cache", lambda budget: cache_rows(budget, quick), rows)
    if reference:
        section("reference", lambda _: reference_rows(reference), rows)
    if json:
        Path(json).write_text(js.dumps(rows, indent=1) + "\n")


def section(name: str, measure: Callable[[Budget], list[Row]], rows: list[Row]) -> list[Row]:
    """Its rows, added to ``rows`` and printed; none if it fails as a whole."""
    budget = Budget(SECONDS[name])
    found = budget.attempt(name, lambda: measure(budget))
    rows += [{"section": name, **row} for row in found]
    if found:
        print(markdown([list(found[0]), *([shown(value) for value in row.values()] for row in found)]), flush=True)
    return found


def ceiling_rows(budget: Budget, quick: bool) -> list[Row]:
    """What the device can do: the largest product, copies, a launch."""
    side, size = (256, 1 << 22) if quick else (8192, 1 << 30)
    a, b = (torch.randn(side, side, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    here, there = (torch.randint(256, (size,), dtype=torch.uint8, device=DEVICE) for _ in range(2))
    host = torch.zeros(size >> 2, dtype=torch.uint8, pin_memory=CUDA)
    one = torch.zeros(1, device=DEVICE)

    def launches() -> None:
        for _ in range(1000):
            one.add_(1)

    def of(what: str, run: Callable[[], object], value: Callable[[float], float]) -> list[Row]:
        def row() -> list[Row]:
            timing = timed(run)
            return [{"what": what, "ms": timing.ms, "spread": timing.spread, "value": value(timing.ms / 1e3)}]

        return budget.attempt(what, row)

    return [
        *of("matmul, FLOP/s", lambda: a @ b, lambda s: 2 * side**3 / s),
        *of("copy, bytes/s read and written", lambda: there.copy_(here), lambda s: 2 * size / s),
        *of("host to device, bytes/s", lambda: here[: len(host)].copy_(host, non_blocking=True), lambda s: len(host) / s),
        *of("launch, us", launches, lambda s: s * 1e3),
    ]


def step_rows(budget: Budget, quick: bool, peak: float) -> list[Row]:
    """A training step: ways to keep memory x ways to run it. One compiled step serves all steps of the recursion."""
    rows: list[Row] = []
    for name, (make, sequences, length, steps, vocab) in (TOYS if quick else CASES).items():
        core = make(steps=steps)
        model = Subject(core, vocab).to(DEVICE, torch.bfloat16)
        batch = batch_of(sequences, length, core.dim, vocab, SUPERVISED).to(DEVICE)
        head = 4 * core.dim * vocab * len(batch.supervised)
        flops = steps * (3 * step_flops(core, sequences, length) + head)
        found: list[Row] = []
        for execution in ("eager", "CUDA graph", "compiled", "compiled, CUDA graph"):
            if "compiled" in execution and core._compiled_call_impl is None:
                core.compile(dynamic=False)
            for mode in ("naive", "keep", "checkpoint"):
                if quick and "compiled" in execution and (mode, name) != ("keep", "RecursiveCore 64"):
                    continue  # compiling takes most of the time
                if ("graph" in execution and (mode != "keep" or not CUDA)) or (mode == "naive" and execution != "eager"):
                    continue  # checkpoints ask for the state of the random numbers, which a capture refuses
                measure = partial(of_step, model, batch, steps, mode, execution, flops, peak)
                found += [{"what": name, **row} for row in budget.attempt(f"{name}, {mode}, {execution}", measure)]
        base = next((row for row in found if row["mode"] == "naive"), None)
        for row in found:
            row["time_vs_naive"] = row["ms"] / base["ms"] if base else None
            row["memory_vs_naive"] = row["peak_gb"] / base["peak_gb"] if base and base["peak_gb"] and row["peak_gb"] else None
        rows += found
    return rows


def of_step(model: Subject, batch: Batch, steps: int, mode: str, execution: str, flops: float, peak: float) -> list[Row]:
    """One row."""

    def run() -> None:
        for parameter in model.parameters():
            parameter.grad = None
        if mode == "naive":
            naive(model, batch, steps)
        else:
            ours(mode, model, batch, steps)

    if "compiled" not in execution:
        return _row(mode, execution, run, flops, peak)
    with fused_softmax():
        run()  # compiles
        return _row(mode, execution, run, flops, peak)


def _row(mode: str, execution: str, run: Callable[[], None], flops: float, peak: float) -> list[Row]:
    graph = "graph" in execution
    timing = timed(captured(run) if graph else run)
    columns = {**timing.row(), **({"peak_gb": None} if graph else {})}  # a graph's memory is its pool, allocated before
    counted = {"kernels": None, "busy_ms": None} if graph else launched(run)
    return [{"mode": mode, "execution": execution, **columns, **counted, "mfu": flops / timing.ms * 1e3 / peak}]


def cache_rows(budget: Budget, quick: bool) -> list[Row]:
    """A warmup step whose states come from pinned host memory, beside one that runs the trunk for them."""
    shape = TOY_TRUNK if quick else TRUNK
    sequences, length, steps, vocab = (2, 32, 3, 1000) if quick else (8, 512, 4, 126464)
    dim = int(shape["dim"])
    with torch.device(DEVICE):
        trunk = _filled(RecursiveNetwork(**shape).to(torch.bfloat16).requires_grad_(False))
    core: Core = SlotRefiner(dim, heads=int(shape["heads"]), steps=steps)
    model = Subject(core, vocab).to(DEVICE, torch.bfloat16)
    stored = batch_of(sequences, length, dim, vocab, SUPERVISED).to(torch.device("cpu"))
    on_device = stored.to(DEVICE)
    assert stored.hidden is not None and on_device.hidden is not None
    host = stored.hidden.bfloat16().pin_memory() if CUDA else stored.hidden.bfloat16()
    x = on_device.hidden.bfloat16()

    def live() -> torch.Tensor:
        with torch.no_grad():
            return trunk(x, torch.zeros_like(x), None, Layout())

    def cached() -> torch.Tensor:
        return host.to(DEVICE, non_blocking=True)

    def trained(states: Callable[[], torch.Tensor]) -> None:
        model.zero_grad(set_to_none=True)
        ours("keep", model, Batch(**{**vars(on_device), "hidden": states()}), steps)

    runs = {
        "warmup, trunk live": partial(trained, live), "warmup, from cache": partial(trained, cached),
        "trunk alone": live, "reading alone": cached,
    }  # fmt: skip
    found: list[Row] = []
    for what, run in runs.items():
        found += budget.attempt(what, lambda what=what, run=run: [{"what": what, **timed(run).row()}])
    base = next((row["ms"] for row in found if row["what"] == "warmup, trunk live"), None)
    return [{**row, "time_vs_live": row["ms"] / base if base else None} for row in found]


def _filled(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    return module


# ---- Joins bench.cores, which loads the reference implementation. The only place that knows of it. ----
def reference_rows(path: str) -> list[Row]:
    """RecursiveCore beside the Tiny Recursive Model's own code in the checkout at ``path``; a note if bench.cores cannot."""
    try:
        from bench import cores

        rows: list[Row] = cores.reference_rows(path)
    except (ImportError, AttributeError) as error:
        print(f"reference is left out: bench.cores cannot compare with {path} ({error})", flush=True)
        return []
    return rows


if __name__ == "__main__":
    fire.Fire(main)
