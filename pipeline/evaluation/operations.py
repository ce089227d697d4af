"""Operations that an answer takes, counted by running models on a few examples, each alone and without padding."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any

import torch

from components.batch import Batch
from components.model import Model
from pipeline.corpora.prepared import Prepared
from pipeline.evaluation import evaluator
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
            work = partial(_parallel, model, steps=model.n_steps, runtime=runtime)
            metrics[name][measure]["flops_per_answer"] = _mean(model, prepared, split_name, ratio, seed, runtime, work)
        for measure, (split_name, passes, _, _) in decodes.items():
            work = partial(_one_pass, model, runtime=runtime)
            a_pass = _mean(model, prepared, split_name, 1.0, seed, runtime, work)
            metrics[name][measure][f"decode_{passes}"]["flops_per_answer"] = passes * a_pass


def of_depths(
    prepared: Prepared, model: Model, look: tuple[str, float], depths: Sequence[int], seed: int, runtime: Runtime
) -> list[int]:
    """Count the operations of one parallel decode that ends after each number of steps; every step beyond the model's own takes as
    much as the first of them.

    Args:
        prepared: the examples.
        model: that recurs.
        look: split, and the share of answers that is masked.
        depths: numbers of steps.
        seed: of the masks.
        runtime: where it computes.
    """

    @cache
    def counted(steps: int) -> int:
        return _mean(model, prepared, *look, seed, runtime, partial(_parallel, model, steps=steps, runtime=runtime))

    own = model.n_steps
    beyond = counted(own + 1) - counted(own) if max(depths) > own else 0
    return [counted(min(steps, own)) + max(0, steps - own) * beyond for steps in depths]


def of_restarts(
    prepared: Prepared, model: Model, look: tuple[str, float], steps: int, restarts: Sequence[int], seed: int, runtime: Runtime
) -> list[int]:
    """Count the operations of an answer that is chosen from each number of recursions: all are read out, begun from what is made
    once. What the choice takes is left out, which multiplies nothing.

    Args:
        prepared, model, look, seed, runtime: as ``of_depths`` takes them.
        steps: of each recursion.
        restarts: numbers of recursions.
    """
    (one,) = of_depths(prepared, model, look, [steps], seed, runtime)
    once = _mean(model, prepared, *look, seed, runtime, partial(_begun, model, runtime=runtime))
    return [once + number * (one - once) for number in restarts]


def _mean(
    model: Model,
    prepared: Prepared,
    split_name: str,
    ratio: float,
    seed: int,
    runtime: Runtime,
    work: Callable[[Batch], object],
) -> int:
    """Mean operations of what is done with an example, its answer masked; examples that must take as many are counted once."""
    split = evaluator.by_length(prepared.split(split_name))
    rows = torch.linspace(0, len(split) - 1, min(EXAMPLES, len(split))).long().tolist()
    batches = [next(evaluator.batches(split.take(slice(row, row + 1)), prepared.vocabulary, ratio, seed, 1)) for row in rows]
    fixed, total, known = flops.has_fixed_shapes(model), 0, dict[tuple[int, int], int]()
    for batch in map(evaluator.trimmed, batches):
        of_shape = batch.tokens.shape[1], int(batch.masked.sum())
        if not fixed or of_shape not in known:
            known[of_shape] = flops.count(partial(work, batch.to(runtime.device)))
        total += known[of_shape]
    return total // len(batches)


@torch.no_grad()
def _parallel(model: Model, batch: Batch, *, steps: int, runtime: Runtime) -> None:
    """So many recursion steps, and what the last says of the masked positions."""
    with runtime.autocast():
        last = deque(model.steps(batch, steps=steps), maxlen=1).pop()
        model.readout(last.hidden[batch.masked])


@torch.no_grad()
def _begun(model: Model, batch: Batch, *, runtime: Runtime) -> None:
    with runtime.autocast():
        model.begin(batch)


@torch.no_grad()
def _one_pass(model: Model, batch: Batch, *, runtime: Runtime) -> None:
    """Every position read out, the most that a pass takes."""
    with runtime.autocast():
        model.readout(model.states(batch))
