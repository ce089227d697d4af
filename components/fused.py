"""Arithmetic of a post-norm block with hand-written gradients: fewer passes over memory and less kept than autograd would, in eager mode.

Values are those of the plain formulas up to rounding. Every function works in any precision, on any device and when compiled.
Gradients are of first order only.
"""

from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

EPSILON = 1e-5


def product(x: Float[Tensor, "*rows dim"], weight: Float[Tensor, "out dim"]) -> Float[Tensor, "*rows out"]:
    """x @ weight.T. In float32 on CPU by oneDNN: on AMD's processors torch's default (MKL) has half the speed, on Intel's as much."""
    plain = x.dtype != torch.float32 or x.device.type != "cpu" or weight.dtype != x.dtype
    if plain or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling() or not torch.backends.mkldnn.is_available():
        return F.linear(x, weight)
    found: Tensor = _Product.apply(x, weight)
    return found


def _onednn(x: Tensor, weight: Tensor) -> Tensor:
    """x @ weight.T"""
    found: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return found


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _onednn(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        of_x = _onednn(gradient, weight.t()) if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return of_x, None
        g, x = gradient.flatten(0, -2), x.flatten(0, -2)
        of_weight = _onednn(x.t(), g.t()).t() if g.shape[1] > x.shape[1] else _onednn(g.t(), x.t())  # the faster layout
        return of_x, of_weight


def normed_sum(z: Float[Tensor, "*rows dim"], change: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows dim"]:
    """y = (z + change) / rms(z + change). Keeps y and the rms alone; the gradient of both is (g - y mean(g y)) / rms."""
    found: Tensor = _NormedSum.apply(z, change)
    return found


class _NormedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, change: Tensor) -> Tensor:
        total = z + change
        scale = torch.linalg.vector_norm(total, dim=-1, keepdim=True, dtype=_exact(total))
        scale = scale.square_().div_(total.shape[-1]).add_(EPSILON).rsqrt_()
        y = total.mul_(scale)
        ctx.save_for_backward(y, scale)
        ctx.dtypes = z.dtype, change.dtype
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        y, scale = ctx.saved_tensors
        along = (gradient * y).mean(-1, keepdim=True, dtype=scale.dtype)
        of_sum = torch.addcmul(gradient, y, along.to(y.dtype), value=-1).mul_(scale)
        return of_sum.to(ctx.dtypes[0]), of_sum.to(ctx.dtypes[1])


def gated(gate_up: Float[Tensor, "*rows twice"]) -> Float[Tensor, "*rows width"]:
    """silu(gate) * up. Keeps its input alone."""
    found: Tensor = _Gated.apply(gate_up)
    return found


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        gate, up = gate_up.chunk(2, -1)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        gate, up = gate_up.chunk(2, -1)
        found = torch.empty_like(gate_up)
        of_gate, of_up = found.chunk(2, -1)
        share = torch.sigmoid(gate)
        silu = gate * share
        torch.mul(gradient, silu, out=of_up)
        slope = silu.lerp_(silu.new_ones(()), share)  # silu' = share + silu - share * silu
        torch.mul(slope.mul_(up), gradient, out=of_gate)
        return found


def _exact(x: Tensor) -> torch.dtype:
    """The precision of sums over x."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def heads_of(
    qkv: Float[Tensor, "batch seq three_dim"], heads: int, turn: tuple[Tensor, Tensor] | None
) -> tuple[Float[Tensor, "batch heads seq head"], Float[Tensor, "batch heads seq head"], Float[Tensor, "batch heads seq head"]]:
    """Queries, keys, values; the first two turned by ``turn``, cosines and sines of ``components.attention.angles``."""
    if turn is None:
        q, k, v = rearrange(qkv, "b s (three h d) -> three b h s d", three=3, h=heads)
        return q, k, v
    return _Heads.apply(qkv, heads, *turn)


class _Heads(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, heads: int, cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(cos, sin)
        apart = rearrange(qkv, "b s (three h d) -> three b h s d", three=3, h=heads)
        found = torch.empty_like(apart, memory_format=torch.contiguous_format)
        _turn(apart[:2], cos, sin, found[:2])
        found[2].copy_(apart[2])
        return found.unbind(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        cos, sin = ctx.saved_tensors
        q, k, v = gradients
        batch, heads, seq, head = q.shape
        found = q.new_empty(batch, seq, 3 * heads * head)
        apart = rearrange(found, "b s (three h d) -> three b h s d", three=3, h=heads)
        _turn(q, cos, -sin, apart[0])
        _turn(k, cos, -sin, apart[1])
        apart[2].copy_(v)
        return found, None, None, None


def _turn(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor) -> None:
    """out = x with pair (i, i + head/2) turned."""
    (a, b), (out_a, out_b) = x.chunk(2, -1), out.chunk(2, -1)
    torch.mul(a, cos, out=out_a).addcmul_(b, sin, value=-1)
    torch.mul(b, cos, out=out_b).addcmul_(a, sin)


def attended(q: Tensor, k: Tensor, v: Tensor, attention: Tensor | None) -> Tensor:
    keys = None if attention is None else rearrange(attention, "b s -> b 1 1 s")
    if q.dtype == torch.bfloat16 and q.device.type == "cpu" and q.shape[2] <= 3 * q.shape[3] and not torch.compiler.is_compiling():
        scores = (q * q.shape[3] ** -0.5) @ k.transpose(-1, -2)
        if keys is not None:
            scores = scores.masked_fill(~keys, -torch.inf)
        found = scores.softmax(-1) @ v
    else:
        found = F.scaled_dot_product_attention(q, k, v, attn_mask=keys)
    return rearrange(found, "b h s d -> b s (h d)")
