"""PBT: population-based training, decided when a member's turn comes.

Jaderberg et al., Population Based Training of Neural Networks, 2017 (arXiv:1711.09846).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from asynctune._core import EXPLORE, Generations, Stream
from asynctune.errors import InvalidArgument, check_factor, check_integer, check_real
from asynctune.records import Action, TrialState
from asynctune.schedulers.base import BoundScheduler, Resumption, Scheduler, Verdict
from asynctune.space import Rows, Space

__all__ = ["PBT", "BoundPBT"]


@dataclass(frozen=True)
class PBT(Scheduler):
    """Population-based training: at each interval the worst members go on as perturbed copies of the best.

    The population is the study's `num_trials`. Members are compared at equal depth, and decided on when their turn comes again,
    the least trained first. At `max_resource` a member completes; the population trains `num_trials * max_resource` steps in all.

    Args:
        perturbation_interval: steps from one decision to the next, an integer >= 1.
        max_resource: the step at which a member completes, an integer >= 1.
        quantile_fraction: in [0, 0.5]; of n members at an interval, the worst k = min(n // 2, max(1, floor(quantile_fraction * n)))
            take over from the best k.
        resample_probability: in [0, 1]; with it a hyperparameter is drawn anew instead of perturbed.
        perturbation_factor: > 1; a hyperparameter is multiplied or divided by it, inside its bounds. Values on a grid move by a step
            at least, those near zero by a sum, `ordinal` to a neighbour; `choice` is drawn anew or stays.
        burn_in: steps before the first decision, an integer >= 0.
        synchronous: whether everyone waits at each interval; None: if there is a slot for every member.

    Raises:
        InvalidArgument: an argument breaks its rule.
    """

    perturbation_interval: int
    max_resource: int
    quantile_fraction: float = 0.25
    resample_probability: float = 0.25
    perturbation_factor: float = 1.2
    burn_in: int = 0
    synchronous: bool | None = None

    def __post_init__(self) -> None:
        # As ints and floats of Python: those of NumPy would not be encoded.
        for name, at_least in (("perturbation_interval", 1), ("max_resource", 1), ("burn_in", 0)):
            object.__setattr__(self, name, check_integer(name, getattr(self, name), at_least, at_most=2**63 - 1))
        if self.perturbation_interval >= self.max_resource:
            raise InvalidArgument(
                f"perturbation_interval must be < max_resource = {self.max_resource}, got {self.perturbation_interval}"
            )
        if self.max_resource // self.perturbation_interval >= 2**31 - 2:
            raise InvalidArgument(
                f"max_resource must be < 2^31 - 2 intervals, got {self.max_resource} / {self.perturbation_interval}"
            )
        object.__setattr__(self, "quantile_fraction", check_real("quantile_fraction", self.quantile_fraction, 0, 0.5))
        object.__setattr__(
            self, "resample_probability", check_real("resample_probability", self.resample_probability, 0, 1)
        )
        object.__setattr__(self, "perturbation_factor", check_factor(self.perturbation_factor))
        if self.synchronous is not None and not isinstance(self.synchronous, bool):
            raise InvalidArgument(f"synchronous must be True, False or None, got {self.synchronous!r}")

    def bind(
        self,
        *,
        seed: int = 0,
        num_trials: int | None = None,
        num_slots: int | None = None,
        space: Space | None = None,
        rows: Rows | None = None,
    ) -> "BoundPBT":
        return BoundPBT(self, seed, num_trials, num_slots, space)


class BoundPBT(BoundScheduler):
    """One run's population. A depth is a number of intervals."""

    new_first: ClassVar[bool] = True
    fixed_population: ClassVar[bool] = True
    changes_configs = True

    def __init__(
        self, spec: PBT, seed: int, num_trials: int | None, num_slots: int | None, space: Space | None
    ) -> None:
        if num_trials is None:
            raise InvalidArgument(f"{type(spec).__name__} needs num_trials, the size of its population, got None")
        if space is None:
            raise InvalidArgument(f"{type(spec).__name__} needs space, which it explores, got None")
        barrier = spec.synchronous
        if barrier is None:
            barrier = num_slots is not None and num_slots >= num_trials
        self.max_resource: int = spec.max_resource
        self._interval = spec.perturbation_interval
        self._first = max(1, -(-spec.burn_in // spec.perturbation_interval))
        self._resample_probability = spec.resample_probability
        self._factor = spec.perturbation_factor
        self._seed = seed
        self._table = space.table
        self._completed = bytearray(num_trials)  # by trial: whether it is recorded at max_resource
        depths = (spec.max_resource - 1) // spec.perturbation_interval
        self._generations = Generations(num_trials, depths, spec.quantile_fraction, seed, barrier)

    def begin(self, trial: int) -> int:
        return self._due(self._first)

    def report(self, trial: int, step: int, score: float) -> Verdict:
        if step >= self.max_resource:
            recorded = () if self._completed[trial] else (self.max_resource,)
            self._completed[trial] = True
            return Verdict(Action.STOP, None, recorded)
        depth = step // self._interval
        recorded = ()
        if depth >= self._first and self._generations.record(trial, depth, score):
            recorded = (depth * self._interval,)
        if self._generations.undecided_depth(trial) is not None:
            return Verdict(Action.PAUSE, None, recorded)
        return Verdict(Action.CONTINUE, self._next(trial), recorded)

    def level(self, step: int) -> int:
        if step >= self.max_resource:
            return self.max_resource
        depth = step // self._interval
        return depth * self._interval if depth >= self._first else 0

    def retried(self, trial: int, step: int) -> int:
        undecided = self._generations.undecided_depth(trial)
        return self._next(trial) if undecided is None else self._due(undecided)

    def finish(self, trial: int, state: TrialState) -> Sequence[int]:
        self._generations.leave(trial)
        return ()

    def saved(self, trial: int, step: int, checkpoint: str | None) -> bool:
        self._generations.save(trial, step, checkpoint)
        return checkpoint is not None

    def resumable(self, warm: int | None = None) -> Resumption | None:
        trial = self._generations.next(warm)
        if trial is None:
            return None
        depth = self._generations.undecided_depth(trial)
        assert depth is not None
        until = self._due(depth + 1)
        donor = self._generations.donor(trial)
        return Resumption(trial, until) if donor is None else Resumption(trial, until, *donor)

    def resume(self, resumption: Resumption) -> None:
        self._generations.advance(resumption.trial)

    def explore(self, row: npt.NDArray[np.float64], trial: int, segment: int, step: int) -> npt.NDArray[np.float64]:
        stream = Stream(self._seed, EXPLORE, trial, segment, step)
        return self._table.explore(row, stream, self._resample_probability, self._factor)

    def released(self) -> list[str]:
        return self._generations.released()

    def _due(self, depth: int) -> int:
        return min(depth * self._interval, self.max_resource)

    def _next(self, trial: int) -> int:
        return self._due(max(self._first, self._generations.passed_depth(trial) + 1))
