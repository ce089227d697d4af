"""What an evaluation measures: which splits, how much of an answer is masked, and in how many passes answers are decoded."""

from collections.abc import Collection, Mapping

Fraction = int | float  # 1 is a fraction too


def check_measures(
    measures: Mapping[str, tuple[str, Fraction]],
    decodes: Mapping[str, tuple[str, int, int, int]],
    forgetting: tuple[str, Fraction] | None,
    headline: str,
    splits: Collection[str] | None = None,
) -> None:
    """Check that an evaluation's measures mean something, before anything is trained for them; their numbers are within the ranges
    that ``stages.evaluate`` states.

    Args:
        measures: name -> (split, fraction of the answer that is masked).
        decodes: name -> (split, passes, blocks, examples).
        forgetting: (split, fraction of the prompt that is masked), or None.
        headline: the measure whose metrics stand at the top.
        splits: names of the splits that there will be; None = not known yet.

    Raises:
        ValueError: a name is unknown, or passes are no multiple of blocks.
    """
    if headline not in measures:
        raise ValueError(f"headline is '{headline}', which is none of the measures {', '.join(measures)}")
    for name, (split, _) in measures.items():
        check_split(f"measures, '{name}'", split, splits)
    for name, (split, passes, blocks, _) in decodes.items():
        if passes % blocks:
            raise ValueError(
                f"decodes, '{name}': expected (split, passes, blocks, examples) with passes a multiple of blocks, got {passes} "
                f"passes and {blocks} blocks"
            )
        check_split(f"decodes, '{name}'", split, splits)
    if forgetting is not None:
        check_split("forgetting", forgetting[0], splits)


def check_split(where: str, split: str, splits: Collection[str] | None) -> None:
    """Raise ValueError where a split is named that there will not be; ``splits``: None = not known yet."""
    if splits is not None and split not in splits:
        raise ValueError(f"{where}: there is no split '{split}'; the corpus has {', '.join(splits)}")
