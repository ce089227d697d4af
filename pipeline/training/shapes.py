"""Operators on shapes alone: on the meta device torch reckons in Python, slower than a CPU computes; what is known is kept."""

from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from pipeline.machine.runtime import Runtime
from pipeline.training.watching import Watching

META = torch.device("meta")
Made = Callable[[], Any]


class OnShapes(Runtime):
    """The meta device; nothing of this machine is set or asked for."""

    def __init__(self) -> None:
        self.device, self.precision = META, "fp32"

    def autocast(self) -> AbstractContextManager[None]:  # type: ignore[override]
        """Do nothing: shapes have no precision."""
        return nullcontext()


class Shapes(Watching):
    """While it is entered, an operator on the meta device that comes with shapes and numbers known from an earlier call gives new
    tensors of the shapes it gave then; and products of experts have shapes in every precision: torch knows them in bfloat16 alone.
    """

    def __init__(self) -> None:
        super().__init__()
        self._known: dict[Hashable, Made] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        key = (func, *map(_described, (args, *kwargs.items()))) if _makes_new(func) else ()
        if made := self._known.get(key):
            return made()
        experts = func.name() == "aten::_grouped_mm" and args[0].dtype != torch.bfloat16
        result = _of_experts(*args) if experts else func(*args, **kwargs)
        if key:
            tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            if all(tensor.is_meta for tensor in tensors) and (again := _again(result, tensors)):
                self._known[key] = again
        return result


@cache
def _makes_new(func: Any) -> bool:
    """Whether an operator changes nothing and gives no view of what it is given."""
    schema = func._schema
    return not schema.is_mutable and all(result.alias_info is None for result in schema.returns)


def _described(value: Any) -> Hashable:
    """What of an argument decides the shapes that an operator gives. Numbers go with their types, which decide precision."""
    if isinstance(value, Tensor):
        return value.device.type, value.dtype, value.shape, value.stride()
    if isinstance(value, (list, tuple)):
        return tuple(map(_described, value))
    return type(value), value


def _again(result: Any, given: list[Tensor]) -> Made | None:
    """Make what makes tensors as those of a result; None if they are more than their shapes."""
    if isinstance(result, (list, tuple)):
        parts = [_again(part, given) for part in result]
        return (lambda: type(result)(part() for part in parts if part)) if all(parts) else None
    if not isinstance(result, Tensor) or not result.is_meta:
        return None
    size, stride, dtype = result.shape, result.stride(), result.dtype
    storages = {id(tensor.untyped_storage()) for tensor in given}
    whole = torch.empty_strided(size, stride, dtype=dtype, device="meta")
    if id(result.untyped_storage()) in storages or result.untyped_storage().nbytes() != whole.untyped_storage().nbytes():
        return None
    return lambda: torch.empty_strided(size, stride, dtype=dtype, device="meta")


def _of_experts(a: Tensor, b: Tensor, *ends: Any) -> Tensor:
    """Product of each expert's rows with its weights. Rows lie end to end or stacked; two of rows alone give a weight an expert."""
    experts = (a if a.dim() == 3 else ends[0]).shape[:1] if a.dim() == b.dim() else ()
    return a.new_empty(*experts, a.shape[-2], b.shape[-1])
