"""Whether unrolled denoising passes, the mask draws that they read and the refiner that remembers them go together."""

import inspect

from components.model import Model
from components.objective.nested import Masking, check_draws, passes_of
from pipeline.data import sources
from pipeline.errors import ConfigError
from pipeline.settings import ginstate

OBJECTIVE = "components.objective.objective.Objective"
SOURCES = "pipeline.data.sources."
STORED = ("cached", "streamed")


def check_passes(stage: str, model: Model, stored: Masking, *, trains: bool) -> None:
    """Check a training stage, whose settings are in force.

    Args:
        stage: that trains on states.
        model: that it trains.
        stored: masking of the shards' draws.
        trains: whether it takes steps.

    Raises:
        ConfigError: nothing would train the memory, or passes are unrolled over draws that are not nested by as many.
    """
    root = f"stages.{stage}.run"
    unrolled = ginstate.arguments(root, f"{SOURCES}unrolled", ["passes", "states"])
    if unrolled is None:
        if trains and model.remembers:
            how = (
                "leave finetune.run.steps at 0, for it reads tokens, which are not unrolled"
                if stage == "finetune"
                else f"set {stage}.run.states = @sources.unrolled (gin/recipes/memory.gin sets all that belongs together)"
            )
            raise ConfigError(f"{stage}: memory is learned over unrolled passes alone: {how}, or choose a REFINER without memory")
        return
    leads = ginstate.arguments(root, OBJECTIVE, ["lead"])
    if leads is not None and leads["lead"] is not None:
        raise ConfigError(
            f"{stage}: objective.Objective.lead goes before single passes alone, and sources.unrolled joins several; set it to None"
        )
    source = inspect.unwrap(unrolled["states"])
    masking, draws = _drawn(root, source.__name__, stored)
    passes, streamed = passes_of(masking), source is inspect.unwrap(sources.streamed)
    if streamed or passes != unrolled["passes"]:
        have = "are read as a stream, one draw after the other" if streamed else f"are nested by {passes}"
        raise ConfigError(
            f"{stage}: sources.unrolled reads {unrolled['passes']} nested mask draws of an example together, and its draws {have}; "
            f"set extract.run.masking (of live states or tokens their own masking) = @nested.Nested(), nested.Nested.passes = "
            f"{unrolled['passes']}, and sources.unrolled.states = @sources.cached, @sources.live or @sources.remote"
        )
    check_draws(masking, draws)


def _drawn(root: str, source: str, stored: Masking) -> tuple[Masking, int | None]:
    """The masking of what is unrolled, and how many draws there are of an example where that is not extract's to say."""
    own = None if source in STORED else ginstate.arguments(root, f"{SOURCES}{source}", ["masking", "draws"])
    return (stored, None) if own is None else (own["masking"], own["draws"])
