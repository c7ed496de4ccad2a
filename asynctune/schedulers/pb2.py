"""PB2: PBT that chooses new hyperparameters by what they have gained so far.

Parker-Holder et al., Provably Efficient Online Hyperparameter Optimization with Population-Based Bandits, NeurIPS 2020 (arXiv:2002.02518).
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from asynctune._core import CHOICE, LOG, NORMAL, SUGGEST, Stream
from asynctune.errors import InvalidArgument
from asynctune.records import TrialState
from asynctune.schedulers.base import Resumption, Verdict
from asynctune.schedulers.gaussian import Drifting, choose
from asynctune.schedulers.pbt import PBT, BoundPBT
from asynctune.space import Column, Rows, Space, nearest

__all__ = ["PB2", "BoundPB2"]

#: The model is built of the last gains only: what is older has drifted away, the cost grows with their cube, and linear algebra on larger
#: matrices wakes threads, which on a busy machine wait for each other.
_WINDOW = 64

#: As many gains are needed before the model has a say.
_ENOUGH = 4

#: A normal hyperparameter is looked for within so many standard deviations of its mean.
_NORMAL_RANGE = 3.0


@dataclass(frozen=True)
class PB2(PBT):
    """Population-based bandits: PBT in all but explore. A recipient's numbers are those with the highest upper confidence bound, by a
    Gaussian process that has learned how fast scores rose from which score, with which hyperparameters, and when.

    What others are training with at the time counts as looked at. `choice`, and everything before four gains are known, is explored as in
    `PBT`, whose arguments these are; `ordinal` and integers are numbers here. A choice takes some 20 ms, for which the run waits: it is for
    populations of tens. It follows from what has been reported when its turn comes, so that, unlike `PBT`, other numbers of slots may give other
    runs, with `synchronous=True` too.
    """

    def bind(
        self,
        *,
        seed: int = 0,
        num_trials: int | None = None,
        num_slots: int | None = None,
        space: Space | None = None,
        rows: Rows | None = None,
    ) -> "BoundPB2":
        if rows is None:
            raise InvalidArgument("PB2 needs rows, the configurations of its trials, got None")
        return BoundPB2(self, seed, num_trials, num_slots, space, rows)


class _Gain(NamedTuple):
    """How fast a score rose over a stretch of steps."""

    time: float  # when it began, in intervals
    before: float  # the score then
    row: npt.NDArray[np.float64]  # (d,), with which configuration
    rate: float  # per step


class BoundPB2(BoundPBT):
    """One run's population, and what has been gained in it."""

    def __init__(
        self,
        spec: PB2,
        seed: int,
        num_trials: int | None,
        num_slots: int | None,
        space: Space | None,
        rows: Rows,
    ) -> None:
        super().__init__(spec, seed, num_trials, num_slots, space)
        assert space is not None
        self._columns = space.columns
        self._rows = rows
        self._numbers = np.array([_varies(column) for column in space.columns])
        self._since: dict[int, tuple[int, float]] = {}  # member -> step and score from which it is on its way
        self._gains: deque[_Gain] = deque(maxlen=_WINDOW)

    def report(self, trial: int, step: int, score: float) -> Verdict:
        verdict = super().report(trial, step, score)
        if verdict.recorded:
            begin, before = self._since.pop(trial, (step, score))
            rate = (score - before) / (step - begin) if step > begin else math.nan
            if math.isfinite(rate):
                self._gains.append(_Gain(begin / self._interval, before, self._rows[trial], rate))
        if verdict.recorded or trial not in self._since:
            self._since[trial] = step, score
        return verdict

    def finish(self, trial: int, state: TrialState) -> Sequence[int]:
        self._since.pop(trial, None)
        return super().finish(trial, state)

    def resume(self, resumption: Resumption) -> None:
        super().resume(resumption)
        if resumption.donor is not None:
            self._since[resumption.trial] = resumption.step, resumption.score

    def explore(self, row: npt.NDArray[np.float64], trial: int, segment: int, step: int) -> npt.NDArray[np.float64]:
        row = super().explore(row, trial, segment, step)
        donor = self._generations.donor(trial)
        free = self._numbers & ~np.isnan(row)
        values = _standardised([gain.rate for gain in self._gains])
        if donor is None or len(values) < _ENOUGH or not values.any() or not free.any():
            return row
        known = [(gain.time, gain.before, gain.row) for gain in self._gains]
        running = [
            (begin / self._interval, before, self._rows[other])
            for other, (begin, before) in self._since.items()
            if other != trial and math.isfinite(before) and self._generations.undecided_depth(other) is None
        ]
        now = step / self._interval, donor[3], row
        points = self._points([*known, *running, now])
        times = np.array([time for time, _, _ in [*known, *running]])
        n = len(known)
        found = choose(
            Drifting(times[:n], points[:n], values),
            now[0],
            points[-1],
            np.append(free[self._numbers], False),
            times[n:],
            points[n:-1],
            Stream(self._seed, SUGGEST, trial, segment, step),
        )
        for place, unit in zip(
            np.flatnonzero(self._numbers).tolist(), found.tolist(), strict=False
        ):  # the last is the score
            if free[place]:
                row[place] = _value(self._columns[place], unit)
        return row

    def _points(self, states: Sequence[tuple[float, float, npt.NDArray[np.float64]]]) -> npt.NDArray[np.float64]:
        """(n, d' + 1) of (time, score, row): the numbers of the row, each in [0, 1], and the score in [0, 1]."""
        scores = _scaled([score for _, score, _ in states])
        numbers = np.flatnonzero(self._numbers).tolist()
        units = [[_unit(self._columns[j], float(row[j])) for j in numbers] for _, _, row in states]
        span = scores.max() - scores.min()
        return np.column_stack([units, (scores - scores.min()) / span if span > 0 else np.full(len(scores), 0.5)])


