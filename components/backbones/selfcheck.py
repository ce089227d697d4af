"""Selfcheck: is a pretrained model what its split takes it for? Run when it is loaded and kept in the backbone's description.

A model that fails is refused: a backbone that silently computes something else would spoil every number after it.
"""

from typing import Any

import torch
from torch import Tensor, nn

from components.backbones.pretrained_lm import PretrainedLM
from components.batch import Batch

LENGTH, PADDING = 12, 4
ROUNDING = 1e-5


class Refused(ValueError):
    """The model does not do what a backbone must; the message says what."""


@torch.no_grad()
def selfcheck(backbone: PretrainedLM, *, causal: bool, pad_id: int = 0, seed: int = 0) -> dict[str, Any]:
    """Compare the cut model with the whole one, on random tokens.

    Args:
        backbone: whole.
        causal: whether a token may see only what stands before it.
        pad_id: id of padding.
        seed: of the tokens.

    Returns:
        What was found: the largest differences, by name.

    Raises:
        Refused: a weight or buffer is not finite, a cut changes states, the readout is not the model's, padding has influence, or
            the model looks ahead though it must not, or does not though it must.
    """
    for name, tensor in [*backbone.model.named_parameters(), *backbone.model.named_buffers()]:
        if tensor.is_meta or not bool(torch.isfinite(tensor.float()).all()):
            raise Refused(
                f"'{name}' was not loaded: it holds values that are no numbers"
                if not tensor.is_meta
                else f"'{name}' was not loaded"
            )
    generator = torch.Generator().manual_seed(seed)
    device = backbone.head.weight.device
    tokens = torch.randint(backbone.architecture["vocab"], (3, LENGTH), generator=generator).to(device)
    attention = torch.ones_like(tokens, dtype=torch.bool)
    attention[1, -PADDING:] = False
    tokens[1, -PADDING:] = pad_id
    whole = backbone.model(input_ids=tokens, attention_mask=attention.long()).logits.float()
    differences: dict[str, Any] = {"readout": _readout(backbone, tokens, attention, whole)}
    differences |= _cuts(backbone, tokens, attention)
    differences["padding"] = _padding(backbone, tokens, attention, whole)
    _sight(backbone, tokens, attention, whole, causal)
    return {**differences, "causal": causal}


def _batch(tokens: Tensor, attention: Tensor, hidden: Tensor | None = None) -> Batch:
    nothing = torch.zeros_like(attention)
    return Batch(tokens, tokens, nothing, nothing.float(), attention, hidden)


def _readout(backbone: PretrainedLM, tokens: Tensor, attention: Tensor, whole: Tensor) -> float:
    states, _ = backbone.layers.run({"input_ids": tokens, "attention_mask": attention.long()})
    logits = nn.functional.linear(backbone.normed(states), backbone.head.weight, backbone.head.bias).float()
    tolerance = 0.0 if backbone.layers.parts.scale == 1 else ROUNDING  # states are scaled here, logits there
    return _same(logits, whole, attention, "the readout (final norm and output layer) does not give the model's logits", tolerance)


def _cuts(backbone: PretrainedLM, tokens: Tensor, attention: Tensor) -> dict[str, float]:
    inputs = {"input_ids": tokens, "attention_mask": attention.long()}
    layers = len(backbone.layers.blocks)
    last, _ = backbone.layers.run(inputs)
    worst = 0.0
    for split in sorted({1, layers // 2, layers - 1, layers} - {0}):
        trunk = backbone.trunk(tokens, attention, split)
        dummy = {**inputs, "input_ids": torch.zeros_like(tokens)}  # of the tokens nothing but their places may matter above
        states, _ = backbone.layers.run(dummy, split, None, trunk)
        worst = max(worst, _same(states, last, attention, f"cut at layer {split}, it gives other states than whole", tolerance=0.0))
    return {"split": worst}


def _padding(backbone: PretrainedLM, tokens: Tensor, attention: Tensor, whole: Tensor) -> float:
    other = torch.where(attention, tokens, (tokens + 1) % backbone.architecture["vocab"])
    logits = backbone.model(input_ids=other, attention_mask=attention.long()).logits.float()
    return _same(logits, whole, attention, "what stands in the padding has influence", tolerance=ROUNDING)


def _sight(backbone: PretrainedLM, tokens: Tensor, attention: Tensor, whole: Tensor, causal: bool) -> None:
    other = tokens.clone()
    other[0, -1] = (other[0, -1] + 1) % backbone.architecture["vocab"]
    logits = backbone.model(input_ids=other, attention_mask=attention.long()).logits.float()
    change = (logits - whole)[0, :-1].abs().max() / whole.abs().max()
    looks_ahead = change.item() > ROUNDING  # experts are given their tokens together, and round by their number
    if looks_ahead == causal:
        reason = "it looks ahead, though it is to be causal" if causal else "it is causal: the first token does not see the last"
        raise Refused(reason)


def _same(actual: Tensor, expected: Tensor, attention: Tensor, complaint: str, tolerance: float) -> float:
    """Largest difference at tokens, over the size of what is expected; at most ``tolerance``, or rounding below fp32."""
    difference = (actual - expected)[attention].abs().max().item() / expected[attention].abs().max().item()
    if actual.dtype is not torch.float32:
        tolerance = max(tolerance, 1e-2)
    if not difference <= tolerance:
        raise Refused(f"{complaint} (by {difference:.2g} of their size)")
    return difference
