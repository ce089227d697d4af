"""Files of embeddings: what is read of the shapes that people have, and what is refused."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pipeline.errors import DataError
from pipeline.text.vector_files import read_vectors

VALUES = torch.arange(24.0).view(3, 2, 4) / 8


@pytest.mark.parametrize("dtype", ["<f4", "<f8", "<f2", ">f4"])
def test_an_array_of_numpy_is_read_in_any_width_and_order_of_bytes(tmp_path, dtype):
    np.save(tmp_path / "a.npy", VALUES.numpy().astype(dtype))
    read = read_vectors(tmp_path / "a.npy")
    assert torch.equal(read.values, VALUES) and read.values.dtype == torch.float32 and read.lengths.tolist() == [2, 2, 2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_pairs_are_sequences_of_two(tmp_path, dtype):
    pair = {name: VALUES[:, place].to(dtype).contiguous() for place, name in enumerate(("inputs", "targets"))}
    save_file(pair, tmp_path / "a.safetensors")
    assert torch.equal(read_vectors(tmp_path / "a.safetensors").values, VALUES)


def test_sequences_may_differ_in_length_and_what_lies_behind_them_is_nothing(tmp_path):
    values = torch.cat([VALUES, torch.full((3, 1, 4), torch.nan)], 1)
    values[1, 2] = 1.0
    save_file({"embeddings": values, "lengths": torch.tensor([2, 3, 2])}, tmp_path / "a.safetensors")
    read = read_vectors(tmp_path / "a.safetensors")
    assert read.lengths.tolist() == [2, 3, 2] and torch.equal(read.values[:, :2], VALUES)


def array(values):
    return lambda path: np.save(path, values, allow_pickle=True)


def tensors(**values):
    return lambda path: save_file(values, path)


def words(path):
    path.write_text("words")


HOLE = np.where(np.arange(24).reshape(3, 2, 4) == 12, np.nan, 1.0)
NO_ARRAY = "cannot be read as an array of numbers"
NPY = {
    "one vector each": (array(np.ones((3, 1, 4))), r"3 examples need 2 to 1 vectors each"),
    "a matrix": (array(np.ones((3, 4))), r"of shape \(examples, vectors of each, width\), got float64 of shape \(3, 4\)"),
    "whole numbers": (array(np.ones((3, 2, 4), dtype=int)), "expected numbers with a point"),
    "no examples": (array(np.ones((0, 2, 4))), r"got float64 of shape \(0, 2, 4\)"),
    "objects": (array(np.array([{}, []], dtype=object)), NO_ARRAY),
    "strings": (array(np.array(["a", "b"])), NO_ARRAY),
    "text": (words, NO_ARRAY),
    "an empty file": (lambda path: path.write_bytes(b""), NO_ARRAY),
    "no number": (array(HOLE), "vector 1 of example 1 is not finite"),
    "no file": (lambda path: None, "does not exist; expected embeddings"),
}
SAFETENSORS = {
    "text": (words, "cannot be read as safetensors"),
    "other names": (tensors(x=VALUES), "holds 'x'; expected 'embeddings'"),
    "an input alone": (tensors(inputs=torch.ones(3, 4)), "holds 'inputs'; expected"),
    "pairs of two widths": (tensors(inputs=torch.ones(3, 4), targets=torch.ones(3, 5)), "of one shape"),
    "a length of one": (tensors(embeddings=VALUES, lengths=torch.tensor([2, 1, 2])), r"got lengths \[2, 1, 2\]"),
    "a length too few": (tensors(embeddings=VALUES, lengths=torch.tensor([2, 2])), "got lengths"),
    "no lengths": (tensors(embeddings=VALUES, lengths=torch.ones(0)), "got lengths"),
}
WRONG = {
    **{f"{what} as npy": (".npy", *row) for what, row in NPY.items()},
    **{f"{what} as safetensors": (".safetensors", *row) for what, row in SAFETENSORS.items()},
    "another suffix": (".pt", words, r"expected embeddings as \*.npy or \*.safetensors"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_no_file_of_embeddings_is_refused_in_a_line(tmp_path, wrong):
    suffix, write, message = WRONG[wrong]
    write(tmp_path / f"a{suffix}")
    with pytest.raises(DataError, match=message) as refused:
        read_vectors(tmp_path / f"a{suffix}")
    assert "\n" not in str(refused.value)
