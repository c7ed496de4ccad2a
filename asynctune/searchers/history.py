"""History: which trials a model is built of, and which of them are the better ones, under concurrency and early stopping.

A tree-structured Parzen estimator uses nothing of a value but on which side of a split it is, so the split is all that has
to be decided:

- The model is built on one level, the highest at which enough trials have a finite value, as in BOHB (Falkner et al., ICML 2018);
  until there is one, configurations are drawn at random. With FIFO the only level is the final value.
- The better trials are the best ceil(gamma * sqrt(n)) of the n finite values at that level, at most 25, as in hyperopt; ties go
  to the earlier report.
- The others are all other trials: those with a lower value there; those that failed, or whose value was not finite; those that were stopped
  or pause further down; and, as a constant liar with the worst value (Ginsbourger et al., 2010), those that run, which keeps suggestions
  that are out apart. No value is compared with one of another level: that others went on where a trial did not says enough.
- Left out are trials that ended by themselves below that level: how they would have gone on, nobody can tell.

BOHB leaves out whatever has no value at the model's level. Then a model that moves up knows only those that got far, forgets where trials
were lost, and suggests it again (bench/quality.py measures what comes of it).
"""

import math
from array import array
from bisect import insort
from collections import defaultdict
from operator import itemgetter

from asynctune.errors import InvalidArgument, check_integer
from asynctune.records import COMPLETED, TrialState

__all__ = ["History", "check_history", "startup_of"]

_MOST_BETTER = 25  # hyperopt's own limit on the better trials (tpe.DEFAULT_LF)


def check_history(startup: int | None, gamma: float) -> None:
    """Raise InvalidArgument unless startup is None or an integer >= 1, and gamma in (0, 1]."""
    if startup is not None:
        check_integer("startup", startup, at_least=1)
    if not isinstance(gamma, int | float) or not 0 < gamma <= 1:
        raise InvalidArgument(f"gamma must be in (0, 1], got {gamma!r}")


def startup_of(startup: int | None, num_trials: int | None) -> int:
    """How many trials must have a value before there is a model: so few that a study of 20 trials is never all random."""
    if startup is not None:
        return startup
    return 20 if num_trials is None else min(20, max(5, num_trials // 4))


class _Level:
    """What is known of one level."""

    def __init__(self) -> None:
        self.finite = 0  # how many of the scores are finite
        self.best: list[tuple[float, int]] = []  # (-score, trial) of the best, in their order; ties: the earlier report
        self.completed = array("q")  # trials that ended by themselves with no score at a higher one

    def add(self, trial: int, score: float) -> None:
        if math.isfinite(score):
            self.finite += 1
            insort(self.best, (-score, trial), key=itemgetter(0))
            del self.best[_MOST_BETTER:]


_NO_LEVEL = -1


class History:
    """What a searcher was told, as far as a model needs it.

    startup: how many finite values a level must have. gamma: how many trials are the better ones, in units of the square root of
    the number of finite values.

    level: the one on which the model is built; None: it is too early for a model. trials: all so far, as they started. alive: by trial
    that has not ended, the highest level at which it has a score.
    """

    def __init__(self, startup: int, gamma: float) -> None:
        self.level: int | None = None
        self.trials = array("q")
        self.alive: dict[int, int] = {}
        self._startup = startup
        self._gamma = gamma
        self._levels: defaultdict[int, _Level] = defaultdict(_Level)

    @property
    def better(self) -> set[int]:
        """The better ones of the trials."""
        if self.level is None:
            return set()
        level = self._levels[self.level]
        count = math.ceil(self._gamma * math.sqrt(level.finite))
        return {trial for _, trial in level.best[:count]}

    @property
    def left_out(self) -> set[int]:
        """Those that are neither among the better ones nor among the others."""
        assert self.level is not None
        return {trial for level, known in self._levels.items() if level < self.level for trial in known.completed}

    def started(self, trial: int) -> None:
        self.trials.append(trial)
        self.alive[trial] = _NO_LEVEL

    def observe(self, trial: int, level: int, score: float) -> None:
        self.alive[trial] = max(level, self.alive[trial])
        if self.level is not None and level < self.level:
            return
        self._levels[level].add(trial, score)
        if self._levels[level].finite >= self._startup:
            self.level = level

    def ended(self, trial: int, state: TrialState) -> bool:
        """Return whether it is left out from now on."""
        reached = self.alive.pop(trial)
        if state is not COMPLETED:
            return False
        self._levels[reached].completed.append(trial)
        return self.level is not None and reached < self.level
