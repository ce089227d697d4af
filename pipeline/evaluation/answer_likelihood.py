"""How likely every model finds the same whole answers: a Monte-Carlo bound on their nll, after each recursion step.

All models see the same masks, so that their differences are paired; finished batches survive a kill
(``pipeline.machine.cached_results``). A causal model tells its nll exactly, in one pass.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from components.inference.likelihood import Likelihood, masks, standard_error, total
from components.inference.metrics import intervals
from components.model import Model
from pipeline.corpora.prepared import Prepared, Split, Vocabulary
from pipeline.data.batches import assemble
from pipeline.evaluation import evaluator
from pipeline.machine.cached_results import cached_result
from pipeline.machine.distributed import gathered, rank, world
from pipeline.machine.runtime import Runtime
from pipeline.progress import Progress, watched


def estimated(
    prepared: Prepared, models: Mapping[str, Model], likelihood: Likelihood, size: int, seed: int, runtime: Runtime
) -> dict[str, Any]:
    """Estimate every model's likelihood of the same answers.

    Args:
        prepared: the corpus.
        models: by name; one of them is ``frozen``, which the others are compared with.
        likelihood: how.
        size: examples that run together.
        seed: of the masks.
        runtime: where it computes.
    """
    split = evaluator.by_length(prepared.split(likelihood.split).take(slice(0, likelihood.items)))
    nll: dict[str, Tensor] = {}
    with Progress("likelihood", len(models) * len(split), "answer") as bar:
        for name, model in models.items():
            nll[name] = sampled(model, split, prepared.vocabulary, likelihood.samples, size, seed, runtime, name, bar)
            last = nll[name][..., -1]
            bar.line(f"{name}: {float(last.mean()):.2f} ± {standard_error(last):.2f} nats an answer | {bar.rate()}")
    length = split.response.sum(1).double()
    return {name: _metrics(values, nll["frozen"], length, split.group) for name, values in nll.items()}


@torch.no_grad()
def sampled(
    model: Model,
    split: Split,
    vocabulary: Vocabulary,
    samples: int,
    size: int,
    seed: int,
    runtime: Runtime,
    name: str = "",
    bar: Progress | None = None,
) -> Tensor:
    """Every sample's estimate of every answer's nll after each recursion step: float64 (examples, samples, steps), in nats.

    Args:
        model: whose likelihood.
        split: the examples.
        vocabulary: their token ids.
        samples: masks of each example.
        size: examples that run together.
        seed: of the masks.
        runtime: where it computes.
        name: of the model, under which finished batches are kept.
        bar: told of finished examples.
    """
    mine = []
    for number in range(rank(), -(-len(split) // size), world()):
        rows = split.take(slice(number * size, (number + 1) * size))
        mine.append(
            cached_result(f"likelihood/{name}/{number}", partial(_of_batch, model, rows, vocabulary, samples, seed, runtime))
        )
        if bar is not None:
            bar.advance(len(rows))
    return torch.cat([batch["nll"] for batch in evaluator.interleaved(gathered(mine))])


def _of_batch(model: Model, rows: Split, vocabulary: Vocabulary, samples: int, seed: int, runtime: Runtime) -> dict[str, Tensor]:
    assert rows.uid is not None
    whole = [(rows.response, rows.response.float())]  # of a causal model, which needs no masks
    samples_nll = []
    drawn = whole if vocabulary.causal else masks(rows.response, rows.uid, seed, samples)
    for masked, weights in watched(drawn, "masks", 1 if vocabulary.causal else samples, "mask"):
        batch = evaluator.trimmed(assemble(rows.tokens, masked, weights, rows.valid, vocabulary)).to(runtime.device)
        expected = batch.targets[batch.masked]
        with runtime.autocast():
            by_step = [model.readout(state.hidden[batch.masked]) for state in model.steps(batch)]
        losses = [F.cross_entropy(logits.float(), expected, reduction="none") for logits in by_step]
        samples_nll.append(torch.stack([total(loss, batch.masked, batch.weights) for loss in losses], -1).cpu())
    return {"nll": torch.stack(samples_nll, 1)}


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
