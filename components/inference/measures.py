"""What an evaluation measures: which splits, how much of an answer is masked, and in how many passes answers are decoded."""

from collections.abc import Collection, Mapping

Share = int | float  # 1 is a fraction too


def check_measures(
    measures: Mapping[str, tuple[str, Share]],
    decodes: Mapping[str, tuple[str, int, int, int]],
    forgetting: tuple[str, Share] | None,
    headline: str,
    splits: Collection[str] | None = None,
) -> None:
    """Check that an evaluation's measures mean something, before anything is trained for them.

    Args:
        measures: name -> (split, fraction of the answer that is masked).
        decodes: name -> (split, passes, blocks, examples).
        forgetting: (split, fraction of the prompt that is masked), or None.
        headline: the measure whose metrics stand at the top.
        splits: names of the splits that there will be; None = not known yet.

    Raises:
        ValueError: a fraction is none, a number is too small, or a name is unknown.
    """
    if headline not in measures:
        raise ValueError(f"headline is '{headline}', which is none of the measures {', '.join(measures)}")
    for name, (split, fraction) in measures.items():
        _check_fraction(f"measures, '{name}'", fraction)
        check_split(f"measures, '{name}'", split, splits)
    for name, (split, passes, blocks, examples) in decodes.items():
        if passes < 1 or blocks < 1 or passes % blocks or examples < 1:
            raise ValueError(
                f"decodes, '{name}': expected (split, passes, blocks, examples), all positive and passes a multiple of blocks, got "
                f"{passes} passes, {blocks} blocks and {examples} examples"
            )
        check_split(f"decodes, '{name}'", split, splits)
    if forgetting is not None:
        _check_fraction("forgetting", forgetting[1])
        check_split("forgetting", forgetting[0], splits)


def check_split(where: str, split: str, splits: Collection[str] | None) -> None:
    """Raise ValueError where a split is named that there will not be; ``splits``: None = not known yet."""
    if splits is not None and split not in splits:
        raise ValueError(f"{where}: there is no split '{split}'; the corpus has {', '.join(splits)}")


def _check_fraction(where: str, fraction: Share) -> None:
    if not 0 < fraction <= 1:
        raise ValueError(f"{where}: a fraction of masked tokens lies above 0 and is at most 1, got {fraction:g}")
