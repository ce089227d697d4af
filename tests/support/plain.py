"""The parts of every model once more, in plain torch and from the bare weights: what the tests compare with."""

import math

import torch
from torch.nn import functional as F


def below(weights, prefix):
    """The weights whose names begin with ``prefix``, without it."""
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def bare(module):
    """All its weights and buffers by name, without gradient."""
    return {name: value.detach() for name, value in module.state_dict().items()}


def rms_norm(x, weight=1.0, eps=1e-6):
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def layer_norm(x, weight, eps=1e-5):
    return rms_norm(x - x.mean(-1, keepdim=True), weight, eps)


def gelu(x):
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def turned(x, places, base=1000.0):
    """Pairs of channels as complex numbers, turned by their places; x is batch, seq, heads, channels."""
    half = x.shape[-1] // 2
    frequency = base ** -(torch.arange(half) / half)
    angle = (places[..., None] * frequency)[:, :, None].to(x.dtype)
    z = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([z.real, z.imag], -1)


def attention(x, qkv, heads, mask=None, places=None, rotary=False):
    """Softmax over explicit scores, up to the concatenated heads."""
    q, k, v = (F.linear(x, part).unflatten(-1, (heads, -1)) for part in qkv.chunk(3))
    if rotary:
        places = torch.arange(x.shape[1]).expand(x.shape[:2]) if places is None else places
        q, k = turned(q, places), turned(k, places)
    scores = torch.einsum("bqhc,bkhc->bhqk", q, k) / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None, :], -torch.inf)
    return torch.einsum("bhqk,bkhc->bqhc", scores.softmax(-1), v).flatten(2)


def injection(w, x, embedding):
    """What a step sees besides its state; ``w`` from ``injection.`` on."""
    of_embedding = rms_norm(embedding, eps=torch.finfo(embedding.dtype).eps)
    return F.linear(layer_norm(x, w["x_norm.weight"]), w["project_x.weight"]) + F.linear(
        of_embedding, w["project_embedding.weight"]
    )
