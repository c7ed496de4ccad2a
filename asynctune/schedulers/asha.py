"""ASHA: asynchronous successive halving, both types, and its brackets.

Li et al., A System for Massively Parallel Hyperparameter Tuning, MLSys 2020 (arXiv:1810.05934).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from asynctune._core import BRACKET, Ladder, Stream, Table
from asynctune.errors import InvalidArgument, check_integer
from asynctune.records import Action
from asynctune.schedulers.base import BoundScheduler, Resumption, Scheduler, Verdict

__all__ = ["ASHA", "BoundASHA"]


@dataclass(frozen=True)
class ASHA(Scheduler):
    """Asynchronous successive halving: of the trials that reach a rung, about one in `reduction_factor` goes on.

    Args:
        max_resource: the step at which a trial completes, an integer >= 1.
        min_resource: the step of the lowest rung, 1 <= min_resource <= max_resource. The rungs are at
            min_resource * reduction_factor**k below max_resource, and at max_resource.
        reduction_factor: an integer >= 2.
        brackets: how many brackets, at most the number of rungs. Bracket j starts at rung j and compares its own trials only;
            of K + 1 rungs, a trial is drawn into it with weight ceil((K + 1) / (K - j + 1) * reduction_factor**(K - j)), as many as
            Hyperband has there (Li et al., JMLR 2018, Algorithm 1).
        type: `"stopping"`: a trial goes on at once iff it is among the best max(1, n // reduction_factor) of the n that have come
            so far. `"promotion"`: it pauses, and goes on once it is among the best n // reduction_factor (Algorithm 2).

    Raises:
        InvalidArgument: an argument breaks its rule.
    """

    max_resource: int
    min_resource: int = 1
    reduction_factor: int = 3
    brackets: int = 1
    type: Literal["stopping", "promotion"] = "stopping"

    def __post_init__(self) -> None:
        check_integer("max_resource", self.max_resource, at_least=1)
        check_integer("min_resource", self.min_resource, at_least=1)
        check_integer("reduction_factor", self.reduction_factor, at_least=2)
        check_integer("brackets", self.brackets, at_least=1)
        if self.min_resource > self.max_resource:
            raise InvalidArgument(
                f"min_resource must be <= max_resource = {self.max_resource}, got {self.min_resource}"
            )
        if self.brackets > len(self.levels):
            raise InvalidArgument(f"brackets must be <= the {len(self.levels)} rungs, got {self.brackets}")
        if self.type not in ("stopping", "promotion"):
            raise InvalidArgument(f"type must be 'stopping' or 'promotion', got {self.type!r}")

    @property
    def levels(self) -> tuple[int, ...]:
        """The steps of the rungs, lowest first, `max_resource` included."""
        levels = []
        level = int(self.min_resource)
        while level < self.max_resource:
            levels.append(level)
            level *= int(self.reduction_factor)
        return (*levels, int(self.max_resource))

    def bind(
        self,
        *,
        seed: int = 0,
        num_trials: int | None = None,
        num_slots: int | None = None,
        table: Table | None = None,
        mode: Literal["min", "max"] = "max",
    ) -> "BoundASHA":
        """The object with state. Scores are turned with `mode` inside; a study turns them itself and leaves it."""
        if mode not in ("min", "max"):
            raise InvalidArgument(f"mode must be 'min' or 'max', got {mode!r}")
        return BoundASHA(self, seed, 1.0 if mode == "max" else -1.0)


class BoundASHA(BoundScheduler):
    """One run's rungs."""

    def __init__(self, spec: ASHA, seed: int, sign: float) -> None:
        self.max_resource: int = spec.max_resource
        self._promotion = spec.type == "promotion"
        self._seed = seed
        self._sign = sign
        self._levels = spec.levels
        self._ladders = [
            Ladder(self._levels[bracket:], spec.reduction_factor, self._promotion) for bracket in range(spec.brackets)
        ]
        rungs = len(self._levels)
        # Integers, rounded up: -(-a // b). Hyperband's s is rungs - 1 - bracket here.
        self._weights = [
            -(-rungs * spec.reduction_factor ** (rungs - 1 - bracket) // (rungs - bracket))
            for bracket in range(spec.brackets)
        ]
        self._brackets = bytearray()  # by trial

    # As a study calls it.

    def begin(self, trial: int) -> int:
        return self._ladders[self._bracket(trial)].due(trial)

    def report(self, trial: int, step: int, score: float) -> Verdict:
        bracket = self._bracket(trial)
        ladder = self._ladders[bracket]
        before = ladder.recorded(trial)
        goes_on = ladder.report(trial, step, self._sign * score)
        after = ladder.recorded(trial)
        recorded = self._levels[bracket + before : bracket + after]
        if goes_on:
            return Verdict(Action.CONTINUE, ladder.due(trial), recorded)
        waits = self._promotion and step < self.max_resource
        return Verdict(Action.PAUSE if waits else Action.STOP, None, recorded)

    def retried(self, trial: int, step: int) -> int:
        return self._ladders[self._bracket(trial)].due(trial)

    def finish(self, trial: int, failed: bool) -> Sequence[int]:
        bracket = self._bracket(trial)
        rung = self._ladders[bracket].retire(trial, failed)
        return () if rung is None else (self._levels[bracket + rung],)

    def saved(self, trial: int, step: int, checkpoint: str | None) -> bool:
        self._ladders[self._bracket(trial)].offer(trial)
        return False

    def resumable(self, warm: int | None = None) -> Resumption | None:
        found = self._highest()
        if found is None:
            return None
        bracket, trial = found
        return Resumption(trial, self._levels[bracket + self._ladders[bracket].recorded(trial)])

    def resume(self, resumption: Resumption) -> None:
        self._ladders[self._bracket(resumption.trial)].promote(resumption.trial)

    # Arrays.

    def report_many(
        self, trial_ids: npt.ArrayLike, steps: npt.ArrayLike, values: npt.ArrayLike
    ) -> npt.NDArray[np.bool_]:
        """Report (m,) values of trials after steps, in array order. Return (m,) bool: which trials go on.

        With `type="promotion"` those that do not are paused from here on, and `promote_many` may name them.

        Raises:
            InvalidArgument: the lengths differ, or a trial is not in 0..2^31 - 2.
        """
        trials = np.ascontiguousarray(trial_ids, dtype=np.int64)
        steps = np.ascontiguousarray(steps, dtype=np.int64)
        scores = np.ascontiguousarray(values, dtype=np.float64)
        if self._sign < 0:
            scores = -scores
        if len(self._ladders) == 1:
            return self._ladders[0].report_many(trials, steps, scores)
        if trials.size:
            self._bracket(int(trials.max()))
        bracket_of = np.frombuffer(self._brackets, dtype=np.uint8)[trials]
        goes_on = np.empty(len(trials), dtype=np.bool_)
        # Brackets share nothing, so that one after the other is as good as in array order.
        for bracket, ladder in enumerate(self._ladders):
            here = bracket_of == bracket
            goes_on[here] = ladder.report_many(trials[here], steps[here], scores[here])
        return goes_on

    def promote_many(self, count: int) -> npt.NDArray[np.int64]:
        """Promote up to `count` paused trials. Return their ids, (<= count,) int64, in the order in which they go on."""
        if len(self._ladders) == 1:
            return self._ladders[0].promote_many(count)
        promoted: list[int] = []
        while len(promoted) < count and (found := self._highest()) is not None:
            bracket, trial = found
            self._ladders[bracket].promote(trial)
            promoted.append(trial)
        return np.array(promoted, dtype=np.int64)

    # Upkeep.

    def _bracket(self, trial: int) -> int:
        if len(self._ladders) == 1:
            return 0
        while len(self._brackets) <= trial:
            draw = Stream(self._seed, BRACKET, len(self._brackets)).below(sum(self._weights))
            bracket = 0
            while draw >= self._weights[bracket]:
                draw -= self._weights[bracket]
                bracket += 1
            self._brackets.append(bracket)
        return self._brackets[trial]

    def _highest(self) -> tuple[int, int] | None:
        """The bracket and the trial that may be promoted from the highest rung, the lowest bracket first; or None."""
        found: tuple[int, int] | None = None
        highest = 0
        for bracket, ladder in enumerate(self._ladders):
            trial = ladder.promotable()
            if trial is not None and ladder.due(trial) > highest:
                found, highest = (bracket, trial), ladder.due(trial)
        return found
