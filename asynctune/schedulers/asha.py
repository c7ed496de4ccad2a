"""ASHA: asynchronous successive halving, both types, and its brackets.

Li et al., A System for Massively Parallel Hyperparameter Tuning, MLSys 2020 (arXiv:1810.05934).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt

from asynctune._core import Ladder, as_array
from asynctune.errors import InvalidArgument, check_integer, check_mode
from asynctune.records import FAILED, Action, TrialState
from asynctune.schedulers.base import BoundScheduler, Resumption, Scheduler, Verdict, highest
from asynctune.space import Rows, Space

__all__ = ["ASHA", "BoundASHA"]

Scalar = TypeVar("Scalar", np.int64, np.float64)


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
        # As ints of Python: a NumPy integer would overflow in the levels, and not be encoded.
        for name, *ends in (
            ("max_resource", 1, 2**63 - 1),
            ("min_resource", 1),
            ("reduction_factor", 2, 2**31 - 2),
            ("brackets", 1),
        ):
            object.__setattr__(self, name, check_integer(name, getattr(self, name), *ends))
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
        level = self.min_resource
        while level < self.max_resource:
            levels.append(level)
            level *= self.reduction_factor
        return (*levels, self.max_resource)

    @property
    def weights(self) -> tuple[int, ...]:
        """How many trials Hyperband has in each bracket."""
        rungs = len(self.levels)
        # Integers, rounded up: -(-a // b). Hyperband's s is rungs - 1 - bracket here.
        return tuple(
            -(-rungs * self.reduction_factor ** (rungs - 1 - bracket) // (rungs - bracket))
            for bracket in range(self.brackets)
        )

    def bind(
        self,
        *,
        seed: int = 0,
        num_trials: int | None = None,
        num_slots: int | None = None,
        space: Space | None = None,
        rows: Rows | None = None,
        mode: Literal["min", "max"] = "max",
    ) -> "BoundASHA":
        """The object with state. A study turns scores itself and leaves `mode`: larger is better."""
        check_mode(mode)
        return BoundASHA(self, seed, minimize=mode == "min")


class BoundASHA(BoundScheduler):
    """One run's rungs."""

    def __init__(self, spec: ASHA, seed: int, minimize: bool) -> None:
        self.max_resource: int = spec.max_resource
        self._levels = levels = spec.levels
        promotion = spec.type == "promotion"
        self._ladder = Ladder(levels, spec.reduction_factor, promotion, minimize, spec.weights, seed)
        self._verdicts = _verdicts(levels, Action.PAUSE if promotion else Action.STOP)

    # As a study calls it.

    def begin(self, trial: int) -> int:
        return self._ladder.due(trial)

    def report(self, trial: int, step: int, score: float) -> Verdict:
        return self._verdicts[self._ladder.report(trial, step, score)]

    def level(self, step: int) -> int:
        return highest(self._levels, step)

    def retried(self, trial: int, step: int) -> int:
        return self._ladder.due(trial)

    def finish(self, trial: int, state: TrialState) -> Sequence[int]:
        level = self._ladder.retire(trial, state is FAILED)
        return () if level is None else (level,)

    def saved(self, trial: int, step: int, checkpoint: str | None) -> bool:
        self._ladder.offer(trial)
        return False

    def resumable(self, warm: int | None = None) -> Resumption | None:
        found = self._ladder.promotable()
        return None if found is None else Resumption(*found)

    def resume(self, resumption: Resumption) -> None:
        self._ladder.promote(resumption.trial)

    # Arrays.

    def report_many(
        self, trial_ids: npt.ArrayLike, steps: npt.ArrayLike, values: npt.ArrayLike
    ) -> npt.NDArray[np.bool_]:
        """Report values of trials after steps, in array order. Return (m,) bool: which trials go on.

        Those that do not are stopped, or have come to `max_resource`; with `type="promotion"` they are paused from here on unless they
        are there, and `promote_many` may name them. While it works the GIL is free; a call that comes meanwhile is refused.

        Args:
            trial_ids: (m,) integers in 0..2^31 - 2.
            steps: (m,) integers >= 1.
            values: (m,) numbers; those that are not finite are the worst.

        Raises:
            InvalidArgument: an argument breaks its rule; nothing has changed then.
            AsynctuneError: another thread's call is at work.
            MemoryError: the reports before some are recorded, the rest is not; once there is memory the same call does the rest.
        """
        return self._ladder.report_many(
            _column("trial_ids", trial_ids, "iu", np.int64),
            _column("steps", steps, "iu", np.int64),
            _column("values", values, "iuf", np.float64),
        )

    def promote_many(self, count: int) -> npt.NDArray[np.int64]:
        """Promote up to `count` paused trials. Return their ids, (<= count,) int64, in the order in which they go on.

        Each goes on to the next rung: `levels` has its step, and `begin(trial)` answers it.

        Raises:
            InvalidArgument: `count` is no integer >= 0.
            AsynctuneError: another thread's call is at work.
        """
        return self._ladder.promote_many(min(check_integer("count", count, at_least=0), 2**31))


def _verdicts(levels: Sequence[int], held: Action) -> list[Verdict]:
    """The verdicts on a report, by the integer that `Ladder.report` answers; `held` is for a trial short of the last level."""
    verdicts = []
    for before in range(len(levels) + 1):
        for now in range(len(levels) + 1):
            recorded = levels[before:now]
            short = 0 < now < len(levels)
            verdicts.append(Verdict(held if short else Action.STOP, None, recorded))
            verdicts.append(Verdict(Action.CONTINUE, levels[min(now, len(levels) - 1)], recorded))
    return verdicts


def _column(name: str, given: npt.ArrayLike, kinds: str, dtype: type[Scalar]) -> npt.NDArray[Scalar]:
    """An argument as a contiguous, aligned array (m,), refused if it is of another kind."""
    column = as_array(name, given)
    if column.ndim != 1:
        raise InvalidArgument(f"{name} must have one dimension, got the shape {column.shape}")
    if column.dtype.kind not in kinds and (column.size or column.dtype.kind != "f"):  # of no kind: []
        what = "numbers" if "f" in kinds else "integers"
        raise InvalidArgument(f"{name} must be {what}, got an array of {column.dtype}")
    return column.astype(dtype, order="C", copy=not column.flags.aligned)  # a fifth of the time of np.require
