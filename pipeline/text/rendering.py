"""What a corpus' sequences are to a person: a grid puzzle, text, or a document of sentences.

Everything that depends on the kind is asked of its object; prepared data keeps the kind's name (``Vocabulary.rendering``).
"""

from collections.abc import Callable
from math import isqrt
from pathlib import Path
from typing import Protocol

from torch import Tensor

from components.inference.grids import keeps_rules
from pipeline.corpora.prepared import Prepared, Split, Vocabulary, texts
from pipeline.corpora.sudoku import BOXES
from pipeline.errors import ConfigError, DataError
from pipeline.text import prompt_template
from pipeline.text.detokenise import Render, cell, puzzle_renderer, text_renderer
from pipeline.text.prompts import Prompts, Puzzles, Texts
from pipeline.text.tokenizer import Encoding

Right = Callable[[Tensor, Split], Tensor]


def is_reference(tokens: Tensor, split: Split) -> Tensor:
    """Tell which decoded sequences have the reference's answer, token by token."""
    return ((tokens == split.tokens) | ~split.response).all(1)


def is_solution(tokens: Tensor, split: Split) -> Tensor:
    """Tell which decoded grids keep the rules and the clues, whichever solution they are."""
    clues = ((tokens == split.tokens) | split.response).all(1)
    return clues & keeps_rules(tokens, *BOXES[isqrt(tokens.shape[1])])


class Rendering(Protocol):
    """What can be done with sequences of one kind.

    Attributes:
        predicts: what a model says at a position: "tokens" or "embeddings". Evaluation and report follow it.
        cell: a token's mark in a square grid, as which traces are drawn; None = traces are not drawn.
        files: of the prepared data, without which a model cannot be asked: part of an exported model.
        solves: tells which decoded sequences are right where an example allows several; is_reference where none does.
    """

    predicts: str
    cell: Callable[[int], str] | None
    files: tuple[str, ...]
    solves: Right

    def renderer(self, vocabulary: Vocabulary, folder: Path) -> Render:
        """Make the function that turns ids into text; ``folder``: of the prepared data."""

    def prompts(self, vocabulary: Vocabulary, folder: Path, longest: int | None) -> Prompts:
        """Make the reader of prompts, for a model that reads sequences of ``longest`` tokens (None = any).

        Raises:
            ConfigError: models of this kind answer no prompts.
        """

    def encoding(self, folder: Path) -> Encoding | None:
        """Read the tokenizer with its end token, by which generated answers are cut; None where answers are no text."""

    def example(self, vocabulary: Vocabulary) -> str:
        """Write a prompt that a model card can show."""


class GridPuzzle:
    """Puzzles on a square grid, a token a cell: id 0 is digit 1; the mask is an empty cell."""

    predicts = "tokens"
    cell: Callable[[int], str] | None = staticmethod(cell)
    solves: Right = staticmethod(is_solution)
    files: tuple[str, ...] = ()

    def renderer(self, vocabulary: Vocabulary, folder: Path) -> Render:
        """Make the function that writes rows of digits, "." where a cell is empty."""
        return puzzle_renderer(vocabulary)

    def prompts(self, vocabulary: Vocabulary, folder: Path, longest: int | None) -> Prompts:
        """Make the reader of grids with empty cells."""
        return Puzzles(vocabulary)

    def encoding(self, folder: Path) -> Encoding | None:
        """Return None: a grid is its own answer."""
        return None

    def example(self, vocabulary: Vocabulary) -> str:
        """Write the grid without a clue."""
        return "." * vocabulary.sequence


class Text:
    """Text of a tokenizer, which lies beside the manifest with the template of its prompts."""

    predicts = "tokens"
    cell: Callable[[int], str] | None = None
    solves: Right = staticmethod(is_reference)
    files: tuple[str, ...] = (prompt_template.TOKENIZER, prompt_template.WORDING)

    def renderer(self, vocabulary: Vocabulary, folder: Path) -> Render:
        """Make the function that decodes tokens, "_" where one is masked."""
        return text_renderer(vocabulary, folder)

    def prompts(self, vocabulary: Vocabulary, folder: Path, longest: int | None) -> Prompts:
        """Make the reader of questions in the words of the corpus' template."""
        return Texts(vocabulary, folder, longest)

    def encoding(self, folder: Path) -> Encoding | None:
        """Read the tokenizer of the corpus."""
        return prompt_template.read(folder)[0]

    def example(self, vocabulary: Vocabulary) -> str:
        """Write a placeholder: what is asked is the corpus' own affair."""
        return "..."


class Sentences:
    """Documents whose tokens are whole sentences (``sentences.jsonl``); a model predicts the embedding of the next one."""

    predicts = "embeddings"
    cell: Callable[[int], str] | None = None
    solves: Right = staticmethod(is_reference)
    files: tuple[str, ...] = ()

    def renderer(self, vocabulary: Vocabulary, folder: Path) -> Render:
        """Make the function that joins sentences, without padding."""
        sentences = texts(folder)
        return lambda ids: " ".join(sentences[i] for i in ids if i < len(sentences))

    def prompts(self, vocabulary: Vocabulary, folder: Path, longest: int | None) -> Prompts:
        """Refuse to read prompts: an embedding is no answer.

        Raises:
            ConfigError: always.
        """
        raise ConfigError("this model predicts embeddings of sentences; only models of tokens answer prompts and are exported")

    def encoding(self, folder: Path) -> Encoding | None:
        """Return None: what is predicted is no text."""
        return None

    def example(self, vocabulary: Vocabulary) -> str:
        """Write nothing: there are no prompts."""
        return ""


RENDERINGS: dict[str, Rendering] = {
    "sudoku": GridPuzzle(),
    "text": Text(),
    "sentences": Sentences(),
}


def rendering_of(name: str) -> Rendering:
    """Look up the kind that prepared data names.

    Raises:
        DataError: there is no such kind.
    """
    if name not in RENDERINGS:
        raise DataError(f"Vocabulary.rendering is '{name}'; expected one of {', '.join(RENDERINGS)} (pipeline/text/rendering.py)")
    return RENDERINGS[name]


def right_of(split: Split, vocabulary: Vocabulary) -> Right:
    """Choose what tells that an example of a split is solved: by its reference alone, unless some allow several answers."""
    return is_reference if split.several is None else rendering_of(vocabulary.rendering).solves


def known_ids(prepared: Prepared) -> Tensor | None:
    """Tell which ids the tokenizer of a corpus has a token for; None where there is no tokenizer, and every id says something."""
    encoding = rendering_of(prepared.vocabulary.rendering).encoding(prepared.folder)
    return None if encoding is None else encoding.known
