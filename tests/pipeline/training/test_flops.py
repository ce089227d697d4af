"""Operations are counted as the products that a model is made of."""

from functools import partial

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from components.backbones.tiny_lm import TinyLM
from components.batch import Batch
from components.nn.fused import Linear
from components.objective.activations import checkpoint
from components.objective.losses import masked_cross_entropy, squared_error
from components.objective.objective import Objective
from components.objective.supervision import last_only, learned
from components.recursion import full_gradient, one_step_gradient
from pipeline.machine.runtime import Runtime
from pipeline.training import flops
from tests.support import cores

ROWS, SEQ, DIM, VOCAB = 3, 6, 8, 11


def test_a_matrix_product():
    assert flops.count(lambda: torch.ones(3, 4) @ torch.ones(4, 5)) == 2 * 3 * 4 * 5


def test_nothing_costs_nothing():
    assert flops.count(lambda: torch.ones(9).sum()) == 0


def test_composite_operators_count_as_what_they_are_made_of():
    """Under inference mode they arrive whole."""
    x, weight = torch.ones(2, 3, 4), torch.ones(5, 4)
    with torch.inference_mode():
        assert flops.count(lambda: torch.nn.functional.linear(x, weight)) == 2 * 2 * 3 * 4 * 5
        assert flops.count(lambda: torch.matmul(x, weight.T) + torch.einsum("bij,kj->bik", x, weight)) == 2 * 2 * 2 * 3 * 4 * 5


def test_the_counter_of_torch_counts_the_same():
    model, batch = cores.model_of("recursive", dtype=torch.float32), cores.batch()

    def work():
        Objective(model.n_steps).gradient(model, batch, sequences=len(batch))

    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=flops._known()) as counter:
        work()
    assert flops.count(work) == counter.get_total_flops() > 1e5


def test_the_work_is_done():
    done = []
    flops.count(lambda: done.append(1))
    assert done == [1]


@pytest.mark.parametrize("layers", [0, 1, 3])
def test_a_training_step_of_the_backbone(layers):
    """Forward 2 operations a weight and token, backward twice that; attention scores and sums; the head at masked positions."""
    model = TinyLM(VOCAB, SEQ, DIM, layers, heads=2)
    model.init_weights(torch.Generator().manual_seed(0))
    tokens = torch.zeros(ROWS, SEQ, dtype=torch.long)
    masked = torch.arange(SEQ).expand(ROWS, SEQ) < 2
    batch = Batch(tokens, tokens, masked, masked.float())
    linear = layers * (3 + 1 + 4 + 4) * DIM**2 * ROWS * SEQ
    attention = layers * 2 * ROWS * SEQ * SEQ * DIM
    head = ROWS * 2 * DIM * VOCAB
    forward = flops.count(lambda: model.readout(model.states(batch).flatten(0, 1)[batch.supervised]))
    assert forward == 2 * (linear + attention + head)
    step = flops.count(lambda: masked_cross_entropy(model, model.states(batch), batch, compute=True)[0].backward())
    assert step == 3 * 2 * (linear + attention + head)


def test_a_product_by_onednn_counts_as_any_other():
    layer, x = Linear(4, 5), torch.ones(2, 3, 4, requires_grad=True)
    assert flops.count(lambda: layer(x).sum().backward()) == 3 * 2 * 2 * 3 * 4 * 5


@pytest.mark.parametrize("stacked", [False, True])
def test_a_mixture_of_experts_counts_each_row_once_forward_and_twice_backward(stacked):
    rows, experts, width, inner = 16, 4, 8, 24
    with torch.device("meta"):
        x = torch.zeros(*((experts, rows // experts) if stacked else (rows,)), width, dtype=torch.bfloat16, requires_grad=True)
        weight = torch.zeros(experts, width, inner, dtype=torch.bfloat16, requires_grad=True)
        ends = None if stacked else torch.zeros(experts, dtype=torch.int32)
    product = 2 * rows * width * inner
    assert flops.count(lambda: torch._grouped_mm(x, weight, offs=ends)) == product
    assert flops.count(lambda: torch._grouped_mm(x, weight, offs=ends).square().sum().backward()) == 3 * product


def counted(model, batch, **settings):
    return flops.count(lambda: Objective(model.n_steps, **settings).gradient(model, batch, sequences=len(batch)))


FIXED = [name for name in cores.CORES if flops.has_fixed_shapes(cores.model_of(name))]


@cores.every_core_with_one("bptt", {f.__name__: f for f in (full_gradient, one_step_gradient)}, cores=FIXED)
def test_the_gradient_of_every_core_on_shapes_takes_what_it_takes(name, bptt):
    model, batch = cores.model_of(name, dtype=torch.float32), cores.batch()
    expected = counted(model, batch, bptt=bptt)
    assert flops.of_gradient(model, Objective(model.n_steps, bptt=bptt), batch) == expected > 1e5
    assert all(p.device.type == "cpu" for p in model.parameters())


def test_what_is_computed_twice_to_save_memory_does_not_count():
    model, batch = cores.model_of("slots", dtype=torch.float32), cores.batch()
    needed, objective = counted(model, batch), Objective(model.n_steps, activations=checkpoint)
    assert flops.of_gradient(model, objective, batch) == needed < counted(model, batch, activations=checkpoint)
    counter = flops.GradientCounter(model, objective, Runtime(threads=1))
    assert counter.needed(batch) == needed and counter.count(batch) == counted(model, batch, activations=checkpoint)
    assert objective.activations is checkpoint


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"activations": checkpoint},
        {"supervision": last_only, "bptt": one_step_gradient},
        {"supervision": learned, "activations": checkpoint},
        {"curriculum": 0.5},
        {"loss": squared_error},
    ],
    ids=lambda settings: "-".join(settings) or "plain",
)
@pytest.mark.parametrize("name", ["slots", "recursive", "hybrid"])
def test_a_counter_tells_what_making_the_gradient_takes(name, settings):
    """As many on shapes as with values; of a hybrid, whose shapes are in the tokens, with values alone."""
    model, objective = cores.model_of(name, joint=True, dtype=torch.float32), partial(Objective, 3, **settings)
    counter = flops.GradientCounter(model, objective(), Runtime(threads=1))
    for seed, progress in ((0, 1.0), (1, 0.2), (0, 0.2)):
        batch = cores.batch(seed=seed)
        work = partial(objective().gradient, model, batch, sequences=len(batch), progress=progress)
        assert counter.count(batch, progress) == flops.count(work) > 1e5


