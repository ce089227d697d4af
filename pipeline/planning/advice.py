"""Which settings would make a stage fit into a device: each way is planned, and what it would take is said."""

from collections.abc import Iterator, Mapping, Sequence

from pipeline.errors import ConfigError
from pipeline.planning.fleet import Fleet
from pipeline.planning.fleet_report import too_large
from pipeline.planning.plan import PHASES, Plan, memory_of
from pipeline.reporting.markdown import with_unit
from pipeline.settings import config, ginstate
from pipeline.settings.params import Params

SHARED, TWICE = "loop.fit.sharding=@sharding.fully_sharded", "loop.fit.execution=@execution.checkpointed"
PARTS = 4  # into which a microbatch is cut
SIZES = ("batch_size", "backbone_batch_size")  # settings of a stage's microbatches


def advice(plan: Plan, on: Fleet, texts: Mapping[str, str], params: Params, overrides: Sequence[str] = ()) -> Iterator[str]:
    """Say for each stage that trains and does not fit the first settings with which it does, or the least that was reached.

    Args:
        plan: of these texts.
        on: devices; of an unknown size nothing is said.
        texts: resolved text of each stage; ``params`` and ``overrides`` are what they come from.
    """
    over = {cost.stage: cost.memory for cost in too_large(plan.costs, on.memory) if on.memory and cost.flops}
    left = {stage for stage in over if stage in (*PHASES, "controls")}
    least = {stage: (over[stage], "as it is") for stage in left}
    for way in ways(on.processes) if left else ():
        settings = {stage: _settings(way, stage, texts[stage]) for stage in left}
        changed = {stage: text for stage in left if (text := _with(settings[stage], stage, params, overrides))}
        try:
            taken = memory_of(changed, {**texts, **changed}, on.processes) if changed else {}
        except ConfigError:  # this way is not for these models
            continue
        for stage, size in taken.items():
            least[stage] = min((size, " ".join(settings[stage])), least[stage])
            left -= {stage} if size <= on.memory else set()
    for stage, (size, words) in least.items():
        fails = "of what was tried the least, which does not fit: " if stage in left else ""
        yield f"      {stage}: {fails}{words} takes {with_unit(size)}B"


def ways(processes: int) -> list[tuple[str, ...]]:
    """List what to change, the cheapest first: smaller microbatches are the same step (with more partial sums of
    gradients), to share layers out takes traffic, to run them twice operations; to keep no average changes the result.
    """
    smaller = f"microbatches / {PARTS}"
    several: list[tuple[str, ...]] = [(SHARED,), (SHARED, smaller)] if processes > 1 else []
    listed = [(smaller,), *several, (TWICE,), (TWICE, smaller), *[(*way, TWICE) for way in several]]
    return [*listed, *((*way, "loop.fit.ema=0.0") for way in listed[-2:])]


def _settings(way: Sequence[str], stage: str, text: str) -> list[str]:
    """A way as settings of a stage."""
    settings = [setting for setting in way if "=" in setting]
    if len(settings) < len(way):
        config.load_text(text, stage)
        root = f"stages.{stage}.run"
        fit = ginstate.arguments(root, "pipeline.training.loop.fit", ("accumulation",)) or {"accumulation": 1}
        sizes = {name: config.argument(root, name) for name in SIZES if name == SIZES[0] or stage == "controls"}
        settings += [f"{stage}.run.{name}={size // PARTS}" for name, size in sizes.items() if size % PARTS == 0]
        settings += [f"loop.fit.accumulation={PARTS * fit['accumulation']}"]
    return settings


def _with(settings: Sequence[str], stage: str, params: Params, overrides: Sequence[str]) -> str:
    """A stage's text with more settings; "" where they are given already."""
    try:
        return config.resolve(stage, params, (*overrides, *settings), shared=True).text
    except ConfigError:
        return ""
