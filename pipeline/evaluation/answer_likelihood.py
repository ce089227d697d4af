"""How likely every model finds the same whole answers: a Monte-Carlo bound on their nll, after each recursion step.

All models see the same masks, so that their differences are paired; finished batches survive a kill
(``pipeline.machine.cached_results``). A causal model tells its nll exactly, in one pass.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from components.batch import Batch
from components.inference.likelihood import Likelihood, masks, standard_error, total
from components.inference.metrics import intervals, losses
from components.model import Model
from pipeline.corpora.prepared import Prepared, Split, Vocabulary
from pipeline.data.batches import assemble
from pipeline.evaluation import evaluator
from pipeline.evaluation.compared import Compared, interleaved
from pipeline.machine.distributed import gathered, rank, world
from pipeline.machine.runtime import Runtime
from pipeline.progress import Progress, watched


def estimated(prepared: Prepared, models: Compared, likelihood: Likelihood, size: int, seed: int) -> dict[str, Any]:
    """Estimate every model's likelihood of the same answers.

    Args:
        prepared: the corpus.
        models: one of them is ``frozen``, which the others are compared with.
        likelihood: how.
        size: examples that run together.
        seed: of the masks.
    """
    split = evaluator.by_length(prepared.split(likelihood.split).take(slice(0, likelihood.items)))
    with Progress("likelihood", len(split), "answer") as bar:
        nll = sampled(models, split, prepared.vocabulary, likelihood.samples, size, seed, bar)
        for name, values in nll.items():
            last = values[..., -1]
            bar.line(f"{name}: {float(last.mean()):.2f} ± {standard_error(last):.2f} nats an answer")
    length = split.response.sum(1).double()
    return {name: _metrics(values, nll["frozen"], length, split.group) for name, values in nll.items()}


def sampled(
    models: Compared, split: Split, vocabulary: Vocabulary, samples: int, size: int, seed: int, bar: Progress
) -> dict[str, Tensor]:
    """Every sample's estimate of every answer's nll after each recursion step: float64 (examples, samples, steps), in nats.

    Args:
        models: whose likelihood.
        split: the examples.
        vocabulary: their token ids.
        samples: masks of each example.
        size: examples that run together.
        seed: of the masks.
        bar: told of finished examples.
    """
    mine: dict[str, list[Tensor]] = {name: [] for name in models.models}
    work = partial(_of_batch, runtime=models.runtime)
    for number in range(rank(), -(-len(split) // size), world()):
        rows = split.take(slice(number * size, (number + 1) * size))
        by_sample = [models.on_one(batch, f"likelihood/{number}/{sample}", work)
                     for sample, batch in enumerate(_masked(rows, vocabulary, samples, seed))]  # fmt: skip
        for name, nll in mine.items():
            nll.append(torch.stack([of_models[name]["nll"] for of_models in by_sample], 1))
        bar.advance(len(rows))
    return {name: torch.cat(interleaved(gathered(nll))) for name, nll in mine.items()}


def _masked(rows: Split, vocabulary: Vocabulary, samples: int, seed: int) -> Iterator[Batch]:
    """A batch for each sample; of a causal model, which needs no masks, the whole answers once."""
    assert rows.uid is not None
    whole = [(rows.response, rows.response.float())]
    drawn = whole if vocabulary.causal else masks(rows.response, rows.uid, seed, samples)
    for masked, weights in watched(drawn, "masks", 1 if vocabulary.causal else samples, "mask"):
        yield evaluator.trimmed(assemble(rows.tokens, masked, weights, rows.valid, vocabulary))


def _of_batch(model: Model, batch: Batch, *, runtime: Runtime) -> dict[str, Tensor]:
    expected = batch.targets[batch.masked]
    with runtime.autocast():
        by_step = [losses(model.readout(state.hidden[batch.masked]), expected)[0] for state in model.steps(batch)]
    return {"nll": torch.stack([total(loss, batch.masked, batch.weights) for loss in by_step], -1)}


def _metrics(values: Tensor, frozen: Tensor, length: Tensor, group: Tensor) -> dict[str, Any]:
    """Nats an answer after the last step with interval and standard error, nats a token, every step, and the paired difference."""
    by_item, ones = values.mean(1), torch.ones_like(length)
    by_step = intervals(by_item.T, ones.expand(by_item.shape[1], -1), group, generator=evaluator.resamples())
    last, base = values[..., -1], frozen[..., -1]
    return {
        "answer_nll": by_step[-1],
        "standard_error": standard_error(last),
        "answer_nll_per_token": evaluator.mean(by_item[:, -1], length, group),
        "answer_nll_by_step": by_step,
        "minus_frozen": {
            "answer_nll": evaluator.paired(by_item[:, -1], base.mean(1), ones, group),
            "standard_error": standard_error(last - base),
        },
        "samples": values.shape[1],
    }
