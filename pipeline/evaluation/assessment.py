"""The evaluation as a whole: which models, on which measures, compared with which; written as metrics, samples and a trace."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from components.inference.answers import Answers
from components.inference.breadth import Breadth
from components.inference.halting import Rule
from components.inference.likelihood import Likelihood
from components.inference.measures import check_measures
from components.inference.metrics import Counts
from components.inference.parallelism import Parallelism
from components.model import Model
from pipeline.corpora.prepared import Prepared
from pipeline.errors import ConfigError
from pipeline.evaluation import evaluator, measuring
from pipeline.evaluation.answer_likelihood import estimated
from pipeline.evaluation.answering import answered
from pipeline.evaluation.compared import Compared
from pipeline.evaluation.difficulty import by_difficulty
from pipeline.evaluation.few_passes import curves as few_passes
from pipeline.evaluation.forgetting import measure_forgetting
from pipeline.evaluation.limited import Limited
from pipeline.evaluation.more_recursion import more_recursion
from pipeline.evaluation.operations import add_operations
from pipeline.evaluation.second_pass import second_passes
from pipeline.files import sha256, write_atomic, write_json
from pipeline.machine.distributed import rank
from pipeline.machine.runtime import Runtime
from pipeline.manifests import HASHES, INPUTS, STAGE, write_manifest
from pipeline.models.backbones import Backbone
from pipeline.models.checkpoint import load_model, open_phases
from pipeline.models.model_folder import METRICS, ModelFolder
from pipeline.progress import Progress
from pipeline.text.detokenise import Render, pieces
from pipeline.text.rendering import known_ids, rendering_of, right_of

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
    parallelism: Callable[[], Parallelism] | None = None
    forgetting: tuple[str, float] | None = None
    headline: str
    samples: int
    batch_size: int
    seed: int
    recursion_steps: int | None = None
    depths: Sequence[int] = ()
    breadth: Callable[[], Breadth] | None = None

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
    whole = _made("answers", config.answers), _made("likelihood", config.likelihood)
    parallelism, breadth = _made("parallelism", config.parallelism), _made("breadth", config.breadth)
    backbone.check(prepared)
    phases = open_phases(models, backbone)
    loaded = load_models(backbone, phases, runtime)
    compared = Compared(loaded, runtime)
    metrics: dict[str, Any] = {name: {} for name in loaded}
    for name, curves in more_recursion(prepared, compared, measures[config.headline], config.depths, breadth, seed, size).items():
        metrics[name] |= curves
    take_steps(loaded, config.recursion_steps)
    counted: dict[str, dict[str, Counts]] = {}
    with Progress("evaluate", len(measures) + len(config.decodes), "measure") as bar:
        for measure, (split_name, ratio) in measures.items():
            split = evaluator.by_length(prepared.split(split_name))
            right = right_of(split, prepared.vocabulary)
            masked = evaluator.batches(split, prepared.vocabulary, ratio, seed, size, measure)
            headline = measure == config.headline
            rules = config.halts if headline else {}
            piece = f"measures/{measure}"
            of_models = measuring.measure(compared, masked, piece, rules=rules, statistics=headline, right=right)
            for name, measured in of_models.items():
                metrics[name] |= measuring.of_refiner(measured, split.group, right) if headline else {}
                if headline and (bands := by_difficulty(measured.steps[-1].exact, split)):
                    metrics[name]["by_difficulty"] = bands
                metrics[name][measure] = evaluator.summary(measured.steps, split.group, right)
                counted.setdefault(measure, {})[name] = measured.steps[-1]
            second = partial(second_passes, compared, split, prepared.vocabulary, counted[measure], f"{piece}/second")
            for name, values in second(ratio=ratio, seed=seed, size=size, right=right).items():
                metrics[name][measure]["second_pass"] = values
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
    if parallelism is not None:
        for name, values in few_passes(prepared, compared, parallelism, size).items():
            metrics[name]["parallelism"] = values
    if config.forgetting is not None:
        for name, values in measure_forgetting(prepared, compared, config.forgetting, size, seed).items():
            metrics[name]["forgetting"] = values
    if rank():
        return
    common = {"headline": config.headline, "measures": list(measures), "differences": _differences(prepared, measures, counted)}
    common |= ({"lost_references": lost} if lost else {}) | _several_solutions(prepared, measures)
    _write_samples(prepared, compared, config, written, out)
    hand_over(out, {**common, "models": metrics}, prepared, backbone, phases)


def _differences(
    prepared: Prepared, measures: Mapping[str, tuple[str, float]], counted: Mapping[str, Mapping[str, Counts]]
) -> dict[str, Any]:
    """Paired differences on every measure, of the pairs of which both models are there."""
    splits = {measure: evaluator.by_length(prepared.split(split_name)) for measure, (split_name, _) in measures.items()}
    how = {measure: (split.group, right_of(split, prepared.vocabulary)) for measure, split in splits.items()}
    loaded = next(iter(counted.values()))
    return {
        f"{a} - {b}": {m: evaluator.compare(counts[a], counts[b], *how[m]) for m, counts in counted.items()}
        for a, b in PAIRS
        if a in loaded and b in loaded
    }


def _several_solutions(prepared: Prepared, measures: Mapping[str, tuple[str, float]]) -> dict[str, Any]:
    """Count by split the examples of several right answers: ``exact`` takes one, ``solved`` any. {} = there is none."""
    splits = {split_name: prepared.split(split_name) for split_name, _ in measures.values()}
    several = {n: {"several": int(s.several.sum()), "of": len(s)} for n, s in splits.items() if s.several is not None}
    return {"several_solutions": several} if several else {}


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


def load_models(backbone: Backbone, phases: Mapping[str, ModelFolder], runtime: Runtime) -> dict[str, Model]:
    """Load the frozen backbone and every trained model over its very weights, without phases that were switched off."""
    frozen = backbone.model().to(runtime.device).eval()
    loaded: dict[str, Model] = {"frozen": frozen}
    for name, folder in phases.items():
        if folder.metrics()["steps"]:
            loaded[name] = load_model(folder, backbone, folder.stage, base=frozen).to(runtime.device).eval()
    return loaded


def take_steps(models: Mapping[str, Model], recursion_steps: int | None) -> None:
    """Have models that recur take this many steps from now on; None = as many as in training."""
    for model in models.values():
        model.set_steps(recursion_steps)


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


def _write_samples(prepared: Prepared, models: Compared, config: EvalConfig, written: list[dict[str, Any]], out: Path) -> None:
    """samples.jsonl: prompt, answer and every model's answer step by step, then the answers that were generated; trace.json: the
    former as ids, for pictures, with the text of each id where sequences are text, and the same with the headline's masks where
    these leave some of an answer to be seen.
    """
    vocabulary = prepared.vocabulary
    split_name, ratio = config.measures[config.headline]
    split = prepared.split(split_name)
    split = split.take(slice(0, min(config.samples, len(split))))
    rendering = rendering_of(vocabulary.rendering)
    render = rendering.renderer(vocabulary, prepared.folder)
    traces, _ = evaluator.trace(models, split, vocabulary)
    lines = [_sample(prepared, render, split.tokens[i].tolist(), split.response[i].tolist(), traces, i) for i in range(len(split))]
    write_atomic(out / SAMPLES, "".join(json.dumps(line) + "\n" for line in [*lines, *written]).encode())
    trace = {
        "rendering": vocabulary.rendering,
        "mask_id": vocabulary.mask_id,
        "tokens": split.tokens.tolist(),
        "response": split.response.tolist(),
        "models": traces,
    }
    if ratio < 1.0:
        partly, masked = evaluator.trace(models, split, vocabulary, ratio, config.seed)
        trace["headline"] = {"ratio": ratio, "masked": masked.tolist(), "models": partly}
    if rendering.encoding(prepared.folder) is not None:
        everything = (*traces.values(), *(partly.values() if ratio < 1.0 else ()))
        ids = {token for of in everything for steps in of for step in steps for token in step["ids"]}
        trace["pieces"] = pieces({*ids, *split.tokens.flatten().tolist()}, render)
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
