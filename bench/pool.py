"""Reading ahead by the standard library's ThreadPoolExecutor: what `bench.data` sets the real loader's engine against."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from components.batch import Batch
from pipeline.data.loading import AHEAD, TrainLoader


def pooled_steps(training: TrainLoader, first: int, accumulation: int, threads: int) -> Iterator[list[Batch]]:
    """The same as ``training.steps``, its batches made by a pool's threads, as many ahead."""
    node = training.node(first, accumulation)
    with ThreadPoolExecutor(threads) as pool:
        ahead = deque(pool.submit(make) for make in islice(node, AHEAD * threads))
        try:
            while True:
                step = []
                for _ in range(node.share):
                    step.append(ahead.popleft().result())
                    ahead.append(pool.submit(next(node)))
                yield step
        finally:
            for waiting in ahead:
                waiting.cancel()
