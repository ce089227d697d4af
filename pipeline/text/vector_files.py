"""Files of embeddings: sequences of vectors, or pairs of input and target. Nothing in them is unpickled.

``*.npy``: (examples, vectors, width). ``*.safetensors``: ``embeddings`` of that shape, with ``lengths`` (examples) where some have
fewer; or ``inputs`` and ``targets``, (examples, width) each, which are sequences of two.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import DataError
from pipeline.files import absence
from pipeline.tensor_files import UNREADABLE, read_tensors

NPY, SAFETENSORS = ".npy", ".safetensors"
SUFFIXES = (NPY, SAFETENSORS)
SHAPE = "(examples, vectors of each, width)"
NAMES = "'embeddings', with 'lengths' or without, or 'inputs' and 'targets'"


@dataclass(frozen=True)
class Vectors:
    """Sequences of vectors: float32 (examples, vectors, width), and how many vectors each has."""

    values: Tensor
    lengths: Tensor


def read_vectors(path: Path) -> Vectors:
    """Read a file of embeddings.

    Raises:
        DataError: there is no such file, it holds something else, a vector is not finite, or an example has less than two.
    """
    if path.suffix not in SUFFIXES or not path.is_file():
        what = absence(path) if not path.is_file() else "is neither"
        raise DataError(f"{path} {what}; expected embeddings as *.npy or *.safetensors")
    values, lengths = _npy(path) if path.suffix == NPY else _safetensors(path)
    if values.ndim != 3 or not values.is_floating_point() or 0 in values.shape:
        pairs = "pairs are 'inputs' and 'targets' in *.safetensors"
        raise DataError(f"{path}: expected numbers with a point, of shape {SHAPE}, got {_kind(values)}; {pairs}")
    values = values.float()
    lengths = torch.full((len(values),), values.shape[1]) if lengths is None else lengths.long()
    if lengths.shape != (len(values),) or int(lengths.min()) < 2 or int(lengths.max()) > values.shape[1]:
        few = f"2 to {values.shape[1]} vectors each, one to predict from another"
        raise DataError(f"{path}: {len(values):,} examples need {few}; got lengths {lengths.flatten()[:4].tolist()} ...")
    used = torch.arange(values.shape[1]) < lengths[:, None]
    if (wrong := (used & ~torch.isfinite(values).all(-1)).nonzero()).numel():
        place = f"vector {int(wrong[0, 1])} of example {int(wrong[0, 0])}"
        raise DataError(f"{path}: {place} is not finite ({len(wrong):,} are not); mend or leave out these examples")
    return Vectors(values, lengths)


def _npy(path: Path) -> tuple[Tensor, None]:
    try:
        array = np.load(path, allow_pickle=False)
        return torch.from_numpy(np.ascontiguousarray(array, array.dtype.newbyteorder("="))), None
    except (ValueError, EOFError, TypeError, AttributeError) as error:
        raise DataError(f"{path} cannot be read as an array of numbers: {str(error).splitlines()[0]}") from None


def _safetensors(path: Path) -> tuple[Tensor, Tensor | None]:
    try:
        tensors = read_tensors(path)
    except UNREADABLE as error:
        raise DataError(f"{path} cannot be read as safetensors: {str(error).splitlines()[0]}") from None
    if "embeddings" in tensors:
        return tensors["embeddings"], tensors.get("lengths")
    if tensors.keys() >= {"inputs", "targets"}:
        pair = tensors["inputs"], tensors["targets"]
        if pair[0].ndim != 2 or pair[0].shape != pair[1].shape:
            shapes = " and ".join(map(_kind, pair))
            raise DataError(f"{path}: expected 'inputs' and 'targets' of one shape (examples, width), got {shapes}")
        return torch.stack([one.float() for one in pair], 1), None
    raise DataError(f"{path} holds {', '.join(map(repr, list(tensors)[:8])) or 'nothing'}; expected {NAMES}")


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"
