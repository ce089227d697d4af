"""How many floating-point operations an optimizer step of a run takes: what budgets are divided by, and equal compute rests on."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from components.batch import Batch
from components.objective.objective import Objective
from pipeline.machine.distributed import gathered
from pipeline.progress import Progress
from pipeline.training.flops import GradientCounter
from pipeline.training.train_state import TrainState

STEPS, SEQUENCES = 4, 256  # over at least so many it is counted: lengths vary, and how much is masked


def counted_steps(sequences: int, steps: int) -> int:
    """Say over how many steps operations are counted, ``sequences`` being those of each: more where that is few, up to a run's
    ``steps``.
    """
    return max(STEPS, min(steps, -(-SEQUENCES // sequences)))


def counted(
    batches: Iterator[list[Batch]], sequences: int, counter: GradientCounter, objective: Objective, steps: int, result: TrainState
) -> Iterator[list[Batch]]:
    """Note the floating-point operations of a step of a run that begins, of its first steps, whose batches are in memory meanwhile;
    returns the same batches. Where gradients have to be made to count them, four steps have to do.

    Args:
        batches: microbatches of each step, those of this process.
        sequences: of a step, in all processes.
        counter: of a microbatch's operations.
        objective: says how many recursion steps are supervised.
        steps: of the run.
        result: where it is noted, unless it is known.
    """
    if result.flops_per_step:
        return batches
    first = deque(islice(batches, counted_steps(sequences, steps) if counter.on_shapes else STEPS))
    depths = {objective.depth(step / steps) for step in range(steps)}
    passes = len(depths) + 2 * (objective.lead is not None)
    with Progress("operations", sum(map(len, first)) * passes, "microbatch") as bar:
        result.flops_per_step = flops_per_step(first, bar.counting(counter.count), objective, steps)
    return _after(first, batches)


def _after(first: deque[list[Batch]], others: Iterator[list[Batch]]) -> Iterator[list[Batch]]:
    """Both, one after the other; what is handed on is not kept."""
    while first:
        yield first.popleft()
    yield from others


def flops_per_step(first: Sequence[Sequence[Batch]], count: Callable[..., int], objective: Objective, steps: int) -> int:
    """Count the floating-point operations of an optimizer step, over all processes: the mean over the ``first`` steps' microbatches
    and over a run of ``steps`` steps, in the course of which the number of supervised recursion steps may grow, with as many steps
    before them as on average.

    Args:
        first: microbatches of each of the first steps, those of this process.
        count: (microbatch, share of the run, steps before the supervised ones) -> operations of its gradient.
        objective: says how many recursion steps are supervised.
        steps: of the run.
    """
    alike: dict[int, list[float]] = {}
    for step in range(steps):
        alike.setdefault(objective.depth(step / steps), []).append(step / steps)
    batches = [batch for micro in first for batch in micro]
    mine = sum(len(shares) * sum(count(batch, shares[0]) for batch in batches) for shares in alike.values())
    supervised = int(sum(gathered(mine))) // (len(first) * steps)
    if objective.lead is None:
        return supervised
    one = sum(count(batch, 0.0, 1) - count(batch, 0.0) for batch in batches)
    return supervised + round(objective.lead.mean * sum(gathered(one)) / len(first))
