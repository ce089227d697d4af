"""What a gradient takes: the operations that are counted elsewhere, memory that grows as each way says."""

from components.objective.losses import masked_cross_entropy
from components.objective.objective import Objective
from pipeline.machine.runtime import Runtime
from pipeline.training.flops import count
from pipeline.training.step_costs import KEEP, PLAIN, WAYS, measure
from tests.support.cores import batch, model_of


def test_every_way_is_measured_at_every_number_of_steps():
    model = model_of("slots")
    costs = measure(model, batch(), masked_cross_entropy, (1, 2, 6), Runtime(threads=1))
    by = {(cost.way, cost.steps): cost for cost in costs}
    assert set(by) == {(way, steps) for way in (*WAYS, PLAIN) for steps in (1, 2, 6)} and len(costs) == len(by)
    assert all(cost.seconds > 0 and cost.bytes > 0 for cost in costs)
    for steps in (1, 2, 6):
        gradient = Objective(steps).gradient
        assert by[KEEP, steps].flops == count(lambda gradient=gradient: gradient(model, batch(), sequences=len(batch())))
        assert by["checkpoint", steps].flops > by[KEEP, steps].flops
    assert by["checkpoint", 6].bytes < by[KEEP, 6].bytes and by["one step's gradient", 6].bytes < by[KEEP, 6].bytes
    grown = {way: by[way, 6].bytes - by[way, 2].bytes for way in WAYS}
    assert grown[KEEP] > grown["checkpoint"] > grown["one step's gradient"]


def test_no_gradient_is_left():
    model = model_of("slots")
    measure(model, batch(), masked_cross_entropy, (1,), Runtime(threads=1))
    assert all(parameter.grad is None for parameter in model.parameters())
