"""The evaluation as a whole: which models, on which measures, compared with which; written as metrics, samples and a trace."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from components.inference.answers import Answers
from components.inference.halting import Rule
from components.inference.likelihood import Likelihood
from components.inference.measures import check_measures
from components.inference.metrics import Counts
from components.model import Model
from pipeline.corpora.prepared import Prepared
from pipeline.errors import ConfigError
from pipeline.evaluation import evaluator, measuring
from pipeline.evaluation.answer_likelihood import estimated
from pipeline.evaluation.answering import answered
from pipeline.evaluation.compared import Compared
from pipeline.evaluation.forgetting import measure_forgetting
from pipeline.evaluation.limited import Limited
from pipeline.evaluation.operations import add_operations
from pipeline.files import sha256, write_atomic, write_json
from pipeline.machine.distributed import rank
from pipeline.machine.runtime import Runtime
from pipeline.manifests import HASHES, INPUTS, STAGE, write_manifest
from pipeline.models.backbones import Backbone
from pipeline.models.checkpoint import load_model, open_phases
from pipeline.models.model_folder import METRICS, ModelFolder
from pipeline.progress import Progress
from pipeline.text.detokenise import Render
from pipeline.text.rendering import known_ids, rendering_of

T = TypeVar("T")
SAMPLES, TRACE = "samples.jsonl", "trace.json"
PAIRS = (
    ("warmup", "frozen"), ("joint", "frozen"), ("joint", "warmup"), ("finetune", "joint"),
    ("joint", "control_warmup"), ("joint", "control_backbone"), ("warmup", "control_backbone"),
    ("joint", "control_lora"), ("warmup", "control_lora"), ("warmup", "control_adapter"), ("joint", "control_refiner_lora"),
    ("control_refiner_lora", "control_lora"),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Settings of an evaluation; see ``stages.evaluate``, which states their ranges.

    Raises:
        ConfigError: a measure means nothing, or the headline is none.
    """

    measures: Mapping[str, tuple[str, float]]
    decodes: Mapping[str, tuple[str, int, int, int]]
    halts: Mapping[str, Rule]
    answers: Callable[[], Answers] | None = None
    likelihood: Callable[[], Likelihood] | None = None
    forgetting: tuple[str, float] | None = None
    headline: str
    samples: int
    batch_size: int
    seed: int
    recursion_steps: int | None = None

    def __post_init__(self) -> None:
        try:
            check_measures(self.measures, self.decodes, self.forgetting, self.headline)
        except ValueError as error:
            raise ConfigError(f"evaluate.run.{error}") from None


def assess(
    prepared: Limited, backbone: Backbone, models: Mapping[str, str], out: Path, runtime: Runtime, config: EvalConfig
) -> None:
    """Evaluate everything and write it.

    Raises:
        ConfigError: a setting is out of range.
        DataError: a model, split or backbone does not fit.
    """
    measures, seed, size = config.measures, config.seed, config.batch_size
    right = rendering_of(prepared.vocabulary.rendering).right
    whole = _made("answers", config.answers), _made("likelihood", config.likelihood)
    backbone.check(prepared)
    phases = open_phases(models, backbone)
    loaded = load_models(backbone, phases, runtime, config.recursion_steps)
    compared = Compared(loaded, runtime)
    metrics: dict[str, Any] = {name: {} for name in loaded}
    counted: dict[str, dict[str, Counts]] = {}
    with Progress("evaluate", len(measures) + len(config.decodes), "measure") as bar:
        for measure, (split_name, ratio) in measures.items():
            split = evaluator.by_length(prepared.split(split_name))
            masked = evaluator.batches(split, prepared.vocabulary, ratio, seed, size, measure)
            headline = measure == config.headline
            rules = config.halts if headline else {}
            piece = f"measures/{measure}"
            of_models = measuring.measure(compared, masked, piece, rules=rules, statistics=headline, right=right)
            for name, measured in of_models.items():
                metrics[name] |= measuring.of_refiner(measured, split.group) if headline else {}
                metrics[name][measure] = evaluator.summary(measured.steps, split.group)
                counted.setdefault(measure, {})[name] = measured.steps[-1]
            bar.advance()
            bar.line(f"{measure}: " + ", ".join(f"{n} nll {metrics[n][measure]['nll']['mean']:.4f}" for n in loaded))
        decode = partial(evaluator.decode, compared, vocabulary=prepared.vocabulary, size=size, known=known_ids(prepared))
        for measure, (split_name, passes, blocks, examples) in config.decodes.items():
            split = prepared.split(split_name).take(slice(0, examples))
            for name, (_, decoded) in decode(split, piece=f"decodes/{measure}", steps=passes, blocks=blocks).items():
                metrics[name].setdefault(measure, {})[f"decode_{passes}"] = decoded
            bar.advance()
            bar.line(f"{measure}: decoded in {passes} passes")
    add_operations(metrics, prepared, loaded, measures, config.decodes, seed, runtime)
    for name in loaded:
        metrics[name] |= {k: v for k, v in metrics[name][config.headline].items() if not k.startswith("decode_")}
    written, lost = _whole_answers(prepared, compared, metrics, *whole, size, seed)
    if config.forgetting is not None:
        for name, values in measure_forgetting(prepared, compared, config.forgetting, size, seed).items():
            metrics[name]["forgetting"] = values
    if rank():
        return
    common: dict[str, Any] = {"headline": config.headline, "measures": list(measures)}
    common["differences"] = _differences(prepared, measures, counted)
    common |= {"lost_references": lost} if lost else {}
    _write_samples(prepared, compared, measures[config.headline][0], config.samples, written, out)
    hand_over(out, {**common, "models": metrics}, prepared, backbone, phases)


