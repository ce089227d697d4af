"""Which settings would make a stage fit into a device: each way is planned, and what it would take is said."""

from collections.abc import Iterator, Mapping, Sequence

from pipeline.errors import ConfigError
from pipeline.planning.fleet import Fleet
from pipeline.planning.plan import PHASES, Plan, memory_of
from pipeline.reporting.markdown import with_unit
from pipeline.settings import config, ginstate
from pipeline.settings.params import Params

SHARED, TWICE = "loop.fit.sharding=@sharding.fully_sharded", "loop.fit.execution=@execution.checkpointed"
PARTS = 4  # into which a microbatch is cut
SMALLER = f"microbatches / {PARTS}"  # what this is among settings: which they are, each stage says
SIZES = ("batch_size", "backbone_batch_size")  # settings of a stage's microbatches


def advice(plan: Plan, on: Fleet, texts: Mapping[str, str], params: Params, overrides: Sequence[str] = ()) -> Iterator[str]:
    """Say for each stage that trains and does not fit the first settings with which it does, or the least that was reached.

    Args:
        plan: of these texts.
        on: devices; of an unknown size nothing is said.
        texts: resolved text of each stage; ``params`` and ``overrides`` are what they come from.
    """
    trained = [cost for cost in plan.costs if cost.stage in (*PHASES, "controls") and cost.flops]
    least = {cost.stage: (cost.memory, "as it is") for cost in trained if not on.holds(cost.memory)}
    for way in ways(on.processes):
        left = [stage for stage, (size, _) in least.items() if not on.holds(size)]
        settings = {stage: said for stage in left if (said := _settings(way, stage, texts[stage]))}
        changed = {stage: text for stage, said in settings.items() if (text := _with(said, stage, params, overrides))}
        for stage, size in _memory_of(changed, texts, on.processes).items():
            least[stage] = min((size, " ".join(settings[stage])), least[stage])
    if least:
        yield "      what to set, in params.yaml under the bindings of the stage:"
    for stage, (size, words) in least.items():
        fails = "" if on.holds(size) else "of what was tried the least, which does not fit: "
        yield f"      {stage}: {fails}{words} takes {with_unit(size)}B"


def _memory_of(changed: Mapping[str, str], texts: Mapping[str, str], processes: int) -> dict[str, int]:
    """What stages take with other texts, without those that cannot be so."""
    try:
        return memory_of(changed, {**texts, **changed}, processes) if changed else {}
    except ConfigError:
        alone = [{stage: text} for stage, text in changed.items()] if len(changed) > 1 else []
        return {stage: size for one in alone for stage, size in _memory_of(one, texts, processes).items()}


def ways(processes: int) -> list[tuple[str, ...]]:
    """List what to change, the cheapest first: smaller microbatches are the same step (with more partial sums of
    gradients), to share layers out takes traffic, to run them twice operations; to keep no average changes the result.
    """
    several: list[tuple[str, ...]] = [(SHARED,), (SHARED, SMALLER)] if processes > 1 else []
    listed = [(SMALLER,), *several, (TWICE,), (TWICE, SMALLER), *[(*way, TWICE) for way in several]]
    return [*listed, *((*way, "loop.fit.ema=0.0") for way in listed[-2:])]


def _settings(way: Sequence[str], stage: str, text: str) -> list[str]:
    """A way as settings of a stage; none if it cannot be gone."""
    settings = [setting for setting in way if setting != SMALLER]
    if SMALLER in way:
        config.load_text(text, stage)
        root = f"stages.{stage}.run"
        fit = ginstate.arguments(root, "pipeline.training.loop.fit", ("accumulation",)) or {"accumulation": 1}
        sizes = {name: config.argument(root, name) for name in SIZES if name == SIZES[0] or stage == "controls"}
        if any(size % PARTS for size in sizes.values()):
            return []  # another step
        settings += [f"{stage}.run.{name}={size // PARTS}" for name, size in sizes.items()]
        settings += [f"loop.fit.accumulation={PARTS * fit['accumulation']}"]
    return settings


def _with(settings: Sequence[str], stage: str, params: Params, overrides: Sequence[str]) -> str:
    """A stage's text with more settings; "" where they are given already."""
    try:
        return config.resolve(stage, params, (*overrides, *settings), shared=True).text
    except ConfigError:
        return ""
