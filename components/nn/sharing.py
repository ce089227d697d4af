"""Modules of their own that hold another module's very tensors: several models then take the memory of one."""

import copy
from itertools import chain
from typing import TypeVar

from torch import nn

AModule = TypeVar("AModule", bound=nn.Module)


def twin(module: AModule) -> AModule:
    """Copy a module whose weights are the given one's very tensors, until the copy is assigned others."""
    shared = {id(tensor): tensor for tensor in chain(module.parameters(), module.buffers())}
    return copy.deepcopy(module, shared)


def share(part: AModule, whole: nn.Module) -> AModule:
    """Give a module the weights of another that holds modules of the same paths, and how they are read."""
    sources = dict(whole.named_modules(remove_duplicate=False))
    for path, module in part.named_modules(remove_duplicate=False):
        source = sources[path]
        module.__class__, module.training = source.__class__, source.training
        module._parameters, module._buffers = dict(source._parameters), dict(source._buffers)
    return part
