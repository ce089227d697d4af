"""Generated answers: every model writes the same examples' answers out, and each is judged by the result that it comes to.

Results are compared as numbers, by each pattern, and as lm-evaluation-harness publishes them, by each of its filters.

How long an answer may be is what the corpus' padding says: up to the end of the sequence where end tokens fill it
(``padding = 'end'``), as long as the reference where nothing does. Finished batches survive a kill
(``pipeline.machine.cached_results``).
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from components.batch import Batch
from components.inference import sampling
from components.inference.answers import Answers
from components.inference.exact_match import is_exact_match
from components.inference.left_to_right import left_to_right
from components.inference.metrics import SHARE
from components.model import Model
from pipeline.corpora.prepared import Prepared, Split, Vocabulary
from pipeline.errors import ConfigError
from pipeline.evaluation import evaluator
from pipeline.evaluation.compared import interleaved
from pipeline.inference.predictor import predictor, reader
from pipeline.machine.cached_results import cached_result
from pipeline.machine.distributed import gathered, rank, world
from pipeline.machine.runtime import Runtime
from pipeline.progress import Progress
from pipeline.reporting.lost_references import without_result
from pipeline.text.detokenise import Render
from pipeline.text.rendering import rendering_of


@dataclass(frozen=True)
class JudgedAnswers:
    """Answers that a model generated, judged by their results.

    Attributes:
        texts: one an example.
        results: of each, by pattern.
        right: float64 (examples) by pattern, 1 where the result is the reference's.
        exact_match: the same by the harness's filters.
        evaluations: float64 (examples), passes through the model; a row whose answer is written takes none.
    """

    texts: list[str]
    results: list[dict[str, str | None]]
    right: dict[str, Tensor]
    exact_match: dict[str, Tensor]
    evaluations: Tensor


def answered(
    prepared: Prepared, models: Mapping[str, Model], answers: Answers, size: int, runtime: Runtime
) -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, Any]]:
    """Generate answers with every model and judge them.

    Args:
        prepared: the corpus, of text.
        models: by name; one of them is ``frozen``, which the others are compared with.
        answers: how.
        size: examples decoded together.
        runtime: where it computes.

    Returns:
        Metrics by model, a line for samples.jsonl by example, and by split how many references have lost their result: answers to
        them are never right. Empty where none has.

    Raises:
        ConfigError: the corpus is none of text.
    """
    rendering = rendering_of(prepared.vocabulary.rendering)
    if (encoding := rendering.encoding(prepared.folder)) is None:
        raise ConfigError("evaluate.run.answers is for text corpora; set ANSWERS: null for this one")
    end, known = encoding.id("end"), encoding.known
    render = rendering.renderer(prepared.vocabulary, prepared.folder)
    split = evaluator.by_length(prepared.split(answers.split).take(slice(0, answers.items)))
    references = texts_of(split.tokens, split, end, render)
    whole = whole_references(split, end)
    expected = [answers.expected(*reference) for reference in zip(references, whole, strict=True)]
    lost = _lost(answers, expected, whole)
    judgements: dict[str, JudgedAnswers] = {}
    with Progress("answers", len(models) * len(split), "answer") as bar:
        for line in without_result(lost):
            bar.line(line)
        for name, model in models.items():
            tokens, evaluations = generated(model, split, prepared.vocabulary, answers, size, runtime, name, bar, known, end)
            judgements[name] = _judge(texts_of(tokens, split, end, render), evaluations, answers, expected, references)
            shares = ", ".join(f"{pattern} {float(right.mean()):.3f}" for pattern, right in judgements[name].right.items())
            bar.line(f"{name}: {shares} | {bar.rate()}")
    named = {} if answers.approximation is None else {"approximation": answers.approximation}
    metrics = {name: {**_metrics(judgements[name], judgements["frozen"], models[name], split.group), **named} for name in models}
    return metrics, _lines(prepared, split, render, references, expected, judgements), lost


def _lost(answers: Answers, expected: Sequence[str | None], whole: Sequence[bool]) -> dict[str, dict[str, int]]:
    lost = [i for i, result in enumerate(expected) if result is None]
    counts = {"lost": len(lost), "cut": sum(not whole[i] for i in lost), "references": len(expected)}
    return {answers.split: counts} if lost else {}


@torch.no_grad()
def generated(
    model: Model,
    split: Split,
    vocabulary: Vocabulary,
    answers: Answers,
    size: int,
    runtime: Runtime,
    name: str,
    bar: Progress,
    known: Tensor | None = None,
    end: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Tokens with generated answers, and how many passes each example took.

    Args:
        model: that generates.
        split: the examples.
        vocabulary: their token ids.
        answers: how.
        size: examples decoded together.
        runtime: where it computes.
        name: of the model, under which finished batches are kept.
        bar: told of finished examples.
        known: which ids have a token; None = all.
        end: the token behind which a causal model writes no more; None = as long as there is room.
    """
    mine = []
    batches = enumerate(evaluator.batches(split, vocabulary, 1.0, 0, size))
    for number, batch in islice(batches, rank(), None, world()):
        decoded_batch = partial(_decoded, model, batch, vocabulary, answers, runtime, known, end)
        mine.append(cached_result(f"answers/{name}/{number}", decoded_batch))
        bar.advance(len(batch))
    decoded = interleaved(gathered(mine))
    return torch.cat([batch["tokens"] for batch in decoded]), torch.cat([batch["evaluations"] for batch in decoded])


