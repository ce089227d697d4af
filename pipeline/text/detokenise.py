"""Token ids as people read them: puzzles as rows of digits, text through its tokenizer."""

from collections.abc import Callable, Sequence
from math import isqrt
from pathlib import Path

from pipeline.corpora.prepared import Vocabulary
from pipeline.text import tokenizer as bpe

Render = Callable[[Sequence[int]], str]


def renderer(vocabulary: Vocabulary, prepared: Path) -> Render:
    """How the ids of a corpus become text; masked positions show as "." in puzzles and "_" in text."""
    if vocabulary.rendering == "sudoku":
        return lambda ids: _puzzle(ids, vocabulary.mask_id)
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
    cells = ["." if i == mask_id else str(i + 1) for i in ids]
    return "/".join("".join(cells[r * size : (r + 1) * size]) for r in range(size))
