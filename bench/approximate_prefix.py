"""What keeping the prefix of a block saves in masked diffusion: `python -m bench.approximate_prefix [--quick] [--json PATH]`.

Answers of 128 tokens to prompts of 40 to 120 in 4 blocks of 16 passes, 8 at a time (``--answers``), by a model of SmolLM2-135M's
shape whose attention looks both ways (--quick: a tiny one), by itself and under a slot refiner of 4 steps; weights are random.
``plain`` = the way of commit a1397ae: every pass reads everything, reads all positions out and ranks them; ``exact`` = the same
tokens, where only the block is read out and ranked. Of each block an exact pass, a plain one, and the first two with states kept
are measured, and stand for the others. Processor time. What it costs in quality: `python -m bench.generation`.
"""

import json as js
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fire
import torch
from torch import Tensor

from bench.causal_generation import TINY, prompts, random_llama, refiner, timed
from components.batch import Batch
from components.inference.approximate_prefix import approximate_prefix, approximate_surroundings
from components.inference.canvases import read_out
from components.inference.sampling import Sampler, most_likely, without
from components.model import Model
from components.refined_lm import RefinedLM
from pipeline.reporting.markdown import markdown

SMOLLM2 = {
    "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "intermediate_size": 1536,
    "vocab_size": 49152, "tie_word_embeddings": True, "max_position_embeddings": 8192,
}  # fmt: skip


def main(answers: int = 8, blocks: int = 4, passes: int = 16, quick: bool = False, threads: int = 1, json: str = "") -> None:
    """Print a table; --quick: answers of 32 tokens by a tiny model."""
    torch.set_num_threads(threads)
    backbone, tokens = random_llama(TINY if quick else SMOLLM2, causal=False), 32 if quick else 128
    refined = RefinedLM(backbone, refiner(backbone.architecture["dim"])).eval()
    canvas, attention = prompts(answers, tokens, backbone.architecture["vocab"] - 1)  # the last id is the mask
    both = (("backbone", backbone), ("refined", refined))
    rows = [row for name, model in both for row in measured(name, model, canvas, attention, blocks, passes)]
    size = "tiny" if quick else "135M"
    print(f"{answers} answers of {tokens} tokens, {blocks} blocks of {passes} passes, {size}, {threads} thread(s)\n")
    print(markdown([list(rows[0]), *([f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows)]))
    if json:
        Path(json).write_text(js.dumps(rows, indent=1) + "\n")


@torch.no_grad()
def measured(name: str, model: Model, canvas: Tensor, attention: Tensor, blocks: int, passes: int) -> Iterator[dict[str, Any]]:
    """Rows of a model: the plain way, the exact one, and with the prefix kept."""
    mask_id = int(canvas.max())
    answer, order = canvas == mask_id, (canvas == mask_id).cumsum(1) - 1
    batch = Batch(canvas, canvas, answer, answer.float(), attention)
    approximate = {"approximate prefix": approximate_prefix, "approximate surroundings": approximate_surroundings}
    seconds = dict.fromkeys(("plain", "exact", *approximate), 0.0)

    def read(tokens: Tensor) -> Tensor:
        return model.readout(model.states(Batch(tokens, tokens, tokens == mask_id, batch.weights, attention)))

    def asked(tokens: Tensor, queried: Tensor) -> Tensor:
        return read_out(model, Batch(tokens, tokens, tokens == mask_id, batch.weights, attention), queried)

    for block in range(blocks):
        before = canvas.masked_fill(answer & (order < answer.sum(1, keepdim=True) * block // blocks), 1)
        sampler = Sampler(passes * (blocks - block), blocks - block)
        exact = sampler.passes(asked, before, mask_id)
        _, plain = timed(lambda before=before: most_likely(without(read(before), mask_id, None)))
        _, one = timed(lambda exact=exact: next(exact))
        seconds["plain"] += passes * plain
        seconds["exact"] += passes * one
        for way, approximated in approximate.items():
            stream = sampler.passes(approximated(model, batch, blocks), before, mask_id)
            (_, first), (_, second) = (timed(lambda stream=stream: next(stream)) for _ in range(2))
            seconds[way] += first + (passes - 1) * second
    for way, whole in seconds.items():
        yield {"model": name, "way": way, "seconds": whole, "speed_vs_plain": seconds["plain"] / whole}


if __name__ == "__main__":
    fire.Fire(main)
