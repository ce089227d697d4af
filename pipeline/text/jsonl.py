"""Pairs of prompt and response from JSON lines, CSV or Parquet (GSM8K's format, and your own), in the words of templates.

Token ids are those of a byte-pair encoding trained here, or of a pretrained model's tokenizer.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import islice
from pathlib import Path
from typing import Literal

import torch

from components.ranges import InnerShare, PositiveInt
from pipeline.corpora.prepared import Split, Vocabulary
from pipeline.errors import ConfigError, DataError
from pipeline.files import sha256
from pipeline.progress import Progress, watched
from pipeline.text import pretrained_text, prompt_template
from pipeline.text import tokenizer as bpe
from pipeline.text.filled_rows import Pair, filled, read_pairs
from pipeline.text.prompt_template import PromptTemplate
from pipeline.text.raw_files import raw_folder


@dataclass(frozen=True)
class QuestionAnswers:
    """A corpus of ``{"question": ..., "answer": ...}`` rows; other fields by other templates.

    Args:
        train: training file, relative to the raw folder (see ``raw_folder``): one JSON object a line, ``*.csv`` or ``*.parquet``.
        test: test file, read for the ``test`` split only, never for vocabulary or training; or the fraction of training examples
            that is held out for it, by a hash of the question, so that the same question is never on both sides.
        download: command that fetches the files, shown when they are missing.
        vocabulary: size of the BPE vocabulary.
        sequence: tokens in a sequence.
        limits: examples at most by file, the first of each: {"train": 1000, "test": 300}; None = all. Validation is of train's, and
            so is a test without a file.
        validation: fraction of training examples kept for validation, chosen by a hash of the question.
        prompt: template of the prompt, over the line's fields.
        response: template of what is learned.
        chat: the prompt is what a user says in the chat template of ``tokenizer``'s model; the response is the answer.
        chat_date: day that a chat template is told which writes today's date, as YYYY-MM-DD: prompts are the same on any day.
        tokenizer: of a pretrained model (its folder, or its name on the hub); None = trained here, on the train split.
        revision: of the tokenizer on the hub.
        special: its tokens for "mask", "end" and "pad"; needed with ``tokenizer``.
        padding: what fills a sequence after the response: "none" = nothing that is learned; "end" = end tokens that are attended
            to and learned like any other, as LLaDA's fine-tuning does, so that the length of an answer is learned too.
        long_prompts: what to do with a question that fills the whole sequence: "refuse" stops and names the line, "drop" leaves
            the example out and says so.
        long_answers: what to do with an answer that the sequence has no room for, its end token included: "cut" learns and asks
            for its beginning, "drop" leaves the example out, "refuse" stops and names the line. How many there are is told.
        causal: tokens are to be predicted from those before them, as a causal backbone does; ``special`` then needs no "mask".
    """

    train: str
    test: str | InnerShare
    download: str
    vocabulary: PositiveInt = 4096
    sequence: PositiveInt = 256
    limits: Mapping[str, PositiveInt] | None = None
    validation: InnerShare = 0.05
    prompt: str = "{question}\n"
    response: str = "{answer}"
    chat: bool = False
    chat_date: str = "2024-07-26"  # what Llama 3's template writes where there is no clock
    tokenizer: str | None = None
    revision: str | None = None
    special: Mapping[str, str] | None = None
    padding: Literal["none", "end"] = "none"
    long_prompts: Literal["refuse", "drop"] = "refuse"
    long_answers: Literal["cut", "drop", "refuse"] = "cut"
    causal: bool = False

    def shape(self) -> tuple[int, int]:
        """Token ids at most (a small corpus yields fewer), and tokens in a sequence.

        Raises:
            ConfigError: ``chat_date`` is no date, ``test`` is no share, or ``limits`` names something else than files.
        """
        self._date()
        self._check_limits()
        if self.tokenizer is not None:
            return self.pretrained_encoding().size, self.sequence
        return self.vocabulary, self.sequence

    def raw_files(self) -> tuple[str, ...]:
        """Name the files that are read, relative to the raw folder."""
        return (self.train, self.test) if isinstance(self.test, str) else (self.train,)

    def split_names(self) -> tuple[str, ...]:
        """Name the splits that are prepared."""
        return "train", "validation", "test"

    def training_examples(self) -> int | None:
        """Say how many training examples there are at most, validation's among them; None = as many as the file has."""
        return (self.limits or {}).get("train")

    def references(self, split: str, count: int) -> list[str]:
        """Read the first answers of the file that a split is made of; none where the file is not here yet."""
        file = raw_folder() / self.raw_files()[-1 if split == "test" else 0]
        if not file.is_file():
            return []
        if split != "test" or isinstance(self.test, str):
            return [texts.texts[0] for texts in islice(filled(file, [self.response]), count)]
        pairs = filled(file, [self.response, self.prompt])
        return [texts.texts[0] for texts in islice((one for one in pairs if self.is_test(one.texts[1])), count)]

    def pairs(self, file: str, reserved: Sequence[str]) -> list[Pair]:
        """Read the pairs of ``"train"`` or ``"test"``, see ``read_texts``: the first ones of the file, if they are limited."""
        name, of_file = ("test", self.test) if file == "test" and isinstance(self.test, str) else ("train", self.train)
        pairs = read_pairs(raw_folder() / of_file, self.download, self.prompt, self.response, reserved)
        pairs = pairs[: (self.limits or {}).get(name)]
        return pairs if isinstance(self.test, str) else [pair for pair in pairs if self.is_test(pair.prompt) == (file == "test")]

    def is_test(self, prompt: str) -> bool:
        """Tell whether a prompt of the training file is held out for the test."""
        return not isinstance(self.test, str) and held_out(f"test/{prompt.strip()}", self.test)

    def is_validation(self, prompt: str) -> bool:
        """Tell whether a prompt that is not held out for the test is for validation."""
        return held_out(prompt.strip(), self.validation)

    def prepare(self, seed: int, out: Path) -> tuple[Vocabulary, dict[str, Split], dict[str, str]]:
        """Read, split, train the tokenizer on the train split alone, and encode.

        An answer that does not fit the sequence is cut. What is left of a sequence is filled as ``padding`` says: by ``pad``,
        which is neither attended to nor supervised, so that metrics are about text; or by end tokens, which are both, as LLaDA's.

        Raises:
            DataError: a file is missing, a line is malformed (file and line named), a prompt or an answer does not fit.
        """
        folder = raw_folder()
        encoding = None if self.tokenizer is None else self.pretrained_encoding()
        reserved = bpe.SPECIAL if encoding is None else tuple(encoding.special.values())
        pairs, test = (self.pairs(split, reserved) for split in ("train", "test"))
        flags = [self.is_validation(pair.prompt) for pair in pairs]
        parts = {
            "train": [pair for pair, flag in zip(pairs, flags, strict=True) if not flag],
            "validation": [pair for pair, flag in zip(pairs, flags, strict=True) if flag],
            "test": test,
        }
        for name, part in parts.items():
            if not part:
                raise DataError(f"{folder / self.train}: no examples for split '{name}' ({len(pairs)} lines read)")
        if encoding is None:
            with Progress("prepare trains the tokenizer"):
                encoding = bpe.trained((text for p in parts["train"] for text in (p.prompt, p.response)), self.vocabulary)
        wording = self.wording(encoding)
        prompt_template.write(out, encoding, wording)
        splits, first = {}, 0
        for name, part in parts.items():
            splits[name] = self._encode(name, encoding, part, first, wording.marked(encoding))
            first += len(part)
        mark = encoding.size if self.causal else encoding.id("mask")
        vocabulary = Vocabulary(encoding.size, mark, encoding.id("pad"), self.sequence, "text", self.causal)
        return vocabulary, splits, {name: sha256(folder / name) for name in self.raw_files()}

    def wording(self, encoding: bpe.Encoding) -> PromptTemplate:
        """Make the template that prompts are written by, with what a chat puts around it."""
        return PromptTemplate(self.prompt, dict(encoding.special), *self._chat())

    def lengths(self, pairs: Sequence[Pair], encoding: bpe.Encoding) -> list[tuple[int, int]]:
        """Count the tokens of each prompt, and of each answer with its end."""
        wording, response = self.wording(encoding).marked(encoding), encoding.marked(self.response)
        return [
            (len(encoding.prompt(wording.filled(pair.fields))), len(encoding.encode(response.format(**pair.fields))) + 1)
            for pair in watched(pairs, "count tokens", len(pairs), "example")
        ]

    def pretrained_encoding(self) -> bpe.Encoding:
        """Read the tokenizer of the pretrained model that is named, with its special tokens.

        Raises:
            DataError: it cannot be had, or has no such tokens.
        """
        assert self.tokenizer is not None
        roles = [role for role in bpe.ROLES if role != "mask" or not self.causal]
        return bpe.pretrained(pretrained_text.tokenizer(self.tokenizer, self.revision), self.tokenizer, self.special, roles)

    def _date(self) -> date:
        try:
            return date.fromisoformat(self.chat_date)
        except ValueError:
            raise ConfigError(f"QuestionAnswers.chat_date must be a date like '2024-07-26', got {self.chat_date!r}") from None

    def _chat(self) -> tuple[str, str, bool, str] | tuple[()]:
        """What stands around a prompt, and the date of that, if it is asked in a chat.

        Raises:
            ConfigError: a chat is asked for, and there is no pretrained model whose template it could have.
        """
        if not self.chat:
            return ()
        if self.tokenizer is None:
            raise ConfigError("QuestionAnswers.chat takes the template of a pretrained model: name it as QuestionAnswers.tokenizer")
        today = self._date()
        return *prompt_template.around(pretrained_text.chat(self.tokenizer, self.revision, today)), today.isoformat()

    def _check_limits(self) -> None:
        if not isinstance(self.test, str) and not 0 < self.test < 1:
            raise ConfigError(f"QuestionAnswers.test must be a file, or a share between 0 and 1, got {self.test}")
        files = ("train", "test") if isinstance(self.test, str) else ("train",)
        for name in self.limits or {}:
            if name not in files:
                known = "files 'train' and 'test'" if len(files) > 1 else "file 'train' alone"
                raise ConfigError(f"QuestionAnswers.limits counts examples of the {known}, got {name!r}")

    def _encode(self, name: str, encoding: bpe.Encoding, pairs: list[Pair], first: int, wording: PromptTemplate) -> Split:
        room = self._with_room(name, encoding, pairs, wording)
        n, end = len(room), encoding.id("end")
        fills = self.padding == "end"
        tokens = torch.full((n, self.sequence), end if fills else encoding.id("pad"), dtype=torch.int32)
        response = torch.zeros(n, self.sequence, dtype=torch.bool)
        valid = torch.zeros(n, self.sequence, dtype=torch.bool)
        for row, (prompt, answer) in enumerate(room):
            ids = [*prompt, *answer][: self.sequence]
            last = self.sequence if fills else len(ids)
            tokens[row, : len(ids)] = torch.tensor(ids, dtype=torch.int32)
            response[row, len(prompt) : last] = True
            valid[row, :last] = True
        return Split(tokens=tokens, response=response, group=torch.arange(first, first + n), valid=None if fills else valid)

    def _with_room(
        self, name: str, encoding: bpe.Encoding, pairs: list[Pair], wording: PromptTemplate
    ) -> list[tuple[list[int], list[int]]]:
        """Ids of prompts and of answers with their ends, as far as they fit or are to be cut; tells how many do not."""
        room, long, response = [], [], encoding.marked(self.response)
        for pair in watched(pairs, f"prepare {name}", len(pairs), "example"):
            if (prompt := self._prompt(encoding, wording.filled(pair.fields), pair.origin)) is None:
                continue
            answer = [*encoding.encode(response.format(**pair.fields)), encoding.id("end")]
            if len(prompt) + len(answer) > self.sequence:
                long.append(f"{pair.origin}: prompt and answer take {len(prompt) + len(answer)} tokens")
                if self.long_answers == "drop":
                    continue
            room.append((prompt, answer))
        if long and self.long_answers == "refuse":
            raise DataError(
                f"{long[0]}, the sequence {self.sequence} ({len(long)} of {len(pairs)} in split '{name}'); "
                "raise the sequence length, shorten the line, or set long_answers = 'drop' or 'cut'"
            )
        if long:
            done = {"cut": "cut: their ends are neither learned nor asked for", "drop": "left out"}[self.long_answers]
            print(
                f"prepare: {name}: {len(long)} of {len(pairs)} answers do not fit the sequence of {self.sequence} and are {done} "
                f"(QuestionAnswers.long_answers; the first is {long[0]})"
            )
        return room

    def _prompt(self, encoding: bpe.Encoding, text: str, origin: str) -> list[int] | None:
        """Ids of the prompt; None if it leaves no room for an answer and is to be dropped."""
        prompt = encoding.prompt(text)
        if len(prompt) < self.sequence:
            return prompt
        room = f"leaves no room for an answer in a sequence of {self.sequence}"
        problem = f"{origin}: the prompt takes {len(prompt)} tokens and {room}"
        if self.long_prompts == "refuse":
            raise DataError(f"{problem}; raise the sequence length, remove the line, or set long_prompts = 'drop'")
        print(f"prepare: dropped: {problem}")
        return None


def held_out(text: str, share: float) -> bool:
    """Whether a text is among the ``share`` kept for validation: by content, not by place, so that adding some moves no other."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") < share * 2**64
