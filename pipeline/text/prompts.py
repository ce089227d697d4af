"""Prompts as the token ids that a model continues, and its answers as people read them: puzzles and text."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from torch import Tensor

from pipeline.corpora.prepared import Vocabulary
from pipeline.errors import DataError
from pipeline.text import prompt_template
from pipeline.text.detokenise import cell, puzzle_renderer, text_renderer
from pipeline.text.fields import checked, fields_of

Prompt = str | Mapping[str, str]  # of several fields: a mapping, as a line of JSON holds them
EMPTY = ".0_"  # how an empty cell may be written


class Prompts(Protocol):
    """How prompts of one kind are read and their answers written.

    Attributes:
        end_id: token that ends an answer; None = answers have a length of their own.
        known: whether an id has a token, by id, which those beyond have not; None = all have.
    """

    end_id: int | None
    known: Tensor | None

    def canvas(self, prompt: Prompt, length: int | None) -> list[int]:
        """Ids of the prompt, and the mask wherever a token is wanted.

        Args:
            prompt: what a person wrote.
            length: tokens of the answer at most; None = as many as there is room for.

        Raises:
            DataError: it is not a prompt, or there is no room for its answer.
        """

    def answer_places(self, canvas: Sequence[int], ids: Sequence[int]) -> list[int]:
        """Find the positions of the answer, as far as it goes."""

    def text(self, ids: Sequence[int], places: Sequence[int]) -> str:
        """Write the answer; what is undecided shows as a blank."""

    def picture(self, text: str) -> str:
        """Lay the answer out as it looks best on a terminal."""

    def token(self, token: int) -> str:
        """Write one token by itself."""


class Puzzles:
    """Grids: a digit for each clue, ".", "0" or "_" for each empty cell; "/" and white space between rows say nothing."""

    end_id: int | None = None
    known: Tensor | None = None

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary, self.render = vocabulary, puzzle_renderer(vocabulary)

    def canvas(self, prompt: Prompt, length: int | None) -> list[int]:
        """Read cells as ids; a puzzle's answer has no length of its own."""
        cells = "".join(prompt.replace("/", " ").split()) if isinstance(prompt, str) else ""
        digits, n = "123456789"[: self.vocabulary.mask_id], self.vocabulary.sequence
        if len(cells) != n or not set(cells) <= {*digits, *EMPTY}:
            expected = f"{n} cells, each one of {digits} or '.' where it is empty"
            raise DataError(f"a puzzle is {expected}; got {prompt!r}, {len(cells)} cells")
        if length is not None:
            raise DataError(f"a puzzle has as many answers as empty cells: generation.Generator.length must be None, got {length}")
        return [self.vocabulary.mask_id if cell in EMPTY else int(cell) - 1 for cell in cells]

    def answer_places(self, canvas: Sequence[int], ids: Sequence[int]) -> list[int]:
        """Find the cells that were empty."""
        return [i for i, token in enumerate(canvas) if token == self.vocabulary.mask_id]

    def text(self, ids: Sequence[int], places: Sequence[int]) -> str:
        """Write the whole grid, clues too."""
        return self.render(ids)

    def picture(self, text: str) -> str:
        """Break the grid into lines, one a row."""
        return text.replace("/", "\n")

    def token(self, token: int) -> str:
        """Write its digit, or the empty cell."""
        return cell(token) if token != self.vocabulary.mask_id else "."


class Texts:
    """Text in the words of the corpus' template, answered until the first end.

    Raises:
        DataError: the folder holds no tokenizer, or not the vocabulary's.
    """

    def __init__(self, vocabulary: Vocabulary, folder: Path, longest: int | None) -> None:
        self.vocabulary, self.longest = vocabulary, longest
        self.render = text_renderer(vocabulary, folder)
        self.encoding, self.wording = prompt_template.read(folder)
        self.fields, self.marked = fields_of(self.wording.prompt), self.wording.marked(self.encoding)
        self.end_id: int | None = self.encoding.id("end")
        self.known: Tensor | None = self.encoding.known
        masks = not vocabulary.causal and "mask" in self.wording.special
        mark = self.encoding.id("mask") if masks else self.encoding.size
        if (self.encoding.size, mark) != (vocabulary.size, vocabulary.mask_id):
            raise DataError(
                f"{folder / prompt_template.TOKENIZER} is not the tokenizer of this model; run dvc repro prepare backbone"
            )

    def canvas(self, prompt: Prompt, length: int | None) -> list[int]:
        """Encode the filled template, with room for the answer."""
        ids = self.encoding.prompt(self.marked.filled(self._fields(prompt)))
        room = self.vocabulary.sequence - len(ids)
        most = room if length is None else length
        longest = self.vocabulary.sequence if length is None else self.longest
        if most < 1 or (longest is not None and len(ids) + most > longest):
            answer = "an answer" if length is None else f"{length} more"
            raise DataError(f"the prompt takes {len(ids)} tokens and leaves no room for {answer} in a sequence of {longest}")
        return [*ids, *[self.vocabulary.mask_id] * most]

    def answer_places(self, canvas: Sequence[int], ids: Sequence[int]) -> list[int]:
        """Find positions up to the first end; of a causal model's answer, what is written."""
        room = [i for i, token in enumerate(canvas) if token == self.vocabulary.mask_id]
        last = {self.end_id, self.vocabulary.mask_id} if self.vocabulary.causal else {self.end_id}
        ends = [number for number, i in enumerate(room) if ids[i] in last]
        return room[: ends[0]] if ends else room

    def text(self, ids: Sequence[int], places: Sequence[int]) -> str:
        """Decode the answer's tokens with the tokenizer."""
        return self.render([ids[i] for i in places])

    def picture(self, text: str) -> str:
        """Leave the answer as it is."""
        return text

    def token(self, token: int) -> str:
        """Decode one token with the tokenizer."""
        return self.render([token])

    def _fields(self, prompt: Prompt) -> Mapping[str, str]:
        """The template's fields."""
        if isinstance(prompt, str):
            if len(self.fields) > 1:
                raise DataError(f"a prompt of this model has the fields {', '.join(self.fields)}; give an object that holds them")
            prompt = {self.fields[0]: prompt}
        given = prompt if isinstance(prompt, Mapping) else {}
        return checked(given, "prompt", self.fields, list(self.encoding.special.values()))
