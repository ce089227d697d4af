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
    link: str = "",
    reading: str = "",
    price: str = "",
    storage: str = "",
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
        memory: GB of the device, to be told what does not fit and which settings would help.
        link: GB/s that a device sends to the others.
        reading: GB/s of stored states that all devices read together.
        price: dollars for an hour of a device.
        storage: dollars for a month of a TB.

    Raises:
        ConfigError: every mistake that was found, one a line.
    """
    given = params.read(Path("params.yaml"), stages)
    texts = config.resolve_all(stages, given, overrides=overrides)
    if plan:
        from pipeline.planning import advice, fleet, plan_report  # these bring the training loop, which checks do without
        from pipeline.planning import plan as planning

        on = fleet.fleet(texts["warmup"], peak, mfu, processes, memory, link, reading, price, storage)  # first: it may be refused
        planned = planning.plan(texts, on.processes)
        print(plan_report.summary(planned, on, Path(), advice.advice(planned, on, texts, given, overrides)))
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
