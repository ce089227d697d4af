"""evaluate: frozen, every phase and both controls on test, with intervals and paired differences."""

from collections.abc import Mapping
from pathlib import Path

from components.halting import Rule
from pipeline import assessment
from pipeline.backbones import Backbone
from pipeline.prepared import Prepared
from pipeline.runtime import Runtime


def run(
    *,
    out: str,
    prepared: str,
    backbone: str,
    models: Mapping[str, str],
    measures: Mapping[str, tuple[str, float]],
    decodes: Mapping[str, tuple[str, int, int, int]],
    halts: Mapping[str, Rule],
    headline: str,
    samples: int,
    batch_size: int,
    seed: int,
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
        halts: name -> rule by which sequences leave the recursion (``components.halting``); on the headline measure.
        headline: the measure whose metrics stand at the top.
        samples: examples written as text and traced through the steps.
        batch_size: sequences evaluated together.
        seed: of the masks.
        runtime: where it computes.
    """
    assessment.assess(
        Prepared(prepared), Backbone(backbone), models, Path(out), runtime,
        measures=measures, decodes=decodes, halts=halts, headline=headline, samples=samples, batch_size=batch_size, seed=seed,
    )  # fmt: skip
