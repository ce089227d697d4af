"""Shapes that are given again are those that torch reckons; what is more than a shape is left to torch."""

import pytest
import torch
from torch.nn import functional as F

from pipeline.training.shapes import Shapes

META = torch.device("meta")
WORK = {
    "product": lambda x: x @ x.transpose(-1, -2),
    "strides": lambda x: x.transpose(0, 2) + 1.0,
    "norm": lambda x: F.layer_norm(x, x.shape[-1:]),
    "several results": lambda x: torch.cat(x.sort(dim=-1)),
    "a list of them": lambda x: torch.stack(torch.unbind(x.softmax(-1), 1)).sum(0),
    "a whole number": lambda x: x.int() * 2,
    "a fraction": lambda x: x.int() * 2.0,
    "a truth": lambda x: x.bool() * True,
    "a scalar": lambda x: x.mean() * x,
    "a mask": lambda x: torch.where(x > 0, x, x.new_zeros(())),
    "attention": lambda x: F.scaled_dot_product_attention(x, x, x),
    "the same": lambda x: F.dropout(x, 0.5, False),
    "in place": lambda x: (x * 2).add_(1).mul_(x),
    "no values": lambda x: x[:0].sum(1),
    "made": lambda x: torch.arange(x.shape[1], device=x.device) + torch.zeros(2, 1, device=x.device),
}


def seen(tensor):
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor.untyped_storage().nbytes(), tensor.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", WORK)
def test_whatever_is_made_again_has_the_shape_that_it_had(name, dtype):
    def made():
        x = torch.zeros(3, 4, 5, dtype=dtype, device=META, requires_grad=True)
        y = WORK[name](x)
        if y.requires_grad:
            (y * y).sum().backward()
        return [seen(y), None if x.grad is None else seen(x.grad)]

    expected = made()
    with Shapes():
        assert made() == made() == expected  # reckoned, and remembered


def test_what_is_given_back_or_changed_is_the_tensor_itself():
    x = torch.zeros(3, 4, device=META)
    with Shapes():
        for _ in range(2):
            assert F.dropout(x, 0.5, False).untyped_storage()._cdata == x.untyped_storage()._cdata
            assert x.view(12).untyped_storage()._cdata == x.untyped_storage()._cdata
            assert x.add_(1) is x
            one, other = x + 1, x + 1
            assert one.untyped_storage()._cdata != other.untyped_storage()._cdata


def test_tensors_with_values_are_computed():
    with Shapes():
        found = [(torch.full((2, 2), float(n)) @ torch.ones(2, 2)).tolist() for n in range(3)]
    assert found == [[[2.0 * n] * 2] * 2 for n in range(3)]


def grouped(dtype, device="meta"):
    """A product of experts, and its gradients."""
    x = torch.zeros(12, 16, dtype=dtype, device=device, requires_grad=True)
    weight = torch.zeros(4, 24, 16, dtype=dtype, device=device, requires_grad=True)
    y = torch._grouped_mm(x, weight.transpose(1, 2), offs=torch.zeros(4, dtype=torch.int32, device=device))
    (y * y).sum().backward()
    return [(tensor.shape, tensor.dtype) for tensor in (y, x.grad, weight.grad)]


@pytest.mark.skipif(not hasattr(torch, "_grouped_mm"), reason="this torch has no grouped products")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_products_of_experts_have_shapes_in_any_precision(dtype):
    with Shapes():
        found = grouped(dtype)
    assert found == [((12, 24), dtype), ((12, 16), dtype), ((4, 24, 16), dtype)] == grouped(dtype, "cpu")
