"""Tensors in safetensors files that appear whole or not at all, written from where they lie and read one after the other. A second
copy of what is written or read, or a file that is mapped as a whole, would be most of what a process takes.
"""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save, save_file
from torch import Tensor

from pipeline.files import remove, storing

UNREADABLE = SafetensorError  # what reading a file raises that holds no tensors


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors beside the target and rename, as ``write_atomic`` does with bytes.

    The library writes a file of a random name and moves it; that lies in a folder beside the target, ``<name>.tmp``: what a kill
    leaves there goes when the same is written again.

    Args:
        path: of the file.
        tensors: by name, on any device; those that are on the host and contiguous are not copied.
        metadata: words that the file holds too.

    Raises:
        StorageError: the disk refuses; the old file stands.
    """
    on_host = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    part = path.with_name(path.name + ".tmp")
    remove(part)
    with storing(path, part, sum(tensor.nbytes for tensor in on_host.values())):
        part.mkdir(parents=True)
        _save(on_host, part / path.name, metadata)
        (part / path.name).chmod(part.stat().st_mode & 0o666)  # the library lets nobody else read it
        os.replace(part / path.name, path)


def read_tensors(file: Path, names: Iterable[str] | None = None) -> dict[str, Tensor]:
    """Read those of the named tensors that a file holds; of all where no names are given. What is read is no part of the file.

    The file is opened anew for each: what was looked at of a mapped file counts as memory of the process until it is closed.
    """
    stored = tensor_names(file)
    return {name: read_tensor(file, name) for name in (stored if names is None else names) if name in stored}


def tensor_names(file: Path) -> dict[str, None]:
    """List the names of the tensors in a file, in their order there; the tensors themselves are not read."""
    with safe_open(file, "pt") as source:
        return dict.fromkeys(source.keys())


def read_tensor(file: Path, name: str) -> Tensor:
    """Read a tensor that a file holds; see ``read_tensors``."""
    with safe_open(file, "pt") as source:
        tensor: Tensor = source.get_tensor(name).clone()
    return tensor


def bytes_of_tensors(tensors: Mapping[str, Tensor]) -> bytes:
    """Write tensors on the host as the bytes of a file."""
    return save(dict(tensors))


def tensors_of_bytes(content: bytes) -> dict[str, Tensor]:
    """Read the tensors of a file's bytes, each into memory that torch has allocated.

    The library's lie wherever the bytes do, and MKL promises the same last digits only of memory that is aligned alike.

    Raises:
        UNREADABLE: they are no such file's, or hold numbers of a type that torch has not.
    """
    try:
        return {name: tensor.clone() for name, tensor in load(content).items()}
    except (KeyError, TypeError):  # a type that the format knows and its reader for torch does not
        raise SafetensorError("it holds tensors of another type") from None


def _save(tensors: dict[str, Tensor], file: Path, metadata: dict[str, str] | None) -> None:
    """Have the library write a file; what a disk refuses, which it puts in words, is an OSError again."""
    try:
        save_file(tensors, file, metadata)
    except SafetensorError as error:
        if (refused := re.search(r"\(os error (\d+)\)", str(error))) is None:
            raise
        raise OSError(int(refused[1]), os.strerror(int(refused[1])), os.fspath(file)) from None
