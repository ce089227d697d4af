"""What shards in an object store cost: `python -m bench.store [--pairs 3] [--quick] [--json PATH]`.

The same states extracted to a folder and to S3, and read from there as a stream, one thread, the page cache warm: rows a second by
the clock, in turns, the median of ratios within a pair. S3 is moto's server in a process of its own on this machine, so what it
takes of the processors is in the figures, and a network is not. ``extraction``: the trunk included, a random TinyLM of 8 layers and
width 512. ``training``: a refiner of two steps that learns from the stream, as warmup does. ``stream``: reading and checking alone,
far faster than anything trains.
"""

import contextlib
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import fire
import torch

from components.backbones.tiny_lm import TinyLM
from components.batch import Batch
from components.objective.masking import exact_count
from components.objective.objective import Objective
from components.refined_lm import RefinedLM
from components.refiners.refiner import SlotRefiner
from pipeline.corpora import prepared
from pipeline.corpora.prepared import Prepared, Split, Vocabulary
from pipeline.data.extraction import Extraction, extract
from pipeline.data.loading import TrainLoader
from pipeline.data.shard_index import ShardIndex
from pipeline.data.store import Store
from pipeline.data.streaming import StreamedSource
from pipeline.files import write_json
from pipeline.machine.runtime import Runtime
from pipeline.models.backbones import Backbone, save_backbone
from pipeline.reporting.markdown import markdown
from pipeline.training.gradients import accumulate

WORDS = Vocabulary(size=1024, mask_id=1022, pad_id=1023, sequence=256, rendering="text")
DIM, LAYERS, BATCH = 512, 8, 16
PATIENCE = 60.0  # seconds until the server answers


def main(pairs: int = 3, quick: bool = False, json: str = "") -> None:
    """Print the table; --quick: one pair of fewer rows."""
    pairs, rows = (1, 64) if quick else (pairs, 256)
    runtime = Runtime(threads=1)
    with tempfile.TemporaryDirectory() as name, runtime.in_force(), server() as url:
        folder = Path(name)
        inputs(folder, rows)
        ways: dict[str, Callable[[int], Store | None]] = {"folder": lambda _: None, "S3": lambda n: Store(f"{url}/{n}")}
        taken: dict[tuple[str, str], list[float]] = {}
        for number in range(pairs):
            for way, store in ways.items():
                out = folder / f"{way}-{number}"
                began = time.perf_counter()
                extract(extraction(folder, runtime), out, store(number))
                taken.setdefault(("extraction", way), []).append(rows / (time.perf_counter() - began))
                taken.setdefault(("training", way), []).append(streamed(out, rows // 2, warmup(folder)))
                taken.setdefault(("stream", way), []).append(streamed(out, rows))
    table = [
        {
            "what": what,
            "where": way,
            "rows_per_second": statistics.median(rates),
            "rows_per_second_vs_folder": statistics.median(a / b for a, b in zip(rates, taken[what, "folder"], strict=True)),
        }
        for (what, way), rates in taken.items()
    ]
    if json:
        write_json(Path(json), table)
    print(markdown([list(table[0]), *([v if isinstance(v, str) else f"{v:.3g}" for v in row.values()] for row in table)]), end="")


def inputs(folder: Path, rows: int) -> None:
    """Write a corpus of random tokens and a backbone for it."""
    generator, splits = torch.Generator().manual_seed(0), {}
    for name, number in (("train", rows), ("validation", BATCH)):
        tokens = torch.randint(1000, (number, WORDS.sequence), generator=generator, dtype=torch.int32)
        splits[name] = Split(tokens, torch.ones_like(tokens, dtype=torch.bool), torch.arange(number), None)
    prepared.write(folder / "prepared", WORDS, splits, {})
    model = TinyLM(vocab=WORDS.size, seq=WORDS.sequence, dim=DIM, layers=LAYERS, heads=8, rotary=True)
    model.init_weights(generator)
    save_backbone(folder / "backbone", model, WORDS)


def extraction(folder: Path, runtime: Runtime) -> Extraction:
    """One draw, in shards of 32 rows (17 MB)."""
    row = WORDS.sequence * (DIM * 4 + 13)
    return Extraction(
        Prepared(folder / "prepared"), Backbone(folder / "backbone"), runtime, exact_count, LAYERS - 1, (), 1, BATCH, (), "fp32", 0,
        2 * BATCH * row, BATCH * row,
    )  # fmt: skip


def warmup(folder: Path) -> Callable[[Batch], object]:
    """Gradient of a batch, of a refiner over the backbone."""
    backbone = Backbone(folder / "backbone").model(LAYERS - 1)
    core = SlotRefiner(DIM, steps=2, heads=8)
    core.init_weights(1.0, torch.Generator().manual_seed(0))
    model = RefinedLM(backbone.requires_grad_(False), core).train()
    return lambda batch: accumulate(
        model, Objective(core.n_steps), [batch], Runtime(threads=1), sequences=BATCH, seed=0, step=0, progress=1.0, statistics=False
    )


def streamed(folder: Path, rows: int, work: Callable[[Batch], object] | None = None) -> float:
    """Rows a second over two epochs, of which the first checks every byte, read by a thread ahead of what is done with them."""
    steps = TrainLoader(StreamedSource(ShardIndex(folder), "train"), BATCH, seed=0).steps(0, 1)
    began = time.perf_counter()
    for number in count(1):
        [batch] = next(steps)
        if work:
            work(batch)
        if number * BATCH >= 2 * rows:
            return 2 * rows / (time.perf_counter() - began)
    raise AssertionError


@contextlib.contextmanager
def server() -> Iterator[str]:
    """Run an S3 server in a process of its own; the URL of an empty bucket, reached by this process's environment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench", "AWS_DEFAULT_REGION": "us-east-1"}
    os.environ |= {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    command = [sys.executable, "-c", "from moto.server import main; main()", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            bucket = urllib.request.Request(f"http://127.0.0.1:{port}/bench", method="PUT")
            deadline = time.monotonic() + PATIENCE
            while True:
                try:
                    urllib.request.build_opener(urllib.request.ProxyHandler({})).open(bucket, timeout=PATIENCE).close()
                    break
                except OSError:
                    if time.monotonic() > deadline or process.poll() is not None:
                        raise
                    time.sleep(0.2)
            yield "s3://bench"
        finally:
            process.terminate()


if __name__ == "__main__":
    os.environ.setdefault("TQDM_DISABLE", "1")
    fire.Fire(main)