def _varies(column: Column) -> bool:
    """Whether a hyperparameter is a number that can be another one: the bounds of a normal one are its mean and deviation."""
    return column.kind == NORMAL or (column.kind != CHOICE and column.low != column.high)


def _scaled(values: Sequence[float]) -> npt.NDArray[np.float64]:
    """Divided by the largest, so that neither differences nor squares are more than a float holds."""
    array = np.array(values)
    largest = abs(array).max(initial=0.0)
    return array / largest if largest > 0 else array


def _standardised(rates: Sequence[float]) -> npt.NDArray[np.float64]:
    """With mean 0 and deviation 1, clipped at 2 as in the authors' code: one divergence would flatten all else. All 0 if they are equal."""
    scaled = _scaled(rates)
    deviation = scaled.std() if len(scaled) else 0.0
    if deviation < 1e-12:
        return np.zeros(len(scaled))
    standardised: npt.NDArray[np.float64] = np.clip((scaled - scaled.mean()) / deviation, -2, 2)
    return standardised


def _unit(column: Column, value: float) -> float:
    """A value's place in its domain, in [0, 1]; 0.5 for NaN."""
    if math.isnan(value):
        return 0.5
    if column.kind == NORMAL:
        return min(max(0.5 + (value - column.low) / (2 * _NORMAL_RANGE * column.high), 0.0), 1.0)
    if column.kind == LOG:
        return math.log(value / column.low) / math.log(column.high / column.low)
    return (value - column.low) / (column.high - column.low)


def _value(column: Column, unit: float) -> float:
    """The value of a domain that is nearest to a place in it."""
    if column.kind == NORMAL:
        return column.low + (2 * unit - 1) * _NORMAL_RANGE * column.high
    if column.kind == LOG:
        value = column.low * math.exp(unit * math.log(column.high / column.low))
    else:
        value = column.low + unit * (column.high - column.low)
    return nearest(value, column.low, column.high, column.step)
