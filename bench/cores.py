"""RecursiveCore beside the Tiny Recursive Model's own code:
`python -m bench.cores [--reference PATH] [--compiled] [--quick] [--json PATH]`.

One supervised step of the published Sudoku configuration (81 tokens after 16 positions of a puzzle, 2 blocks, 3 cycles of 6 + 1
updates, the last cycle with gradient): embedding, recursion, head, cross-entropy, backward; no optimizer, which is the same for
both. PATH is a checkout of SamsungSAILMontreal/TinyRecursiveModels; its model runs as it is, and a package that it imports and we
lack is replaced by a stub (printed). Both sides get the same weights, tokens and rotary base. ``difference_over_output`` says how
far apart their logits are at most, over the logits' rms, and ``gradients_apart`` the norm of the difference of all gradients over
their norm: the proof of equal arithmetic. In bfloat16 both hold weights in float32 and states in bfloat16.

Rounds are interleaved; time is each side's fastest, processor time on CPU. Memory is the allocator's exact peak over what was there
before, with gradients; ``activations`` without. ``floor`` is the step's bare products, each by the fastest way known here (torch's
or oneDNN's), with nothing between. Without a reference: our ways to keep memory beside each other. ``compiled`` is the core with
its blocks compiled, as ``execution.compiled`` does it: the plain formulas that ``components.nn.fused`` writes out by hand for eager
mode. Over 42 updates random weights of width 512 make of its rounding .2, as of eager float32's beside float64: its outputs need
not agree.
"""

import importlib
import importlib.util
import json as js
import sys
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import fire
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.deep_supervision import MB, Row, device, peak, seconds, shown
from components.nn.fused import Linear
from components.refiners.core import Inputs, Layout
from components.refiners.recursive_core import RecursiveCore
from pipeline.reporting.markdown import markdown
from pipeline.training import execution

TOKENS, PREFIX, VOCAB = 81, 16, 11
BLOCKS, H_CYCLES, L_CYCLES, HEAD, EXPANSION = 2, 3, 6, 64, 4.0
BASE = 1000.0  # of rotary positions: ours; published: 10000, which changes no cost
CONFIGS = ((512, "float32"), (128, "float32"), (512, "bfloat16"))
KEEP = {"keep": "graph", "checkpoint": "states"}
COMPILED = "compiled"
AGREES = 1e-4  # in float32

Sides = dict[str, nn.Module]
OF_BLOCKS = {  # ours -> the reference's
    "attention.qkv": "self_attn.qkv_proj",
    "out": "self_attn.o_proj",
    "gate_up": "mlp.gate_up_proj",
    "down": "mlp.down_proj",
}
TRAINED = {"embedding.weight": "embed_tokens.embedding_weight", "head.weight": "lm_head.weight"} | {
    f"core.level.blocks.{block}.{name}.weight": f"L_level.layers.{block}.{their}.weight"
    for block in range(BLOCKS)
    for name, their in OF_BLOCKS.items()
}


