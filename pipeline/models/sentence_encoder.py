"""A pretrained sentence encoder, run once over every distinct sentence: the table that ``components.backbones.sentence_table``
keeps.

Sentences are encoded with others of their length, in batches that depend on texts and settings alone, for another companion changes
an embedding's last bits. Parts of the table survive a kill (``cached_results``). The class is the one that the checkpoint
names:
SONAR's encoder, loaded as the library's automatic class, is a whole translation model with random weights and a warning.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from sys import modules
from typing import Any

import torch
from torch import Tensor

from components.backbones.pooling import Pooling
from components.backbones.ridge import ridges
from components.backbones.sentence_table import SentenceTable
from components.ranges import PositiveInt
from pipeline.corpora.prepared import SENTENCES, Prepared, Split, texts
from pipeline.errors import ConfigError, DataError
from pipeline.files import sha256
from pipeline.machine.cached_results import cached_result
from pipeline.machine.distributed import barrier, rank, world
from pipeline.models import hub
from pipeline.models.sentence_pooling import agreed_pooling, name_of, stated_pooling
from pipeline.models.transformers import complete, transformers
from pipeline.progress import Progress, watched

PENALTIES = (1e2, 3e2, 1e3, 3e3, 1e4, 3e4)  # of the regression, over normalised embeddings
PART = 16  # batches of a part
ROWS = 512  # documents whose features are made at a time
ROUNDING = 1e-4  # by how much padding may change an embedding, over its length


@dataclass(frozen=True)
class Encoder:
    """Frozen sentence encoder, from texts to embeddings.

    Attributes:
        tokenizer: gives ``input_ids``.
        model: gives ``last_hidden_state``.
        pooling: from states to an embedding.
        device: of the model.
    """

    tokenizer: Any
    model: Any
    pooling: Pooling
    device: torch.device

    def ids(self, sentences: list[str], longest: int) -> list[list[int]]:
        """Token ids of each sentence; what spells a control token is text.

        Raises:
            DataError: one has more than ``longest`` tokens.
        """
        with Progress("backbone tokenises sentences"):
            by_sentence: list[list[int]] = self.tokenizer(sentences, split_special_tokens=True)["input_ids"]
        for text, ids in zip(sentences, by_sentence, strict=True):
            if len(ids) > longest:
                raise DataError(f"a sentence takes {len(ids)} tokens, more than longest = {longest}: '{text[:60]}'...; raise it")
        return by_sentence

    @torch.inference_mode()
    def embeddings(self, ids: list[list[int]]) -> Tensor:
        """Embed sentences that run together, padded on the right to the longest."""
        lengths = torch.tensor([len(one) for one in ids])
        tokens = torch.full((len(ids), int(lengths.max())), int(self.tokenizer.pad_token_id))
        for row, one in enumerate(ids):
            tokens[row, : len(one)] = torch.tensor(one)
        attention = (torch.arange(tokens.shape[1]) < lengths[:, None]).to(self.device)
        states = self.model(input_ids=tokens.to(self.device), attention_mask=attention.long()).last_hidden_state
        return self.pooling(states.float(), attention).cpu()


def model(
    vocab: int,
    seq: int,
    *,
    prepared: str,
    path: str,
    revision: str | None = None,
    pooling: Pooling | None = None,
    language: str | None = None,
    longest: PositiveInt = 256,
    batch_size: PositiveInt = 64,
    device: str = "cpu",
) -> SentenceTable:
    """A table of embeddings as ``backbone.run.model``; on the meta device its shapes alone.

    Args:
        vocab, seq: of the prepared data.
        prepared: its folder.
        path: folder, ``package:folder``, or name on the hub.
        revision: commit on the hub.
        pooling: from the states of a sentence's tokens to its embedding (``components.backbones.pooling``); None = what the
            checkpoint says, or the mean where it says nothing.
        language: of the texts, for tokenizers that want one ("eng_Latn"); None = they do not.
        longest: tokens of a sentence at most.
        batch_size: sentences that run together; part of the bits.
        device: that the encoder runs on.

    Raises:
        ConfigError: the encoder cannot be had, or its checkpoint says another pooling.
        DataError: its weights are not all there, or a sentence is too long.
    """
    config = transformers().AutoConfig.from_pretrained(hub.file(path, revision, "config.json").parent)
    table, on_shapes = SentenceTable(vocab, seq, config.hidden_size), torch.get_default_device().type == "meta"
    where = (path, revision) if on_shapes else (str(hub.folder(path, revision)), None)
    pooling = agreed_pooling(path, pooling, stated_pooling(*where))
    if on_shapes:
        return table
    sentences = texts(Path(prepared))
    if len(sentences) != vocab - 2:
        raise DataError(f"{prepared} has {vocab - 2} ids of sentences and {len(sentences)} texts; run dvc repro prepare")
    encoder = load_encoder(config, path, revision, pooling, language, torch.device(device))
    splits = [Prepared(prepared).split(name) for name in ("train", "validation")]
    train = splits[0]
    assert train.valid is not None
    table.fill(encoded(encoder, encoder.ids(sentences, longest), batch_size), train.tokens[train.valid].unique().long())
    penalty = regressed(table, *splits)
    table.origin = {
        "encoder": {
            "path": path,
            "revision": revision,
            "class": type(encoder.model).__name__,
            "language": language,
            "pooling": name_of(pooling),
        },
        "files": hub.describe_files(path, revision),
        "sentences": sha256(Path(prepared) / SENTENCES),
        "penalty": penalty,
    }
    return table


def regressed(table: SentenceTable, train: Split, validation: Split) -> float:
    """Fit the table's regression on the training split; returns its penalty, the one with the least squared error on validation."""

    def pairs(split: Split) -> tuple[Tensor, Tensor]:
        tokens, next_is_target = split.tokens.long(), split.response[:, 1:]
        parts = zip(tokens[:, :-1].split(ROWS), next_is_target.split(ROWS), strict=True)
        features = torch.cat([table.features(ids)[is_target] for ids, is_target in parts])
        return features, table.head.weight[tokens[:, 1:][next_is_target]]

    features, targets = pairs(validation)
    errors = {ridge: float((ridge(features) - targets).square().mean()) for ridge in ridges(*pairs(train), PENALTIES)}
    best = min(errors, key=lambda ridge: errors[ridge])
    table.regress(best)
    print(f"backbone: ridge regression, penalty {best.penalty:g}: squared error {errors[best]:.4f} on validation", flush=True)
    return best.penalty


