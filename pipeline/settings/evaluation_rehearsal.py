"""What evaluate and generate would refuse, after everything was trained for them."""

import inspect
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from components.inference.answers import Answers
from components.inference.halting import by_learning
from components.inference.measures import check_measures, check_split
from components.model import Model
from pipeline.corpora.corpus import Corpus
from pipeline.errors import ConfigError
from pipeline.inference.exported import is_causal
from pipeline.inference.generation import check_together
from pipeline.models.model_folder import PHASES
from pipeline.settings import config, ginstate

REFINED = [Path("outputs") / PHASES[name] for name in ("warmup", "joint", "finetune", "control_warmup")]  # of the rehearsed refiner
OFF = {"answers": "ANSWERS: null", "parallelism": "parallelism.Parallelism.results: null"}
GENERATOR = "pipeline.inference.generation.Generator"


def check_generation(corpus: Corpus, *, remembers: bool) -> None:
    """What generate would refuse, of a model that is known: the pipeline's own to come, or one that is there."""
    if chosen := ginstate.arguments("stages.generate.run", GENERATOR, ("sampler", "halt", "prefix", "refined_passes", "backbone")):
        of_run = ginstate.arguments("stages.generate.run", "stages.generate.run", ("model",))
        assert of_run is not None
        remembers = remembers and Path(of_run["model"]) in REFINED
        causal = is_causal(Path(of_run["model"]), Path(chosen.pop("backbone")), pipeline=corpus.causal)
        check_together(**chosen, causal=bool(causal), remembers=remembers)


def check_evaluation(corpus: Corpus, refined: Model) -> None:
    """What evaluate would refuse, after everything was trained for it."""
    names = ("measures", "decodes", "forgetting", "headline")
    measures, decodes, forgetting, headline = (_argument(name) for name in names)
    splits = corpus.split_names() if hasattr(corpus, "split_names") else None
    check_measures(measures, decodes, forgetting, headline, splits)
    for name in ("decodes", "parallelism"):
        if corpus.causal and _argument(name):
            none = "DECODES = {}" if name == "decodes" else "PARALLELISM = None"
            raise ConfigError(f"evaluate.run.{name} fills masks, and a causal backbone has none: set {none}")
    if (make := _argument("breadth")) is not None and make() and refined.n_steps > 1 and not refined.carried_states:
        raise ConfigError(
            "evaluate.run.breadth begins the recursion at noised states, which needs a REFINER whose carry is one set of states "
            "(SlotRefiner, RecursiveCore, MLPRefiner, or Tapped over one of them); choose another, or set BREADTH to None"
        )
    for name in ("answers", "likelihood", "parallelism"):
        if (make := _argument(name)) is not None:
            if name == "answers" and not getattr(corpus, "is_text", True):
                raise ConfigError("evaluate.run.answers is for text corpora; set ANSWERS: null for this one")
            check_split(name, (made := make()).split, splits)
            if name == "answers" and made.prefix is not None and (corpus.causal or refined.key_value_cache() is None):
                what = "a causal model takes none" if corpus.causal else "backbone or refiner cannot go on from what is kept"
                raise ConfigError(f"answers.Answers.prefix approximates masked diffusion, and {what}; set it to None")
            if name == "parallelism" and refined.remembers and any(sampler.guidance for sampler in made.samplers.values()):
                raise ConfigError(
                    "evaluate.run.parallelism: a model with memory goes with no sampling.Sampler.guidance; set it to 0"
                )
            if name == "parallelism" and made.results is not None and not getattr(corpus, "is_text", True):
                raise ConfigError("parallelism.Parallelism.results is for text corpora; set it to None for this one")
            by_results = made if name == "answers" else getattr(made, "results", None)
            if by_results is not None and hasattr(corpus, "references"):
                _check_references(name, by_results, corpus.references(made.split, made.items))


def check_halts(model: Model) -> None:
    """Raise ConfigError if a rule asks the model when to halt, and no part of it learns that."""
    rules = [name for name, rule in _argument("halts").items() if inspect.unwrap(rule) is inspect.unwrap(by_learning)]
    if rules and not any(getattr(part, "architecture", {}).get("halting") for part in model.modules()):
        raise ConfigError(
            f"evaluate.run.halts: '{rules[0]}' is @halting.by_learning, and the refiner does not learn to halt; set REFINER: "
            "'@recursive_core.RecursiveCore' and recursive_core.RecursiveCore.halting: true, or leave the rule out"
        )


def _check_references(name: str, answers: Answers, references: Sequence[str]) -> None:
    """Answers are judged by the result that the reference comes to: where there is none, every answer would be wrong."""
    lacking = sum(answers.expected(reference) is None for reference in references)
    what = f"{lacking} of the first {len(references)} references hold no result by the pattern '{answers.reference}'"
    if references and lacking == len(references):
        raise ConfigError(
            f"evaluate.run.{name}: {what}, so that every answer would count as wrong; set answers.Answers.patterns and .reference, "
            f"or {OFF[name]}"
        )
    if lacking:
        print(f"configure: {what}; answers to them count as wrong", file=sys.stderr)


def _argument(parameter: str) -> Any:
    return config.argument("stages.evaluate.run", parameter)
