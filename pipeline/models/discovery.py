"""Where a model of transformers keeps its layers, its final norm and its output layer: found, not listed, with few exceptions."""

from typing import Any

from torch import nn

from components.backbones.layers import Parts
from pipeline.errors import ConfigError

NORMS = ("norm", "final_norm", "ln_f", "final_layer_norm", "final_layernorm", "layer_norm")
READOUTS = {  # model_type -> modules between the last block and the logits, where they are more than a norm
    "bert": ("cls",), "roberta": ("lm_head",), "xlm-roberta": ("lm_head",), "mpnet": ("lm_head",),
    "modernbert": (".final_norm", "head"),
    "electra": ("generator_predictions",),
}  # fmt: skip
SCALES = {"granite": "logits_scaling"}  # model_type -> name of what logits are divided by
TUPLES = ("mpnet",)  # model_types whose blocks return tuples; where that is wrong, the selfcheck fails
CARRYING = {  # what else than states one layer hands to the next
    "t5": "a position bias that layer 0 makes", "gemma3n": "keys and values of other layers",
    "gemma4": "keys and values of other layers",
}  # fmt: skip


def discovered(model: Any, config: Any) -> Parts:
    """The parts of ``model`` (on any device, the meta device too).

    Raises:
        ConfigError: they cannot be told, or a layer needs more than the last one's states.
    """
    text = config.get_text_config()
    kind = text.model_type
    if carried := next((what for name, what in CARRYING.items() if kind.startswith(name)), None):
        raise ConfigError(f"'{kind}' cannot be cut between layers: besides states they share {carried}")
    layers = _layers(model, int(text.num_hidden_layers))
    output = next((name for name, module in model.named_modules() if module is model.get_output_embeddings()), "")
    parent = layers.rpartition(".")[0]
    if getattr(text, "final_logit_softcapping", None):
        raise ConfigError(f"'{kind}' caps its logits ({text.final_logit_softcapping}), which the chunked cross-entropy cannot")
    if kind in READOUTS:
        readout = tuple(f"{parent}{name}" if name.startswith(".") else name for name in READOUTS[kind])
    else:
        holder = model.get_submodule(parent)
        norm = next((name for name in NORMS if isinstance(getattr(holder, name, None), nn.Module)), None)
        readout = () if norm is None else (f"{parent}.{norm}" if parent else norm,)
    scale = 1 / float(getattr(text, SCALES[kind])) if kind in SCALES else 1.0
    return Parts(layers, readout, output, kind in TUPLES, scale)


def _layers(model: nn.Module, depth: int) -> str:
    """The outermost list of as many modules as the model has layers; of several, the one with the most weights."""
    lists = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module) == depth}
    outermost = {
        name: module for name, module in lists.items() if not any(name.startswith(f"{other}.") for other in lists if other != name)
    }  # fmt: skip
    if not outermost:
        raise ConfigError(f"{type(model).__name__} has no list of {depth} layers; name it (parts: layers, readout, output)")
    return max(outermost, key=lambda name: sum(p.numel() for p in outermost[name].parameters()))
