"""Over how many steps operations are counted, and that a run goes over the same batches afterwards."""

import gc
import weakref
from itertools import islice

import pytest
import torch

from components.batch import Batch
from components.objective.objective import Objective
from pipeline.training.step_operations import counted, counted_steps
from pipeline.training.train_state import TrainState


def microbatch(supervised):
    tokens = torch.zeros(1, 8, dtype=torch.int64)
    return Batch(tokens, tokens, torch.arange(8)[None] < supervised, torch.ones(1, 8), None)


class Counter:
    """Stands for what counts: as many operations as there are supervised positions."""

    def __init__(self, on_shapes=True):
        self.on_shapes = on_shapes

    def count(self, batch, progress=1.0, lead=0):
        return int(batch.masked.sum())


@pytest.mark.parametrize(
    ("sequences", "steps", "expected"),
    [(64, 300, 4), (300, 300, 4), (16, 300, 16), (8, 300, 32), (100, 2, 4), (1, 12, 12), (3, 1000, 86)],
)
def test_few_sequences_a_step_are_counted_over_more_steps_up_to_the_whole_run(sequences, steps, expected):
    assert counted_steps(sequences, steps) == expected


def test_operations_are_the_mean_over_them_and_the_run_begins_with_the_same_batches():
    steps = [[microbatch(1 + step % 8)] for step in range(80)]
    result = TrainState()
    batches = counted(iter(steps), 8, Counter(), Objective(1), 80, result)
    assert result.flops_per_step == 4  # of 1 to 8, four times: 4.5; the first four alone would make it 2
    assert list(islice(batches, 80)) == steps


def test_where_gradients_are_made_to_count_them_four_steps_have_to_do():
    steps = [[microbatch(1 + step % 8)] for step in range(80)]
    batches = counted(iter(steps), 8, Counter(on_shapes=False), Objective(1), 80, result := TrainState())
    assert result.flops_per_step == 2 and list(islice(batches, 80)) == steps


def test_a_batch_that_is_handed_on_is_not_kept():
    steps = ([microbatch(1)] for _ in range(8))
    batches = counted(steps, 64, Counter(), Objective(1), 80, TrainState())
    taken = weakref.ref(next(batches)[0])
    gc.collect()
    assert taken() is None


def test_what_is_known_is_not_counted_again():
    steps = iter([[microbatch(8)]])
    assert counted(steps, 8, Counter(), Objective(1), 80, result := TrainState(flops_per_step=7)) is steps
    assert result.flops_per_step == 7
