"""Median stopping: a trial stops that has never been as good as trials are on average.

Golovin et al., Google Vizier: A Service for Black-Box Optimization, KDD 2017, section 3.2.2.
"""

import math
from array import array
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappush, heappushpop

from asynctune.errors import InvalidArgument, check_integer
from asynctune.records import COMPLETED, Action, TrialState
from asynctune.schedulers.base import BoundScheduler, Scheduler, Verdict
from asynctune.space import Rows, Space

__all__ = ["MedianStopping"]


@dataclass(frozen=True)
class MedianStopping(Scheduler):
    """The median stopping rule: a trial stops after a step if its best value so far is strictly worse than the median of the running
    averages, up to that step, of the trials that have completed.

    Trials that were stopped, by whomever, or failed are not among them. Nothing pauses, so nothing has to be saved.

    Args:
        grace_period: no trial stops before this step, an integer >= 1.
        min_samples: nor before so many completed trials have an average there, an integer >= 1.
        interval: steps from one decision to the next, an integer >= 1. Decisions are due at the multiples of it.
        max_resource: the step at which a trial completes, an integer >= 1; None: it ends by itself.

    Raises:
        InvalidArgument: an argument breaks its rule.
    """

    grace_period: int = 1
    min_samples: int = 3
    interval: int = 1
    max_resource: int | None = None

    def __post_init__(self) -> None:
        for name in ("grace_period", "min_samples", "interval"):
            object.__setattr__(self, name, check_integer(name, getattr(self, name), at_least=1))
        if self.max_resource is not None:
            object.__setattr__(self, "max_resource", check_integer("max_resource", self.max_resource, at_least=1))
            if self.grace_period > self.max_resource:
                raise InvalidArgument(
                    f"grace_period must be <= max_resource = {self.max_resource}, got {self.grace_period}"
                )

    def bind(
        self,
        *,
        seed: int = 0,
        num_trials: int | None = None,
        num_slots: int | None = None,
        space: Space | None = None,
        rows: Rows | None = None,
    ) -> "BoundMedianStopping":
        return BoundMedianStopping(self)


class _Median:
    """The median of numbers that come one by one, O(log n) each: the smaller half and the larger one, as heaps."""

    __slots__ = ("larger", "smaller")

    def __init__(self) -> None:
        self.smaller: list[float] = []  # negated; as many as the larger ones, or one more
        self.larger: list[float] = []

    def __len__(self) -> int:
        return len(self.smaller) + len(self.larger)

    def add(self, number: float) -> None:
        if len(self.smaller) == len(self.larger):
            heappush(self.smaller, -heappushpop(self.larger, number))
        else:
            heappush(self.larger, -heappushpop(self.smaller, -number))

    def value(self) -> float:
        if len(self.smaller) > len(self.larger):
            return -self.smaller[0]
        return self.larger[0] / 2 - self.smaller[0] / 2  # halves first: their sum may be more than a float holds


class _Curve:
    """What is known of a trial that has not ended."""

    __slots__ = ("averages", "best", "count", "levels", "step", "stopped", "total")

    def __init__(self) -> None:
        self.step = 0  # the highest that it has reported
        self.count = 0
        self.total = 0.0  # of the scores; -inf once one is not finite
        self.best = -math.inf
        self.levels = array("q")  # where decisions were due, and its running averages there
        self.averages = array("d")
        self.stopped = False

    def add(self, step: int, score: float) -> None:
        self.step = step
        self.count += 1
        if math.isfinite(score):
            self.total += score
            self.best = max(self.best, score)
        else:
            self.total = -math.inf


class BoundMedianStopping(BoundScheduler):
    """One run's medians. What is reported between two decisions counts in the averages; what a retry repeats counts once."""

    def __init__(self, spec: MedianStopping) -> None:
        self.max_resource: int | None = spec.max_resource
        self._interval = spec.interval
        self._first = -(-spec.grace_period // spec.interval) * spec.interval
        self._min_samples = spec.min_samples
        self._curves: dict[int, _Curve] = {}
        self._medians: defaultdict[int, _Median] = defaultdict(_Median)  # by level: of the trials that completed

    def begin(self, trial: int) -> int:
        self._curves[trial] = _Curve()
        return self._due(0)

    def report(self, trial: int, step: int, score: float) -> Verdict:
        curve = self._curves[trial]
        level = self.level(step)
        new = level > curve.step
        if step > curve.step:
            curve.add(step, score)
        if new:
            curve.levels.append(level)
            curve.averages.append(curve.total / curve.count)
            curve.stopped = curve.stopped or self._is_worse(curve.best, level)
        recorded = (level,) if new else ()
        if curve.stopped or level == self.max_resource:
            return Verdict(Action.STOP, None, recorded)
        return Verdict(Action.CONTINUE, self._due(curve.step), recorded)

    def retried(self, trial: int, step: int) -> int:
        return self._due(self._curves[trial].step)

    def finish(self, trial: int, state: TrialState) -> Sequence[int]:
        curve = self._curves.pop(trial)
        if state is COMPLETED:
            for level, average in zip(curve.levels, curve.averages, strict=True):
                self._medians[level].add(average)
        return ()

    def level(self, step: int) -> int:
        if self.max_resource is not None and step >= self.max_resource:
            return self.max_resource
        level = step // self._interval * self._interval
        return level if level >= self._first else 0

    def _due(self, step: int) -> int:
        """The step after `step` at which the next decision is due."""
        due = max(self._first, (step // self._interval + 1) * self._interval)
        return due if self.max_resource is None else min(due, self.max_resource)

    def _is_worse(self, best: float, level: int) -> bool:
        if level == self.max_resource or level not in self._medians:
            return False
        median = self._medians[level]
        return len(median) >= self._min_samples and best < median.value()