def test_nothing_is_computed_to_count_a_gradient(monkeypatch):
    model, batch = cores.model_of("slots", dtype=torch.float32), cores.batch()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    devices = set()
    states = type(model).begin
    monkeypatch.setattr(type(model), "begin", lambda self, batch: devices.add(batch.tokens.device.type) or states(self, batch))
    flops.GradientCounter(model, Objective(model.n_steps), Runtime(threads=1)).count(batch)
    assert devices == {"meta"} and all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_learned_weights_take_no_products():
    model, batch = cores.model_of("slots", dtype=torch.float32), cores.batch()
    objective = Objective(model.n_steps, supervision=learned)
    assert flops.of_gradient(model, objective, batch) == counted(model, batch) and objective.learned.log_variance.grad is None


@pytest.mark.parametrize("joint", [False, True])
def test_the_formula_of_a_two_state_core(joint):
    """3 C a step where every weight is trained, 4 dim vocab rows for the frozen head; the injection once, the tail twice or not."""
    model, batch = cores.model_of("recursive", joint=joint, dtype=torch.float32), cores.batch()
    model.backbone.head.requires_grad_(False)
    steps, tokens, rows, dim = 3, batch.tokens.numel(), int(batch.masked.sum()), cores.DIM
    width = 48  # of the SwiGLU: 4 dim * 2 / 3, rounded up to a multiple of 8
    attention = 4 * tokens * cores.SEQ * dim
    block = 2 * tokens * (4 * dim**2 + 3 * dim * width) + attention
    core = 3 * (3 * block + 2 * tokens * dim**2)  # two updates of z_L and one of z_H, and the answer
    head = 4 * dim * cores.VOCAB * rows
    injection = 2 * tokens * dim**2 * (4 + (2 if joint else 1))  # x is normed by weights, so its product goes back to its input
    tail = cores.LAYERS * (2 * tokens * (4 + 8) * dim**2 + attention) * (3 if joint else 1)
    assert flops.of_gradient(model, Objective(steps), batch) == steps * (core + head) + injection + tail


def test_a_meter_tells_rate_and_share_of_the_ceiling(monkeypatch):
    model, batch = cores.model_of("slots", dtype=torch.float32), cores.batch()
    monkeypatch.setattr(flops, "PATIENCE", float("inf"))
    objective = Objective(model.n_steps)
    meter = flops.Meter(flops.GradientCounter(model, objective, Runtime(threads=1)), objective, Runtime(threads=1))
    needed = 2 * flops.of_gradient(model, objective, batch)
    assert meter.summary([batch, batch], 0.5, 10.0) == ""  # in its first seconds a run spends nothing on it
    monkeypatch.setattr(flops, "PATIENCE", -1)
    monkeypatch.setattr(flops, "ceiling", lambda runtime: needed * 40)
    assert meter.summary([batch, batch], 0.5, 10.0) == f"{needed * 10 / 1e12:.3g} TF/s, MFU 25.0%"
    hybrid = flops.GradientCounter(cores.model_of("hybrid"), objective, Runtime(threads=1))
    assert flops.Meter(hybrid, objective, Runtime(threads=1)).summary([batch], 0.5, 1.0) == ""


def test_a_ceiling_is_that_of_the_fastest_matrix_product(monkeypatch):
    """By a clock on which the products take 4 (which warms up), 3, 2 and again 3 seconds."""
    took, now = iter([4.0, 3.0, 2.0, 3.0]), [0.0]

    def at_the_end():
        now.append(now[-1] + next(took, 0.0))
        return now[-1]

    clock = iter([reading for _ in range(4) for reading in (lambda: now[-1], at_the_end)])
    monkeypatch.setattr(flops.time, "perf_counter", lambda: next(clock)())
    monkeypatch.setattr(flops.time, "monotonic", lambda: now[-1])
    monkeypatch.setitem(flops.SIDE, "cpu", 8)
    assert flops.ceiling(Runtime(threads=1), seconds=7.5) == 2 * 8**3 / 2.0
