"""configure: resolves and checks every stage's settings before anything costs."""

import os
from pathlib import Path

from pipeline.files import write_atomic
from pipeline.settings import config, dependencies, effective, params, rehearsal

BESIDE = ("ablate", "generate", "export", "track")  # no stages of dvc.yaml


def run(
    *,
    out: str,
    stages: tuple[str, ...],
    overrides: tuple[str, ...] = (),
    plan: bool = False,
    peak: str = "",
    mfu: str = "",
    processes: str = "",
    memory: str = "",
) -> None:
    """Write, per stage, its canonical text, and for DVC the values in effect and what its results depend on.

    One mistake anywhere and nothing is written.

    Args:
        out: folder of the texts; "" = check only.
        stages: names of the stages to resolve.
        overrides: bindings for a plan, for every stage that they mean something to.
        plan: tell what the pipeline will take instead.
        peak: TFLOP/s of the device that it will run on; "" = measure this one.
        mfu: share of them that training reaches.
        processes: that share every step, each on such a device; "" = 1.
        memory: GB of the device, to be told what does not fit.

    Raises:
        ConfigError: every mistake that was found, one a line.
    """
    texts = config.resolve_all(stages, params.read(Path("params.yaml"), stages), overrides=overrides)
    if plan:
        from pipeline.planning import plan as planning
        from pipeline.planning import plan_report  # these bring the training loop, which checks do without

        fleet = plan_report.fleet(texts["warmup"], peak, mfu, processes, memory)  # first, as it may be refused
        print(plan_report.summary(planning.plan(texts, fleet.processes), fleet, Path()))
        return
    models = rehearsal.rehearse(texts)
    listings = dependencies.listings({stage: text for stage, text in texts.items() if out and stage not in BESIDE})
    for stage, text in texts.items() if out else ():
        write_atomic(Path(out) / f"{stage}.gin", text.encode())
        if stage in listings:
            write_atomic(Path(out) / f"{stage}.code", listings[stage].encode())
            config.load_text(text, stage)
            write_atomic(Path(out) / f"{stage}.yaml", effective.yaml_text(effective.settings(f"stages.{stage}.run")).encode())
    if out and "DVC_STAGE" in os.environ:
        dependencies.link_outside_files(texts)
    print(f"configure: {len(texts)} stages resolved, checked and built on shapes; parameters to train: {rehearsal.sizes(models)}")
