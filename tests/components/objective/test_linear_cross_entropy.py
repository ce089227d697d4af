import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from components.objective.linear_cross_entropy import CHUNK_ROWS, linear_cross_entropy
from tests.support.watching import Products, largest_made

ROWS, DIM, VOCAB = 37, 8, 23


def make(rows=ROWS, dtype=torch.float64, seed=0, trained=True):
    g = torch.Generator().manual_seed(seed)
    states = torch.randn(rows, DIM, generator=g, dtype=dtype, requires_grad=True)
    head = torch.randn(VOCAB, DIM, generator=g, dtype=dtype, requires_grad=trained)
    targets = torch.randint(VOCAB, (rows,), generator=g)
    return states, head, targets, torch.rand(rows, generator=g, dtype=dtype)


def plain(states, head, targets, weights):
    """All logits at once."""
    return (F.cross_entropy(states @ head.T, targets, reduction="none") * weights).sum()


def close(found, expected, relative):
    scale = expected.abs().max().item() if expected.numel() else 0.0
    return found.shape == expected.shape and (found - expected).abs().max().item() <= relative * scale if scale else True


@pytest.mark.parametrize("chunk", [1, 7, ROWS - 1, ROWS, 1000])
@pytest.mark.parametrize("trained", [True, False], ids=["trained_head", "frozen_head"])
@pytest.mark.parametrize(("dtype", "relative"), [(torch.float64, 1e-14), (torch.float32, 1e-6)])
def test_loss_and_gradients_equal_those_of_all_logits_at_once(dtype, relative, trained, chunk):
    states, head, targets, weights = make(dtype=dtype, trained=trained)
    learn = (states, head) if trained else (states,)
    full = plain(states, head, targets, weights)
    expected = torch.autograd.grad(3 * full, learn)
    loss, _ = linear_cross_entropy(states, head, targets, weights, chunk=chunk)
    assert loss.dtype == dtype and loss.item() == pytest.approx(full.item(), rel=relative)
    for ours, all_at_once in zip(torch.autograd.grad(3 * loss, learn), expected, strict=True):
        assert close(ours, all_at_once, relative)


@pytest.mark.parametrize("trained", [True, False], ids=["trained_bias", "frozen_bias"])
@pytest.mark.parametrize("chunk", [7, 1000])
def test_a_head_may_have_a_bias(chunk, trained):
    states, head, targets, weights = make()
    bias = torch.randn(VOCAB, generator=torch.Generator().manual_seed(5), dtype=states.dtype, requires_grad=trained)
    learn = (states, head, bias) if trained else (states, head)
    full = (F.cross_entropy(states @ head.T + bias, targets, reduction="none") * weights).sum()
    expected = torch.autograd.grad(3 * full, learn)
    loss, right = linear_cross_entropy(states, head, targets, weights, bias=bias, chunk=chunk)
    assert loss.item() == pytest.approx(full.item(), rel=1e-14)
    assert torch.equal(right, (states @ head.T + bias).argmax(1) == targets)
    for ours, all_at_once in zip(torch.autograd.grad(3 * loss, learn), expected, strict=True):
        assert close(ours, all_at_once, 1e-14)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 20), st.integers(1, 25), st.integers(0, 5), st.floats(0, 30))
