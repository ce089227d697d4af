"""RecursiveCore beside the Tiny Recursive Model's own code: `python -m bench.cores [--reference PATH] [--quick] [--json PATH]`.

One supervised step of the published Sudoku configuration (81 tokens after 16 positions of a puzzle, 2 blocks, 3 cycles of 6 + 1
updates, the last of them with gradient): embedding, recursion, head, cross-entropy, backward; no optimizer. PATH is a checkout of
SamsungSAILMontreal/TinyRecursiveModels, whose model is loaded as it is, packages that are not installed replaced by stubs (printed).
Both sides get the same weights and tokens and the same rotary base, and ``difference_vs_output`` says how far apart their logits
are, over the rms of the logits: that proves equal arithmetic. Rounds are interleaved; ratios are of each side's fastest round
(processor time on CPU, by one thread unless told). Memory is the allocator's exact peak beyond what was there before, gradients
aside. ``floor`` is the bare products of the step, each by the fastest way found here (torch's default, or oneDNN's).

Without a reference: our ways to keep memory against each other and the floor.
"""

import importlib
import json as js
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import fire
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.deep_supervision import device, seconds, shown
from components.core import Inputs, Layout
from components.recursive_core import RecursiveCore
from pipeline import allocation
from pipeline.reporting import markdown

TOKENS, PREFIX, VOCAB, PUZZLES = 81, 16, 11, 2
BLOCKS, H_CYCLES, L_CYCLES, HEAD = 2, 3, 6, 64
BASE = 1000.0  # of rotary positions, ours; the reference takes any
EXPANSION = 4.0
CONFIGS = ((512, "float32"), (128, "float32"), (512, "bfloat16"))
Row = dict[str, str | float | None]


class Ours(nn.Module):
    """RecursiveCore between the reference's embedding and its head."""

    def __init__(self, hidden: int, precision: str, keep: str) -> None:
        super().__init__()
        width = -(-round(EXPANSION * hidden * 2 / 3) // 256) * 256  # as the reference rounds
        self.core = RecursiveCore(
            hidden, heads=hidden // HEAD, steps=1, blocks=BLOCKS, expansion=1.5 * width / hidden, h_cycles=H_CYCLES,
            l_cycles=L_CYCLES, gradient_cycles=1, standalone=True, rotary=True,
        )  # fmt: skip
        self.core.init_weights(1.0, torch.Generator().manual_seed(0))
        self.embedding = nn.Embedding(VOCAB, hidden)
        self.head = nn.Linear(hidden, VOCAB, bias=False)
        self.precision: torch.dtype = getattr(torch, precision)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of every token."""
        low = self.precision != torch.float32
        with torch.autocast(tokens.device.type, torch.bfloat16, enabled=low):
            embedded = F.pad(self.embedding(tokens).to(self.precision), (0, 0, PREFIX, 0)) * self.core.dim**0.5
            condition = self.core.condition(Inputs(embedded, embedded), Layout())
            carry = {k: v.to(self.precision) for k, v in self.core.initial_carry(embedded, condition).items()}
            return self.head(self.core(carry, condition, Layout()).hidden)[:, PREFIX:]
