"""Floating-point operations, counted by running a computation; those of training (what compute-matched controls are matched by) on
shapes alone. And the rate at which a training works, beside what its device can do.
"""

import copy
import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from components.batch import Batch
from components.model import Model
from components.objective.activations import keep
from components.objective.objective import Objective
from pipeline.data.batches import TRUNK
from pipeline.machine.runtime import Runtime
from pipeline.training.shapes import OnShapes, Shapes
from pipeline.training.watching import Watching

ONEDNN = "_linear_pointwise"  # what components.nn.fused calls; absent where torch is built without oneDNN

SIDE = {"cuda": 8192, "cpu": 1024}  # of the product that measures what a device can do
PATIENCE = 5.0  # seconds of training after which a fraction of one is spent on the rate, and a tenth on that


def count(work: Callable[[], object]) -> int:
    """Run ``work`` and count the operations of its matrix products, forward and backward.

    Attention runs as plain products while counting: fused CPU kernels are invisible to the counter. torch says so for all threads,
    and plain products round otherwise: no live trunk runs meanwhile.
    """
    with TRUNK, sdpa_kernel(SDPBackend.MATH), _Count() as counter:
        work()
    return counter.total


class _Count(Watching):
    """Adds up torch's formulas over the operators that run. ``FlopCounterMode`` itself also follows the modules through hooks and
    asks of every call whether its operator is made of others, which takes twice as long.
    """

    _primitive: ClassVar[set[Any]] = set()  # operators that are made of no others

    def __init__(self) -> None:
        super().__init__()
        self.formulas = FlopCounterMode(display=False, custom_mapping=_known()).flop_registry
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, formula = kwargs or {}, self.formulas.get(func.overloadpacket)
        if formula is None and func not in self._primitive:
            with self:  # in inference mode composite operators arrive whole
                made = func.decompose(*args, **kwargs)
            if made is not NotImplemented:
                return made
            self._primitive.add(func)
        made = func(*args, **kwargs)
        self.total += _evaluated(formula, args, kwargs, made) if formula else 0
        return made


def _evaluated(formula: Any, args: Sequence[Any], kwargs: dict[str, Any], made: Any) -> int:
    """A formula's value. Those of shapes get them as they stand in the list of arguments; torch would search these as trees."""
    if (of_shapes := getattr(formula, "__wrapped__", None)) is None:
        return int(formula(*args, **kwargs, out_val=made))
    shapes = {name: _shape(value) for name, value in kwargs.items()}
    return int(of_shapes(*map(_shape, args), **shapes, out_shape=_shape(made)))