def _decoded(
    model: Model,
    batch: Batch,
    vocabulary: Vocabulary,
    answers: Answers,
    runtime: Runtime,
    known: Tensor | None,
    end: int | None,
) -> dict[str, Tensor]:
    """One batch's tokens, in full length, and the passes that each row took."""
    trimmed = evaluator.trimmed(batch)
    if vocabulary.causal:
        last = _written(model, trimmed, vocabulary, runtime, known, end)
    else:
        trimmed = trimmed.to(runtime.device)
        predict = predictor(model, trimmed, vocabulary, runtime, prefix=answers.prefix, blocks=answers.blocks)
        passes = answers.passes
        with Progress("passes", passes, "pass") as bar:
            predict = bar.counting(predict)
            last = sampling.low_confidence_remasking(predict, trimmed.tokens, vocabulary.mask_id, passes, answers.blocks, known)
    return {
        "tokens": torch.cat([last.tokens.cpu(), batch.tokens[:, last.tokens.shape[1] :]], 1),
        "evaluations": last.evaluations.double(),
    }


def _written(
    model: Model, batch: Batch, vocabulary: Vocabulary, runtime: Runtime, known: Tensor | None, end: int | None
) -> sampling.Pass:
    """What a causal model writes, token after token until its end."""
    answer = batch.masked.roll(1, 1)  # what is predicted at a place is the next one's
    tokens = batch.tokens.masked_fill(answer, vocabulary.mask_id)
    batch = replace(batch, masked=answer, tokens=tokens).to(runtime.device)
    read = reader(model, batch, vocabulary, runtime)
    with Progress("passes", int(answer.sum(1).max()), "pass") as bar:
        passes = left_to_right(bar.counting(read), batch.tokens, vocabulary.mask_id, sampling.Sampler(), end_id=end, known=known)
        return deque(passes, maxlen=1).pop()


def whole_references(split: Split, end: int) -> list[bool]:
    """Tell which references have their end; the sequence cut it from others."""
    whole: list[bool] = ((split.tokens == end) & split.response).any(1).tolist()
    return whole


def texts_of(tokens: Tensor, split: Split, end: int, render: Render) -> list[str]:
    """Write the answers alone, up to the first end."""
    texts = []
    for row, response in zip(tokens, split.response, strict=True):
        ids = row[response].tolist()
        texts.append(render(ids[: ids.index(end)] if end in ids else ids))
    return texts


def _judge(
    texts: list[str], evaluations: Tensor, answers: Answers, expected: Sequence[str | None], references: Sequence[str]
) -> JudgedAnswers:
    results = [answers.extracted(text) for text in texts]
    right = {
        name: torch.tensor([float(e is not None and r[name] == e) for r, e in zip(results, expected, strict=True)]).double()
        for name in answers.patterns
    }
    triples = list(zip(texts, references, expected, strict=True))
    exact_match = {
        name: torch.tensor([float(e is not None and is_exact_match(t, r, *pattern)) for t, r, e in triples]).double()
        for name, pattern in answers.exact_match.items()
    }
    return JudgedAnswers(texts, results, right, exact_match, evaluations)


def _metrics(own: JudgedAnswers, frozen: JudgedAnswers, model: Model, group: Tensor) -> dict[str, Any]:
    """Share of right answers by pattern with intervals, its paired difference from the frozen backbone, and what it cost."""
    ones = torch.ones_like(own.evaluations)
    return {
        **{name: evaluator.mean(right, ones, group, SHARE) for name, right in own.right.items()},
        "exact_match": {name: evaluator.mean(right, ones, group, SHARE) for name, right in own.exact_match.items()},
        "minus_frozen": {
            name: evaluator.paired(right, frozen.right[name], ones, group, SHARE) for name, right in own.right.items()
        },
        "function_evaluations": evaluator.mean(own.evaluations, ones, group),
        "recursion_steps": model.n_steps,
    }


def _lines(
    prepared: Prepared,
    split: Split,
    render: Render,
    references: list[str],
    expected: list[str | None],
    judgements: Mapping[str, JudgedAnswers],
) -> list[dict[str, Any]]:
    """An object for each example, in the order of the corpus."""
    valid = torch.ones_like(split.response) if split.valid is None else split.valid
    assert split.uid is not None
    lines = [
        {
            "item": int(split.uid[row]),
            "prompt": render(split.tokens[row][valid[row] & ~split.response[row]].tolist()),
            "reference": references[row],
            "expected": expected[row],
            "generated": {
                name: {
                    "text": answers.texts[row],
                    "extracted": answers.results[row],
                    "right": {pattern: bool(right[row]) for pattern, right in answers.right.items()},
                    "exact_match": {pattern: bool(right[row]) for pattern, right in answers.exact_match.items()},
                }
                for name, answers in judgements.items()
            },
        }
        for row in range(len(split))
    ]
    return sorted(lines, key=lambda line: int(line["item"]))
