"""Operations that an answer takes, counted by running models on a few examples, each alone and without padding."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from components.batch import Batch
from components.model import Model
from pipeline.corpora.prepared import Prepared
from pipeline.evaluation import evaluator
from pipeline.inference.predictor import predictor
from pipeline.machine.runtime import Runtime
from pipeline.training import flops

EXAMPLES = 8  # evenly spread over a split in the order of length


def add_operations(
    metrics: Mapping[str, Mapping[str, dict[str, Any]]],
    prepared: Prepared,
    models: Mapping[str, Model],
    measures: Mapping[str, tuple[str, float]],
    decodes: Mapping[str, tuple[str, int, int, int]],
    seed: int,
    runtime: Runtime,
) -> None:
    """Add ``flops_per_answer`` to every model's measures, of one parallel decode, and to its decodes, of all their passes.

    Args:
        metrics: by model and measure; of a decode by ``decode_<passes>`` below it.
        prepared: the examples.
        models: by name.
        measures, decodes: as ``stages.evaluate`` takes them.
        seed: of the masks.
        runtime: where it computes.
    """
    for name, model in models.items():
        for measure, (split_name, ratio) in measures.items():
            work = partial(_parallel, model, runtime=runtime)
            metrics[name][measure]["flops_per_answer"] = _mean(prepared, split_name, ratio, seed, runtime, work)
        for measure, (split_name, passes, _, _) in decodes.items():
            work = partial(_one_pass, model, prepared=prepared, runtime=runtime)
            a_pass = _mean(prepared, split_name, 1.0, seed, runtime, work)
            metrics[name][measure][f"decode_{passes}"]["flops_per_answer"] = passes * a_pass


def _mean(prepared: Prepared, split_name: str, ratio: float, seed: int, runtime: Runtime, work: Callable[[Batch], object]) -> int:
    """Mean operations of what is done with an example, its answer masked."""
    split = evaluator.by_length(prepared.split(split_name))
    rows = torch.linspace(0, len(split) - 1, min(EXAMPLES, len(split))).long().tolist()
    alone = [split.take(slice(row, row + 1)) for row in rows]
    batches = [next(evaluator.batches(one, prepared.vocabulary, ratio, seed, 1)) for one in alone]
    return sum(flops.count(partial(work, evaluator.trimmed(batch).to(runtime.device))) for batch in batches) // len(batches)


@torch.no_grad()
def _parallel(model: Model, batch: Batch, *, runtime: Runtime) -> None:
    """All recursion steps, and what the last says of the masked positions."""
    with runtime.autocast():
        model.readout(model.states(batch)[batch.masked])


def _one_pass(model: Model, batch: Batch, *, prepared: Prepared, runtime: Runtime) -> None:
    predictor(model, batch, prepared.vocabulary, runtime)(batch.tokens)
