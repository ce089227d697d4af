"""Text and token ids: a byte-pair encoding trained on the train split, or a pretrained model's; the only door to ``tokenizers``.

Training is deterministic: the same texts give the same merges and the same file.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from pipeline.errors import DataError
from pipeline.files import write_atomic
from pipeline.text import control_tokens

SPECIAL = PAD, END, MASK = "<pad>", "<end>", "<mask>"
ROLES = ("mask", "end", "pad")


@dataclass(frozen=True)
class Encoding:
    """A tokenizer, and which of its tokens are special.

    Attributes:
        tokenizer: text <-> ids.
        special: token by role: "mask", "end", "pad".
    """

    tokenizer: Tokenizer
    special: Mapping[str, str]

    def id(self, role: str) -> int:
        """Return the id of the special token in this role."""
        return special(self.tokenizer, self.special[role])

    def encode(self, text: str) -> list[int]:
        """Ids of the text and of nothing else: no start or end is added, and what spells a control token is text like any other."""
        ids: list[int] = self._with_marks.encode(text, add_special_tokens=False).ids
        return ids

    def prompt(self, text: str) -> list[int]:
        """Ids of what stands before an answer: the text, behind what ``start`` holds unless it begins with that itself."""
        ids = self.encode(text)
        return ids if ids[: len(self.start)] == self.start else [*self.start, *ids]

    def marked(self, template: str) -> str:
        """Write a template so that the control tokens which it spells are encoded as such; fields are filled in afterwards."""
        return control_tokens.marked(template, self.control)

    @cached_property
    def start(self) -> list[int]:
        """Ids that the tokenizer's own post-processor puts before a text: the beginning token of Gemma and Llama; else none."""
        probe = self._with_marks.encode(self.marked(self.special["end"]))
        ids: list[int] = probe.ids[: probe.sequence_ids.index(0)]
        return ids

    @cached_property
    def control(self) -> dict[str, int]:
        """Ids of the control tokens: those that the tokenizer calls special, and those with a role here."""
        added = self.tokenizer.get_added_tokens_decoder().items()
        flagged = {token.content: number for number, token in added if token.special}
        return flagged | {token: special(self.tokenizer, token) for token in self.special.values()}

    @cached_property
    def known(self) -> Tensor:
        """Whether an id has a token: bool (size)."""
        known = torch.zeros(self.size, dtype=torch.bool)
        known[list(self.tokenizer.get_vocab(with_added_tokens=True).values())] = True
        return known

    @cached_property
    def _with_marks(self) -> Tokenizer:
        """The tokenizer that encodes: see ``control_tokens``."""
        return Tokenizer.from_str(json.dumps(control_tokens.with_marks(json.loads(self.tokenizer.to_str()), self.control)))

    @property
    def size(self) -> int:
        """Ids that there are, special ones included: one more than the largest."""
        return max(self.tokenizer.get_vocab(with_added_tokens=True).values()) + 1


def trained(texts: Iterable[str], vocabulary: int) -> Encoding:
    """Train an encoding of these texts; see ``train``."""
    return Encoding(train(texts, vocabulary), {"mask": MASK, "end": END, "pad": PAD})


def pretrained(tokenizer: Tokenizer, origin: str, tokens: Mapping[str, str] | None, roles: Sequence[str] = ROLES) -> Encoding:
    """A pretrained model's encoding, with the special tokens of these roles; ``origin`` is the model's name.

    Raises:
        DataError: the special tokens are not named, or it has no such token; or the mask is one that an answer may hold.
    """
    if tokens is None or set(tokens) != set(roles):
        raise DataError(f"a pretrained tokenizer needs special tokens for {', '.join(roles)}, got {dict(tokens or {})}")
    for role in roles:
        if tokenizer.token_to_id(tokens[role]) is None:
            raise DataError(f"{origin} has no token {tokens[role]!r} ({role}); see its tokenizer's added tokens for what it has")
    for role in (role for role in roles if role != "mask" and tokens[role] == tokens.get("mask")):
        raise DataError(f"{tokens[role]!r} of {origin} is both mask and {role}; name a token as the mask that no text holds")
    return Encoding(tokenizer, tokens)


def train(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """Byte-level BPE of at most ``vocabulary`` ids, the three special ones (pad 0, end 1, mask 2) included.

    Digits are single tokens: numbers then have one spelling, and arithmetic is over digits.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def special(tokenizer: Tokenizer, token: str) -> int:
    """Id of PAD, END or MASK.

    Raises:
        DataError: the tokenizer lacks it.
    """
    token_id = tokenizer.token_to_id(token)
    if token_id is None:
        raise DataError(f"the tokenizer has no token {token}; run dvc repro prepare")
    return token_id


def empty() -> Tokenizer:
    """Make a tokenizer that knows no token."""
    return Tokenizer(models.BPE())


def save(tokenizer: Tokenizer, path: Path) -> None:
    """Write the tokenizer as one JSON file."""
    write_atomic(path, tokenizer.to_str(pretty=True).encode())


def load(path: Path) -> Tokenizer:
    """Read a tokenizer that ``save`` wrote.

    Raises:
        DataError: the file is missing or is not a tokenizer.
    """
    try:
        return Tokenizer.from_str(path.read_text())
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; run dvc repro prepare") from None
    except Exception as error:  # the library raises nothing narrower for malformed files
        raise DataError(f"{path} is not a tokenizer ({error}); run dvc repro prepare") from None
