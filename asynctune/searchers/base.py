"""Searcher: what a study asks of a search method.

A searcher is a specification: immutable, comparable, checked when made. `bind` makes the object with state that one study owns.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt

from asynctune.records import TrialState
from asynctune.space import Rows, Space

__all__ = ["FINAL", "BoundSearcher", "Row", "Searcher", "Suggestion", "Uninformed"]

#: The level of a final value where trials end by themselves: above that of every step, however far a trial went.
FINAL = 2**62

Row = npt.NDArray[np.float64]
Suggestion = Callable[[], Row]
"""A picklable call that returns a row (d,). Everything it needs is inside: it may run here, in a thread, or in another process."""


class BoundSearcher(Protocol):
    """A search method at work for one study. Scores are oriented: larger is better.

    What was observed before the run counts as trials before the first, -1 the last of them.
    """

    @property
    def preload(self) -> Callable[[], object] | None:
        """A picklable call that gets another process ready for slow suggestions, such as an import; None: there are no slow ones."""

    def prepare(self, number: int) -> Suggestion:
        """The suggestion with a number, from 0 on, for the next trial, made of what is known now."""

    def slow(self, number: int) -> bool:
        """Whether the call that `prepare` would return now may take more than a millisecond."""

    def started(self, trial: int) -> None:
        """A trial exists now, and has its row."""

    def observe(self, trial: int, level: int, score: float) -> None:
        """A trial's score at a level, once: after a step, or `FINAL`. A larger level is closer to the end."""

    def ended(self, trial: int, state: TrialState) -> None:
        """No more observations of a trial will come: it is COMPLETED, STOPPED or FAILED."""


class Uninformed:
    """What a search method does that learns nothing from a trial."""

    preload: Callable[[], object] | None = None

    def slow(self, number: int) -> bool:
        return False

    def started(self, trial: int) -> None:
        pass

    def observe(self, trial: int, level: int, score: float) -> None:
        pass

    def ended(self, trial: int, state: TrialState) -> None:
        pass


class Searcher(ABC):
    """A search method and its parameters."""

    def size(self, space: Space) -> int | None:
        """How many configurations of a space there are to suggest; None: there is always another."""
        return None

    @abstractmethod
    def bind(self, *, space: Space, seed: int, num_trials: int | None, rows: Rows) -> BoundSearcher:
        """The method at work for one study; num_trials is None where only time limits it.

        `rows` are the configurations of all trials so far, which the study keeps: a searcher looks them up and needs none of its own.
        """
