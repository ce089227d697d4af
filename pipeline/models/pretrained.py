"""Pretrained models from the hub, a folder or a GGUF file, through transformers.

A model's own code never runs (unless ``remote_code`` asks for it). Weights are read as safetensors, of the layers that are needed
and of no others; anything missing is an error, where the library would fill it with noise and warn. What the backbone stage trained
is read from that stage's folder, in the library's own layout.
"""

import hashlib
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from components.backbones.layers import Parts, emptied
from components.backbones.pretrained_lm import PretrainedLM
from components.backbones.selfcheck import Refused, selfcheck
from components.ranges import NonNegativeInt
from pipeline.errors import ConfigError
from pipeline.files import json_bytes, read_json
from pipeline.models import hub, placement
from pipeline.models.discovery import discovered
from pipeline.models.families import FAMILIES, family
from pipeline.models.placement import DeviceMap
from pipeline.models.quantised import Bits, quantise
from pipeline.models.transformers import DTYPES, complete, key_value_cache, transformers
from pipeline.progress import Progress

CAUSAL, DIFFUSION = "next token", "masked diffusion"
CONFIG = "config.json"
OBJECTIVES = {  # -> transformers' kind of class
    DIFFUSION: "AutoModelForCausalLM", "masked language model": "AutoModelForMaskedLM", CAUSAL: "AutoModelForCausalLM",
}  # fmt: skip


@dataclass(frozen=True)
class Source:
    """A pretrained model: where it comes from and how it is read. Everything here decides the states, and goes into the manifest.

    Attributes:
        path: folder, ``.gguf`` file, either of them within a package (``package:inside``), or name on the hub.
        revision: commit on the hub; None for what is on this machine.
        objective: what it was trained for, or is to be trained for by the backbone stage: "masked diffusion", "masked language
            model" or "next token".
        dtype: of weights and states; what a phase trains has float32 masters (``components.nn.masters``), read in this type.
        attention: implementation that transformers is to use ("sdpa", "eager", "flash_attention_2").
        device_map: of the whole model, if it is to lie on several devices: "auto" and its kin, or module -> device; None = one.
            Tails, which are trained, lie on one.
        trunk_bits: 8 or 4, of the weights in the trunk's linear layers; None = as ``dtype``. Such layers are never trained.
        tail_layers: last layers that keep ``dtype`` beside a trunk in fewer bits; at least ``extract.run.tail_layers``.
        remote_code: run the code that comes with the checkpoint. Read it first.
        parts: where the model keeps its layers, if it cannot be discovered: values of ``components.backbones.layers.Parts``.
        shift: how many places behind its token a state of a masked-diffusion model stands, 0 or 1; None = as its family has it,
            which is 0 if it has none. A causal model that is trained into one wants 1: its states predict what follows them.
    """

    path: str
    revision: str | None = None
    objective: str = DIFFUSION
    dtype: str = "bf16"
    attention: str = "sdpa"
    device_map: DeviceMap | None = None
    remote_code: bool = False
    parts: Mapping[str, Any] | None = None
    trunk_bits: Bits | None = None
    tail_layers: int = 0
    shift: int | None = None

    def __post_init__(self) -> None:
        for name, known in (("objective", OBJECTIVES), ("dtype", DTYPES)):
            if getattr(self, name) not in known:
                raise ConfigError(f"{name} of a pretrained model must be one of {', '.join(known)}, got '{getattr(self, name)}'")
        if self.shift and self.objective != DIFFUSION:
            raise ConfigError(f"pretrained.model.shift = {self.shift} is of '{DIFFUSION}', not of '{self.objective}': leave it out")


def configuration(source: Source, folder: Path | None = None) -> tuple[Any, str | None]:
    """The model's configuration, and the name of its family if transformers does not know it; ``folder``: see ``build``."""
    library = transformers()
    described = folder / CONFIG if folder else hub.file(source.path, source.revision, CONFIG)
    raw = read_json(described, "backbone")
    name = family(raw)
    if name is None or source.remote_code:
        path = described.parent if folder or hub.local(source.path) else source.path
        config = library.AutoConfig.from_pretrained(path, revision=source.revision, trust_remote_code=source.remote_code)
        name = None
    elif source.objective == CAUSAL:
        raise ConfigError(f"{source.path} fills masks; its objective is '{DIFFUSION}', not '{CAUSAL}'")
    elif source.shift not in (None, FAMILIES[name].shift):
        raise ConfigError(
            f"the states of {source.path} stand {FAMILIES[name].shift} places behind their tokens, not {source.shift}: leave "
            "pretrained.model.shift out"
        )
    else:
        known = FAMILIES[name]
        config = library.AutoConfig.for_model(known.model_type, **known.config(raw))
    config.is_causal = source.objective == CAUSAL
    config.use_cache = False
    return config, name


