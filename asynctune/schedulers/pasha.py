"""PASHA: ASHA whose highest rung opens only when it is needed.

Bohdal et al., PASHA: Efficient HPO and NAS with Progressive Resource Allocation, ICLR 2023 (arXiv:2207.06940).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from asynctune.records import TrialState
from asynctune.schedulers.asha import ASHA
from asynctune.schedulers.base import BoundScheduler, Resumption, Scheduler, Verdict
from asynctune.space import Rows, Space

__all__ = ["PASHA"]

#: N of the paper's estimate of epsilon, its default.
_PERCENTILE = 90


@dataclass(frozen=True)
class PASHA(Scheduler):
    """Progressive ASHA: of ASHA's rungs (`type="promotion"`) only the lowest two are open at first. The next one opens when the
    two highest that are open do not rank the trials of the higher one alike.

    Ranks are soft: a trial may be at a place if its score at the lower rung is within epsilon of the one whose place that was. Epsilon is
    the 90th percentile of the distances, at the higher rung, between trials whose curves have crossed there and back.

    Trials at the highest open rung stay paused there, so it may be that none completes: the best is then that at the highest step.

    Args:
        max_resource: the step at which a trial completes, an integer >= 1, if the last rung opens.
        min_resource: the step of the lowest rung, 1 <= min_resource <= max_resource. The rungs are those of `ASHA`.
        reduction_factor: an integer >= 2.

    Raises:
        InvalidArgument: an argument breaks its rule.
    """

    max_resource: int
    min_resource: int = 1
    reduction_factor: int = 3

    def __post_init__(self) -> None:
        for name in ("max_resource", "min_resource", "reduction_factor"):
            object.__setattr__(self, name, getattr(self._asha, name))

    @property
    def _asha(self) -> ASHA:
        return ASHA(self.max_resource, self.min_resource, self.reduction_factor, type="promotion")

    def bind(
        self,
        *,
        seed: int = 0,
        num_trials: int | None = None,
        num_slots: int | None = None,
        space: Space | None = None,
        rows: Rows | None = None,
    ) -> "BoundPASHA":
        return BoundPASHA(self._asha)


Curve = dict[int, float]  # step -> score, the steps ascending


class BoundPASHA(BoundScheduler):
    """One run's rungs, and how high they are open."""

    def __init__(self, spec: ASHA) -> None:
        self.max_resource: int = spec.max_resource
        self._asha = spec.bind()
        self._levels = spec.levels
        self._last = len(spec.levels) - 1
        self._open = min(1, self._last)  # the highest rung that is
        self._held: dict[int, int] = {}  # trial -> the rung at which it is held
        self._waiting: dict[int, None] = {}  # saved where no higher rung is open
        self._scores: list[dict[int, float]] = [{} for _ in spec.levels]  # by rung, as they came
        self._curves: dict[int, Curve] = {}
        self._noise: list[
            float
        ] = []  # distances of trials at the highest open rung whose curves crossed there and back
        self._epsilon = 0.0

    def begin(self, trial: int) -> int:
        return self._asha.begin(trial)

    def report(self, trial: int, step: int, score: float) -> Verdict:
        verdict = self._asha.report(trial, step, score)
        if verdict.recorded:
            self._held[trial] = self._levels.index(verdict.recorded[-1])
            self._waiting.pop(trial, None)  # if it was to wait below, it has gone on all the same
        if self._open < self._last:
            score = score if math.isfinite(score) else -math.inf
            curve = self._curves.setdefault(trial, {})
            if not curve or step > next(reversed(curve)):  # else it tells again what it told before it failed
                curve[step] = score
            for level in verdict.recorded:
                self._scores[self._levels.index(level)][trial] = score
            if verdict.recorded and self._held[trial] >= self._open:
                self._compare(trial)
                self._grow()
        return verdict

    def level(self, step: int) -> int:
        return self._asha.level(step)

    def retried(self, trial: int, step: int) -> int:
        return self._asha.retried(trial, step)

    def finish(self, trial: int, state: TrialState) -> Sequence[int]:
        return self._asha.finish(trial, state)

    def saved(self, trial: int, step: int, checkpoint: str | None) -> bool:
        if self._held.get(trial, 0) < self._open or self._open == self._last:
            return self._asha.saved(trial, step, checkpoint)
        self._waiting[trial] = None
        return False

    def resumable(self, warm: int | None = None) -> Resumption | None:
        return self._asha.resumable(warm)

    def resume(self, resumption: Resumption) -> None:
        self._asha.resume(resumption)

    def _compare(self, trial: int) -> None:
        """Let a trial that has come to the highest open rung tell what it knows of the noise."""
        mine = self._curves[trial]
        distances = [_noise(mine, self._curves[other]) for other in self._scores[self._open] if other != trial]
        found = [distance for distance in distances if distance is not None]
        if found:
            self._noise += found
            self._epsilon = float(np.percentile(self._noise, _PERCENTILE))

    def _grow(self) -> None:
        """Open rungs until the highest two rank alike."""
        before = self._open
        while self._open < self._last and not self._stable():
            self._open += 1
            self._noise = []
        if self._open == before:
            return
        waiting, self._waiting = self._waiting, {}
        for trial in waiting:
            self.saved(trial, 0, None)
        if self._open == self._last:
            self._curves, self._scores = {}, []

    def _stable(self) -> bool:
        """Whether each trial of the highest open rung has, one rung below, within epsilon the score of its place."""
        top, below = self._scores[self._open], self._scores[self._open - 1]
        ranked = sorted(top, key=lambda trial: -top[trial])
        places = sorted((below[trial] for trial in top), reverse=True)
        return all(
            place - self._epsilon <= below[trial] <= place + self._epsilon
            for trial, place in zip(ranked, places, strict=True)
        )


def _noise(one: Curve, other: Curve) -> float | None:
    """How far apart two curves are at their last common step, if the one that is ahead was so before it was behind; else None."""
    steps = [step for step in one if step in other]
    if not steps:
        return None
    ahead, behind = (one, other) if one[steps[-1]] > other[steps[-1]] else (other, one)
    distance = ahead[steps[-1]] - behind[steps[-1]]
    crossed = False
    for step in reversed(steps):
        if ahead[step] < behind[step]:
            crossed = True
        elif crossed and ahead[step] > behind[step]:
            return distance if 0 < distance < math.inf else None
    return None