class Ours(nn.Module):
    """RecursiveCore between an embedding and a head."""

    def __init__(self, hidden: int, precision: str, keep: Any) -> None:
        super().__init__()
        width = -(-round(EXPANSION * hidden * 2 / 3) // 256) * 256  # a multiple of 256, as in the reference
        self.core = RecursiveCore(
            hidden, heads=hidden // HEAD, steps=1, blocks=BLOCKS, expansion=1.5 * width / hidden, h_cycles=H_CYCLES,
            l_cycles=L_CYCLES, gradient_cycles=1, standalone=True, rotary=True, keep=keep,
        )  # fmt: skip
        self.core.init_weights(1.0, torch.Generator().manual_seed(0))
        self.embedding = nn.Embedding(VOCAB, hidden)
        self.head = nn.Linear(hidden, VOCAB, bias=False)
        self.precision: torch.dtype = getattr(torch, precision)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of every token."""
        with torch.autocast(tokens.device.type, torch.bfloat16, enabled=self.precision == torch.bfloat16):
            embedded = F.pad(self.embedding(tokens).to(self.precision), (0, 0, PREFIX, 0)) * self.core.dim**0.5
            condition = self.core.condition(Inputs(embedded, embedded), Layout())
            carry = {name: z.to(self.precision) for name, z in self.core.initial_carry(embedded, condition).items()}
            return self.head(self.core(carry, condition, Layout()).hidden)[:, PREFIX:]


class Theirs(nn.Module):
    """The reference's model, one step from its initial states."""

    def __init__(self, code: types.ModuleType, hidden: int, precision: str, batch: int) -> None:
        super().__init__()
        settings = code.TinyRecursiveReasoningModel_ACTV1Config(
            batch_size=batch, seq_len=TOKENS, puzzle_emb_ndim=hidden, puzzle_emb_len=PREFIX, num_puzzle_identifiers=1,
            vocab_size=VOCAB, H_cycles=H_CYCLES, L_cycles=L_CYCLES, H_layers=0, L_layers=BLOCKS, hidden_size=hidden,
            expansion=EXPANSION, num_heads=hidden // HEAD, pos_encodings="rope", rope_theta=BASE, halt_max_steps=16,
            halt_exploration_prob=0.1, forward_dtype=precision,
        )  # fmt: skip
        self.inner = code.TinyRecursiveReasoningModel_ACTV1_Inner(settings)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of every token."""
        with torch.device(tokens.device):
            anew = torch.ones(len(tokens), dtype=torch.bool)
            carry = self.inner.reset_carry(anew, self.inner.empty_carry(len(tokens)))
            return self.inner(carry, {"inputs": tokens, "puzzle_identifiers": torch.zeros_like(tokens[:, 0])})[1]

    def weights(self) -> dict[str, Tensor]:
        """Everything that ours has, by our names."""
        theirs = self.inner.state_dict()
        initial = {"core.initial_H": theirs["H_init"], "core.initial_L": theirs["L_init"], "core.hidden_rms": torch.ones(())}
        return {name: theirs[their] for name, their in TRAINED.items()} | initial


class _Settings:
    """Stands for pydantic's BaseModel."""

    def __init__(self, **settings: object) -> None:
        vars(self).update(settings)


def loaded(path: str) -> types.ModuleType:
    """The reference's model code."""
    if importlib.util.find_spec("pydantic") is None:
        sys.modules["pydantic"] = types.ModuleType("pydantic")
        vars(sys.modules["pydantic"])["BaseModel"] = _Settings
        print("stubbed: pydantic.BaseModel")
    sys.path.insert(0, path)
    try:
        return importlib.import_module("models.recursive_reasoning.trm")
    finally:
        sys.path.remove(path)


def sides_of(code: types.ModuleType | None, hidden: int, precision: str, batch: int, compiled: bool = False) -> Sides:
    """What is compared, the first with all others; all have the same weights."""
    torch.manual_seed(0)
    with torch.device(device()):
        theirs = None if code is None else Theirs(code, hidden, precision, batch)
    modes = {**KEEP, COMPILED: "graph"} if compiled else KEEP
    sides: Sides = {mode: Ours(hidden, precision, keep).to(device()) for mode, keep in modes.items()}
    if compiled:
        execution.compiled(sides[COMPILED].core)
    weights = theirs.weights() if theirs is not None else sides["keep"].state_dict()
    for model in sides.values():
        model.load_state_dict(weights)
    return sides if theirs is None else {"reference": theirs, **sides}


def step(model: nn.Module, tokens: Tensor, targets: Tensor) -> None:
    """Forward and backward."""
    F.cross_entropy(model(tokens).float().flatten(0, 1), targets.flatten()).backward()


def difference(one: nn.Module, other: nn.Module, tokens: Tensor) -> float:
    """Largest difference of logits over their rms."""
    with torch.no_grad():
        a, b = one(tokens).float(), other(tokens).float()
    return float((a - b).abs().max() / a.square().mean().sqrt())


def gradient(model: nn.Module, tokens: Tensor, targets: Tensor) -> Tensor:
    """Everything's gradient, end to end, in the order of ``TRAINED``."""
    step(model, tokens, targets)
    names = list(TRAINED) if isinstance(model, Ours) else [f"inner.{their}" for their in TRAINED.values()]
    parameters = dict(model.named_parameters())
    made = torch.cat([parameters[name].grad.flatten().float() for name in names])  # type: ignore[union-attr]  # there is one
    model.zero_grad()
    return made


def measured(sides: Sides, hidden: int, precision: str, batch: int, rounds: int) -> list[Row]:
    """A row for each side."""
    tokens, targets = (torch.randint(VOCAB, (batch, TOKENS)).to(device()) for _ in range(2))
    (first, base), *_ = sides.items()
    apart = {mode: difference(base, model, tokens) for mode, model in sides.items()}
    made = {mode: gradient(model, tokens, targets) for mode, model in sides.items()}
    turned = {mode: float((each - made[first]).norm() / made[first].norm()) for mode, each in made.items()}
    for what, far in {"outputs": apart, "gradients": turned}.items():
        if precision == "float32" and max(far[mode] for mode in far if mode != COMPILED) > AGREES:
            raise ValueError(f"{what} must agree to {AGREES}, or it is not the same arithmetic that is timed; they differ by {far}")
    runs = {mode: partial(step, model, tokens, targets) for mode, model in sides.items()}
    memory = {mode: peak(sides[mode], run) for mode, run in runs.items()}  # and the warm-up of every side
    gradients = {mode: sum(p.grad.nbytes for p in model.parameters() if p.grad is not None) for mode, model in sides.items()}
    taken = {mode: min(times) for mode, times in interleaved(sides, runs, rounds).items()}
    least = floor(hidden, precision, batch, rounds)
    return [
        {
            "what": "RecursiveCore" if isinstance(sides[mode], Ours) else "Tiny Recursive Model",
            "hidden": hidden, "precision": precision,
            "mode": mode, "batch": batch, "seconds": taken[mode], "memory_mb": memory[mode] / MB,
            f"time_vs_{first}": taken[mode] / taken[first], f"memory_vs_{first}": memory[mode] / memory[first],
            f"activations_vs_{first}": (memory[mode] - gradients[mode]) / (memory[first] - gradients[first]),
            "time_vs_floor": taken[mode] / least,
            "difference_over_output": apart[mode] or None, "gradients_apart": turned[mode] or None,
        }
        for mode in sides
    ]  # fmt: skip


def interleaved(sides: Sides, runs: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every round."""
    taken: dict[str, list[float]] = {mode: [] for mode in runs}
    for _ in range(rounds):
        for mode, run in runs.items():
            taken[mode].append(seconds(sides[mode], run)[0])
    return taken


def floor(hidden: int, precision: str, batch: int, rounds: int) -> float:
    """Seconds that the step's products take alone, each by the fastest way."""
    dtype, where = getattr(torch, precision), device()
    core = Ours(hidden, precision, "graph").core
    updates = L_CYCLES + 1
    forward, backward = H_CYCLES * updates, updates  # times that each layer is run
    total = 0.0
    for layer in core.level.modules():
        if isinstance(layer, nn.Linear):
            n, k, rows = layer.out_features, layer.in_features, batch * (PREFIX + TOKENS)
            for times, (a, b, c) in ((forward, (rows, k, n)), (backward, (rows, n, k)), (backward, (n, rows, k))):
                x, w = (torch.randn(size, device=where).to(dtype) for size in ((a, b), (c, b)))
                total += times * fastest([partial(F.linear, x, w), partial(ours_of(w), x)], rounds)
    q, p = (torch.randn(batch * hidden // HEAD, PREFIX + TOKENS, size, device=where).to(dtype) for size in (HEAD, PREFIX + TOKENS))
    of_scores = fastest([lambda: torch.bmm(q, q.mT)], rounds)  # and of the probabilities' gradient
    of_values = fastest([lambda: torch.bmm(p, q)], rounds)  # and of queries', keys', values' gradient
    return total + BLOCKS * (forward * (of_scores + of_values) + backward * (of_scores + 3 * of_values))


def ours_of(weight: Tensor) -> nn.Module:
    """Our layer with this weight."""
    layer = Linear(*weight.shape[::-1]).requires_grad_(False).to(weight)
    layer.weight.copy_(weight)
    return layer


def fastest(ways: list[Callable[[], Tensor]], rounds: int) -> float:
    """Seconds of the fastest way, at its best."""
    nothing = nn.Module()
    return min(seconds(nothing, way)[0] for way in ways for _ in range(3 * rounds))


def rows_of(reference: str, quick: bool, batch: int | None, rounds: int, compiled: bool = False) -> list[Row]:
    """All configurations' rows."""
    code = loaded(reference) if reference else None
    size = batch or (1 if quick else 128 if torch.cuda.is_available() else 8)
    rows: list[Row] = []
    for hidden, precision in CONFIGS:
        rows += measured(sides_of(code, hidden, precision, size, compiled), hidden, precision, size, 2 if quick else rounds)
        print(f"hidden {hidden}, {precision}: done", flush=True)
    return rows


def reference_rows(path: str) -> list[Row]:
    """Beside the reference in the checkout at ``path``: what bench.gpu asks for."""
    return rows_of(path, not torch.cuda.is_available(), None, 5)


def main(
    reference: str = "", quick: bool = False, json: str = "", batch: int | None = None, rounds: int = 5, threads: int = 1,
    compiled: bool = False,
) -> None:  # fmt: skip
    """Print a table.

    Args:
        reference: checkout of the Tiny Recursive Model.
        quick: one sequence, two rounds.
        json: file for the rows.
        batch: sequences; None = 8, on a GPU 128.
        rounds: of timing.
        threads: of the processor.
        compiled: the core with its blocks compiled too; takes a compiler.
    """
    torch.set_num_threads(threads)
    rows = rows_of(reference, quick, batch, rounds, compiled)
    print(markdown([list(rows[0]), *([shown(value) for value in row.values()] for row in rows)]))
    if json:
        Path(json).write_text(js.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    fire.Fire(main)
