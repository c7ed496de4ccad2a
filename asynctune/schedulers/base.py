"""Scheduler: the specification that a person writes, and the bound object that one study owns."""

import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from asynctune.errors import InvalidArgument
from asynctune.records import Action, TrialState
from asynctune.space import Rows, Space

__all__ = ["BoundScheduler", "Resumption", "Scheduler", "Verdict", "highest"]


class Verdict(NamedTuple):
    """The answer to a report. It takes effect only if a decision was due at that step."""

    action: Action
    until: int | None  # CONTINUE: the step at which the next decision is due; None: never
    recorded: Sequence[int]  # the levels, in steps, at which this score now counts


class Resumption(NamedTuple):
    """A paused trial that may go on: unchanged, or, with a checkpoint, from there with the configuration that `explore` makes."""

    trial: int
    until: int | None  # the step at which its next decision is due; None: never
    donor: int | None = None  # whose checkpoint it is; None: its own
    checkpoint: str | None = None
    step: int = 0  # the step after which that was saved
    score: float = -math.inf  # the oriented score with it, which is now the trial's


class Scheduler(ABC):
    """A specification: immutable, checked when made, comparable. It carries nothing from one run to the next."""

    @abstractmethod
    def bind(
        self,
        *,
        seed: int = 0,
        num_trials: int | None = None,
        num_slots: int | None = None,
        space: Space | None = None,
        rows: Rows | None = None,
    ) -> "BoundScheduler":
        """The object with state that one study owns. Scores are oriented: larger is better.

        `rows` is the study's table of all configurations, which it looks up and does not copy.

        Raises:
            InvalidArgument: the scheduler needs what was not given.
        """


class BoundScheduler(ABC):
    """What a study asks. Synchronous and deterministic; one loop owns it.

    Here is what a scheduler does that never pauses a trial, holds no checkpoint and changes no configuration.
    """

    #: The step at which a trial completes, or None.
    max_resource: int | None = None
    #: Whether a free slot takes a new trial before a paused one.
    new_first: ClassVar[bool] = False
    #: Whether the number of trials is part of the method, and cannot be raised later.
    fixed_population: ClassVar[bool] = False
    #: Whether a trial may go on with another configuration than it began with.
    changes_configs: bool = False

    def initial(self, trial: int) -> npt.NDArray[np.float64] | None:
        """The row (d,) with which a new trial begins; None: the searcher says."""
        return None

    @abstractmethod
    def begin(self, trial: int) -> int | None:
        """A new trial starts at step 0. Return the step at which its first decision is due; None: never."""

    @abstractmethod
    def report(self, trial: int, step: int, score: float) -> Verdict:
        """A trial's oriented score after a step. At `max_resource` and beyond the action is STOP: the trial is complete."""

    def level(self, step: int) -> int:
        """The highest level, in steps, that a trial has reached after `step`; 0 if there is none."""
        return 0

    @abstractmethod
    def retried(self, trial: int, step: int) -> int | None:
        """The trial failed and starts again after `step`. Return the step at which its next decision is due."""

    @abstractmethod
    def finish(self, trial: int, state: TrialState) -> Sequence[int]:
        """The trial has ended for good: it is COMPLETED, STOPPED or FAILED. Return the levels at which it now counts as the worst."""

    def saved(self, trial: int, step: int, checkpoint: str | None) -> bool:
        """The trial has paused, its state after `step` on disk as `checkpoint` (None: nowhere).

        Return whether a decision on another trial may need the checkpoint: then `released` names it some day.
        """
        return False

    def resumable(self, warm: int | None = None) -> Resumption | None:
        """The paused trial that may go on now, or None. Changes nothing.

        `warm` is the paused trial whose process the asking slot still holds: taken among equals.
        """
        return None

    def resume(self, resumption: Resumption) -> None:
        """It goes on: carries out what `resumable` offered."""
        raise InvalidArgument(f"this scheduler offers no resumption, got {resumption}")

    def explore(self, row: npt.NDArray[np.float64], trial: int, segment: int, step: int) -> npt.NDArray[np.float64]:
        """The row (d,) of a trial's new segment, after `step`, made of the one that its checkpoint was trained with."""
        return row

    def released(self) -> Sequence[str]:
        """The checkpoints held since `saved` that no decision can need any more, each once, since the last call."""
        return ()


def highest(levels: Sequence[int], step: int) -> int:
    """The highest of the levels, ascending, that is at most `step`; 0 if there is none."""
    rung = bisect_right(levels, step)
    return levels[rung - 1] if rung else 0