def load_encoder(
    config: Any, path: str, revision: str | None, pooling: Pooling, language: str | None, device: torch.device
) -> Encoder:
    """Load the encoder with its weights, in float32.

    Raises:
        ConfigError: transformers does not know the class that the checkpoint names.
        DataError: weights are missing, or have no place.
    """
    library, name = transformers(), (getattr(config, "architectures", None) or ["none"])[0]
    automatic = library.AutoModel._model_mapping.get(type(config), None)
    cls = getattr(modules[automatic.__module__], name, None) if automatic is not None else None
    if cls is None:
        raise ConfigError(f"{path} names its class '{name}', which transformers does not have for '{config.model_type}'")
    folder = hub.folder(path, revision)
    with Progress(f"load {path}"):
        model, loading = cls.from_pretrained(
            folder, config=config, dtype=torch.float32, use_safetensors=True, output_loading_info=True
        )
    complete(path, loading)
    words = {} if language is None else {"src_lang": language}
    tokenizer = library.AutoTokenizer.from_pretrained(folder, **words)
    return Encoder(tokenizer, model.eval().to(device), pooling, device)


def encoded(encoder: Encoder, ids: list[list[int]], batch_size: int) -> Tensor:
    """Embeddings of every sentence, shortest sentences first; processes share the parts.

    Raises:
        DataError: padding changes an embedding, or one is not finite.
    """
    order = sorted(range(len(ids)), key=lambda i: (len(ids[i]), i))
    _check_padding(encoder, [ids[order[0]], ids[order[-1]]])
    parts = [order[first : first + PART * batch_size] for first in range(0, len(order), PART * batch_size)]

    def part(number: int) -> Tensor:
        return cached_result(f"sentences/{number}", partial(_embedded, encoder, [ids[i] for i in parts[number]], batch_size))[
            "embeddings"
        ]

    by_part: dict[int, Tensor] = {}
    mine = range(rank(), len(parts), world())
    with Progress("backbone", sum(len(parts[number]) for number in mine), "sentence") as bar:
        for number in mine:
            by_part[number] = part(number)
            bar.advance(len(parts[number]))
            bar.line(f"part {number + 1} of {len(parts)} | {bar.rate()}")
    barrier()  # from here on every process finds the others' parts
    by_part |= {number: part(number) for number in range(len(parts)) if number not in by_part}
    table = torch.empty(len(ids), by_part[0].shape[1])
    for number, rows in enumerate(parts):
        table[rows] = by_part[number]
    if not bool(torch.isfinite(table).all()):
        raise DataError("the encoder gave embeddings that are not finite; run it in another precision or check its weights")
    return table


def _embedded(encoder: Encoder, ids: list[list[int]], batch_size: int) -> dict[str, Tensor]:
    starts = range(0, len(ids), batch_size)
    batches = [encoder.embeddings(ids[first : first + batch_size]) for first in watched(starts, "part", len(starts), "batch")]
    return {"embeddings": torch.cat(batches)}


def _check_padding(encoder: Encoder, ids: list[list[int]]) -> None:
    """A short sentence must be embedded the same, but for rounding, when a long one pads it."""
    alone, beside = encoder.embeddings(ids[:1])[0], encoder.embeddings(ids)[0]
    if (change := float((alone - beside).norm() / alone.norm())) > ROUNDING:
        raise DataError(f"padding changes an embedding by {change:.2g} of its length: this encoder ignores its attention mask")
