"""More recursion than in training, on the headline: after any number of steps, from several starts, and what that takes."""

from collections.abc import Sequence
from typing import Any

from components.inference.breadth import Breadth
from pipeline.corpora.prepared import Prepared
from pipeline.evaluation import evaluator
from pipeline.evaluation.breadth import with_restarts
from pipeline.evaluation.compared import Compared
from pipeline.evaluation.depths import at_depths
from pipeline.evaluation.operations import of_depths, of_restarts
from pipeline.text.rendering import right_of


def more_recursion(
    prepared: Prepared,
    models: Compared,
    measure: tuple[str, float],
    depths: Sequence[int],
    breadth: Breadth | None,
    seed: int,
    size: int,
) -> dict[str, dict[str, Any]]:
    """Measure models that recur by their number of steps and of restarts.

    Args:
        prepared: the corpus.
        models: any, with as many steps as in training.
        measure: split, and fraction of the answer that is masked.
        depths: numbers of steps; none = by model, nothing of them.
        breadth: the restarts; None = nothing of them.
        seed: of masks and noise.
        size: sequences that are measured together.

    Returns:
        By model ``depths`` and ``breadth`` (``pipeline.evaluation.depths``, ``pipeline.evaluation.breadth``), each row with
        ``flops_per_answer``.
    """
    split = evaluator.by_length(prepared.split(measure[0]))
    right, curves = right_of(split, prepared.vocabulary), dict[str, dict[str, Any]]()
    if depths:
        masked = evaluator.batches(split, prepared.vocabulary, measure[1], seed, size, "depths")
        for name, rows in at_depths(models, masked, depths, split.group, right).items():
            numbers = [row["steps"] for row in rows]
            operations = of_depths(prepared, models.models[name], measure, numbers, seed, models.runtime)
            curves.setdefault(name, {})["depths"] = _with_operations(rows, operations)
    if breadth is not None:
        masked = evaluator.batches(split, prepared.vocabulary, measure[1], seed, size, "breadth")
        for name, rules in with_restarts(models, masked, breadth, seed, split.group, right).items():
            steps = breadth.steps or models.models[name].n_steps
            operations = of_restarts(prepared, models.models[name], measure, steps, breadth.restarts, seed, models.runtime)
            curves.setdefault(name, {})["breadth"] = {rule: _with_operations(rows, operations) for rule, rows in rules.items()}
    return curves


def _with_operations(rows: Sequence[dict[str, Any]], operations: Sequence[int]) -> list[dict[str, Any]]:
    return [{**row, "flops_per_answer": n} for row, n in zip(rows, operations, strict=True)]
