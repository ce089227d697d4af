"""The evaluation of models that predict a sentence's embedding: every model and every baseline on the same test sentences.

Metrics are those of the encoder's own space: predictions are taken out of the normaliser first. Candidates of the retrieval are the
distinct sentences that are to be predicted in a split. The frozen model is a ridge regression from the previous sentence, the mean
of those before and the first; simpler baselines are the first two of these themselves.
"""

import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from components.backbones.sentence_table import SentenceTable
from components.batch import Batch
from components.inference.metrics import SHARE, Bounds, intervals
from components.inference.retrieval import METRICS, Scores, nearest, scores
from components.model import Model
from pipeline.corpora.prepared import Prepared, Split
from pipeline.errors import ConfigError
from pipeline.evaluation import evaluator
from pipeline.evaluation.assessment import PAIRS, SAMPLES, TRACE, EvalConfig, hand_over, load_models, take_steps
from pipeline.evaluation.limited import Limited
from pipeline.files import write_atomic, write_json
from pipeline.machine.distributed import rank
from pipeline.machine.runtime import Runtime
from pipeline.models.backbones import Backbone
from pipeline.models.checkpoint import open_phases
from pipeline.progress import Progress
from pipeline.text.rendering import rendering_of

ROWS = 512  # documents that are looked at together
BASELINES = ("copy_previous", "context_mean")
TRAINED = ("warmup", "joint", "finetune")
BOUNDS: dict[str, Bounds] = {"cosine": (-1.0, 1.0), "squared_error": None, "retrieval_1": SHARE, "retrieval_5": SHARE}


def assess(
    prepared: Limited,
    backbone: Backbone,
    models: Mapping[str, str],
    out: Path,
    runtime: Runtime,
    config: EvalConfig,
) -> None:
    """Evaluate everything and write it. Each process computes all of it.

    Raises:
        ConfigError: a setting has no meaning for sentences.
        DataError: a model, split or backbone does not fit.
    """
    measures, seed, size = config.measures, config.seed, config.batch_size
    whole = config.answers or config.likelihood or config.parallelism or config.forgetting
    beside = whole or config.decodes or config.halts or config.depths or config.breadth
    if beside or any(ratio != 1.0 for _, ratio in measures.values()):
        raise ConfigError(
            "sentences are predicted one at a time: decodes and halts must be {}, depths (), breadth, answers, likelihood, "
            "parallelism and forgetting None, and the fraction of a measure 1.0"
        )
    backbone.check(prepared)
    phases = open_phases(models, backbone)
    loaded = load_models(backbone, phases, runtime)
    take_steps(loaded, config.recursion_steps)
    table = loaded["frozen"]
    assert isinstance(table, SentenceTable)
    names = [*loaded, *BASELINES]
    metrics: dict[str, Any] = {name: {} for name in names}
    differences: dict[str, dict[str, Any]] = {}
    candidates: dict[str, int] = {}
    with Progress("evaluate", len(measures) * len(names), "model") as bar:
        for measure, (split_name, _) in measures.items():
            split = evaluator.by_length(prepared.split(split_name))
            ids, truth = targets(split).unique(return_inverse=True)
            score = partial(scores, truth=truth, candidates=rows(table, ids))
            judgements = {name: [score(step) for step in predictions(m, table, prepared, split, runtime, size, seed)]
                     for name, m in loaded.items()}  # fmt: skip
            judgements |= {name: [score(embedding)] for name, embedding in zip(BASELINES, baselines(table, split), strict=True)}
            for name, steps in judgements.items():
                metrics[name][measure] = summary(steps, groups(split))
                bar.advance()
                bar.line(f"{measure}: {name} " + ", ".join(f"{m} {metrics[name][measure][m]['mean']:.4f}" for m in METRICS))
            for a, b in pairs(names):
                compared = compare(judgements[a][-1], judgements[b][-1], groups(split))
                differences.setdefault(f"{a} - {b}", {})[measure] = compared
            candidates[measure] = len(ids)
    for name in names:
        metrics[name] |= metrics[name][config.headline]
    if rank():
        return
    common = {"headline": config.headline, "measures": list(measures), "differences": differences, "candidates": candidates}
    write_json(out / TRACE, {"rendering": prepared.vocabulary.rendering})
    _write_samples(prepared, loaded, table, measures[config.headline][0], config.samples, out, runtime, seed)
    hand_over(out, {**common, "models": metrics}, prepared, backbone, phases)


def pairs(names: list[str]) -> list[tuple[str, str]]:
    """Which models are compared: those of every evaluation, and each trained one with the baselines."""
    possible = [*PAIRS, *((trained, baseline) for trained in TRAINED for baseline in BASELINES)]
    return [(a, b) for a, b in possible if a in names and b in names]


