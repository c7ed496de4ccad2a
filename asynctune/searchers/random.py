"""Random search: every configuration is drawn from the space by itself."""

from dataclasses import dataclass
from functools import partial

from asynctune._core import SAMPLE, Stream, Table
from asynctune.searchers.base import Row, Searcher, Suggestion, Uninformed
from asynctune.space import Rows, Space

__all__ = ["BoundRandom", "Random", "draw"]


def draw(table: Table, seed: int, trial: int) -> Row:
    """The row (d,) that a trial gets by chance: the same whatever the number of slots and the order of events."""
    return table.sample(Stream(seed, SAMPLE, trial))


@dataclass(frozen=True)
class Random(Searcher):
    """Random search: each hyperparameter is drawn from its domain.

    Bergstra and Bengio, "Random search for hyper-parameter optimization", JMLR 13 (2012).
    """

    def bind(self, *, space: Space, seed: int, num_trials: int | None, rows: Rows) -> "BoundRandom":
        return BoundRandom(space.table, seed)


class BoundRandom(Uninformed):
    """Random search at work: it has no state."""

    def __init__(self, table: Table, seed: int) -> None:
        self._table = table
        self._seed = seed

    def prepare(self, number: int) -> Suggestion:
        return partial(draw, self._table, self._seed, number)
