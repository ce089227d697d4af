"""evaluate: frozen, every phase and the controls on test, with intervals and paired differences."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from components.inference.answers import Answers
from components.inference.breadth import Breadth
from components.inference.halting import Rule
from components.inference.likelihood import Likelihood
from components.inference.parallelism import Parallelism
from components.ranges import Depth, PositiveInt, PositiveShare, Seed, in_range
from pipeline.evaluation import assessment, concept_assessment
from pipeline.evaluation.limited import Limited
from pipeline.machine.runtime import Runtime
from pipeline.models.backbones import Backbone
from pipeline.text.rendering import rendering_of

ASSESSMENTS = {"tokens": assessment.assess, "embeddings": concept_assessment.assess}  # by what a model predicts


@in_range
def run(
    *,
    out: str,
    prepared: str,
    backbone: str,
    models: Mapping[str, str],
    measures: Mapping[str, tuple[str, PositiveShare]],
    decodes: Mapping[str, tuple[str, Depth, Depth, PositiveInt]],
    halts: Mapping[str, Rule],
    answers: Callable[[], Answers] | None,
    likelihood: Callable[[], Likelihood] | None,
    parallelism: Callable[[], Parallelism] | None,
    forgetting: tuple[str, PositiveShare] | None,
    limit: PositiveInt | None = None,
    headline: str,
    samples: PositiveInt,
    recursion_steps: Depth | None,
    depths: Sequence[Depth],
    breadth: Callable[[], Breadth] | None,
    batch_size: PositiveInt,
    seed: Seed,
    runtime: Runtime,
) -> None:
    """Write ``out`` with metrics.json, samples.jsonl and trace.json.

    Args:
        out: folder of the evaluation.
        prepared: folder that prepare wrote.
        backbone: folder of the frozen backbone.
        models: folder of each trained model.
        measures: name -> (split, fraction of the answer that is masked); one parallel decode each.
        decodes: name -> (split, passes, blocks, examples): decoding whole answers in several passes.
        halts: name -> rule by which sequences leave the recursion (``components.inference.halting``); on the headline measure.
        answers: generate answers and judge their results; None = not for this corpus.
        likelihood: estimate the nll of whole answers; None = leave it out.
        parallelism: decode whole answers in few passes and in many, by several samplers; None = leave it out.
        forgetting: (split, fraction of the prompt that is masked): what models still know of text that no phase supervises; None =
            leave it out.
        limit: examples of each split that are looked at, in everything (``--limit``); None = all.
        headline: the measure whose metrics stand at the top.
        samples: examples written as text and traced through the steps.
        recursion_steps: supervised steps of every model that takes several; None = as many as in training.
        depths: numbers of steps after which models that recur are measured on the headline, all in one pass, whatever
            ``recursion_steps`` says; () = none.
        breadth: restarts of the recursion from noised states, on the headline; None = none.
        batch_size: sequences evaluated together.
        seed: of the masks.
        runtime: where it computes.
    """
    runtime.enter_process()
    data = Limited(prepared, limit)
    assess = ASSESSMENTS[rendering_of(data.vocabulary.rendering).predicts]
    config = assessment.EvalConfig(
        measures=measures, decodes=decodes, halts=halts, answers=answers, likelihood=likelihood, parallelism=parallelism,
        forgetting=forgetting, headline=headline, samples=samples, batch_size=batch_size, seed=seed,
        recursion_steps=recursion_steps, depths=depths, breadth=breadth,
    )  # fmt: skip
    assess(data, Backbone(backbone), models, Path(out), runtime, config)
