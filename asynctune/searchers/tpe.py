"""TPE: Bayesian search by tree-structured Parzen estimators, hyperopt's, compiled and kept up to date from trial to trial.

The better trials and the others are modelled by a density each, and of some draws from the first the one is suggested at which
it is largest over the second, hyperparameter by hyperparameter (Bergstra et al., "Algorithms for hyper-parameter optimization",
NeurIPS 2011). Which trials these are says searchers/history.py, as for `HyperOpt`; here all of them count, however many.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np

from asynctune._core import Parzen
from asynctune.errors import InvalidArgument, check_integer
from asynctune.records import TrialState
from asynctune.searchers.base import Searcher, Suggestion
from asynctune.searchers.history import History, check_history, startup_of
from asynctune.searchers.random import draw
from asynctune.space import Rows, Space

__all__ = ["TPE", "BoundTPE"]


@dataclass(frozen=True)
class TPE(Searcher):
    """Bayesian search by tree-structured Parzen estimators, with hyperopt 0.3's densities, in a fraction of a millisecond.

    Args:
        startup: how many trials must have a value before the model is used, >= 1; until then configurations are random. Default:
            a quarter of num_trials, at least 5 and at most 20.
        gamma: how many trials count as the better ones, in units of the square root of their number, in (0, 1].
        candidates: how many candidates are drawn for a suggestion, in 1..10,000.
        prior_weight: of the whole domain in a density, that of a trial being 1, > 0.
        multivariate: whether the hyperparameters that are active together have one density, so that what is good together is
            suggested together, instead of one for each, as in hyperopt. Its kernels are products as in BOHB (Falkner et al.,
            ICML 2018), as wide as in Optuna's multivariate TPE; of more than 1,000 others the latest 1,000 count.

    Raises InvalidArgument if one is out of range.
    """

    startup: int | None = None
    gamma: float = 0.25
    candidates: int = 24
    prior_weight: float = 1.0
    multivariate: bool = False

    def __post_init__(self) -> None:
        check_history(self.startup, self.gamma)
        check_integer("candidates", self.candidates, at_least=1, at_most=10_000)
        if not isinstance(self.multivariate, bool):
            raise InvalidArgument(f"multivariate must be True or False, got {self.multivariate!r}")
        if not isinstance(self.prior_weight, int | float) or not 0 < self.prior_weight < float("inf"):
            raise InvalidArgument(f"prior_weight must be > 0 and finite, got {self.prior_weight!r}")

    def bind(self, *, space: Space, seed: int, num_trials: int | None, rows: Rows) -> "BoundTPE":
        return BoundTPE(self, space, seed, startup_of(self.startup, num_trials), rows)


class BoundTPE:
    """TPE at work for one study. The same seed and the same history give the same suggestion."""

    preload = None

    def __init__(self, spec: TPE, space: Space, seed: int, startup: int, rows: Rows) -> None:
        self._spec = spec
        self._table = space.table
        self._seed = seed
        self._rows = rows
        self._history = History(startup, spec.gamma)
        self._parzen = Parzen(space.table, spec.prior_weight)  # of the model's level; empty while there is none

    def prepare(self, number: int) -> Suggestion:
        if self._history.level is None:
            return partial(draw, self._table, self._seed, number)
        row = self._parzen.suggest(self._seed, number, self._spec.candidates, self._spec.multivariate)
        return partial(np.copy, row)

    def slow(self, number: int) -> bool:
        return False

    def started(self, trial: int) -> None:
        self._history.started(trial)
        if self._history.level is not None:
            self._parzen.put(trial, self._rows[trial], better=False)

    def observe(self, trial: int, level: int, score: float) -> None:
        history = self._history
        before, better = history.level, history.better
        history.observe(trial, level, score)
        if history.level != before:
            self._parzen = Parzen(self._table, self._spec.prior_weight)
            self._put(set(history.trials) - history.left_out)
        elif level == history.level:
            self._put(better ^ history.better)

    def ended(self, trial: int, state: TrialState) -> None:
        if self._history.ended(trial, state):
            self._parzen.drop(trial)

    def _put(self, trials: set[int]) -> None:
        """Have trials count on the side where they are now."""
        better = self._history.better
        for trial in sorted(trials - better):  # first, since at most 25 may be the better ones at a time
            self._parzen.put(trial, self._rows[trial], better=False)
        for trial in sorted(trials & better):
            self._parzen.put(trial, self._rows[trial], better=True)
