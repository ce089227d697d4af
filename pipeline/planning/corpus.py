"""What is planned for: examples, prepared or expected, in the batches that a stage will draw."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from components.batch import Batch
from pipeline.corpora.prepared import Split, Vocabulary
from pipeline.data.batches import VALIDATION, LiveSource


@dataclass(frozen=True)
class Corpus:
    """Examples that are planned for, prepared already or expected."""

    splits: Mapping[str, Split]
    vocabulary: Vocabulary

    def source(self, split: str, masks: Mapping[str, Any]) -> LiveSource:
        """Make the batches of a split under the ``masks`` of a stage, without states."""
        stream = VALIDATION if split == "validation" else None
        given = {name: masks[name] for name in ("buckets", "draws") if name in masks}
        return LiveSource(self.splits[split], self.vocabulary, masks["masking"], masks["seed"], stream=stream, **given)


def some(source: LiveSource, n: int) -> Batch:
    """Take a source's first ``n`` examples under the first draw of masks."""
    rows = torch.arange(min(n, len(source)))
    return source.batch(rows, torch.zeros_like(rows))
