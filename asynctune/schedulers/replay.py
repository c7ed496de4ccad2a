"""Replay: a schedule of hyperparameters, trained from the beginning."""

import copy
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from asynctune.errors import InvalidArgument, check_integer
from asynctune.records import Action, TrialState
from asynctune.schedulers.base import BoundScheduler, Resumption, Scheduler, Verdict
from asynctune.space import Rows, Space

__all__ = ["Replay"]


@dataclass(frozen=True)
class Replay(Scheduler):
    """Every trial is trained with one schedule, whatever the searcher says: at its steps a trial saves, and goes on from there with
    the next configuration.

    `result.schedule(trial)` is the schedule that a member of a population came by (Jaderberg et al., 2017); trained from the
    beginning, with weights and seeds of its own, it says what the schedule is worth by itself.

    Args:
        schedule: (step, config) pairs; config holds from after that step on. The steps increase, the first is 0.
        max_resource: the step at which a trial completes, an integer > the last step; None: it ends by itself.

    Raises:
        InvalidArgument: an argument breaks its rule, or, when a study binds it, a configuration is not of its space.
    """

    schedule: Sequence[tuple[int, dict[str, Any]]]
    max_resource: int | None = None

    def __post_init__(self) -> None:
        try:
            schedule = tuple((step, copy.deepcopy(config)) for step, config in self.schedule)
        except (TypeError, ValueError):
            raise InvalidArgument(f"schedule must be pairs of a step and a config, got {self.schedule!r}") from None
        if not schedule or schedule[0][0] != 0:
            raise InvalidArgument(f"schedule must begin with a config for step 0, got {self.schedule!r}")
        at_least = 0
        for step, _ in schedule:
            at_least = check_integer("a step of a schedule", step, at_least) + 1
        object.__setattr__(self, "schedule", tuple((int(step), config) for step, config in schedule))
        if self.max_resource is not None:
            object.__setattr__(self, "max_resource", check_integer("max_resource", self.max_resource, at_least))

    def __hash__(self) -> int:
        return hash((tuple(step for step, _ in self.schedule), self.max_resource))

    def bind(
        self,
        *,
        seed: int = 0,
        num_trials: int | None = None,
        num_slots: int | None = None,
        space: Space | None = None,
        rows: Rows | None = None,
    ) -> "BoundReplay":
        if space is None:
            raise InvalidArgument("Replay needs space, to which its configurations belong, got None")
        return BoundReplay(self, space)


class BoundReplay(BoundScheduler):
    """One run's trials, all on one schedule."""

    def __init__(self, spec: Replay, space: Space) -> None:
        self.max_resource: int | None = spec.max_resource
        self.changes_configs = len(spec.schedule) > 1
        self._steps = [step for step, _ in spec.schedule]
        self._rows = [space.encode(config) for _, config in spec.schedule]
        self._due: dict[int, int | None] = {}  # trial -> the step at which it is to change, or ends
        self._scores: dict[int, float] = {}  # of trials that are to change
        self._ready: dict[int, Resumption] = {}

    def initial(self, trial: int) -> npt.NDArray[np.float64]:
        return self._rows[0]

    def begin(self, trial: int) -> int | None:
        return self._set_out(trial, 0)

    def report(self, trial: int, step: int, score: float) -> Verdict:
        if self.max_resource is not None and step >= self.max_resource:
            return Verdict(Action.STOP, None, ())
        due = self._due[trial]
        if due is None or step < due:
            return Verdict(Action.CONTINUE, due, ())
        self._scores[trial] = score
        return Verdict(Action.PAUSE, None, ())

    def retried(self, trial: int, step: int) -> int | None:
        return self._set_out(trial, step)

    def finish(self, trial: int, state: TrialState) -> Sequence[int]:
        for known in (self._due, self._scores, self._ready):
            known.pop(trial, None)
        return ()

    def saved(self, trial: int, step: int, checkpoint: str | None) -> bool:
        if checkpoint is not None:
            score = self._scores.pop(trial)
            self._ready[trial] = Resumption(trial, self._next(step), None, checkpoint, step, score)
        return False

    def resumable(self, warm: int | None = None) -> Resumption | None:
        if not self._ready:
            return None
        return self._ready[warm if warm in self._ready else next(iter(self._ready))]

    def resume(self, resumption: Resumption) -> None:
        del self._ready[resumption.trial]
        self._due[resumption.trial] = resumption.until

    def explore(self, row: npt.NDArray[np.float64], trial: int, segment: int, step: int) -> npt.NDArray[np.float64]:
        return self._rows[bisect_right(self._steps, step) - 1]

    def _set_out(self, trial: int, step: int) -> int | None:
        self._due[trial] = self._next(step)
        return self._due[trial]

    def _next(self, step: int) -> int | None:
        """The first step of the schedule after `step`, else its end."""
        return next((each for each in self._steps if each > step), self.max_resource)
