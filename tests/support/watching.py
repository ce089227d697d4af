"""What a computation makes and keeps, seen from outside."""

import weakref
from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Products(TorchDispatchMode):
    """Counts matrix products in which a size occurs, as input or output."""

    def __init__(self, size):
        super().__init__()
        self.size, self.count = size, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        if function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm):
            shapes = [t.shape for t in tree_leaves((args, kwargs, found)) if isinstance(t, torch.Tensor)]
            self.count += any(self.size in shape for shape in shapes)
        return found


class _Largest(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        self.numel = max([self.numel, *(t.numel() for t in tree_leaves(found) if isinstance(t, torch.Tensor))])
        return found


@contextmanager
def largest_made():
    """Yields what says how many numbers the largest tensor has that was made within."""
    with _Largest() as mode:
        yield lambda: mode.numel


class Peak(TorchDispatchMode):
    """The largest number of bytes of tensors made within that lived at once."""

    def __init__(self):
        super().__init__()
        self.live, self.bytes, self.known = 0, 0, set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        for tensor in tree_leaves(found):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in given | self.known:
                self._watch(tensor.untyped_storage())
        self.bytes = max(self.bytes, self.live)
        return found

    def _watch(self, storage):
        key, size = storage._cdata, storage.nbytes()
        self.known.add(key)
        self.live += size
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key, size):
        self.known.discard(key)
        self.live -= size
