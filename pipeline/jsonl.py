"""Question-answer pairs from JSON lines (GSM8K's format, and your own): question = prompt, worked answer = response."""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from tokenizers import Tokenizer

from pipeline import tokenizer as bpe
from pipeline.errors import DataError
from pipeline.files import sha256
from pipeline.prepared import Split, Vocabulary

RAW_VARIABLE = "SLOTLOOP_RAW"
RAW_DEFAULT = "data/raw"


def raw_folder() -> Path:
    """Where raw corpora lie: the environment variable SLOTLOOP_RAW if set, else ``data/raw``."""
    return Path(os.environ.get(RAW_VARIABLE, RAW_DEFAULT))


@dataclass(frozen=True)
class QuestionAnswers:
    """A corpus of ``{"question": ..., "answer": ...}`` lines, one JSON object a line.

    Args:
        train: training file, relative to the raw folder (see ``raw_folder``).
        test: test file; read for the ``test`` split only, never for vocabulary or training.
        download: command that fetches the files, shown when they are missing.
        vocabulary: size of the BPE vocabulary.
        sequence: tokens in a sequence.
        validation: fraction of training examples kept for validation, chosen by a hash of the question.
        long_prompts: what to do with a question that fills the whole sequence: "refuse" stops and names the line, "drop" leaves
            the example out and says so.
    """

    train: str
    test: str
    download: str
    vocabulary: int = 4096
    sequence: int = 256
    validation: float = 0.05
    long_prompts: Literal["refuse", "drop"] = "refuse"

    def shape(self) -> tuple[int, int]:
        """Token ids at most (a small corpus yields fewer), and tokens in a sequence."""
        return self.vocabulary, self.sequence

    def prepare(self, seed: int, out: Path) -> tuple[Vocabulary, dict[str, Split], dict[str, str]]:
        """Read, split, train the tokenizer on the train split alone, and encode.

        An answer that does not fit the sequence is cut; ``pad`` fills what is left and is neither attended to nor supervised.
        (LLaDA pads answers with end tokens that are predicted too; one end token here keeps metrics about text.)

        Raises:
            DataError: a file is missing, a line is malformed (file and line named), a prompt does not fit the sequence.
        """
        folder = raw_folder()
        pairs = read_pairs(folder / self.train, self.download)
        test = read_pairs(folder / self.test, self.download)
        kept = [self._for_validation(pair.question) for pair in pairs]
        parts = {
            "train": [pair for pair, held in zip(pairs, kept, strict=True) if not held],
            "validation": [pair for pair, held in zip(pairs, kept, strict=True) if held],
            "test": test,
        }
        for name, part in parts.items():
            if not part:
                raise DataError(f"{folder / self.train}: no examples for split '{name}' ({len(pairs)} lines read)")
        tokenizer = bpe.train((text for p in parts["train"] for text in (p.question, p.answer)), self.vocabulary)
        bpe.save(tokenizer, out / "tokenizer.json")
        splits, first = {}, 0
        for name, part in parts.items():
            splits[name] = self._encode(tokenizer, part, first)
            first += len(part)
        vocabulary = Vocabulary(
            size=tokenizer.get_vocab_size(),
            mask_id=bpe.special(tokenizer, bpe.MASK),
            pad_id=bpe.special(tokenizer, bpe.PAD),
            sequence=self.sequence,
            rendering="text",
        )
        return vocabulary, splits, {name: sha256(folder / name) for name in (self.train, self.test)}

    def _for_validation(self, question: str) -> bool:
        """By content, not by position: adding examples moves none of the others."""
        digest = hashlib.sha256(question.encode()).digest()
        return int.from_bytes(digest[:8], "big") < self.validation * 2**64

    def _encode(self, tokenizer: Tokenizer, pairs: list["Pair"], first: int) -> Split:
        room = [(pair, prompt) for pair in pairs if (prompt := self._prompt(tokenizer, pair)) is not None]
        n = len(room)
        tokens = torch.full((n, self.sequence), bpe.special(tokenizer, bpe.PAD), dtype=torch.int32)
        response = torch.zeros(n, self.sequence, dtype=torch.bool)
        valid = torch.zeros(n, self.sequence, dtype=torch.bool)
        for row, (pair, prompt) in enumerate(room):
            answer = [*tokenizer.encode(pair.answer).ids, bpe.special(tokenizer, bpe.END)]
            ids = (prompt + answer)[: self.sequence]
            tokens[row, : len(ids)] = torch.tensor(ids, dtype=torch.int32)
            response[row, len(prompt) : len(ids)] = True
            valid[row, : len(ids)] = True
        return Split(tokens=tokens, response=response, group=torch.arange(first, first + n), valid=valid)

    def _prompt(self, tokenizer: Tokenizer, pair: "Pair") -> list[int] | None:
        """Ids of the prompt; None if it leaves no room for an answer and is to be dropped."""
        prompt: list[int] = tokenizer.encode(pair.question + "\n").ids
        if len(prompt) < self.sequence:
            return prompt
        room = f"leaves no room for an answer in a sequence of {self.sequence}"
        problem = f"{pair.origin}: the question takes {len(prompt)} tokens and {room}"
        if self.long_prompts == "refuse":
            raise DataError(f"{problem}; raise the sequence length, remove the line, or set long_prompts = 'drop'")
        print(f"prepare: dropped: {problem}")
        return None


@dataclass(frozen=True)
class Pair:
    """One example and where it came from (``file:line``)."""

    question: str
    answer: str
    origin: str


def read_pairs(path: Path, download: str) -> list[Pair]:
    """Read every line; nothing is skipped.

    Raises:
        DataError: the file is missing, or a line is not a JSON object with non-empty strings "question" and "answer".
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist; fetch it with: {download} (or set {RAW_VARIABLE} to the folder that holds it)")
    pairs = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                pairs.append(_parse(line, f"{path}:{number}"))
    if not pairs:
        raise DataError(f"{path} holds no examples; expected one JSON object with question and answer a line")
    return pairs


def _parse(line: str, origin: str) -> Pair:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise DataError(f"{origin}: not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise DataError(f'{origin}: expected an object with "question" and "answer", got {type(value).__name__}')
    for key in ("question", "answer"):
        if not isinstance(value.get(key), str) or not value[key].strip():
            raise DataError(f'{origin}: "{key}" must be a non-empty string, got {value.get(key)!r}')
        if reserved := [token for token in bpe.SPECIAL if token in value[key]]:
            raise DataError(f'{origin}: "{key}" holds {reserved[0]}, which is a reserved token; write it another way')
    return Pair(value["question"], value["answer"], origin)
