"""Float32 masters of weights that a model reads in half precision: an optimizer moves them exactly, a layer rounds what it reads.

At a learning rate of 5e-6 most updates of a bfloat16 weight round back to the number that it was. A parameter becomes float32,
under its own name and tied as it was, and the modules that hold it read it in the precision that it had. No layer sees another type
than before: whatever is trained beside whatever is frozen, with or without autocast, computes what the model computed as it came.
Source: Micikevicius et al., "Mixed Precision Training" (2018), section 3.1.
"""

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

HALF = (torch.bfloat16, torch.float16)


class Rounded:
    """A module's parameter as it is read: rounded to a type, the gradient flows on to the parameter itself."""

    def __init__(self, name: str, dtype: torch.dtype) -> None:
        self.name, self.dtype = name, dtype

    def __get__(self, module: nn.Module | None, kind: type) -> "Tensor | Rounded":
        return self if module is None else _parameter(module, self.name).to(self.dtype)


def widen(model: nn.Module, parameters: Iterable[Tensor], values: Callable[[Tensor], Tensor] = Tensor.float) -> None:
    """Replace parameters in half precision by float32 masters, one for each tensor, wherever the model holds it.

    Args:
        model: holds them.
        parameters: those to replace; what is not in half precision stays.
        values: what a master begins with, from the parameter.
    """
    chosen = {id(parameter): parameter for parameter in parameters if parameter.dtype in HALF}
    masters: dict[int, nn.Parameter] = {}
    for module in model.modules():
        read = {name: p for name, p in module._parameters.items() if p is not None and id(p) in chosen}
        for name, parameter in read.items():
            if id(parameter) not in masters:
                masters[id(parameter)] = nn.Parameter(values(parameter.detach()), requires_grad=parameter.requires_grad)
            module._parameters[name] = masters[id(parameter)]
        if read:
            module.__class__ = _rounding(type(module), {name: parameter.dtype for name, parameter in read.items()})


def read_whole(model: nn.Module) -> None:
    """Let every module below read its masters as they are: for one whose weights somebody else rounds before it runs."""
    for module in model.modules():
        if any(isinstance(reader, Rounded) for reader in vars(type(module)).values()):
            module.__class__ = type(module).__bases__[0]


def read_dtype(module: nn.Module, name: str) -> torch.dtype:
    """Tell the type in which a module reads a parameter, without rounding it."""
    reader = getattr(type(module), name, None)
    return reader.dtype if isinstance(reader, Rounded) else _parameter(module, name).dtype


def _parameter(module: nn.Module, name: str) -> nn.Parameter:
    """The parameter itself, which an attribute would round."""
    parameter = module._parameters[name]
    assert parameter is not None
    return parameter


def _rounding(kind: type[nn.Module], dtypes: Mapping[str, torch.dtype]) -> type[nn.Module]:
    """The class itself, of the same name, whose parameters of these names are read rounded."""
    return type(kind.__name__, (kind,), {"__module__": kind.__module__} | {n: Rounded(n, dtype) for n, dtype in dtypes.items()})
