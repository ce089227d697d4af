"""What a pipeline will take, before anything of it runs, and whether caching the trunk's states pays."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.backbones.backbone import BackboneModel
from components.caching import gain
from components.refined_lm import RefinedLM
from pipeline.corpora.prepared import Prepared, Vocabulary
from pipeline.planning.control_costs import ControlCosts
from pipeline.planning.corpus import Corpus
from pipeline.planning.cost import Cost
from pipeline.planning.cost_model import CostModel
from pipeline.planning.dataset_size import expected
from pipeline.planning.evaluation_cost import EvaluationCost
from pipeline.settings import config, effective, rehearsal
from pipeline.training.shapes import Shapes

PHASES = ("backbone", "warmup", "joint", "finetune")


@dataclass(frozen=True)
class Plan:
    """Compute, memory and disk that a whole pipeline takes.

    Attributes:
        costs: of each stage that computes.
        trunk, step: operations of the trunk's forward pass of an example, and of everything else of a training step, an example.
        draws: mask draws that are stored of an example.
        epochs: that warmup and joint walk together.
        live: of these two, the ones that are set to run the trunk live, here or in another process.
        assumed: what of all this is a guess, in words.
        examples: of the train split.
        causal: nothing is masked, so that one draw is all there are.
        wire: mean bytes of an example's states, which a trunk in another process sends.
    """

    costs: list[Cost]
    trunk: float
    step: float
    draws: int
    epochs: float
    live: list[str]
    assumed: list[str]
    examples: int
    causal: bool
    wire: float

    @property
    def gain(self) -> float:
        """Compute what the cache gains over a live trunk; below 1 it is a loss."""
        return gain(self.trunk, self.step, self.draws, self.epochs)


def plan(texts: Mapping[str, str], processes: int = 1) -> Plan:
    """Reckon what every stage will cost.

    Args:
        texts: resolved text of each stage.
        processes: that share every step, each on a device of its own.

    Raises:
        ConfigError: something does not fit together, or nothing is known of the corpus' size.
        DataError: what decides shapes is missing (configuration or tokenizer of a pretrained model, raw files).
    """
    cost_model, models, assumed = _cost_model(texts, processes)
    corpus = cost_model.corpus
    with Shapes():
        costs = {stage: cost_model.training(stage, models[stage]) for stage in PHASES}
        warmup, joint, examples = costs["warmup"], costs["joint"], len(corpus.splits["train"])
        costs["extract"] = cost_model.extraction()
        controls = ControlCosts(cost_model, models["controls"])
        costs["controls"] = controls.cost(warmup.flops, joint.flops)
        evaluation = EvaluationCost(cost_model, models, controls.optional(), with_finetune=costs["finetune"].steps > 0)
        costs["evaluate"] = evaluation.cost()
        trunk, wire = cost_model.trunk_over("train", ()), cost_model.wire()
    epochs = warmup.epochs + joint.epochs
    config.load_text(texts["extract"], "extract")
    return Plan(
        costs=[costs[stage] for stage in ("backbone", "extract", "warmup", "joint", "finetune", "controls", "evaluate")],
        trunk=trunk / examples, step=(warmup.flops + joint.flops) / (epochs * examples),
        draws=config.argument("stages.extract.run", "draws"), epochs=epochs,
        live=[stage for stage in cost_model.live if stage in ("warmup", "joint")], assumed=[*assumed, *cost_model.assumed],
        examples=examples, causal=corpus.vocabulary.causal, wire=wire,
    )  # fmt: skip


def memory_of(stages: Collection[str], texts: Mapping[str, str], processes: int) -> dict[str, int]:
    """Reckon bytes that each process takes of a device in some of the stages that train.

    Raises:
        ConfigError, DataError: as ``plan``.
    """
    cost_model, models, _ = _cost_model(texts, processes)
    with Shapes():
        costs = [cost_model.training(stage, models[stage]) for stage in PHASES if stage in stages]
        costs += [ControlCosts(cost_model, models["controls"]).cost(0, 0)] if "controls" in stages else []
    return {cost.stage: cost.memory for cost in costs}


def _cost_model(texts: Mapping[str, str], processes: int) -> tuple[CostModel, dict[str, Any], list[str]]:
    """The costs of what texts describe, its models by stage, and what is assumed."""
    corpus, assumed = _corpus(texts)
    models = rehearsal.rehearse(texts, (corpus.vocabulary.size, corpus.vocabulary.sequence))
    backbone, refined = models["backbone"], models["finetune"]
    assert isinstance(backbone, BackboneModel) and isinstance(refined, RefinedLM) and isinstance(models["controls"], RefinedLM)
    return CostModel(texts, corpus, backbone, refined, processes), models, assumed


def _corpus(texts: Mapping[str, str]) -> tuple[Corpus, list[str]]:
    """What prepare left with these very settings, else what it is expected to leave; and what is assumed of it."""
    config.load_text(texts["prepare"], "prepare")
    root = "stages.prepare.run"
    folder = Path(config.query(f"{root}.out"))
    made = folder / "config.gin"
    if made.is_file() and made.read_text() == effective.gin_text(effective.settings(root)):
        data = Prepared(folder)
        return Corpus({name: data.split(name) for name in data.manifest["splits"]}, data.vocabulary), []
    corpus = config.argument(root, "corpus")
    splits, guess = expected(corpus)
    ids, sequence = corpus.shape()
    state = "was prepared with other settings" if made.is_file() else "is not there yet"
    return Corpus(splits, Vocabulary(ids, 0, 0, sequence, "text", corpus.causal)), [f"{folder} {state}: {guess}"]
