"""Float32 masters: exact where an optimizer moves them, rounded where a module reads them, in every place and under their names."""

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from components.nn.masters import HALF, read_dtype, read_whole, widen
from components.training.freezing import is_norm


def layers(dtype):
    """Two layers that share a weight, a norm and a table of one row a token."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"table": nn.Embedding(7, 4), "norm": nn.LayerNorm(4), "inner": nn.Linear(4, 4), "head": nn.Linear(4, 7)})
    model["head"].weight = model["table"].weight
    return model.to(dtype)


def run(model, tokens):
    return model["head"](model["inner"](model["norm"](model["table"](tokens))))


TOKENS = torch.tensor([[1, 5, 2], [0, 0, 6]])


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("trained", [["inner"], ["norm"], ["table"], ["head"], ["table", "norm", "inner", "head"], []])
def test_the_model_computes_the_same_bits_whatever_has_masters(dtype, trained):
    model = layers(dtype)
    expected = run(model, TOKENS)
    widen(model, [p for name in trained for p in model[name].parameters()])
    found = run(model, TOKENS)
    assert found.dtype == dtype and torch.equal(found, expected)


def test_names_stay_and_shared_tensors_stay_one():
    model = layers(torch.bfloat16)
    names, classes, values = (
        list(model.state_dict()),
        [type(m).__name__ for m in model.modules()],
        copy.deepcopy(model.state_dict()),
    )
    widen(model, model["table"].parameters())
    assert list(model.state_dict()) == names and [type(module).__name__ for module in model.modules()] == classes
    own = dict(model.named_parameters(remove_duplicate=False))
    assert own["table.weight"] is own["head.weight"] and len(list(model.parameters())) == 6
    wide = {name for name, value in model.state_dict().items() if value.dtype == torch.float32}
    assert wide == {"table.weight", "head.weight"} and isinstance(model["head"], nn.Linear) and is_norm(model["norm"])
    assert all(torch.equal(value, values[name].to(value.dtype)) for name, value in model.state_dict().items())
    assert model["head"].weight.dtype == model["table"].weight.dtype == torch.bfloat16  # as a module reads it
    assert read_dtype(model["head"], "weight") == read_dtype(model["inner"], "weight") == torch.bfloat16


def test_gradients_reach_the_masters_and_are_those_of_the_rounded_weights():
    model, plain = layers(torch.bfloat16), layers(torch.bfloat16)
    widen(model, model.parameters())
    for one in (model, plain):
        F.cross_entropy(run(one, TOKENS).flatten(0, 1).float(), TOKENS.flatten()).backward()
    for (name, mine), (_, theirs) in zip(model.named_parameters(), plain.named_parameters(), strict=True):
        assert mine.grad.dtype == torch.float32, name  # a shared weight's parts are added up in float32
        torch.testing.assert_close(mine.grad, theirs.grad.float(), rtol=2e-2, atol=1e-3)
    mine, theirs = (dict(one.named_parameters())["inner.weight"].grad for one in (model, plain))
    assert torch.equal(mine, theirs.float())


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_steps_too_small_for_half_precision_add_up(precision):
    """100 steps of 1e-5 on weights of about 1, where neighbours in bfloat16 lie 4e-3 to 8e-3 apart."""
    with torch.autocast("cpu", precision or torch.bfloat16, enabled=precision is not None):
        model = layers(torch.bfloat16)
        widen(model, model["norm"].parameters())
        [weight, _] = model["norm"].parameters()
        for _ in range(100):
            run(model, TOKENS).float().sum().backward()
            with torch.no_grad():
                weight -= 1e-5
    torch.testing.assert_close(weight.detach(), torch.full((4,), 1 - 1e-3))


def test_the_rest_stays_as_it_is():
    model = layers(torch.bfloat16)
    model["inner"].float()
    before = dict(model.named_parameters())
    model["norm"].requires_grad_(False)
    widen(model, [*model["inner"].parameters(), *model["norm"].parameters()])
    after = dict(model.named_parameters())
    assert after["inner.weight"] is before["inner.weight"] and type(model["inner"]) is nn.Linear
    assert after["table.weight"] is before["table.weight"]
    assert after["norm.weight"].dtype == torch.float32 and not after["norm.weight"].requires_grad
    widen(model, model.parameters())  # what is wide already is not touched again
    assert dict(model.named_parameters())["norm.weight"] is after["norm.weight"]
    assert dict(model.named_parameters())["table.weight"].requires_grad


def test_a_module_may_get_masters_one_after_the_other():
    model = layers(torch.bfloat16)
    expected = run(model, TOKENS)
    for parameter in list(model["inner"].parameters()):
        widen(model, [parameter])
    assert {p.dtype for p in model["inner"].parameters()} == {torch.float32} and torch.equal(run(model, TOKENS), expected)


def test_copies_moves_and_loads_go_on_with_their_masters():
    model = layers(torch.bfloat16)
    widen(model, model["inner"].parameters(), partial(torch.zeros_like, dtype=torch.float32))
    assert read_dtype(model["inner"], "weight") == torch.bfloat16
    assert not any(p.any() for p in model["inner"].parameters())
    twin = copy.deepcopy(model)
    state = {name: torch.full_like(value, 0.3) for name, value in model.state_dict().items()}
    model.load_state_dict(state)
    twin.load_state_dict(state, assign=True)
    for one in (model, twin):
        assert one.state_dict()["inner.weight"].dtype == torch.float32 and torch.equal(run(one, TOKENS), run(model, TOKENS))
    shapes = model.to("meta")
    assert run(shapes, TOKENS.to("meta")).dtype == torch.bfloat16 and shapes["inner"].weight.is_meta


def test_masters_can_be_read_as_they_are():
    model = layers(torch.bfloat16)
    classes = [type(module) for module in model.modules()]
    widen(model, model.parameters())
    read_whole(model["inner"])
    assert model["inner"].weight is model["inner"]._parameters["weight"] and read_dtype(model["inner"], "weight") == torch.float32
    assert model["norm"].weight.dtype == torch.bfloat16
    read_whole(model)
    assert [type(module) for module in model.modules()] == classes