def _differences(
    prepared: Prepared, measures: Mapping[str, tuple[str, float]], counted: Mapping[str, Mapping[str, Counts]]
) -> dict[str, Any]:
    """Paired differences on every measure, of the pairs of which both models are there."""
    groups = {measure: evaluator.by_length(prepared.split(split_name)).group for measure, (split_name, _) in measures.items()}
    loaded = next(iter(counted.values()))
    return {
        f"{a} - {b}": {m: evaluator.compare(counts[a], counts[b], groups[m]) for m, counts in counted.items()}
        for a, b in PAIRS
        if a in loaded and b in loaded
    }


def _made(name: str, make: Callable[[], T] | None) -> T | None:
    try:
        return None if make is None else make()
    except ValueError as error:
        raise ConfigError(f"evaluate.run.{name}: {error}") from None


def _whole_answers(
    prepared: Prepared,
    models: Compared,
    metrics: dict[str, Any],
    answers: Answers | None,
    likelihood: Likelihood | None,
    size: int,
    seed: int,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Add what is asked for of whole answers to the models' metrics; returns the lines of generated ones, and by split how many
    references have lost their result.
    """
    lines: list[dict[str, Any]] = []
    lost: dict[str, Any] = {}
    if answers is not None:
        by_model, lines, lost = answered(prepared, models.models, answers, size, models.runtime)
        for name, values in by_model.items():
            metrics[name]["answers"] = values
    if likelihood is not None:
        for name, values in estimated(prepared, models, likelihood, size, seed).items():
            metrics[name]["likelihood"] = values
    return lines, lost


def load_models(
    backbone: Backbone, phases: Mapping[str, ModelFolder], runtime: Runtime, recursion_steps: int | None = None
) -> dict[str, Model]:
    """Load the frozen backbone and every trained model over its very weights, without phases that were switched off.

    Models that recur take ``recursion_steps`` steps; None = as many as in training.
    """
    frozen = backbone.model().to(runtime.device).eval()
    loaded: dict[str, Model] = {"frozen": frozen}
    for name, folder in phases.items():
        if folder.metrics()["steps"]:
            loaded[name] = load_model(folder, backbone, folder.stage, base=frozen).to(runtime.device).eval()
    for model in loaded.values():
        model.set_steps(recursion_steps)
    return loaded


def hand_over(
    out: Path, content: Mapping[str, Any], prepared: Limited, backbone: Backbone, phases: Mapping[str, ModelFolder]
) -> None:
    """Write ``metrics.json``, the manifest of an evaluation: with its numbers, what they are of and what lies beside them.

    Args:
        out: folder, with samples and trace.
        content: the numbers; those of each model under "models".
        prepared: the examples.
        backbone: the frozen model.
        phases: folders of trained models; those that were switched off have no numbers.
    """
    trained = {name: folder.manifest.digest for name, folder in phases.items() if name in content["models"]}
    evaluated = {"frozen": backbone.digest, **trained}
    lineage = {STAGE: "evaluate", "evaluated": evaluated, INPUTS: {"prepare": prepared.digest, "backbone": backbone.digest}}
    hashes = {name: sha256(out / name) for name in (SAMPLES, TRACE)}
    write_manifest(out / METRICS, {**content, **prepared.provenance, **lineage, HASHES: hashes})


def _write_samples(
    prepared: Prepared,
    models: Compared,
    split_name: str,
    samples: int,
    written: list[dict[str, Any]],
    out: Path,
) -> None:
    """samples.jsonl: prompt, answer and every model's answer step by step, then the answers that were generated; trace.json: the
    former as ids, for pictures.
    """
    split = prepared.split(split_name)
    split = split.take(slice(0, min(samples, len(split))))
    render = rendering_of(prepared.vocabulary.rendering).renderer(prepared.vocabulary, prepared.folder)
    traces = evaluator.trace(models, split, prepared.vocabulary)
    lines = [_sample(prepared, render, split.tokens[i].tolist(), split.response[i].tolist(), traces, i) for i in range(len(split))]
    write_atomic(out / SAMPLES, "".join(json.dumps(line) + "\n" for line in [*lines, *written]).encode())
    trace = {
        "rendering": prepared.vocabulary.rendering,
        "mask_id": prepared.vocabulary.mask_id,
        "tokens": split.tokens.tolist(),
        "response": split.response.tolist(),
        "models": traces,
    }
    write_json(out / TRACE, trace)


def _sample(
    prepared: Prepared, render: Render, tokens: list[int], response: list[bool], traces: Mapping[str, Any], row: int
) -> dict[str, Any]:
    seen = [prepared.vocabulary.mask_id if hidden else token for token, hidden in zip(tokens, response, strict=True)]
    return {
        "prompt": render(seen),
        "answer": render(tokens),
        "models": {name: [render(step["ids"]) for step in trace[row]] for name, trace in traces.items()},
    }
