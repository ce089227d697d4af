"""Finished pieces of long work, kept in ``.scratch`` until the stage is done: a killed stage makes none of them twice.

A piece is a few tensors under a name. Its hash is part of its file's name: a damaged one is made again.
"""

import hashlib
from collections.abc import Callable, Mapping

from safetensors.torch import load, save
from torch import Tensor

from pipeline import scratch
from pipeline.files import write_durably


def piece(name: str, make: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """What ``make`` gives, or gave before the stage was killed; on the host.

    Args:
        name: of the piece among those of the stage, with ``/`` between folders; any process may have made it.
        make: makes it.
    """
    place = scratch.folder(name)
    if place is not None:
        for file in place.parent.glob(f"{place.name}.*.safetensors"):
            content = file.read_bytes()
            if file.name.split(".")[-2] == hashlib.sha256(content).hexdigest():
                return load(content)
            file.unlink()
    made = {key: value.detach().cpu().contiguous() for key, value in make().items()}
    if place is not None:
        content = save(made)
        write_durably(place.with_name(f"{place.name}.{hashlib.sha256(content).hexdigest()}.safetensors"), content)
    return made