def _shape(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return [_shape(part) for part in value]
    return value.shape if isinstance(value, Tensor) else value


def _known() -> dict[Any, Any]:
    formulas = {getattr(torch.ops.mkldnn, ONEDNN): _of_linear} if hasattr(torch.ops.mkldnn, ONEDNN) else {}
    return {**formulas, torch.ops.aten._grouped_mm: _of_grouped} if hasattr(torch.ops.aten, "_grouped_mm") else formulas


def _of_linear(x: tuple[int, ...], weight: tuple[int, ...], *_: object, **__: object) -> int:
    return 2 * math.prod(x) * weight[0]


def _of_grouped(a: tuple[int, ...], b: tuple[int, ...], *_: object, **__: object) -> int:
    """Of a mixture of experts: rows lie end to end, each goes through one expert; their number is what is not stacked."""
    return 2 * math.prod(a[-2:] if len(b) == 2 else a) * b[-1]


def of_gradient(model: Model, objective: Objective, batch: Batch, progress: float = 1.0) -> int:
    """Count the operations that the gradient of a microbatch needs, whatever is computed twice to save memory: what MFU counts.

    With C the operations of a recursion step whose every weight is trained, and a frozen head, it is 3 C + 4 dim vocab rows a step;
    6 operations a weight and token would be wrong by far: weights serve every step, frozen ones need no gradient of their own, and
    the head reads supervised positions only.
    """
    return GradientCounter(model, objective, OnShapes()).needed(batch, progress)


class GradientCounter:
    """Counts the operations of the gradients of microbatches.

    Counted on shapes, of copies without weights: nothing is computed. Only where shapes depend on what is in the tokens a gradient
    is made, and left in the parameters.

    Args:
        model: frozen as wanted.
        objective: makes the gradient.
        runtime: where it is made if it has to be.
    """

    def __init__(self, model: Model, objective: Objective, runtime: Runtime) -> None:
        self._model, self._objective, self._runtime = model, objective, runtime
        self._within: AbstractContextManager[object] = nullcontext()
        self.on_shapes = has_fixed_shapes(model)
        if self.on_shapes:
            self._model, self._objective = _on_meta(model, objective)
            self._runtime, self._within = OnShapes(), Shapes()

    def count(self, batch: Batch, progress: float = 1.0, lead: int = 0) -> int:
        """Count what a microbatch takes at a share of the run, with so many steps before the supervised ones and with what is
        computed twice to save memory.
        """
        return self._count(self._objective, batch, progress, lead)

    def needed(self, batch: Batch, progress: float = 1.0) -> int:
        """Count what a microbatch needs at a share of the run, whatever is computed twice."""
        objective = copy.copy(self._objective)
        objective.activations = keep
        return self._count(objective, batch, progress, 0)

    def _count(self, objective: Objective, batch: Batch, progress: float, lead: int) -> int:
        make = partial(objective.gradient, self._model, batch.to(self._runtime.device), sequences=len(batch))
        with self._within:
            return count(partial(make, progress=progress, lead=lead, autocast=self._runtime.autocast))


def has_fixed_shapes(model: Model) -> bool:
    """Tell whether what a model computes can be told from shapes, or depends on what is in the tokens."""
    try:
        model.compile_targets()
    except ValueError:
        return False
    return True


def _on_meta(model: Model, objective: Objective) -> tuple[Model, Objective]:
    """Copy both to the meta device."""
    tensors: list[Tensor] = [*model.parameters(), *model.buffers(), *objective.parameters()]
    on_meta = {id(tensor): _shape_of(tensor) for tensor in tensors}  # the copies' weights take no memory
    model, objective = copy.deepcopy((model, objective), on_meta)
    for module in model.modules():
        module.__dict__.pop("forward", None)  # a compiled one, which would call the original
    return model, objective


def _shape_of(tensor: Tensor) -> Tensor:
    """Its shape, in bfloat16: products take as many operations, and those of experts have shapes of no other type."""
    empty = tensor.detach().to("meta", torch.bfloat16 if tensor.is_floating_point() else None)
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


class Meter:
    """Model FLOPs a second of this process's device over a whole run, validations included, and their share of its ceiling (MFU).

    The ceiling is measured: a large product at the run's precision, on as many threads.

    Args:
        counter: of what the run's gradients need.
        objective: says how many recursion steps are supervised.
        runtime: of the run.
    """

    def __init__(self, counter: GradientCounter, objective: Objective, runtime: Runtime) -> None:
        self.counter, self.objective, self.runtime = counter, objective, runtime
        self._began, self._ceiling = time.monotonic(), 0.0
        self._flops: dict[int, int] = {}  # by the number of steps that are supervised

    def summary(self, micro: Sequence[Batch], progress: float, speed: float) -> str:
        """Tell the rate in words, for the microbatches of a step at a share of the run and ``speed`` steps a second; "" in a run's
        first seconds, and for a model without fixed shapes, since there the work depends on what is in the tokens.
        """
        if time.monotonic() - self._began < PATIENCE or not self.counter.on_shapes:
            return ""
        depth = self.objective.depth(progress)
        if depth not in self._flops:
            self._flops[depth] = sum(self.counter.needed(batch, progress) for batch in micro)
        self._ceiling = self._ceiling or ceiling(self.runtime)
        rate = self._flops[depth] * speed
        return f"{rate / 1e12:.3g} TF/s, MFU {rate / self._ceiling:.1%}"


def ceiling(runtime: Runtime, seconds: float = 0.1) -> float:
    """FLOP/s of a large matrix product on this device at this precision: the best within about ``seconds``."""
    side, device = SIDE[runtime.device.type], runtime.device
    dtype = torch.bfloat16 if runtime.precision == "bf16" else torch.float32
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    best, end = _seconds(a, b), time.monotonic() + seconds  # the first warms up
    while time.monotonic() < end:
        best = min(best, _seconds(a, b))
    return 2 * side**3 / best


def _seconds(a: Tensor, b: Tensor) -> float:
    wait = torch.cuda.synchronize if a.is_cuda else torch.get_num_threads  # on CPU there is nothing to wait for
    wait()
    began = time.perf_counter()
    a @ b
    wait()
    return time.perf_counter() - began
