"""Which modules a gin text may import and name: the line between settings and code that somebody else wrote."""

import os
from collections.abc import Iterable

# What computes, and what reads a corpus: not what writes files, starts processes or (torch.hub, torch.load) runs what it is given.
ALLOWED = (
    "components", "pipeline.corpora.sudoku", "pipeline.data.sources", "pipeline.inference.generation", "pipeline.machine.runtime",
    "pipeline.models.embedding_table", "pipeline.models.lora", "pipeline.models.pretrained", "pipeline.models.sentence_encoder",
    "pipeline.text.embeddings", "pipeline.text.jsonl", "pipeline.text.puzzle_files", "pipeline.text.sentences", "pipeline.tracking",
    "pipeline.training.execution", "pipeline.training.loop", "pipeline.training.sharding", "stages", "torch.nn", "torch.optim",
)  # fmt: skip
MORE_ALLOWED = "SLOTLOOP_ALLOW"  # environment variable: further modules, by whoever runs this and not by who wrote the files


def allowed() -> tuple[str, ...]:
    """Packages that .gin files may import from."""
    return (*ALLOWED, *_more_allowed())


def allowed_by_environment(module: str) -> bool:
    """Whether the environment, and not this project, allows that .gin files import a module."""
    return _is_within(module, _more_allowed()) and not _is_within(module, ALLOWED)


def _more_allowed() -> tuple[str, ...]:
    return tuple(filter(None, (name.strip() for name in os.environ.get(MORE_ALLOWED, "").split(","))))


def is_allowed(module: str) -> bool:
    """Whether .gin files may import a module, by this project or by the environment."""
    return _is_within(module, allowed())


def _is_within(module: str, packages: Iterable[str]) -> bool:
    return any(f"{module}.".startswith(f"{package}.") for package in packages)
