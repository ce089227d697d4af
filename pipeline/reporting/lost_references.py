"""References without a result, in words: what evaluate's log and the top of the report say of them."""

from collections.abc import Mapping


def without_result(counts: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Say of each split how many references have lost their result, and what follows.

    Args:
        counts: by split: ``lost`` of all ``references``, of which ``cut`` were cut by the sequence.

    >>> without_result({"test": {"lost": 3, "cut": 2, "references": 32}})
    ["3 of the 32 references of split 'test' hold no result (2 were cut by the sequence): no answer to them counts as right"]
    """
    return [
        f"{of['lost']} of the {of['references']} references of split '{split}' hold no result ({of['cut']} were cut by the "
        "sequence): no answer to them counts as right"
        for split, of in counts.items()
    ]