def build(source: Source, first_layer: int = 0, *, load: bool = True, folder: Path | None = None) -> PretrainedLM:
    """The model from ``first_layer`` on, frozen until a phase says what it trains; the layers below are never read.

    Args:
        source: what and how.
        first_layer: 0 = whole.
        load: False leaves the weights out (on the meta device: shapes alone).
        folder: of configuration and weights that the backbone stage trained; None = those of ``source``.

    Raises:
        ConfigError: it cannot be had, or not as asked for.
        DataError: weights are missing, or are of another model.
    """
    config, name = configuration(source, folder)
    cls = _class(source, config)
    parts = _parts(source, config, cls)
    depth = int(config.get_text_config().num_hidden_layers)
    if not 0 <= first_layer <= depth:
        raise ValueError(f"the split must lie within 0..{depth} (the backbone's layers), got {first_layer}")
    packed = _packed_layers(source, depth, first_layer)

    class Tail(cls):  # type: ignore[misc]
        """The class itself, its lower layers empty before any weight is looked for."""

        def __init__(self, config: Any, *given: Any, **named: Any) -> None:
            super().__init__(config, *given, **named)
            emptied(self, parts.layers, first_layer)

    Tail.__name__ = cls.__name__
    if load:
        model = _loaded(Tail, source, config, name, parts, first_layer, folder)
    else:
        model = _on_shapes(Tail, config).to(DTYPES[source.dtype])
    if source.trunk_bits and packed:
        blocks = model.get_submodule(parts.layers)
        assert isinstance(blocks, nn.ModuleList)
        quantise(blocks[:packed], source.trunk_bits)
    text, output = config.get_text_config(), model.get_submodule(parts.output)
    assert isinstance(output, nn.Linear)
    shift = source.shift or (FAMILIES[name].shift if name else 0)
    architecture = {
        "model": "PretrainedLM", "source": asdict(replace(source, shift=shift)), "class": cls.__name__,
        "dim": text.hidden_size, "layers": depth, "vocab": output.out_features,
        "seq": getattr(text, "max_position_embeddings", None), "parts": asdict(parts),
    }  # fmt: skip
    again = partial(build, source, load=False, folder=folder)
    causal, cache = source.objective == CAUSAL, None if source.remote_code else key_value_cache(cls, config)
    model = model.eval().requires_grad_(False)
    return PretrainedLM(model, parts, architecture, shift, first_layer, again, causal=causal, cache=cache)


def model(
    vocab: int,
    seq: int,
    *,
    path: str,
    revision: str | None = None,
    objective: str = DIFFUSION,
    dtype: Literal["fp32", "bf16", "fp16"] = "bf16",
    attention: str = "sdpa",
    device_map: DeviceMap | None = None,
    remote_code: bool = False,
    parts: Mapping[str, Any] | None = None,
    trunk_bits: Bits | None = None,
    tail_layers: NonNegativeInt = 0,
    shift: Literal[0, 1] | None = None,
) -> PretrainedLM:
    """A pretrained model as ``backbone.run.model``, by the arguments of ``Source``; on the meta device its shapes alone.

    Raises:
        ConfigError: the data speaks of more token ids, or of longer sequences, than the model knows.
    """
    source = Source(path, revision, objective, dtype, attention, device_map, remote_code, parts, trunk_bits, tail_layers, shift)
    built = build(source, load=torch.get_default_device().type != "meta")
    known, longest = built.architecture["vocab"], built.architecture["seq"]
    if vocab > known:
        raise ConfigError(f"the data has {vocab} token ids, {path} knows {known}; prepare it with the model's own tokenizer")
    if longest is not None and seq > longest:
        raise ConfigError(f"sequences of {seq} tokens are longer than {path} knows ({longest})")
    return built


def check_trainable(backbone: PretrainedLM) -> None:
    """Raise ConfigError unless the backbone stage can train the model: what it leaves is whole, plain and needs nothing else."""
    source = backbone.architecture["source"]
    reasons = {"trunk_bits": "packed weights are not trained", "remote_code": "its code would not come with what is saved"}
    for name in (name for name in reasons if source[name]):
        raise ConfigError(
            f"pretrained.model.{name} is {source[name]}, and the backbone stage is to train the model: {reasons[name]}; leave it "
            "out, or take the model as it is: BACKBONE_FIT: '@loop.as_it_is'"
        )


