"""MF-PBT: population-based training with sub-populations that evolve at intervals of their own.

Doulazmi et al., Multiple-Frequencies Population-Based Training, 2025 (arXiv:2506.03225).
"""

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from asynctune._core import DONOR, EXPLORE, Stream, truncated
from asynctune.errors import InvalidArgument, check_integer
from asynctune.records import Action, TrialState
from asynctune.schedulers.base import BoundScheduler, Resumption, Scheduler, Verdict, highest
from asynctune.schedulers.pbt import PBT
from asynctune.space import Rows, Space

__all__ = ["MFPBT", "BoundMFPBT"]


@dataclass(frozen=True)
class MFPBT(Scheduler):
    """Population-based training whose sub-populations look ahead differently far, so that what pays off late is not lost to what pays off at once.

    Member i belongs to sub-population i modulo their number. After every `frequencies[j]` intervals sub-population j evolves: of its n members, the
    worst k go on as perturbed copies of its best k, as in `PBT`; and of the next k, from the better to the worse, each takes over the weights of the best
    member of all others that is left and better than it. With the weights it takes their hyperparameters if they come from a slower sub-population; from
    a faster one, whose hyperparameters are greedier, it takes those of the best of its own. Everyone waits while one sub-population evolves, since all are compared.

    Args:
        perturbation_interval: steps of an interval, an integer >= 1.
        max_resource: the step at which a member completes, an integer >= 1.
        frequencies: intervals from one evolution to the next, integers >= 1 that increase; by default the paper's. The last evolves once at least.
        quantile_fraction: in [0, 0.5]; k = min(n // 2, max(1, floor(quantile_fraction * n))).
        resample_probability, perturbation_factor: as for `PBT`.

    Raises:
        InvalidArgument: an argument breaks its rule, or, when a study binds it, there are fewer members than sub-populations.
    """

    perturbation_interval: int
    max_resource: int
    frequencies: tuple[int, ...] = (1, 10, 25, 50)
    quantile_fraction: float = 0.25
    resample_probability: float = 0.25
    perturbation_factor: float = 1.2

    def __post_init__(self) -> None:
        pbt = PBT(
            self.perturbation_interval,
            self.max_resource,
            self.quantile_fraction,
            self.resample_probability,
            self.perturbation_factor,
        )
        for name in (
            "perturbation_interval",
            "max_resource",
            "quantile_fraction",
            "resample_probability",
            "perturbation_factor",
        ):
            object.__setattr__(self, name, getattr(pbt, name))
        if not isinstance(self.frequencies, Sequence) or isinstance(self.frequencies, str) or not self.frequencies:
            raise InvalidArgument(f"frequencies must be a sequence of integers, got {self.frequencies!r}")
        at_least, intervals = 1, (pbt.max_resource - 1) // pbt.perturbation_interval
        for frequency in self.frequencies:
            at_least = check_integer("each of frequencies, which increase,", frequency, at_least) + 1
        if at_least - 1 > intervals:
            raise InvalidArgument(
                f"frequencies must be <= {intervals}, the intervals before max_resource, got {at_least - 1}"
            )
        object.__setattr__(self, "frequencies", tuple(int(frequency) for frequency in self.frequencies))

    def bind(
        self,
        *,
        seed: int = 0,
        num_trials: int | None = None,
        num_slots: int | None = None,
        space: Space | None = None,
        rows: Rows | None = None,
    ) -> "BoundMFPBT":
        if num_trials is None:
            raise InvalidArgument("MFPBT needs num_trials, the size of its population, got None")
        if num_trials < len(self.frequencies):
            raise InvalidArgument(
                f"num_trials must be >= {len(self.frequencies)}, the number of sub-populations, got {num_trials}"
            )
        if space is None or rows is None:
            raise InvalidArgument("MFPBT needs space and rows, the configurations of its members, got None")
        return BoundMFPBT(self, seed, num_trials, space, rows)


class _Saved(NamedTuple):
    """A member's state at a depth."""

    step: int
    checkpoint: str | None


class _Plan(NamedTuple):
    """How a member goes on that takes over from another."""

    donor: int
    score: float
    step: int
    checkpoint: str
    perturbed: bool
    row: npt.NDArray[np.float64] | None  # the hyperparameters; None: the donor's


