"""Byte-pair encoding trained on the train split: the only door to the ``tokenizers`` library.

Deterministic: the same texts give the same merges and the same file.
"""

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from pipeline.errors import DataError
from pipeline.files import write_atomic

SPECIAL = PAD, END, MASK = "<pad>", "<end>", "<mask>"


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
    found = tokenizer.token_to_id(token)
    if found is None:
        raise DataError(f"the tokenizer has no token {token}; run dvc repro prepare")
    return found


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
