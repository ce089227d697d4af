"""ablate: what each choice is worth. Not a stage of the pipeline: it trains many variants of it, and no result depends on it."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from components.ranges import PositiveInt, Seed


def run(
    *,
    out: str,
    variants: Mapping[str, Sequence[str]],
    scratch: Mapping[str, Sequence[str]],
    seeds: Sequence[Seed],
    processes: PositiveInt,
) -> None:
    """Train every variant for every seed, write table and picture, and print the table.

    Args:
        out: folder of the results, and of the workspaces, one a seed.
        variants: name -> bindings over warmup's settings, as on the command line.
        scratch: name -> bindings over the backbone's settings: models trained from scratch.
        seeds: at least two.
        processes: jobs at a time, of one thread each.
    """
    from pipeline import ablation  # brings torch, which checks and help do without

    print(ablation.ablate(Path(out), variants, scratch, seeds, processes))
