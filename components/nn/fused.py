"""What a post-norm block is made of, with gradients by hand where that pays: in eager mode on CPU. Elsewhere, and when compiled,
the plain formulas run. Values and gradients are theirs up to rounding; gradients are of first order only.

A pass over memory out of cache costs as much as a fair part of a product: there are few, and little is kept for the backward pass.
"""

from collections.abc import Mapping
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from components.nn.attention import turned

EPSILON = 1e-5
Turn = tuple[Tensor, Tensor]  # cosines and sines of ``components.nn.attention.angles``


def mkl_is_faster() -> bool:
    """Tell whether MKL's products in float32 are at least as fast as oneDNN's: its best kernels are for Intel's processors alone,
    elsewhere oneDNN takes between half and nine tenths of its time.

    The maker decides and not a measurement, whose winner could change from run to run, and with it the bits of a result.
    """
    capabilities: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # which an older torch does not tell
    return "Intel" in str(capabilities.get("cpu_name")) or not torch.backends.mkldnn.is_available()


BY_ONEDNN = not mkl_is_faster()


class Linear(nn.Linear):
    """x @ weight.T; in float32 on CPU by what is faster on the machine, oneDNN or torch's default (``mkl_is_faster``)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def forward(self, x: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows out"]:
        if by_onednn(x, self.weight):
            product: Tensor = _Product.apply(x, self.weight)
            return product
        return F.linear(x, self.weight)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return onednn(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Two products: with the weight, and with x."""
        x, weight = ctx.saved_tensors
        of_x = onednn(gradient, weight.t()) if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return of_x, None
        g, x = gradient.flatten(0, -2), x.flatten(0, -2)
        wide = g.shape[1] > x.shape[1]  # the longer side goes last, that is faster
        return of_x, onednn(x.t(), g.t()).t() if wide else onednn(g.t(), x.t())


def onednn(x: Tensor, weight: Tensor) -> Tensor:
    """x @ weight.T, where ``by_onednn`` says that it can be had."""
    if torch.compiler.is_compiling():
        return _opaque(x, weight)
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return product


@torch.library.custom_op("slotloop::product", mutates_args=())
def _opaque(x: Tensor, weight: Tensor) -> Tensor:
    """The same for torch's compiler, which cannot compile oneDNN's operation itself."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return product


@_opaque.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], len(weight))


def by_onednn(x: Tensor, weight: Tensor) -> bool:
    """Whether a product of these is oneDNN's: on CPU, in float32, where MKL is not the faster."""
    if x.device.type != "cpu" or not (x.dtype == weight.dtype == torch.float32 and x.numel()) or torch.is_autocast_enabled("cpu"):
        return False
    return BY_ONEDNN and bool(torch.backends.mkldnn.enabled)


def normed_sum(z: Float[Tensor, "*rows dim"], change: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows dim"]:
    """y = (z + change) / rms(z + change). Keeps y and 1 / rms; the gradient of both is (g - y mean(g y)) / rms."""
    if not _by_hand(z):
        return F.rms_norm(z + change, (z.shape[-1],), eps=EPSILON)
    normed: Tensor = _NormedSum.apply(z, change)
    return normed


class _NormedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, change: Tensor) -> Tensor:
        total = z + change
        exact = torch.promote_types(total.dtype, torch.float32)
        norm = torch.linalg.vector_norm(total, dim=-1, keepdim=True, dtype=exact)
        scale = norm.square_().div_(total.shape[-1]).add_(EPSILON).rsqrt_()
        y = total.mul_(scale)
        ctx.save_for_backward(y, scale)
        ctx.dtypes = z.dtype, change.dtype
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """The same for both: (g - y mean(g y)) / rms."""
        y, scale = ctx.saved_tensors
        along = (gradient * y).mean(-1, keepdim=True, dtype=scale.dtype).to(y.dtype)
        input_gradient = torch.addcmul(gradient, y, along, value=-1).mul_(scale)
        return input_gradient.to(ctx.dtypes[0]), input_gradient.to(ctx.dtypes[1])


