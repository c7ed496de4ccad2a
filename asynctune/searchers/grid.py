"""Grid search: every combination of the hyperparameters' values, in a fixed order.

What is beside a `choice` multiplies with it, its branches add up: so no combination comes twice, and how many there are, and the
i-th of them, follow from the number of combinations within each branch, without a list of them all.
"""

import math
from bisect import bisect_right
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

import numpy as np

from asynctune._core import CHOICE, LOG, NORMAL, ORDINAL
from asynctune.errors import InvalidArgument, check_integer
from asynctune.searchers.base import Row, Searcher, Suggestion, Uninformed
from asynctune.space import Column, Rows, Space, nearest

__all__ = ["BoundGrid", "Grid"]

_OUTSIDE = (-1, -1)  # the parent and branch of a column that is always active


@dataclass(frozen=True)
class Grid(Searcher):
    """Grid search: trial i gets the i-th combination, the last hyperparameter changing fastest.

    A `choice` and an `ordinal` take all their values; integers and multiples of q, too, if they are at most `points`. Other
    numbers take `points` values, both ends among them, evenly spaced: in the logarithm if the domain is logarithmic, and
    `normal` in probability, at (k + 1/2) / points for k = 0, 1, .... Values that rounding makes equal count once.

    `num_trials=None` means the whole grid. Fewer trials than it has get the first ones of the order; more are refused.

    Args:
        points: how many values a number takes at most, >= 1. The only one of 1 is in the middle.

    Raises InvalidArgument if it is out of range; a study does if the grid has 2**63 combinations or more.
    """

    points: int = 10

    def __post_init__(self) -> None:
        check_integer("points", self.points, at_least=1)

    def size(self, space: Space) -> int:
        size = BoundGrid(space.columns, self.points).size
        if size >= 2**63:
            raise InvalidArgument(f"a grid must have fewer than 2**63 combinations, got {size}: points={self.points}")
        return size

    def bind(self, *, space: Space, seed: int, num_trials: int | None, rows: Rows) -> "BoundGrid":
        return BoundGrid(space.columns, self.points)


class BoundGrid(Uninformed):
    """The grid of one study; size: the number of its combinations."""

    def __init__(self, columns: tuple[Column, ...], points: int) -> None:
        self._values = [_values(column, points) for column in columns]
        self._inside: dict[tuple[int, float], list[int]] = {}  # a parent and its branch -> their columns
        for j, column in enumerate(columns):
            self._inside.setdefault((column.parent, column.branch), []).append(j)
        #: By column, where the combinations of each value begin among those of all; then, where the last one's end.
        self._starts: list[list[int]] = [[] for _ in columns]
        for j in reversed(range(len(columns))):  # children before parents
            sizes = [self._size(j, value) for value in self._values[j]]
            self._starts[j] = list(accumulate(sizes, initial=0))
        self.size = self._size(*_OUTSIDE)

    def prepare(self, number: int) -> Suggestion:
        return partial(self._row, number)

    def _row(self, index: int) -> Row:
        """The combination (d,) at an index, 0 <= index < size."""
        row = np.full(len(self._values), math.nan)
        self._fill(row, *_OUTSIDE, index)
        return row

    def _fill(self, row: Row, parent: int, branch: float, index: int) -> None:
        for j in reversed(self._inside.get((parent, branch), ())):
            starts = self._starts[j]
            index, within = divmod(index, starts[-1])
            k = bisect_right(starts, within) - 1
            row[j] = value = self._values[j][k]
            self._fill(row, j, value, within - starts[k])

    def _size(self, parent: int, branch: float) -> int:
        """How many combinations there are of what a branch switches on."""
        return math.prod(self._starts[j][-1] for j in self._inside.get((parent, branch), ()))


def _values(column: Column, points: int) -> tuple[float, ...]:
    """What a hyperparameter is tried at, in rising order."""
    low, high, step = column.low, column.high, column.step
    if column.kind == NORMAL:
        return tuple(column.quantile((k + 0.5) / points) for k in range(points))
    if step:
        first, last = column.steps
        if last - first < points or column.kind in (CHOICE, ORDINAL):
            return tuple(nearest(k * step, low, high, step) for k in range(first, last + 1))
    parts = [k / (points - 1) for k in range(points)] if points > 1 else [0.5]
    if column.kind == LOG:
        spaced = [low ** (1 - part) * high**part for part in parts]
    else:
        spaced = [(1 - part) * low + part * high for part in parts]
    return tuple(dict.fromkeys(nearest(value, low, high, step) for value in spaced))