def test_any_number_of_rows_and_any_size_of_logits(rows, chunk, seed, size):
    states, head, targets, weights = make(rows, seed=seed)
    states = (states.detach() * size).requires_grad_()
    full = plain(states, head, targets, weights)
    expected = torch.autograd.grad(full, (states, head))
    loss, _ = linear_cross_entropy(states, head, targets, weights, chunk=chunk)
    assert loss.item() == pytest.approx(full.item(), rel=1e-12, abs=1e-13)
    for ours, all_at_once in zip(torch.autograd.grad(loss, (states, head)), expected, strict=True):
        torch.testing.assert_close(ours, all_at_once, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("size", [1e3, 1e30])
def test_logits_that_overflow_an_exponential_leave_loss_and_gradient_finite(size):
    states, head, targets, weights = make(dtype=torch.float32)
    loss, _ = linear_cross_entropy(states * size, head, targets, weights)
    loss.backward()
    assert loss.isfinite() and head.grad.isfinite().all()


def test_a_gradient_computed_by_finite_differences_is_the_same():
    states, head, targets, weights = make(5)
    assert torch.autograd.gradcheck(lambda s, h: linear_cross_entropy(s, h, targets, weights, chunk=2)[0], (states, head))


def test_no_rows_at_all_cost_nothing_and_have_a_gradient_of_zero():
    states, head, targets, weights = make(0)
    loss, right = linear_cross_entropy(states, head, targets, weights)
    loss.backward()
    assert loss.item() == 0 and right.shape == (0,) and states.grad.shape == (0, DIM) and not head.grad.any()


def test_rows_of_weight_zero_are_left_out():
    states, head, targets, weights = make()
    some = torch.arange(ROWS) % 3 > 0
    loss, _ = linear_cross_entropy(states, head, targets, weights * some, chunk=5)
    without, _ = linear_cross_entropy(states[some], head, targets[some], weights[some])
    assert loss.item() == pytest.approx(without.item(), rel=1e-14)
    to_rows, to_head = torch.autograd.grad(loss, (states, head))
    assert not to_rows[~some].any() and to_rows[some].abs().min() > 0
    torch.testing.assert_close(to_head, torch.autograd.grad(without, head)[0], rtol=1e-12, atol=1e-14)


def test_right_is_where_the_target_has_the_largest_logit():
    states, head, targets, weights = make(400)
    _, right = linear_cross_entropy(states, head, targets, weights, chunk=7)
    expected = (states @ head.T).argmax(1) == targets
    assert torch.equal(right, expected) and expected.any() and not right.requires_grad


def test_values_do_not_depend_on_whether_a_gradient_is_wanted():
    arguments = make()
    with torch.no_grad():
        loss, right = linear_cross_entropy(*arguments)
    wanted, again = linear_cross_entropy(*arguments)
    assert torch.equal(loss, wanted.detach()) and torch.equal(right, again) and not loss.requires_grad


@pytest.mark.parametrize("trained", [True, False], ids=["trained_head", "frozen_head"])
def test_under_autocast_loss_and_gradients_are_close(trained):
    states, head, targets, weights = make(200, dtype=torch.float32, trained=trained)
    learn = (states, head) if trained else (states,)
    full = plain(states, head, targets, weights)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = linear_cross_entropy(states, head, targets, weights, chunk=32)
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(full.item(), rel=1e-2)
    pairs = zip(torch.autograd.grad(loss, learn), torch.autograd.grad(full, learn), strict=True)
    for ours, all_at_once in pairs:
        assert ours.dtype == torch.float32 and close(ours, all_at_once, 0.03)


# What it costs


@pytest.mark.parametrize("trained", [True, False], ids=["trained_head", "frozen_head"])
@pytest.mark.parametrize("chunk", [1, 8, 64])
def test_logits_exist_for_a_chunk_of_rows_at_a_time(chunk, trained):
    arguments = make(600, trained=trained)
    with largest_made() as largest:
        linear_cross_entropy(*arguments, chunk=chunk)[0].backward()
    assert largest() <= max(chunk * VOCAB, 600 * DIM, VOCAB * DIM) < 600 * VOCAB
    with largest_made() as largest:
        plain(*arguments).backward()
    assert largest() == 600 * VOCAB


def test_the_default_chunk_bounds_a_large_batch():
    assert CHUNK_ROWS == 512
    with largest_made() as largest:
        linear_cross_entropy(*make(3000))[0].backward()
    assert largest() <= max(CHUNK_ROWS * VOCAB, 3000 * DIM)


@pytest.mark.parametrize("trained", [True, False], ids=["trained_head", "frozen_head"])
def test_products_are_two_a_chunk_and_three_for_a_trained_head(trained):
    arguments = make(40, trained=trained)
    with Products(VOCAB) as products:
        linear_cross_entropy(*arguments, chunk=10)[0].backward()
    assert products.count == 4 * (3 if trained else 2)


def test_without_a_gradient_there_is_one_product_a_chunk():
    with torch.no_grad(), Products(VOCAB) as products:
        linear_cross_entropy(*make(40), chunk=10)
    assert products.count == 4


def saved(work):
    """Shapes of what ``work`` keeps for its backward pass."""
    shapes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: shapes.append(tuple(tensor.shape)) or tensor, lambda t: t):
        work()
    return shapes


def test_only_tensors_of_the_rows_and_the_heads_size_survive():
    assert sorted(saved(lambda: linear_cross_entropy(*make(100)))) == [(VOCAB, DIM), (100, DIM)]
    assert saved(lambda: linear_cross_entropy(*make(100, trained=False))) == [(100, DIM)]


@pytest.mark.parametrize("trained", [True, False], ids=["trained_head", "frozen_head"])
def test_what_is_not_computed_leaves_zeros_and_a_graph_of_the_same_shape(trained):
    arguments = make(trained=trained)
    with Products(VOCAB) as products:
        loss, right = linear_cross_entropy(*arguments, compute=False)
    assert loss.item() == 0 and loss.requires_grad and not right.any() and right.shape == (ROWS,) and products.count == 0
    computed = saved(lambda: linear_cross_entropy(*arguments))
    assert saved(lambda: linear_cross_entropy(*arguments, compute=False)) == computed