def gated(gate_up: Float[Tensor, "*rows twice"]) -> Float[Tensor, "*rows width"]:
    """Compute silu(gate) * up, keeping its input alone for the gradient."""
    if not _by_hand(gate_up):
        gate, up = gate_up.chunk(2, -1)
        return F.silu(gate) * up
    activated: Tensor = _Gated.apply(gate_up)
    return activated


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        gate, up = gate_up.chunk(2, -1)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """g up silu'(gate) and g silu(gate)."""
        (gate_up,) = ctx.saved_tensors
        input_gradient = torch.empty_like(gate_up)
        (gate, up), (of_gate, of_up) = gate_up.chunk(2, -1), input_gradient.chunk(2, -1)
        torch.sigmoid(gate, out=of_gate)  # no further memory: both halves serve until they hold what they are for
        silu = torch.mul(gate, of_gate, out=of_up)
        torch.lerp(silu, silu.new_ones(()), of_gate, out=of_gate)  # silu' = sigmoid + silu - sigmoid * silu
        of_gate.mul_(up).mul_(gradient)
        of_up.mul_(gradient)
        return input_gradient


def heads_of(
    qkv: Float[Tensor, "batch seq three_dim"], heads: int, turn: Turn | None
) -> tuple[Float[Tensor, "batch heads seq head"], Float[Tensor, "batch heads seq head"], Float[Tensor, "batch heads seq head"]]:
    """Queries, keys and values of each head, queries and keys turned."""
    q, k, v = rearrange(qkv, "b s (three h d) -> three b h s d", three=3, h=heads).unbind(0)
    if turn is None:
        return q, k, v
    cos, sin = (table.to(qkv.dtype) for table in turn)
    if not _by_hand(qkv):
        return turned(q, cos, sin), turned(k, cos, sin), v
    q, k, v = _Heads.apply(qkv, heads, cos, sin)
    return q, k, v


class _Heads(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, heads: int, cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(cos, sin)
        apart = rearrange(qkv, "b s (three h d) -> three b h s d", three=3, h=heads)
        turned = torch.empty_like(apart, memory_format=torch.contiguous_format)
        _turn(apart[:2], cos, sin, turned[:2])
        turned[2].copy_(apart[2])
        return turned.unbind(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        """Side by side again, turned back."""
        cos, sin = ctx.saved_tensors
        q, k, v = gradients
        batch, heads, seq, head = q.shape
        qkv_gradient = q.new_empty(batch, seq, 3 * heads * head)
        apart = rearrange(qkv_gradient, "b s (three h d) -> three b h s d", three=3, h=heads)
        for gradient, out in zip((q, k), apart, strict=False):
            _turn(gradient, cos, -sin, out)
        apart[2].copy_(v)
        return qkv_gradient, None, None, None


def _turn(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor) -> None:
    """``components.nn.attention.turned`` into ``out``."""
    (a, b), (out_a, out_b) = x.chunk(2, -1), out.chunk(2, -1)
    torch.mul(a, cos, out=out_a).addcmul_(b, sin, value=-1)
    torch.mul(b, cos, out=out_b).addcmul_(a, sin)


def attended(
    q: Float[Tensor, "batch heads seq head"],
    k: Float[Tensor, "batch heads keys head"],
    v: Float[Tensor, "batch heads keys head"],
    visible: Bool[Tensor, "_ 1 _ keys"] | None,
) -> Float[Tensor, "batch seq dim"]:
    """softmax(q k^T / sqrt(head)) v, heads side by side; ``visible`` as ``Layout.visible`` gives it.

    In bfloat16 on CPU written out, as long as the probabilities are fewer than the queries, keys and values: torch's fused kernel
    takes three times as long forward, five times with its gradient.
    """
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and k.shape[2] <= 3 * k.shape[3]:
        scores = (q * q.shape[3] ** -0.5) @ k.transpose(-1, -2)
        if visible is not None:
            scores = scores.masked_fill(~visible, torch.finfo(scores.dtype).min)
        mixed = scores.softmax(-1) @ v
    else:
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=visible)
    return rearrange(mixed, "b h s d -> b s (h d)")


def _by_hand(x: Tensor) -> bool:
    return x.device.type == "cpu" and not torch.compiler.is_compiling()