def checked(backbone: PretrainedLM) -> dict[str, Any]:
    """Prove that a pretrained model is what it is taken for; returns what was compared.

    Raises:
        ConfigError: it failed its selfcheck.
    """
    path = backbone.architecture["source"]["path"]
    try:
        with Progress(f"selfcheck {path}"):
            return selfcheck(backbone, causal=backbone.causal)
    except Refused as error:
        raise ConfigError(f"{path} cannot be a backbone: {error}") from None


def describe_pretrained(backbone: PretrainedLM) -> dict[str, Any]:
    """Describe a pretrained model for ``model.json``, once it has proved to be what it is taken for: the files that it came as.

    Raises:
        ConfigError: it failed its selfcheck.
    """
    source, compared = Source(**backbone.architecture["source"]), checked(backbone)
    files = hub.describe_files(source.path, source.revision)
    identity = json_bytes([backbone.architecture, files])
    return {"files": files, "selfcheck": compared, "fingerprint": hashlib.sha256(identity).hexdigest()}


def load_pretrained(description: Mapping[str, Any], first_layer: int, folder: Path | None = None) -> PretrainedLM:
    """Load the described model from ``first_layer`` on; ``folder``: see ``build``.

    Raises:
        DataError: its files are no longer what they were.
    """
    source = Source(**description["architecture"]["source"])
    if folder is None:
        hub.unchanged(source.path, source.revision, description["files"])
    return build(source, first_layer, folder=folder)


def _class(source: Source, config: Any) -> Any:
    name = OBJECTIVES[source.objective]
    own = getattr(config, "auto_map", {}).get(name)
    if source.remote_code and own:
        return transformers().dynamic_module_utils.get_class_from_dynamic_module(own, source.path, revision=source.revision)
    try:
        cls = getattr(transformers(), name)._model_mapping[type(config)]
    except KeyError:
        raise ConfigError(f"transformers has no class for '{config.model_type}' under {name} ({source.path})") from None
    if source.objective == DIFFUSION and not hasattr(sys.modules[cls.__module__], "create_causal_mask"):  # which heeds is_causal
        raise ConfigError(
            f"{source.path} cannot look both ways, as '{DIFFUSION}' must: a token of transformers' {cls.__name__} sees what stands "
            f"before it and no more; take another model, or pretrained.model.objective = '{CAUSAL}'"
        )
    return cls


def _packed_layers(source: Source, depth: int, first_layer: int) -> int:
    """How many of the lowest layers are held in fewer bits: none of a tail."""
    if source.trunk_bits is None:
        return 0
    packed = depth - source.tail_layers
    if packed < 1:
        raise ConfigError(f"a tail of {source.tail_layers} layers leaves none of {depth} for a trunk in {source.trunk_bits} bits")
    if 0 < first_layer < packed:
        raise ConfigError(
            f"{source.path}: layers below {packed} are in {source.trunk_bits} bits and cannot belong to a tail, which begins at "
            f"layer {first_layer}; raise pretrained.model.tail_layers to {depth - first_layer}"
        )
    return 0 if first_layer else packed


def _parts(source: Source, config: Any, cls: Any) -> Parts:
    if source.parts is not None:
        return Parts(**{**source.parts, "readout": tuple(source.parts["readout"])})
    return discovered(_on_shapes(cls, config), config)


def _on_shapes(cls: Any, config: Any) -> Any:
    with torch.device("meta"):
        model = cls(config)
    model.tie_weights()  # which transformers does of itself where it reads weights
    return model


def _loaded(
    cls: Any, source: Source, config: Any, name: str | None, parts: Parts, first_layer: int, folder: Path | None
) -> nn.Module:
    if (device_map := None if first_layer else source.device_map) is not None:
        placement.check(device_map)
    keys = {"key_mapping": FAMILIES[name].keys} if name and FAMILIES[name].keys else {}
    folder = folder or hub.folder(source.path, source.revision, source.dtype)
    with Progress(f"load {source.path}"):
        model, loading = cls.from_pretrained(
            folder, config=config, dtype=DTYPES[source.dtype], attn_implementation=source.attention,
            device_map=device_map, use_safetensors=True, output_loading_info=True, **keys,
        )  # fmt: skip
    complete(source.path, loading, tuple(f"{parts.layers}.{number}." for number in range(first_layer)))
    if device_map is not None:
        placement.check_ends(model.get_input_embeddings(), model.get_submodule(parts.output))
    return model
