"""Shapes and kinds in signatures are checked at every call while the tests of components/ run."""

import jaxtyping
import pytest
import torch

from components.objective.masking import exact_count


def test_a_call_with_another_shape_than_its_signature_is_refused():
    noise = torch.rand(2, 4, dtype=torch.float64)
    exact_count(torch.ones(2, 3, dtype=torch.bool), noise)
    for response in (torch.ones(3, dtype=torch.bool), torch.ones(2, 3)):
        with pytest.raises(jaxtyping.TypeCheckError):
            exact_count(response, noise)
