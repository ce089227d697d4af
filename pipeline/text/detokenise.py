"""Token ids as people read them: puzzles as rows of digits, text through its tokenizer."""

from collections.abc import Callable, Iterable, Sequence
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


def pieces(ids: Iterable[int], render: Render) -> dict[str, str]:
    """Spell every id as it stands within a text: some tokenizers drop a space at a text's beginning.

    A token that is a part of a character, as byte-level tokenizers have, shows as the replacement character.

    Args:
        ids: of the tokens, in any order.
        render: writes sequences of ids as text.
    """
    alone = sorted(set(ids))
    before = next((token for token in alone if render([token]).isalnum()), None)
    if before is None:
        return {str(token): render([token]) for token in alone}
    beginning = render([before])
    return {str(token): render([before, token]).removeprefix(beginning) for token in alone}


def _puzzle(ids: Sequence[int], mask_id: int) -> str:
    """
    >>> _puzzle([0, 1, 2, 4], 4)
    '12/3.'
    """
    size = isqrt(len(ids))
    cells = ["." if i == mask_id else cell(i) for i in ids]
    return "/".join("".join(cells[r * size : (r + 1) * size]) for r in range(size))
