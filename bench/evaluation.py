"""What it saves to evaluate models side by side: `python -m bench.evaluation [--quick] [--json PATH] [--threads 1]`.

A random Llama of 30 layers through transformers as the frozen backbone, and over it what the phases make: refiners (warmup, and
warmup continued), one whose last layer was trained too (joint), and the backbone trained on. ``alone``: every model runs every
batch from the tokens, and every halting rule in passes of its own. ``shared``: as evaluate does it, the layers that no phase
trained once a batch and the rules within the pass that counts.

Time is processor time of interleaved runs over the same batch, ratios are medians of those within a pair. Counts and steps taken
must be the same bits both ways, or nothing is printed.
"""

import json as js
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import fire
import torch
from torch import Tensor

from bench.subject import batch_of
from components.backbones.backbone import BackboneModel
from components.batch import Batch
from components.inference.halting import Rule, by_change, by_probability, halted
from components.inference.metrics import count
from components.model import Model
from components.nn.sharing import twin
from components.refined_lm import RefinedLM
from components.refiners.refiner import SlotRefiner
from pipeline.evaluation.compared import Compared
from pipeline.evaluation.measuring import Measured, measure
from pipeline.machine.runtime import Runtime
from pipeline.models import pretrained
from pipeline.models.pretrained import Source
from pipeline.models.transformers import transformers
from pipeline.reporting.markdown import markdown

T = TypeVar("T")
LAYERS, TAIL, STEPS, SUPERVISED = 30, 1, 4, 0.3
RULES: dict[str, Rule] = {"probability": by_probability, "change": partial(by_change, tolerance=0.05)}
SETS = {
    "frozen, warmup": ("frozen", "warmup"),
    "frozen, warmup, joint": ("frozen", "warmup", "joint"),
    "and warmup continued": ("frozen", "warmup", "joint", "control_warmup"),
    "and the backbone trained on": ("frozen", "warmup", "joint", "control_warmup", "control_backbone"),
}


def main(pairs: int = 5, quick: bool = False, threads: int = 1, json: str = "") -> None:
    """Print a table; --quick: two pairs of runs at a smaller size."""
    torch.set_num_threads(threads)
    dim, length, sequences = (64, 16, 2) if quick else (192, 64, 8)
    with TemporaryDirectory() as folder:
        models = over(pretrained.build(written(Path(folder), dim, length)).eval().requires_grad_(False), dim)
    made = batch_of(sequences, length, dim, 85 * dim, SUPERVISED, seed=0)
    batches = [Batch(made.tokens, made.targets, made.masked, made.weights)]
    rows = [row(title, {name: models[name] for name in names}, batches, rules, 2 if quick else pairs)
            for rules in ({}, RULES) for title, names in SETS.items()]  # fmt: skip
    print(f"{LAYERS} layers of width {dim}, {TAIL} trained, {85 * dim:,} ids, {STEPS} steps, {sequences} sequences of {length}\n")
    print(markdown([list(rows[0]), *([f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows)]))
    if json:
        Path(json).write_text(js.dumps(rows, indent=1) + "\n")


def written(folder: Path, dim: int, length: int) -> Source:
    """Write a random checkpoint, of as many ids for its width as small models of text have."""
    library = transformers()
    torch.manual_seed(0)
    config = library.LlamaConfig(
        hidden_size=dim, num_hidden_layers=LAYERS, num_attention_heads=dim // 32, num_key_value_heads=dim // 32,
        intermediate_size=8 * dim // 3, vocab_size=85 * dim, max_position_embeddings=length, tie_word_embeddings=True,
    )  # fmt: skip
    library.LlamaForCausalLM(config).save_pretrained(folder)
    return Source(str(folder), objective="next token", dtype="fp32")


def over(frozen: BackboneModel, dim: int) -> dict[str, Model]:
    """The models of every phase: what they have not trained are the backbone's very tensors."""
    trained = {"joint": f".layers.{LAYERS - TAIL}.", "control_backbone": ""}
    models: dict[str, Model] = {"frozen": frozen}
    for seed, name in enumerate(("warmup", "joint", "control_warmup", "control_backbone")):
        backbone, part = twin(frozen), trained.get(name)
        own = {} if part is None else {key: value + 1e-4 for key, value in frozen.named_parameters() if part in key}
        backbone.load_state_dict(own, strict=False, assign=True)
        models[name] = backbone if name == "control_backbone" else RefinedLM(backbone, refiner(dim, seed)).eval()
    return models


def refiner(dim: int, seed: int) -> SlotRefiner:
    """A refiner that moves states, as one that was trained does."""
    core = SlotRefiner(dim, steps=STEPS, heads=dim // 32)
    core.init_weights(1.0, generator := torch.Generator().manual_seed(seed))
    torch.nn.init.normal_(core.delta_out.weight, std=0.3 * dim**-0.5, generator=generator)
    return core


def row(title: str, models: Mapping[str, Model], batches: list[Batch], rules: Mapping[str, Rule], pairs: int) -> dict[str, object]:
    """Time both ways in turn, and compare what they say."""
    runtime = Runtime(threads=torch.get_num_threads())
    compared, numbered = Compared(models, runtime), {f"{number}": model for number, model in enumerate(models.values())}
    shared = partial(measure, compared, batches, "shared", rules=rules)
    alone = partial(by_themselves, Compared(numbered, runtime), batches, rules)
    taken: dict[str, list[float]] = {"alone": [], "shared": []}
    for _ in range(pairs):
        plain, plain_seconds = timed(alone)
        ours, our_seconds = timed(shared)
        same(list(plain[0].values()), list(ours.values()), plain[1])
        taken["alone"].append(plain_seconds)
        taken["shared"].append(our_seconds)
    ratios = [a / b for a, b in zip(taken["alone"], taken["shared"], strict=True)]
    seconds = {f"{name} s": statistics.median(values) for name, values in taken.items()}
    return {"models": title, "rules": len(rules), **seconds, "alone_vs_shared": statistics.median(ratios)}


@torch.no_grad()
def by_themselves(
    models: Compared, batches: list[Batch], rules: Mapping[str, Rule]
) -> tuple[dict[str, Measured], list[dict[str, tuple[Tensor, Tensor]]]]:
    """Run every model from the tokens, and once more for every rule."""
    measured, left = measure(models, batches, "alone"), []
    for model in models.models.values():
        by_rule = {}
        for name, rule in rules.items() if model.n_steps > 1 else ():
            parts = []
            for batch in batches:
                hidden, steps = halted(model, batch, rule)
                parts.append((count(model.readout(hidden[batch.masked]), batch.targets, batch.masked).nll, steps.double()))
            nll, steps = zip(*parts, strict=True)
            by_rule[name] = torch.cat(nll), torch.cat(steps)
        left.append(by_rule)
    return measured, left


def same(plain: list[Measured], ours: list[Measured], left: list[dict[str, tuple[Tensor, Tensor]]]) -> None:
    """Fail unless both ways say the same."""
    for one, other, by_rule in zip(plain, ours, left, strict=True):
        assert all(torch.equal(a.nll, b.nll) for a, b in zip(one.steps, other.steps, strict=True))
        for name, (nll, steps) in by_rule.items():
            counts, taken = other.halting[name]
            assert torch.equal(steps, taken) and torch.equal(nll, counts.nll)


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """What comes of work, and the processor time that it takes."""
    began = time.process_time()
    result = work()
    return result, time.process_time() - began


if __name__ == "__main__":
    fire.Fire(main)
