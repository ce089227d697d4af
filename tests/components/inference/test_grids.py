"""Grids that keep the rules, against the rules written with sets."""

from itertools import product

import pytest
import torch

from components.inference.grids import keeps_rules

BOXES = {4: (2, 2), 6: (2, 3), 9: (3, 3)}


def solved(size):
    """A grid by shifting its first row."""
    height, width = BOXES[size]
    return [(width * (row % height) + row // height + column) % size for row in range(size) for column in range(size)]


def plain(grid, size):
    height, width = BOXES[size]
    rows = [grid[i * size : (i + 1) * size] for i in range(size)]
    boxes = [
        [rows[top + y][left + x] for y in range(height) for x in range(width)]
        for top, left in product(range(0, size, height), range(0, size, width))
    ]
    return all(set(unit) == set(range(size)) for unit in (*rows, *zip(*rows, strict=True), *boxes))


@pytest.mark.parametrize("size", BOXES)
def test_a_grid_keeps_the_rules_exactly_where_sets_say_so(size):
    grid, generator = solved(size), torch.Generator().manual_seed(0)
    swapped = [grid[size : 2 * size] + grid[:size] + grid[2 * size :], grid[-size:] + grid[size:-size] + grid[:size]]
    changed = [[*grid[:at], (grid[at] + 1) % size, *grid[at + 1 :]] for at in range(size * size)]
    noise = torch.randint(size + 1, (20, size * size), generator=generator).tolist()
    grids = [grid, *swapped, *changed, *noise]
    expected = [plain(one, size) for one in grids]
    assert keeps_rules(torch.tensor(grids), *BOXES[size]).tolist() == expected
    assert expected[0] and expected[1] and not any(expected[3:])
