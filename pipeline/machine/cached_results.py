"""Finished pieces of long work, kept in ``.scratch`` until the stage is done: a killed stage makes none of them twice.

A piece is a few tensors under a name. Its file begins with a hash of what follows: one that is damaged, or that a power cut left
half written, is made again.
"""

import hashlib
from collections.abc import Callable, Mapping

from safetensors.torch import load, save
from torch import Tensor

from pipeline.files import write_atomic
from pipeline.machine import snapshots


def cached_result(name: str, make: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """What ``make`` gives, or gave before the stage was killed; on the host.

    Args:
        name: of the piece among those of the stage; any process may have made it.
        make: makes it.
    """
    folder = snapshots.folder("pieces")
    file = None if folder is None else folder / _digest(name.encode()).hex()
    if file is not None and file.is_file():
        content = file.read_bytes()
        if _digest(content[32:]) == content[:32]:
            return load(content[32:])
    made = {key: value.detach().cpu().contiguous() for key, value in make().items()}
    if file is not None:
        content = save(made)
        write_atomic(file, _digest(content) + content)
    return made


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()
