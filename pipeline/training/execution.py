"""How a model is run while it is trained: as it is written, with steps compiled, or with the backbone's layers run once more in the
backward pass. The only door to torch.compile.

Compiled values differ in rounding only, the others are the same bits. Nothing of a model changes but the way it is called: its
weights keep their names, so a run may be continued either way. Validation and evaluation run as written, and so does what counts
operations.
"""

import warnings
from collections.abc import Callable
from functools import wraps
from inspect import unwrap
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from components.model import Model
from pipeline.errors import ConfigError

Execution = Callable[[Model], Model]  # the same model
GRAPHS = 64  # that one step may be compiled to, a few for every length of the batches; torch's own limit is 8


def eager(model: Model) -> Model:
    """Run the model as it is written."""
    return model


def compiled(model: Model) -> Model:
    """Compile what all K supervised steps share, for fixed shapes: a length of the batches costs a compilation.

    That is a step, or a block of the recursive core. Two graphs of a step serve any K: the first step starts from what needs no
    gradient, every other from what a step left (with ``activations.checkpoint`` four: statistics are measured in the second pass
    only); of a block one with gradient and one without. Works with any ``bptt``; a model without a
    repeated step (a backbone alone) runs as written. Compiling takes from seconds to a minute, so it pays for long runs, and most
    on a GPU, where launching kernels is what a small step waits for.

    Raises:
        ConfigError: there is no compiler here, or the model has no fixed shapes.
    """
    if not (modules := _steps(model)):
        return model
    _check_compiler(next(model.parameters()).device)
    deterministic, warn_only = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)  # as it is, and the compiler is told
    torch._dynamo.config.recompile_limit = max(GRAPHS, torch._dynamo.config.recompile_limit)
    for module in modules:
        module.forward = _in_training(module, module.forward, torch.compile(module.forward, dynamic=False, fullgraph=True))
    return model


def checkpointed(model: Model) -> Model:
    """Keep of each of the backbone's layers what went in, not what it computed; the backward pass runs the layer once more.

    For phases that train many layers, whose activations are then most of the memory: one layer's are there at a time. It costs a
    forward pass of these layers. (``activations.checkpoint`` is the same of recursion steps; both can be set.)

    Source: Chen et al., "Training Deep Nets with Sublinear Memory Cost" (2016).

    Raises:
        ConfigError: the model has no layers that could be run by themselves.
    """
    for module, method in _layers(model):
        setattr(module, method, MethodType(_run_once_more(getattr(type(module), method)), module))
    return model


def check(execution: Execution, model: Model) -> None:
    """Refuse a model that cannot be run so, which its shapes say; whether there is a compiler shows where it is needed.

    Raises:
        ConfigError: the model has no layers that could be run by themselves, or no fixed shapes.
    """
    for way, parts in ((compiled, _steps), (checkpointed, _layers)):
        if unwrap(execution) is unwrap(way):
            parts(model)


def _steps(model: Model) -> list[nn.Module]:
    """What of a model can be compiled."""
    try:
        return model.compile_targets()
    except ValueError as error:
        raise ConfigError(f"loop.fit.execution = @execution.compiled: {error}; use @execution.eager") from None


def _layers(model: Model) -> list[tuple[nn.Module, str]]:
    """What of a model can run once more, and the methods that run it."""
    if not (units := model.shard_units()):
        raise ConfigError(
            f"loop.fit.execution = @execution.checkpointed: a {type(model).__name__} has no layers that could run once more; use "
            "@execution.eager (objective.Objective.activations = @activations.checkpoint does the same for recursion steps)"
        )
    return units


def _run_once_more(written: Callable[..., Any]) -> Callable[..., Any]:
    """A layer's method whose graph, where one is made, is dropped."""

    @wraps(written)
    def run(layer: nn.Module, *given: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            return written(layer, *given, **named)
        return checkpoint(lambda: written(layer, *given, **named), use_reentrant=False)

    return run


def _in_training(module: nn.Module, written: Callable[..., object], fast: Callable[..., object]) -> Callable[..., object]:
    """``fast`` while the module is trained."""
    return lambda *arguments: (fast if module.training else written)(*arguments)


def _check_compiler(device: torch.device) -> None:
    """Compile something small."""
    import torch._inductor.config  # importing these takes seconds
    from torch._dynamo.exc import BackendCompilerFailed
    from torch._inductor.exc import InductorError

    try:
        with torch._inductor.config.patch(force_disable_caches=True), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # which say that caches are off: what was compiled before needs no compiler
            torch.compile(torch.sin, dynamic=False)(torch.ones(8, device=device))
    except (BackendCompilerFailed, InductorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"loop.fit.execution = @execution.compiled needs a compiler (on CPU a C++ compiler such as g++, on a GPU Triton) and "
            f"found none that works: {reason}. Install one, or use @execution.eager"
        ) from None
