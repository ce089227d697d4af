"""What models still know of text that no phase supervises: tokens of the prompts, hidden as answers' tokens are.

Phases learn answers alone, and those that train layers of the backbone may cost it what it knew before (catastrophic forgetting;
Source: McCloskey and Cohen 1989). The frozen backbone under the same masks is what is kept or lost.
"""

from dataclasses import replace
from typing import Any

import torch

from pipeline.corpora.prepared import Prepared, Split
from pipeline.errors import ConfigError
from pipeline.evaluation import evaluator
from pipeline.evaluation.compared import Compared
from pipeline.evaluation.measuring import measure
from pipeline.text.rendering import rendering_of


def with_prompts_hidden(split: Split, causal: bool, start: int = 0) -> Split:
    """The same examples with prompts in place of answers; of a causal model without the first token, which nothing foretells.

    Args:
        split: the examples.
        causal: tokens are predicted from those before them.
        start: tokens that the tokenizer begins every text with, which say nothing.

    Raises:
        ConfigError: there are no prompts.
    """
    prompt = ~split.response if split.valid is None else split.valid & ~split.response
    prompt = prompt & (torch.arange(prompt.shape[1]) >= max(start, int(causal)))
    if not bool(prompt.any()):
        raise ConfigError("evaluate.run.forgetting looks at prompts, and these examples have none; set it to None")
    return replace(split, response=prompt)


def measure_forgetting(prepared: Prepared, models: Compared, forgetting: tuple[str, float], size: int, seed: int) -> dict[str, Any]:
    """Every model's nll and accuracy at hidden tokens of prompts, and the paired difference from the frozen backbone.

    Args:
        prepared: the corpus.
        models: "frozen" among them.
        forgetting: split, and the fraction of a prompt that is masked.
        size: sequences that run together.
        seed: of the masks.
    """
    split_name, ratio = forgetting
    encoding = rendering_of(prepared.vocabulary.rendering).encoding(prepared.folder)
    start = 0 if encoding is None else len(encoding.start)
    split = evaluator.by_length(with_prompts_hidden(prepared.split(split_name), prepared.vocabulary.causal, start))
    masked = evaluator.batches(split, prepared.vocabulary, ratio, seed, size, "evaluate forgetting")
    last = {name: measured.steps[-1] for name, measured in measure(models, masked, "forgetting").items()}
    metrics: dict[str, Any] = {}
    for name, counts in last.items():
        whole, other = evaluator.summary([counts], split.group), evaluator.compare(counts, last["frozen"], split.group)
        names = {"prompt_nll": "nll", "prompt_token_accuracy": "token_accuracy"}
        metrics[name] = {key: whole[metric] for key, metric in names.items()}
        metrics[name]["minus_frozen"] = {key: other[metric] for key, metric in names.items()}
    return metrics
