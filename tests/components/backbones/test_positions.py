"""How positions begin: the places of a grid differ by what their rows, columns and boxes share, told by differences alone."""

from functools import partial
from itertools import product

import pytest
import torch

from components.backbones.positions import Apart, Grid
from components.backbones.recursive_lm import RecursiveLM
from components.backbones.tiny_lm import TinyLM
from components.refiners.recursive_core import RecursiveCore


def seeded():
    return torch.Generator().manual_seed(3)


def filled(begin, seq, dim=96, std=0.5):
    positions = torch.full((seq, dim), torch.nan)
    begin(positions, std, seeded())
    return positions


@pytest.mark.parametrize(("rows", "columns"), [(2, 2), (2, 3), (3, 2), (3, 3)])
def test_cells_share_what_their_units_share(rows, columns):
    size = rows * columns
    places = filled(Grid(rows, columns), size * size, dim=4000, std=0.5)
    shared = 3 * (places @ places.T) / 4000 / 0.5**2  # of unrelated cells 0, and 1 for each unit in common
    for (i, (y, x)), (j, (v, u)) in product(enumerate(product(range(size), repeat=2)), repeat=2):
        in_common = (y == v) + (x == u) + ((y // rows, x // columns) == (v // rows, u // columns))
        assert float(shared[i, j]) == pytest.approx(in_common, abs=0.25)


def test_places_of_a_grid_are_as_large_as_others():
    grid, apart = (filled(begin, 81, dim=512) for begin in (Grid(), Apart()))
    assert float(grid.std()) == pytest.approx(0.5, rel=0.05) and float(apart.std()) == pytest.approx(0.5, rel=0.05)


MODELS = pytest.mark.parametrize(
    "make",
    [
        partial(TinyLM, 10, 81, 16, layers=2, heads=2),
        partial(RecursiveLM, 10, 81, 16, partial(RecursiveCore, heads=2, steps=2)),
    ],
)


@MODELS
def test_a_grid_of_another_size_is_refused_before_weights_are_drawn(make):
    with pytest.raises(ValueError, match=r"a grid of boxes of 2 x 3 has 36 cells, got sequences of 81"):
        make(positions=Grid(2, 3))


@MODELS
def test_models_begin_as_they_are_told_and_say_the_same_of_themselves(make):
    plain, grid = make(), make(positions=Grid())
    for model in (plain, grid):
        model.init_weights(seeded())
    assert grid.architecture == plain.architecture and set(grid.state_dict()) == set(plain.state_dict())
    rows = grid.positions.detach().unflatten(0, (9, 9))
    # along two rows of a band, cells below each other differ by one and the same vector; where nothing is shared they do not
    assert torch.allclose(rows[0, 0] - rows[1, 0], rows[0, 8] - rows[1, 8], atol=1e-6)
    other = plain.positions.detach().unflatten(0, (9, 9))
    assert not torch.allclose(other[0, 0] - other[1, 0], other[0, 8] - other[1, 8], atol=1e-3)
