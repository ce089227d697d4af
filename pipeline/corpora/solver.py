"""Reference solver of puzzles: rounds of singles, then guesses; what it takes is a puzzle's stated difficulty.

A state is one integer, whose bit ``value * cells + cell`` tells whether the value may stand in the cell. Every rule ("a cell holds
one value", "a row holds each value once" ...) asks one bit of a set of bits, and all sets of a kind are shifts of each other: 9x9
puzzles have 324 of them, which a round looks at by 36 shifts.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_


@dataclass(frozen=True)
class Search:
    """Result of a search for a solution, and its steps.

    Attributes:
        solved: there is one.
        rounds: rounds in which at least one single was placed, those after wrong guesses included.
        guesses: values tried where no single was left, right and wrong ones.
    """

    solved: bool
    rounds: int
    guesses: int


class Solver:
    """Solver for one shape of puzzle: boxes of ``rows`` x ``columns`` cells, in a square of as many rows as a box has cells.

    A round places every single that the clues and the rounds before leave: a cell for which one value remains (naked), a value for
    which one cell of a row, column or box remains (hidden). Where there is none, values are tried in ascending order in the first
    cell, by rows, of those with the fewest candidates.
    """

    def __init__(self, rows: int, columns: int) -> None:
        size = rows * columns
        n = range(size)
        self.cells = size * size

        def bits(values: Sequence[int], ys: Sequence[int], xs: Sequence[int]) -> int:
            return sum(1 << (value * self.cells + y * size + x) for value in values for y in ys for x in xs)

        self._all = bits(n, n, n)
        box = [y * size + x for y in range(rows) for x in range(columns)]
        self._rules = (  # the first bit of every set, and where the others lie from there
            (bits([0], n, n), [value * self.cells for value in n]),
            (bits(n, n, [0]), [*n]),
            (bits(n, [0], n), [y * size for y in n]),
            (bits(n, range(0, size, rows), range(0, size, columns)), box),
        )
        sets = [sum(1 << first + s for s in shifts) for firsts, shifts in self._rules for first in _places(firsts)]
        self._placed = [  # what remains possible when a value is placed in a cell
            self._all & ~reduce(or_, (each for each in sets if each >> bit & 1)) | 1 << bit for bit in range(size * self.cells)
        ]

    def search(self, puzzle: Sequence[int | None], without: tuple[int, int] | None = None) -> Search:
        """Look for a solution of a puzzle and count the steps.

        Args:
            puzzle: values by cell, None where empty.
            without: (cell, value) that it may not have: there is then one only if the solution that has it is not the only one.
        """
        rounds, guesses = 0, -1
        for possible, taken in self._states(*self._given(puzzle, without)):
            rounds, guesses = rounds + taken, guesses + 1
            if possible.bit_count() == self.cells:
                return Search(True, rounds, guesses)
        return Search(False, rounds, guesses)

    def solutions(self, puzzle: Sequence[int | None], limit: int, guesses: int) -> list[tuple[int, ...]]:
        """List up to ``limit`` solutions of a puzzle, in the order in which a search finds them.

        Args:
            puzzle: values by cell, None where empty.
            limit: solutions at most.
            guesses: values that are tried at most.

        Raises:
            TimeoutError: these were not enough to find so many solutions or to know that there are no more.
        """
        grids: list[tuple[int, ...]] = []
        for number, (possible, _) in enumerate(self._states(*self._given(puzzle))):
            if number > guesses:
                raise TimeoutError(f"{guesses:,} guesses are not enough")
            if possible.bit_count() == self.cells:
                grids.append(
                    tuple(value for _, value in sorted((bit % self.cells, bit // self.cells) for bit in _places(possible)))
                )
            if len(grids) == limit:
                break
        return grids

    def _given(self, puzzle: Sequence[int | None], without: tuple[int, int] | None = None) -> tuple[int, int]:
        """What is possible once the clues are placed, and the clues."""
        possible = self._all if without is None else self._all & ~(1 << without[1] * self.cells + without[0])
        clues = 0
        for cell, value in enumerate(puzzle):
            if value is not None:
                bit = value * self.cells + cell
                possible, clues = possible & self._placed[bit], clues | 1 << bit
        return possible, clues

    def _states(self, possible: int, placed: int) -> Iterator[tuple[int, int]]:
        """Every state that a search comes to when no single is left, in order: what is possible then (0 = a contradiction), and the
        rounds that led there from the state before.
        """
        stack = [(possible, placed)]
        while stack:
            possible, placed, taken = self._singles(*stack.pop())
            yield possible, taken
            if possible and possible.bit_count() != self.cells:
                stack += [(possible & self._placed[bit], placed) for bit in reversed(self._branches(possible))]

    def _singles(self, possible: int, placed: int) -> tuple[int, int, int]:
        """Place singles until none is left; returns what is possible then (0 = a contradiction), what is placed, and rounds."""
        rounds = 0
        while True:
            singles = 0
            for firsts, shifts in self._rules:
                once = twice = 0
                for shift in shifts:
                    here = possible >> shift & firsts
                    twice |= once & here
                    once |= here
                if once != firsts:
                    return 0, placed, rounds
                for shift in shifts if (alone := once & ~twice) else ():
                    singles |= alone << shift
            singles &= possible & ~placed
            if not singles:
                return possible, placed, rounds
            rounds, placed = rounds + 1, placed | singles
            for bit in _places(singles):
                possible &= self._placed[bit]

    def _branches(self, possible: int) -> list[int]:
        """The candidates of the first cell that has fewest, but several."""
        of_cells = ([b for b in range(cell, self._all.bit_length(), self.cells) if possible >> b & 1] for cell in range(self.cells))
        return min((candidates for candidates in of_cells if len(candidates) > 1), key=len)


def _places(bits: int) -> list[int]:
    """Places of the bits that are set, ascending."""
    places = []
    while bits:
        low = bits & -bits
        places.append(low.bit_length() - 1)
        bits ^= low
    return places
