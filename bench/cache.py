"""What the cache of hidden states saves a training step: `python -m bench.cache [--quick] [--json PATH] [--threads 1]`.

A random Llama of 24 layers, run as a masked-diffusion backbone through transformers, with 4 layers above the split. The same
optimizer steps twice, from the same batches: with the states that enter the split at hand, and with the frozen trunk run for every
batch. ``warmup`` trains the refiner, ``joint`` the 4 layers too. A recursion step costs about as much as a layer, and training one
three times as much as running it: with k live layers and K steps, joint gains about 1 + trunk layers / 3 (k + K).

Time is processor time of interleaved steps, ratios are medians of those within a pair; ``held`` is what parameters take in memory.
Losses must agree to 1e-6, or nothing is printed.
"""

import json as js
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import fire
import torch

from bench.subject import batch_of
from components.backbones.pretrained_lm import PretrainedLM
from components.batch import Batch
from components.objective.objective import Objective
from components.refined_lm import RefinedLM
from components.refiners.refiner import SlotRefiner
from components.training.freezing import freeze_except
from pipeline.models import pretrained
from pipeline.models.pretrained import Source
from pipeline.models.transformers import transformers
from pipeline.reporting.markdown import markdown

SEQUENCES, LENGTH, DIM, LAYERS, LIVE, VOCAB = 8, 128, 512, 24, 4, 4096
SUPERVISED, STEPS = 0.3, (2, 4)
PHASES = {"warmup": ["refiner"], "joint": ["refiner", "backbone.model.model.layers.*"]}


def main(pairs: int = 5, quick: bool = False, threads: int = 1, json: str = "") -> None:
    """Print a table; --quick: two pairs of steps at half the width and length."""
    torch.set_num_threads(threads)
    dim, length = (256, 64) if quick else (DIM, LENGTH)
    rows = []
    with TemporaryDirectory() as folder:
        source = written(Path(folder), dim, length)
        trunk = pretrained.build(source).eval().requires_grad_(False)
        for phase in PHASES:
            rows += [compared(phase, steps, source, trunk, length, 2 if quick else pairs) for steps in STEPS]
    print(f"{LAYERS} layers of width {dim}, {LIVE} above the split, {SEQUENCES} sequences of {length}, float32\n")
    print(markdown([list(rows[0]), *([f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows)]))
    if json:
        Path(json).write_text(js.dumps(rows, indent=1) + "\n")


def written(folder: Path, dim: int, length: int) -> Source:
    """A random checkpoint."""
    library = transformers()
    torch.manual_seed(0)
    config = library.LlamaConfig(
        hidden_size=dim, num_hidden_layers=LAYERS, num_attention_heads=dim // 32, intermediate_size=3 * dim, vocab_size=VOCAB,
        max_position_embeddings=length,
    )  # fmt: skip
    library.LlamaForCausalLM(config).save_pretrained(folder)
    return Source(str(folder), dtype="fp32")


def compared(phase: str, steps: int, source: Source, trunk: PretrainedLM, length: int, pairs: int) -> dict[str, str | float]:
    """A phase's row.

    Raises:
        RuntimeError: the two do not train the same.
    """
    split = LAYERS - LIVE
    models = {name: refined(source, split, phase, steps) for name in ("cached", "live")}
    optimizers = {name: torch.optim.AdamW([p for p in model.parameters() if p.requires_grad]) for name, model in models.items()}
    batches = [batch_of(SEQUENCES, length, 1, VOCAB, SUPERVISED, seed) for seed in range(pairs + 1)]
    stored = [with_states(trunk, batch, split) for batch in batches]
    taken: dict[str, list[float]] = {name: [] for name in models}
    losses: dict[str, list[float]] = {name: [] for name in models}
    for batch, cached in zip(batches, stored, strict=True):
        for name, model in models.items():
            began = time.process_time()
            given = cached if name == "cached" else with_states(trunk, batch, split)
            optimizers[name].zero_grad(set_to_none=True)
            done = Objective(model.n_steps).gradient(model, given, sequences=SEQUENCES)
            optimizers[name].step()
            taken[name].append(time.process_time() - began)
            losses[name].append(done.total.item())
    difference = max(abs(a - b) / abs(b) for a, b in zip(*losses.values(), strict=True))
    if not difference <= 1e-6:
        raise RuntimeError(f"{phase}: losses from cached and live states differ by {difference:.2g} of their size")
    seconds = {name: times[1:] for name, times in taken.items()}  # the first pair warms up
    tail = size(models["cached"])
    whole = tail + size(trunk)
    return {
        "phase": phase, "recursion steps": steps,
        **{f"{name} ms": 1e3 * statistics.median(times) for name, times in seconds.items()},
        "live_vs_cached": statistics.median(live / cached for cached, live in zip(*seconds.values(), strict=True)),
        "cached held MB": tail / 1e6, "live held MB": whole / 1e6, "held_live_vs_cached": whole / tail,
        "loss difference": difference,
    }  # fmt: skip


def refined(source: Source, split: int, phase: str, steps: int) -> RefinedLM:
    """The tail alone and a refiner, with what the phase trains."""
    tail = pretrained.build(source, split)
    refiner = SlotRefiner(int(tail.architecture["dim"]), steps=steps)
    refiner.init_weights(1.0, torch.Generator().manual_seed(0))
    model = RefinedLM(tail, refiner)
    freeze_except(model, PHASES[phase])
    return model.train()


@torch.no_grad()
def with_states(trunk: PretrainedLM, batch: Batch, split: int) -> Batch:
    """The batch with the states that enter the split."""
    return Batch(
        batch.targets, batch.targets, batch.masked, batch.weights, hidden=trunk.trunk(batch.targets, None, split), rows=batch.rows
    )


def size(model: torch.nn.Module) -> int:
    """Bytes of the parameters."""
    return sum(p.numel() * p.element_size() for p in model.parameters())


if __name__ == "__main__":
    fire.Fire(main)
