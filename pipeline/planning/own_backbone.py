"""A pretrained model under data of one's own: what of it a preset has to say, read without its weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

import torch

from pipeline.errors import ConfigError, DataError, UserError
from pipeline.files import read_json
from pipeline.models import hub, pretrained
from pipeline.models.families import FAMILIES, family
from pipeline.text import pretrained_text, prompt_template

MASKED = "ForMaskedLM"
DATE = date(2024, 7, 26)


@dataclass(frozen=True)
class OwnBackbone:
    """A pretrained backbone as a preset names it.

    Attributes:
        path: folder, GGUF file, either of them within a package, or name on the hub.
        objective: that it was trained for, see ``pretrained.Source``.
        special: its tokens for "mask" (unless it is causal), "end" and "pad".
        chat: a prompt can be asked in its own chat template.
        heads: of its attention, which divide its width.
        blocks: pattern of its layers within the refined model, for what joint trains.
        layers: that it has.
        longest: tokens that it knows positions for; None = it does not say.
        sizes: layers, width and token ids, in words.
    """

    path: str
    objective: str
    special: Mapping[str, str]
    chat: bool
    heads: int
    blocks: str
    layers: int
    longest: int | None
    sizes: str

    @property
    def causal(self) -> bool:
        """Whether it predicts a token from those before it."""
        return self.objective == pretrained.CAUSAL


def own_backbone(path: str) -> OwnBackbone:
    """Look at a pretrained model: its configuration, tokenizer and shapes.

    Raises:
        ConfigError: it is of a kind that no shipped preset is for, or cannot be a backbone.
        DataError: its files cannot be had.
    """
    described = read_json(hub.file(path, None, pretrained.CONFIG), "backbone")
    name = family(described)
    if name is None and any(str(one).endswith(MASKED) for one in described.get("architectures") or ()):
        raise ConfigError(
            f"{path} is a masked language model, for which no preset is shipped; write one by hand: objective = 'masked language "
            "model' (docs/backbones.md)"
        )
    source = pretrained.Source(path, objective=pretrained.DIFFUSION if name else pretrained.CAUSAL)
    config, _ = pretrained.configuration(source)
    try:
        with torch.device("meta"):
            architecture = pretrained.build(source, load=False).architecture
    except (ValueError, TypeError, RuntimeError) as error:
        raise ConfigError(f"{path} cannot be a backbone: {str(error).splitlines()[0]}") from None
    sizes = f"{architecture['layers']} layers, width {architecture['dim']:,}, {architecture['vocab']:,} ids"
    return OwnBackbone(
        path=path, objective=source.objective, chat=_has_chat(path), sizes=sizes,
        layers=architecture["layers"], longest=architecture["seq"],
        special=_special(path, described, described.get("mask_token_id", FAMILIES[name].mask_id) if name else None),
        heads=config.get_text_config().num_attention_heads, blocks=f"backbone.model.{architecture['parts']['layers']}.*",
    )  # fmt: skip


def _special(path: str, described: Mapping[str, Any], mask_id: int | None) -> dict[str, str]:
    """The tokens that end and pad a text, as the tokenizer's settings or the configuration name them; as the mask its family's."""
    tokenizer, settings = pretrained_text.tokenizer(path, None), _settings(path)
    end = _token(settings.get("eos_token")) or _by_id(tokenizer, described.get("eos_token_id"))
    if end is None:
        raise DataError(f"{path} does not say which token ends a text (eos_token); write the preset by hand: docs/backbones.md")
    special = {"end": end, "pad": _token(settings.get("pad_token")) or end}
    if mask_id is None:
        return special
    if (mask := _by_id(tokenizer, mask_id)) is None:
        raise DataError(f"the tokenizer of {path} has no token {mask_id}, which is the mask of its kind of model")
    return {"mask": mask, **special}


def _settings(path: str) -> Mapping[str, Any]:
    try:
        settings = read_json(hub.file(path, None, pretrained_text.SETTINGS), "prepare")
    except DataError:  # not every tokenizer comes with settings
        return {}
    return settings if isinstance(settings, Mapping) else {}


def _token(value: Any) -> str | None:
    """A token of a tokenizer's settings, which is a text or an object that holds it."""
    content = value.get("content") if isinstance(value, Mapping) else value
    return content if isinstance(content, str) and content else None


def _by_id(tokenizer: Any, number: Any) -> str | None:
    number = number[0] if isinstance(number, list) and number else number
    token: str | None = tokenizer.id_to_token(number) if isinstance(number, int) else None
    return token


def _has_chat(path: str) -> bool:
    """Whether prompts can be asked as the model's own chat template writes them."""
    try:
        prompt_template.around(pretrained_text.chat(path, None, DATE))
    except UserError:
        return False
    return True
