"""Token ids as people read them: puzzles as rows of digits, text through its tokenizer."""

from collections.abc import Callable, Sequence
from math import isqrt
from pathlib import Path

from pipeline.corpora.prepared import Vocabulary
from pipeline.text import tokenizer as bpe

Render = Callable[[Sequence[int]], str]


def cell(token: int) -> str:
    """Write the digit of a token: ids count from 0."""
    return str(token + 1)


def puzzle_renderer(vocabulary: Vocabulary) -> Render:
    """Make the function that writes a grid as rows of digits; masked cells show as "."."""
    return lambda ids: _puzzle(ids, vocabulary.mask_id)


def text_renderer(vocabulary: Vocabulary, prepared: Path) -> Render:
    """Make the function that decodes tokens; masked ones show as "_", padding not at all.

    Args:
        vocabulary: of the tokens.
        prepared: folder with ``tokenizer.json``.

    Raises:
        DataError: there is none.
    """
    tokenizer = bpe.load(prepared / "tokenizer.json")
    hidden = {vocabulary.pad_id}

    def text(ids: Sequence[int]) -> str:
        pieces: list[str] = []
        run: list[int] = []
        for token in [*ids, vocabulary.mask_id]:
            if token == vocabulary.mask_id:
                pieces += [tokenizer.decode(run, skip_special_tokens=False), "_"]
                run = []
            elif token not in hidden:
                run.append(token)
        return "".join(pieces[:-1])

    return text


def _puzzle(ids: Sequence[int], mask_id: int) -> str:
    """
    >>> _puzzle([0, 1, 2, 4], 4)
    '12/3.'
    """
    size = isqrt(len(ids))
    cells = ["." if i == mask_id else cell(i) for i in ids]
    return "/".join("".join(cells[r * size : (r + 1) * size]) for r in range(size))
