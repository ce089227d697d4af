"""Bytes that a model takes, reckoned on shapes: weights, what training keeps beside them, and the most that a computation holds.

Nothing is computed: models and batches are on the meta device. Where a device computes in bfloat16 or with fused attention it takes
less than what is told here of activations.
"""

import copy
import weakref
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from components.nn.masters import widen
from pipeline.training.watching import Watching

AModel = TypeVar("AModel", bound=nn.Module)


def weights(model: nn.Module) -> int:
    """Bytes of parameters and buffers, those that two places share counted once."""
    return size({id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}.values())


def in_training(model: AModel) -> AModel:
    """Copy a model of shapes as a phase trains it: what is not frozen has float32 masters."""
    copied = copy.deepcopy(model)
    widen(copied, [parameter for parameter in copied.parameters() if parameter.requires_grad])
    return copied


def own(model: nn.Module) -> list[Tensor]:
    """Parameters that a trained model does not share with its backbone: its refiner, and what else was trained."""
    return [tensor for name, tensor in model.named_parameters() if tensor.requires_grad or name.startswith("refiner.")]


def moments(model: nn.Module, optimizer: Callable[..., torch.optim.Optimizer]) -> int:
    """Bytes that an optimizer keeps of what is trained; it takes a step on shapes, and the model has no gradients afterwards."""
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    made = optimizer(trained.items())
    for group in made.param_groups:
        group.update({"fused": False} if "fused" in group else {})  # which is not for shapes
    for parameter in trained.values():
        parameter.grad = torch.empty_like(parameter)
    made.step()
    model.zero_grad()
    return size(value for state in made.state.values() for value in state.values() if value.ndim)


def peak(work: Callable[[], object]) -> int:
    """The most bytes that what ``work`` makes takes at once."""
    with _Watch() as watch:
        work()
    return watch.most


def size(tensors: Iterable[Tensor]) -> int:
    """Sum up the bytes of tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class _Watch(Watching):
    """Adds a storage's bytes when an operation makes it and takes them off when nothing holds it any more."""

    def __init__(self) -> None:
        super().__init__()
        self.live, self.most = 0, 0
        self.known = weakref.WeakSet[torch.UntypedStorage]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {id(tensor.untyped_storage()) for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and id(tensor.untyped_storage()) not in given:
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage in self.known:
            return
        self.known.add(storage)
        size = storage.nbytes()
        self.live += size
        self.most = max(self.most, self.live)
        weakref.finalize(storage, self._drop, size)

    def _drop(self, size: int) -> None:
        self.live -= size
