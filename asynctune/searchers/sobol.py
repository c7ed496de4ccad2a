"""Sobol search: a scrambled Sobol sequence, which fills the space more evenly than chance, in as many dimensions as columns.

A point follows from the seed and its number alone, so nothing is kept but the blocks of points last computed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib import import_module

import numpy as np

from asynctune._core import SUGGEST, Stream
from asynctune.searchers.base import Row, Searcher, Suggestion, Uninformed
from asynctune.space import Column, Rows, Space, assemble

__all__ = ["BoundSobol", "Sobol"]

_BLOCK = 1024  # points computed at a time, since reaching the first one takes a time that grows with its number
_HALF = 2.0**-31  # of the cell that a coordinate of 30 bits is the lower end of: its middle is neither 0 nor 1


@dataclass(frozen=True)
class Sobol(Searcher):
    """Quasi-random search: trial i gets point i of a Sobol sequence, each coordinate taken to a hyperparameter's quantile.

    Sobol', "On the distribution of points in a cube and the approximate evaluation of integrals", 1967; scrambled by the seed as
    `scipy.stats.qmc.Sobol` does (Matousek, Journal of Complexity 14, 1998), with Joe and Kuo's direction numbers (2008). The
    first 2^k points are balanced: of 8, each eighth of a hyperparameter's domain has one. A hyperparameter that is not active
    leaves its coordinate unused.
    """

    def bind(self, *, space: Space, seed: int, num_trials: int | None, rows: Rows) -> "BoundSobol":
        return BoundSobol(space.columns, Stream(seed, SUGGEST).below(2**31))


class BoundSobol(Uninformed):
    """A Sobol sequence for one study. Its library takes a second to import: slow."""

    def __init__(self, columns: tuple[Column, ...], seed: int) -> None:
        self.preload: Callable[[], object] = _load_library
        self._columns = columns
        self._seed = seed

    def prepare(self, number: int) -> Suggestion:
        return partial(_point, self._columns, self._seed, number)

    def slow(self, number: int) -> bool:
        return True


def _load_library() -> None:
    import_module("scipy.stats.qmc")


def _point(columns: tuple[Column, ...], seed: int, number: int) -> Row:
    """The row (d,) at a point of the sequence."""
    point = _block(len(columns), seed, number // _BLOCK)[number % _BLOCK].tolist()
    return assemble(columns, lambda j, column: column.quantile(point[j] + _HALF))


@lru_cache(maxsize=16)
def _block(dimensions: int, seed: int, number: int) -> Row:
    """The points (_BLOCK, d) from _BLOCK * number on, each coordinate a multiple of 2^-30 in [0, 1)."""
    sequence = import_module("scipy.stats.qmc").Sobol(dimensions, rng=np.random.default_rng(seed))
    if number:
        sequence.fast_forward(_BLOCK * number)
    points: Row = sequence.random(_BLOCK)
    return points
