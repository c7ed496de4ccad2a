"""Hyperband: successive halving in several brackets, as trials come or rung by rung.

Li et al., Hyperband: A Novel Bandit-Based Approach to Hyperparameter Optimization, JMLR 2018 (arXiv:1603.06560).
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import ClassVar

from asynctune.errors import InvalidArgument
from asynctune.records import FAILED, Action, TrialState
from asynctune.schedulers.asha import ASHA
from asynctune.schedulers.base import BoundScheduler, Resumption, Scheduler, Verdict, highest
from asynctune.space import Rows, Space

__all__ = ["BoundHyperband", "Hyperband"]


@dataclass(frozen=True)
class Hyperband(Scheduler):
    """Successive halving in brackets that trust a trial's first steps more or less, with about the same budget for each.

    Asynchronous, it is `ASHA` with all brackets: a trial is stopped at a rung, or goes on, when it gets there. Synchronous, a
    trial waits at a rung until all that are alive in its bracket have got there; then the best max(1, n // reduction_factor) of the n go on.
    No decision depends then on the number of slots or the order of arrival: ties go to the lower trial.

    Args:
        max_resource: the step at which a trial completes, an integer >= 1.
        min_resource: the step of the lowest rung, 1 <= min_resource <= max_resource. The rungs are those of `ASHA`.
        reduction_factor: an integer >= 2.
        brackets: how many, at most the number of rungs; None: as many. Bracket j starts at rung j. With 1 and `synchronous`
            it is plain successive halving.
        synchronous: whether trials wait for each other. The study's `num_trials` trials are then divided among the brackets, the first ones to
            bracket 0, in proportion to Hyperband's n (Algorithm 1), which they equal where their sum does.

    Raises:
        InvalidArgument: an argument breaks its rule.
    """

    max_resource: int
    min_resource: int = 1
    reduction_factor: int = 3
    brackets: int | None = None
    synchronous: bool = False

    def __post_init__(self) -> None:
        for name in ("max_resource", "min_resource", "reduction_factor"):
            object.__setattr__(self, name, getattr(self._asha, name))
        if self.brackets is not None:
            object.__setattr__(self, "brackets", self._asha.brackets)
        if not isinstance(self.synchronous, bool):
            raise InvalidArgument(f"synchronous must be True or False, got {self.synchronous!r}")

    @property
    def _asha(self) -> ASHA:
        asha = ASHA(self.max_resource, self.min_resource, self.reduction_factor)
        brackets = len(asha.levels) if self.brackets is None else self.brackets
        return ASHA(asha.max_resource, asha.min_resource, asha.reduction_factor, brackets)

    def bind(
        self,
        *,
        seed: int = 0,
        num_trials: int | None = None,
        num_slots: int | None = None,
        space: Space | None = None,
        rows: Rows | None = None,
    ) -> BoundScheduler:
        if not self.synchronous:
            return self._asha.bind(seed=seed)
        if num_trials is None:
            raise InvalidArgument("a synchronous Hyperband needs num_trials, which it divides, got None")
        return BoundHyperband(self._asha, num_trials)


def apportion(total: int, weights: Sequence[int]) -> list[int]:
    """`total` divided in proportion to `weights`: rounded down, what is left by largest remainder, ties to the first."""
    shares = [divmod(total * weight, sum(weights)) for weight in weights]
    sizes = [size for size, _ in shares]
    by_remainder = sorted(range(len(weights)), key=lambda j: -shares[j][1])
    for j in by_remainder[: total - sum(sizes)]:
        sizes[j] += 1
    return sizes


#: Where a trial stands: on its way to its next rung; at a rung, not saved yet; saved there; ended.
_COMING, _HELD, _SAVED, _GONE = range(4)


class _Bracket:
    """The rung that a bracket's trials are at, and what is known there and above."""

    def __init__(self, first: int, size: int) -> None:
        self.rung = first
        self.missing = size  # how many are still to get to this rung
        self.results: dict[int, dict[int, float]] = {}  # rung -> trial -> score; above this rung: of those that jumped
        self.chosen: set[int] = set()  # they go on from the rung below once they are saved


class BoundHyperband(BoundScheduler):
    """One run's brackets, synchronous. What a trial that jumps over rungs scored counts at each, as its promotion does."""

    fixed_population: ClassVar[bool] = True

    def __init__(self, spec: ASHA, num_trials: int) -> None:
        self.max_resource: int = spec.max_resource
        self._levels = spec.levels
        self._top = len(spec.levels) - 1
        self._reduction_factor = spec.reduction_factor
        sizes = apportion(num_trials, spec.weights)
        self._ends = list(accumulate(sizes))  # by bracket: the first trial that is behind it
        self._brackets = [_Bracket(first, size) for first, size in enumerate(sizes)]
        # By trial: how many rungs it has behind it, and where it stands.
        self._behind = bytearray(b"".join(bytes([first]) * size for first, size in enumerate(sizes)))
        self._where = bytearray(num_trials)
        self._ready: list[dict[int, None]] = [{} for _ in self._levels]  # by next rung: who may go on now

    def begin(self, trial: int) -> int:
        return self._due(trial)

    def report(self, trial: int, step: int, score: float) -> Verdict:
        before = now = self._behind[trial]
        if self._where[trial] == _COMING and step >= self._levels[before]:
            bracket = self._bracket(trial)
            while now <= self._top and step >= self._levels[now]:
                self._record(bracket, now, trial, score)
                now += 1
            self._behind[trial], self._where[trial] = now, _HELD
            self._arrived(bracket)
        if step >= self.max_resource or self._where[trial] == _GONE:
            return Verdict(Action.STOP, None, self._levels[before:now])
        if self._where[trial] == _COMING:
            return Verdict(Action.CONTINUE, self._levels[now], ())
        return Verdict(Action.PAUSE, None, self._levels[before:now])

    def level(self, step: int) -> int:
        return highest(self._levels, step)

    def retried(self, trial: int, step: int) -> int:
        return self._due(trial)

    def finish(self, trial: int, state: TrialState) -> Sequence[int]:
        where, self._where[trial] = self._where[trial], _GONE
        bracket, rung = self._bracket(trial), self._behind[trial]
        if where == _COMING:
            if state is FAILED:
                self._record(bracket, rung, trial, -math.inf)
            self._arrived(bracket)
            return (self._levels[rung],) if state is FAILED else ()
        if where != _GONE and rung <= self._top and (trial in bracket.chosen or trial in self._ready[rung]):
            bracket.chosen.discard(trial)
            self._ready[rung].pop(trial, None)
            self._arrived(bracket)
        return ()

    def saved(self, trial: int, step: int, checkpoint: str | None) -> bool:
        if self._where[trial] == _HELD:
            self._where[trial] = _SAVED
            chosen = self._bracket(trial).chosen
            if trial in chosen:
                chosen.remove(trial)
                self._ready[self._behind[trial]][trial] = None
        return False

    def resumable(self, warm: int | None = None) -> Resumption | None:
        for rung in range(self._top, 0, -1):
            ready = self._ready[rung]
            if ready:
                return Resumption(warm if warm in ready else next(iter(ready)), self._levels[rung])
        return None

    def resume(self, resumption: Resumption) -> None:
        del self._ready[self._behind[resumption.trial]][resumption.trial]
        self._where[resumption.trial] = _COMING

    def _bracket(self, trial: int) -> _Bracket:
        return self._brackets[bisect_right(self._ends, trial)]

    def _due(self, trial: int) -> int:
        return self._levels[self._behind[trial] - (self._where[trial] != _COMING)]

    def _record(self, bracket: _Bracket, rung: int, trial: int, score: float) -> None:
        bracket.results.setdefault(rung, {})[trial] = score if math.isfinite(score) else -math.inf

    def _arrived(self, bracket: _Bracket) -> None:
        """One less is awaited at the bracket's rung. When nobody is, the best are chosen, and the next rung is the bracket's."""
        bracket.missing -= 1
        while bracket.missing == 0 and bracket.rung < self._top:
            results = bracket.results.pop(bracket.rung, {})
            best = sorted(results, key=lambda trial: (-results[trial], trial))
            bracket.rung += 1
            above = bracket.results.get(bracket.rung, ())
            for trial in best[: max(1, len(best) // self._reduction_factor)]:
                if results[trial] == -math.inf or trial in above or self._where[trial] == _GONE:
                    continue
                bracket.missing += 1
                if self._where[trial] == _SAVED:
                    self._ready[bracket.rung][trial] = None
                else:
                    bracket.chosen.add(trial)