@torch.no_grad()
def predictions(
    model: Model, table: SentenceTable, prepared: Prepared, split: Split, runtime: Runtime, batch_size: int, seed: int
) -> list[Tensor]:
    """After each recursion step the embeddings that a model predicts, in the encoder's space and the split's order."""
    model.to(runtime.device).eval()
    by_batch: list[list[Tensor]] = []
    for batch in _batches(prepared, split, runtime, batch_size, seed):
        with runtime.autocast():
            states = [state.hidden[batch.masked].float() for state in model.steps(batch)]
        by_batch.append([table.raw(state).cpu() for state in states])
    return [torch.cat(step) for step in zip(*by_batch, strict=True)]


def _batches(prepared: Prepared, split: Split, runtime: Runtime, batch_size: int, seed: int) -> Iterator[Batch]:
    for batch in evaluator.batches(split, prepared.vocabulary, 1.0, seed, batch_size, "predictions"):
        yield evaluator.trimmed(batch).to(runtime.device)


def targets(split: Split) -> Tensor:
    """Ids of the sentences that are to be predicted, document after document."""
    return split.tokens[split.response].long()


def groups(split: Split) -> Tensor:
    """The group of each of them."""
    return split.group.repeat_interleave(split.response.sum(1))


@torch.no_grad()
def rows(table: SentenceTable, ids: Tensor) -> Tensor:
    """Embeddings of sentences, in the encoder's space, on the host."""
    return table.raw(table.head.weight[ids.to(table.head.weight.device)]).cpu()


def baselines(table: SentenceTable, split: Split) -> tuple[Tensor, Tensor]:
    """For each sentence that is to be predicted the embedding of the one before it, and the mean of all before it."""
    by_part = []
    for ids, predicted in zip(split.tokens[:, :-1].split(ROWS), split.response[:, 1:].split(ROWS), strict=True):
        before = rows(table, ids.long())
        mean = before.cumsum(1) / torch.arange(1, before.shape[1] + 1)[:, None]
        by_part.append((before[predicted], mean[predicted]))
    previous, means = zip(*by_part, strict=True)
    return torch.cat(previous), torch.cat(means)


def summary(steps: list[Scores], group: Tensor) -> dict[str, Any]:
    """Every metric of the last step with its interval; of every step beside."""
    numerators = torch.stack([getattr(step, name) for step in steps for name in METRICS])
    bounds = [BOUNDS[name] for name in METRICS] * len(steps)
    means = intervals(numerators, torch.ones_like(numerators), group, generator=evaluator.resamples(), bounds=bounds)
    by_step = {name: means[i :: len(METRICS)] for i, name in enumerate(METRICS)}
    return {**{n: v[-1] for n, v in by_step.items()}, **{f"{n}_by_step": v for n, v in by_step.items()}}


def compare(a: Scores, b: Scores, group: Tensor) -> dict[str, dict[str, float]]:
    """Paired differences a - b of every metric."""
    ones = torch.ones_like(a.cosine)
    return {name: evaluator.paired(getattr(a, name), getattr(b, name), ones, group, BOUNDS[name]) for name in METRICS}


def _write_samples(
    prepared: Prepared, models: Mapping[str, Model], table: SentenceTable, split_name: str, samples: int,
    out: Path, runtime: Runtime, seed: int,
) -> None:  # fmt: skip
    """samples.jsonl: a document without its end, that end, and the candidate nearest to each model's prediction after each step."""
    whole, render = (
        prepared.split(split_name),
        rendering_of(prepared.vocabulary.rendering).renderer(prepared.vocabulary, prepared.folder),
    )
    split = whole.take(torch.linspace(0, len(whole) - 1, min(samples, len(whole))).long())
    ids, ends = targets(whole).unique(), split.response.sum(1).cumsum(0) - 1
    candidates = rows(table, ids)
    nearest_ids = {
        name: [nearest(step[ends], candidates) for step in predictions(model, table, prepared, split, runtime, len(split), seed)]
        for name, model in models.items()
    }
    lines = []
    for row, (tokens, length) in enumerate(zip(split.tokens.tolist(), split.lengths().tolist(), strict=True)):
        document = [render([token]) for token in tokens[:length]]
        answers = {name: [render([int(ids[step[row]])]) for step in steps] for name, steps in nearest_ids.items()}
        lines.append({"context": document[:-1], "truth": document[-1], "models": answers})
    write_atomic(out / SAMPLES, "".join(json.dumps(line) + "\n" for line in lines).encode())