class BoundMFPBT(BoundScheduler):
    """One run's population. A depth is a number of intervals at which some sub-population evolves."""

    new_first: ClassVar[bool] = True
    fixed_population: ClassVar[bool] = True
    changes_configs = True

    def __init__(self, spec: MFPBT, seed: int, num_trials: int, space: Space, rows: Rows) -> None:
        self.max_resource: int = spec.max_resource
        self._spec = spec
        self._seed = seed
        self._table = space.table
        self._rows = rows
        last = (spec.max_resource - 1) // spec.perturbation_interval
        self._depths = [d for d in range(1, last + 1) if any(d % frequency == 0 for frequency in spec.frequencies)]
        self._alive = set(range(num_trials))
        self._passed = [0] * num_trials  # by member: the depth up to which it has been decided on
        self._scores: dict[int, dict[int, float]] = {}  # depth -> member -> score, of those not decided on
        self._waiting: dict[int, _Saved] = {}  # saved where they are recorded
        self._ready: dict[int, None] = {}  # decided on, and may go on
        self._plans: dict[int, _Plan] = {}
        self._held: Counter[str] = Counter()  # checkpoint -> how many members are still to begin with it
        self._released: list[str] = []
        self._completed: set[int] = set()

    def begin(self, trial: int) -> int:
        return self._next(0)

    def report(self, trial: int, step: int, score: float) -> Verdict:
        if step >= self.max_resource:
            recorded = () if trial in self._completed else (self.max_resource,)
            self._completed.add(trial)
            return Verdict(Action.STOP, None, recorded)
        depth, undecided = self._depth(step), self._undecided(trial)
        if undecided is not None:
            return Verdict(Action.PAUSE, None, ())
        if depth <= self._passed[trial]:
            return Verdict(Action.CONTINUE, self._next(self._passed[trial]), ())
        self._scores.setdefault(depth, {})[trial] = score if math.isfinite(score) else -math.inf
        return Verdict(Action.PAUSE, None, (depth * self._spec.perturbation_interval,))

    def level(self, step: int) -> int:
        if step >= self.max_resource:
            return self.max_resource
        return self._depth(step) * self._spec.perturbation_interval

    def retried(self, trial: int, step: int) -> int:
        undecided = self._undecided(trial)
        return self._next(self._passed[trial]) if undecided is None else undecided * self._spec.perturbation_interval

    def finish(self, trial: int, state: TrialState) -> Sequence[int]:
        self._alive.discard(trial)
        saved = self._waiting.pop(trial, None)
        for scores in self._scores.values():
            scores.pop(trial, None)
        if saved is not None and saved.checkpoint is not None:
            self._released.append(saved.checkpoint)
        if trial in self._ready:
            self._take(trial)
        self._decide()
        return ()

    def saved(self, trial: int, step: int, checkpoint: str | None) -> bool:
        if self._undecided(trial) is None:
            return False
        self._waiting[trial] = _Saved(step, checkpoint)
        self._decide()
        return checkpoint is not None

    def resumable(self, warm: int | None = None) -> Resumption | None:
        if not self._ready:
            return None
        trial = warm if warm in self._ready else next(iter(self._ready))
        assert trial is not None
        until = self._next(self._passed[trial])
        plan = self._plans.get(trial)
        if plan is None:
            return Resumption(trial, until)
        return Resumption(trial, until, plan.donor, plan.checkpoint, plan.step, plan.score)

    def resume(self, resumption: Resumption) -> None:
        self._take(resumption.trial)

    def explore(self, row: npt.NDArray[np.float64], trial: int, segment: int, step: int) -> npt.NDArray[np.float64]:
        plan = self._plans[trial]
        if plan.perturbed:
            stream = Stream(self._seed, EXPLORE, trial, segment, step)
            return self._table.explore(row, stream, self._spec.resample_probability, self._spec.perturbation_factor)
        return row if plan.row is None else plan.row

    def released(self) -> list[str]:
        released, self._released = self._released, []
        return released

    def _depth(self, step: int) -> int:
        """The deepest at or before a step; 0: none."""
        return highest(self._depths, step // self._spec.perturbation_interval)

    def _next(self, depth: int) -> int:
        """The step of the next one."""
        place = bisect_right(self._depths, depth)
        if place == len(self._depths):
            return self.max_resource
        return self._depths[place] * self._spec.perturbation_interval

    def _undecided(self, trial: int) -> int | None:
        """The depth at which a member is recorded and waits, or is about to."""
        return next((depth for depth, scores in self._scores.items() if trial in scores), None)

    def _take(self, trial: int) -> None:
        """A member goes on, or is gone: it needs what it was to begin with no more."""
        del self._ready[trial]
        plan = self._plans.pop(trial, None)
        if plan is not None:
            self._held[plan.checkpoint] -= 1
            if self._held[plan.checkpoint] == 0:
                del self._held[plan.checkpoint]
                self._released.append(plan.checkpoint)

    def _decide(self) -> None:
        """Where everyone has arrived, and is saved, it is decided who goes on from whom."""
        while self._waiting and len(self._waiting) == len(self._alive):
            depth = min(depth for depth, scores in self._scores.items() if scores)
            scores = self._scores.pop(depth)
            self._evolve(depth, scores)
            for trial in sorted(scores):
                saved = self._waiting.pop(trial)
                self._passed[trial] = depth
                self._ready[trial] = None
                if saved.checkpoint is not None and not self._held[saved.checkpoint]:
                    self._released.append(saved.checkpoint)

    def _evolve(self, depth: int, scores: dict[int, float]) -> None:
        """Plan for all who take over at a depth from another."""
        frequencies = self._spec.frequencies
        ranking = sorted(scores, key=lambda trial: (-scores[trial], trial))
        rank = {trial: place for place, trial in enumerate(ranking)}
        # A dict, for its order.
        donors = dict.fromkeys(
            trial for trial in ranking if math.isfinite(scores[trial]) and self._waiting[trial].checkpoint is not None
        )
        for place, frequency in enumerate(frequencies):
            if depth % frequency:
                continue
            own = [trial for trial in ranking if trial % len(frequencies) == place]
            n = len(own)
            k = truncated(n, self._spec.quantile_fraction)
            best = [trial for trial in own[:k] if trial in donors]
            for trial in own[n - k :] if best else ():
                donor = best[Stream(self._seed, DONOR, trial, 0, depth).below(len(best))]
                self._plan(trial, donor, scores, perturbed=True)
            migrants = iter([trial for trial in donors if trial % len(frequencies) != place])
            migrant = next(migrants, None)
            for trial in own[max(k, n - 2 * k) : n - k]:
                if migrant is None or rank[migrant] > rank[trial]:
                    continue
                slower = migrant % len(frequencies) > place
                self._plan(trial, migrant, scores, row=None if slower else self._rows[own[0]])
                migrant = next(migrants, None)

    def _plan(
        self,
        trial: int,
        donor: int,
        scores: dict[int, float],
        perturbed: bool = False,
        row: npt.NDArray[np.float64] | None = None,
    ) -> None:
        step, checkpoint = self._waiting[donor]
        assert checkpoint is not None
        self._plans[trial] = _Plan(donor, scores[donor], step, checkpoint, perturbed, row)
        self._held[checkpoint] += 1
