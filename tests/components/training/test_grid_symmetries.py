"""Symmetries of grid puzzles, against the rules written out: what comes out is a puzzle of as many clues and solutions."""

from itertools import permutations, product

import pytest
import torch

from components import noise
from components.training.grid_symmetries import boxes, grid_symmetries

BOXES = {16: (2, 2), 36: (2, 3), 81: (3, 3)}


def solved(cells):
    """A grid by shifting rows, as text books do."""
    height, width = BOXES[cells]
    size = height * width
    return torch.tensor([(width * (row % height) + row // height + column) % size for row in range(size) for column in range(size)])


def keeps_rules(grid, height, width):
    size = height * width
    at = {(row, column): grid[row * size + column] for row in range(size) for column in range(size)}
    units = [{at[row, column] for column in range(size)} for row in range(size)]
    units += [{at[row, column] for row in range(size)} for column in range(size)]
    units += [
        {at[top + y, left + x] for y in range(height) for x in range(width)}
        for top in range(0, size, height) for left in range(0, size, width)
    ]  # fmt: skip
    return all(unit == set(range(size)) for unit in units)


def drawn(cells, rows, seed=0):
    tokens = solved(cells).int().expand(rows, -1)
    response = noise.uniform(1, 1, torch.arange(rows), cells) < 0.6
    return tokens, response, grid_symmetries(tokens, response, noise.uniform(seed, 0, torch.arange(rows), cells + 1))


@pytest.mark.parametrize("cells", BOXES)
def test_what_comes_out_keeps_the_rules_and_has_as_many_clues(cells):
    tokens, response, (made, hidden) = drawn(cells, 200)
    assert all(keeps_rules(grid, *BOXES[cells]) for grid in made.tolist())
    assert hidden.sum(1).tolist() == response.sum(1).tolist() and made.dtype == tokens.dtype
    assert len({tuple(grid) for grid in made.tolist()}) > 80 and boxes(cells)[1:] == BOXES[cells]


def test_a_puzzle_has_as_many_solutions_as_before():
    """Counted over all 288 grids of 4x4, which the symmetries of the rules must find too."""
    grids = [g for rows in product(permutations(range(4)), repeat=4) if keeps_rules(g := [c for row in rows for c in row], 2, 2)]
    assert len(grids) == 288

    def solutions(grid, hidden):
        return sum(all(h or a == b for a, b, h in zip(grid, other, hidden, strict=True)) for other in grids)

    tokens, response, (made, hidden) = drawn(16, 60)
    before, after = (
        [solutions(*pair) for pair in zip(a.tolist(), b.tolist(), strict=True)] for a, b in ((tokens, response), (made, hidden))
    )
    assert before == after and {1, 2} < set(before)


@pytest.mark.parametrize("cells", BOXES)
def test_it_is_the_symmetry_that_the_noise_says_cell_by_cell(cells):
    """Written out: noise ranks digits, rows, columns, bands and stacks; what ranks first comes first; the last number turns."""
    height, width = BOXES[cells]
    size = height * width
    tokens, response, (made, hidden) = drawn(cells, 50)
    numbers = noise.uniform(0, 0, torch.arange(50), cells + 1).tolist()

    def order(groups, lines, per_group):
        return [
            line
            for group in ranked(groups)
            for line in sorted(range(group * per_group, (group + 1) * per_group), key=lines.__getitem__)
        ]

    def ranked(keys):
        return sorted(range(len(keys)), key=keys.__getitem__)

    for row, keys in enumerate(numbers):
        parts = []
        for n in (size, size, size, width, height, 1):
            parts.append(keys[:n])
            keys = keys[n:]
        digits, rows, columns, bands, stacks, (turn,) = parts
        digits, rows, columns = ranked(digits), order(bands, rows, height), order(stacks, columns, width)
        for y, x in product(range(size), repeat=2):
            a, b = (x, y) if turn < 0.5 and height == width else (y, x)
            source = rows[a] * size + columns[b]
            assert int(made[row, y * size + x]) == digits[int(tokens[row, source])]
            assert bool(hidden[row, y * size + x]) == bool(response[row, source])


def test_every_grid_of_a_kind_is_reached():
    """The 288 grids of 4x4 are of two kinds; each is one orbit of the symmetries."""
    reached = {start: {tuple(grid) for grid in images(start)} for start in ("1234341221434321", "1234341223414123")}
    assert sorted(map(len, reached.values())) == [96, 192] and not set.intersection(*reached.values())


def images(start, rows=8000):
    grid = torch.tensor([int(cell) - 1 for cell in start]).expand(rows, -1)
    return grid_symmetries(grid, grid > 0, noise.uniform(0, 0, torch.arange(rows), 17))[0].tolist()


@pytest.mark.parametrize("cells", [15, 25, 4, 256 + 1, 1])
def test_what_is_no_grid_of_boxes_is_refused(cells):
    with pytest.raises(
        ValueError, match=f"expected a grid of size x size cells with boxes, such as 16, 36 or 81 cells, got {cells}"
    ):
        boxes(cells)
