"""What is planned for: examples, prepared or expected, in the batches that a stage will draw."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from components.batch import Batch
from components.objective.masking import whole
from pipeline.corpora.prepared import Split, Vocabulary
from pipeline.data.batches import VALIDATION, LiveSource
from pipeline.data.unrolled import Unrolled


@dataclass(frozen=True)
class Corpus:
    """Examples that are planned for, prepared already or expected."""

    splits: Mapping[str, Split]
    vocabulary: Vocabulary

    def source(self, split: str, masks: Mapping[str, Any]) -> LiveSource | Unrolled:
        """Make the batches of a split under the ``masks`` of a stage, without states; in training of all passes that it unrolls."""
        single = self._single(split, masks)
        return Unrolled(single, masks["passes"]) if "passes" in masks and split != "validation" else single

    def widest(self, split: str, masks: Mapping[str, Any], n: int) -> Batch:
        """Make the batch of ``n`` examples that takes the most memory: of the longest, those of the longest answers, masked, in
        every pass that training unrolls.
        """
        source = self._single(split, {**masks, "masking": whole})
        answers = source.split.response.sum(1)
        rows = (source.padded * (1 + self.vocabulary.sequence) + answers).argsort(descending=True, stable=True)[:n]
        batch = source.batch(rows, torch.zeros_like(rows))
        later = (batch,) * (masks.get("passes", 1) - 1) if split != "validation" else ()
        return replace(batch, later=later or None)

    def _single(self, split: str, masks: Mapping[str, Any]) -> LiveSource:
        stream = VALIDATION if split == "validation" else None
        given = {name: masks[name] for name in ("buckets", "draws") if name in masks}
        return LiveSource(self.splits[split], self.vocabulary, masks["masking"], masks["seed"], stream=stream, **given)


def some(source: LiveSource | Unrolled, n: int) -> Batch:
    """Take a source's first ``n`` examples under the first draw of masks."""
    rows = torch.arange(min(n, len(source)))
    return source.batch(rows, torch.zeros_like(rows))
