"""How fast samples are delivered: `python -m bench.data [--quick] [--loader] [--mib 1024] [--runs 5] [--json PATH]`.

Contiguous shuffled batches of hidden states (bfloat16), ids, targets, mask and weights, at four sizes of a sample, the page cache
warm, after a first epoch that is not timed: our shards, read ahead by torchdata's threads (the real loader) and by those of a
ThreadPoolExecutor, at random and as a stream, beside a plain sequential read() of the same files and other libraries (those that
are not installed are left out). One core does everything, but for reader threads. Every method is measured once in each round and
set against the read() of that round, torchdata's threads also against the pool's; medians of the rounds. `--loader` measures what
loading costs warmup instead.
"""

import importlib
import json as js
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import fire
import torch

from bench import layouts
from bench.layouts import Epoch, Samples
from bench.stepping import loader_rows
from pipeline.reporting.markdown import markdown

SIZES = {"20 KB": (81, 128, 32), "200 KB": (128, 768, 32), "1 MB": (256, 2048, 16), "4 MB": (512, 4096, 8)}  # tokens, dim, batch
BUFFER = 8 << 20  # bytes that are read at a time
LEAST, MOST = 0.5, 8.0  # seconds of a measurement: short epochs are repeated, long ones broken off
THREADS = (0, 1, 2)

Row = dict[str, str | float | None]
Rates = dict[str, float]  # method -> bytes a second


def main(runs: int = 5, mib: int = 1024, quick: bool = False, loader: bool = False, json: str = "") -> None:
    """Print a table; --quick: 64 MiB a size, one round, a small preset; --mib: of each size; --runs: rounds."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory() as folder:
        if loader:
            rows = loader_rows(Path(folder), *((4, "smoke") if quick else (4 * runs, "sudoku4")))
        else:
            sizes = [measured(Path(folder), samples, 1 if quick else runs) for samples in sized(64 if quick else mib)]
            rows = [row for found in sizes for row in found]
    if json:
        Path(json).write_text(js.dumps(rows, indent=1) + "\n")
    print(markdown([list(rows[0]), *([shown(value) for value in row.values()] for row in rows)]), end="")


def sized(mib: int) -> Iterator[Samples]:
    """Samples of every size, about ``mib`` MiB each, whole batches."""
    for name, (tokens, dim, batch) in SIZES.items():
        width = Samples(name, tokens, dim, batch, rows=0).width
        yield Samples(name, tokens, dim, batch, rows=max(1, (mib << 20) // (width * batch)) * batch)


def measured(folder: Path, samples: Samples, runs: int) -> list[Row]:
    """A row for every method at one size of a sample."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        stores = prepared(Path(name), samples)
        methods = methods_of(stores, samples)
        taken: dict[str, list[float]] = {}
        for number in range(runs):
            for method in methods:
                for what, rate in method().items():
                    taken.setdefault(what, []).append(rate)
            print(f"{samples.name}: round {number + 1} of {runs}", flush=True)
    rows: list[Row] = []
    for what, rates in taken.items():
        ratios = [rate / base for rate, base in zip(rates, taken["read()"], strict=True)]
        pool = taken.get(f"{what}, of a pool", [])
        engines = [rate / other for rate, other in zip(rates, pool, strict=False)]
        rows.append({
            "what": what, "sample": samples.name,
            "gb_per_second": statistics.median(rates) / 1e9, "gb_per_second_best": max(rates) / 1e9,
            "microseconds": samples.width / statistics.median(rates) * 1e6,
            "gb_per_second_vs_read": statistics.median(ratios), "gb_per_second_vs_read_best": max(ratios),
            "gb_per_second_vs_pool": statistics.median(engines) if engines else None,
        })  # fmt: skip
    return rows


def prepared(folder: Path, samples: Samples) -> dict[str, Path]:
    """Every layout that can be, written: its folder."""
    print(f"{samples.name}: writing {samples.rows} samples in every layout", flush=True)
    stores = {"ours": folder / "ours"}
    layouts.write_ours(stores["ours"], samples)
    for what, layout in layouts.OTHERS.items():
        try:
            if layout.module:
                importlib.import_module(layout.module)
        except ImportError as error:
            print(f"{what} is left out ({error}): pip install {layout.package}", flush=True)
            continue
        stores[what] = folder / str(len(stores))
        stores[what].mkdir()
        layout.write(stores[what], samples)
    return stores


def methods_of(stores: dict[str, Path], samples: Samples) -> list[Callable[[], Rates]]:
    """What a round consists of, read() first. One pass over each layout, which has to deliver every row, is not timed."""
    passes = {what: layouts.OTHERS[what].passes(path, samples) for what, path in stores.items() if what != "ours"}
    for epoch in (layouts.ours(stores["ours"], samples, 0), *passes.values()):
        seen = sorted(number for batch in epoch() for number in samples.check(batch))
        assert seen == list(range(samples.rows)), f"{len(seen)} rows instead of {samples.rows}"
    own = [partial(of_ours, stores["ours"], samples, threads) for threads in THREADS]
    own += [partial(of_stream, stores["ours"], samples)]
    return [partial(of_read, stores["ours"]), *own, *(partial(of_other, what, e, samples) for what, e in passes.items())]


def of_read(folder: Path) -> Rates:
    """Plain sequential reading of all shards."""
    paths, buffer, taken, spent = sorted(folder.glob("*.tar")), bytearray(BUFFER), 0, 0.0
    while spent < LEAST:
        began = time.perf_counter()
        for path in paths:
            with path.open("rb", buffering=0) as file:
                while count := file.readinto(buffer):
                    taken += count
        spent += time.perf_counter() - began
    return {"read()": taken / spent}


def of_ours(folder: Path, samples: Samples, threads: int) -> Rates:
    """Our shards through the real loader, opened anew: the epoch that checks every byte, and those after it."""
    epoch = layouts.ours(folder, samples, threads)
    what = f"slotloop, {threads} reader thread{'s' * (threads != 1)}"
    found = {f"{what}, first epoch": rate(epoch, samples, least=0.0), what: rate(epoch, samples)}
    if threads:
        pool = layouts.ours(folder, samples, threads, pool=True)
        rate(pool, samples, least=0.0)
        found[f"{what}, of a pool"] = rate(pool, samples)
    return found


def of_stream(folder: Path, samples: Samples) -> Rates:
    """Our shards as a stream, one thread ahead; after an epoch that checks every byte."""
    epoch = layouts.streamed(folder, samples, 1)
    rate(epoch, samples, least=0.0)
    return {"slotloop, streamed, 1 reader thread": rate(epoch, samples)}


def of_other(what: str, epoch: Epoch, samples: Samples) -> Rates:
    """One method that is not ours."""
    return {what: rate(epoch, samples)}


def rate(epoch: Epoch, samples: Samples, least: float = LEAST) -> float:
    """Bytes a second that are delivered, over whole epochs as far as they do not take too long."""
    rows, began = 0, time.perf_counter()
    while True:
        for batch in epoch():
            rows += len(batch["tokens"])
            del batch
            if time.perf_counter() - began > MOST:
                break
        if (spent := time.perf_counter() - began) >= least:
            return rows * samples.width / spent


def shown(value: str | float | None) -> str:
    """A cell of the table."""
    return value or "" if value is None or isinstance(value, str) else f"{value:.3g}" if value < 1000 else f"{value:.0f}"


if __name__ == "__main__":
    os.environ.setdefault("TQDM_DISABLE", "1")
    fire.Fire(main)
