"""A trunk's weights in eight or four bits, so that a large model is run where its bfloat16 does not fit. Door to bitsandbytes.

Notable: of LLM.int8() the part for outliers is left out, for it looks for them in the whole batch: a token's states would depend
on what it is batched with. What is left treats each token alone, in both kinds, so cached and live states are the same bits.
"""

import logging
from collections.abc import Iterable
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pipeline.errors import ConfigError

Bits = Literal[8, 4]
BLOCK = 64  # weights of a row that share a scale in four bits
LEAST_SHARE = 0.5  # of the weights, below which "in four bits" would mislead


def quantise(blocks: Iterable[nn.Module], bits: Bits) -> None:
    """Replace every linear layer of ``blocks`` by one in eight or four bits, on the meta device by its shape.

    Eight bits: each row of weights, and each token, scaled to int8 (Source: Dettmers et al. 2022, LLM.int8(), section 3.1, without
    3.2). Four bits: NormalFloat in blocks of 64, their scales in eight bits (Source: Dettmers et al. 2023, QLoRA, section 3).
    Embeddings, norms, biases and buffers stay as they are; so does the device.

    Raises:
        ConfigError: bitsandbytes is not installed; most weights are not in linear layers (experts that one tensor holds); or a row
            in four bits is not made of whole blocks, which bitsandbytes gets wrong on a CPU without a word.
    """
    blocks = list(blocks)
    total = sum(parameter.numel() for block in blocks for parameter in block.parameters())
    places = [(block, name, layer) for block in blocks for name, layer in block.named_modules() if isinstance(layer, nn.Linear)]
    linear = sum(layer.weight.numel() for _, _, layer in places)
    if linear < LEAST_SHARE * total:
        raise ConfigError(
            f"only {linear / total:.0%} of the trunk's weights lie in linear layers, and {bits} bits are for those; the rest "
            "(experts, as a rule) would stay as it is: leave pretrained.model.trunk_bits out"
        )
    if bits == 4 and (odd := [layer.in_features for _, _, layer in places if layer.in_features % BLOCK]):
        raise ConfigError(f"four bits take rows of whole blocks of {BLOCK} weights, the trunk has rows of {odd[0]}; use 8 bits")
    for block, name, layer in places:
        block.set_submodule(name, OnShapes(layer, bits) if layer.weight.is_meta else _packed(layer, bits))


class OnShapes(nn.Module):
    """A quantised layer without its values: as many bytes, and the operations of its product."""

    def __init__(self, layer: nn.Linear, bits: Bits) -> None:
        super().__init__()
        self.out, self.bias = layer.out_features, layer.bias
        packed = torch.empty(layer.weight.numel() * bits // 8, dtype=torch.uint8, device=layer.weight.device)
        self.weight = nn.Parameter(packed, requires_grad=False)

    def forward(self, x: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows out"]:
        return _product_of_shapes(x, self.out, self.bias)


def _packed(layer: nn.Linear, bits: Bits) -> nn.Module:
    try:
        import bitsandbytes  # brings seconds, and only these models need it
    except ImportError:
        raise ConfigError("a trunk in eight or four bits needs bitsandbytes: pip install 'slotloop[bits]'") from None
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)  # it tells of every product that it casts
    library, weight = bitsandbytes.nn, layer.weight.detach()
    sizes = (layer.in_features, layer.out_features, layer.bias is not None)
    if bits == 8:
        made = _packing(library.Linear8bitLt)(*sizes, has_fp16_weights=False, threshold=0.0, device="meta")
        made.weight = library.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    else:
        made = _packing(library.Linear4bit)(*sizes, compute_dtype=weight.dtype, quant_type="nf4", device="meta")
        made.support_avx512bf16_for_cpu = False  # it would pack again at the first call, and round the scales
        made.weight = library.Params4bit(weight, requires_grad=False, quant_type="nf4", module=made)
    made.bias = layer.bias
    return made.to(weight.device)  # which packs


def _packing(kind: type[nn.Linear]) -> Any:
    """The library's layer as we use it: copies of a model share it, and its operations can be counted on shapes."""

    class Packed(kind):  # type: ignore[misc]
        """A linear layer in few bits; never trained. What the library keeps beside its weights does not survive a copy."""

        def __deepcopy__(self, memo: dict[int, Any]) -> "Packed":
            return self

        def forward(self, x: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows out"]:
            return _product_of_shapes(x, self.out_features, self.bias) if x.is_meta else super().forward(x)

    return Packed


def _product_of_shapes(x: Float[Tensor, "*rows dim"], out: int, bias: Tensor | None) -> Float[Tensor, "*rows out"]:
    return nn.functional.linear(x, x.new_empty(out, x.shape[-1]), bias)
