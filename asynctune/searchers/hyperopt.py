"""HyperOpt: Bayesian search by the hyperopt library's tree-structured Parzen estimator (TPE), asked and told.

TPE models the better trials and the others by a density each, and suggests the candidate whose ratio of the two is best (Bergstra
et al., "Algorithms for hyper-parameter optimization", NeurIPS 2011). Which trials these are is decided here (searchers/history.py)
and handed to the library as losses 0 and 1. Of more than 1,000 trials at the model's level, the better and the latest 1,000 are used,
because hyperopt's time grows with their number: at 10,000 trials of 8 hyperparameters that is ten times faster. (The price,
measured on the squared distance from the optimum of a quadratic after 4,000 random trials: suggestions at 0.091 instead of 0.079.)
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

from asynctune._core import CHOICE, LOG, NORMAL, SUGGEST, Stream
from asynctune.errors import check_integer
from asynctune.records import TrialState
from asynctune.searchers.base import Row, Searcher, Suggestion
from asynctune.searchers.history import History, check_history, startup_of
from asynctune.searchers.random import draw
from asynctune.searchers.silence import silence
from asynctune.space import Column, Rows, Space, assemble, nearest

__all__ = ["BoundHyperOpt", "HyperOpt"]

_WINDOW = 1000


@dataclass(frozen=True)
class HyperOpt(Searcher):
    """Bayesian search by the hyperopt library (TPE).

    Args:
        startup: how many trials must have a value before the model is used, >= 1; until then configurations are random. Default:
            a quarter of num_trials, at least 5 and at most 20.
        gamma: how many trials count as the better ones, in units of the square root of their number, in (0, 1].
        candidates: how many candidates are drawn for a suggestion, >= 1.

    Raises InvalidArgument if one is out of range.
    """

    startup: int | None = None
    gamma: float = 0.25
    candidates: int = 24

    def __post_init__(self) -> None:
        check_history(self.startup, self.gamma)
        check_integer("candidates", self.candidates, at_least=1)

    def bind(self, *, space: Space, seed: int, num_trials: int | None, rows: Rows) -> "BoundHyperOpt":
        return BoundHyperOpt(self, space, seed, startup_of(self.startup, num_trials), rows)


class BoundHyperOpt:
    """TPE at work for one study. The same seed and the same history give the same suggestion."""

    def __init__(self, spec: HyperOpt, space: Space, seed: int, startup: int, rows: Rows) -> None:
        self.preload: Callable[[], object] = _load_library
        self._candidates = spec.candidates
        self._space = space
        self._seed = seed
        self._rows = rows
        self._history = History(startup, spec.gamma)
        self.started, self.observe = self._history.started, self._history.observe

    def prepare(self, number: int) -> Suggestion:
        history = self._history
        if history.level is None:
            return partial(draw, self._space.table, self._seed, number)
        better = history.better
        trials = sorted(better.union(history.trials[-_WINDOW:]) - history.left_out)
        return partial(
            _suggest,
            self._space.columns,
            self._rows.take(trials),
            np.array([number in better for number in trials]),
            Stream(self._seed, SUGGEST, number).below(2**31),
            self._candidates,
        )

    def ended(self, trial: int, state: TrialState) -> None:
        self._history.ended(trial, state)

    def slow(self, number: int) -> bool:
        return self._history.level is not None


def _load_library() -> None:
    with silence():
        import_module("hyperopt")


def _suggest(columns: tuple[Column, ...], rows: Row, better: npt.NDArray[np.bool_], seed: int, candidates: int) -> Row:
    """The row (d,) that TPE suggests after rows (n, d) in the order of suggestion, of which `better` (n,) are the better ones."""
    # NumPy 2.5 deprecates what hyperopt 0.3 does to shapes; its densities take the logarithm of zero.
    with silence(), np.errstate(all="ignore"):
        # Takes seconds (networkx, scipy), so only here, where it is needed.
        from hyperopt import JOB_STATE_DONE, tpe, trials_from_docs

        documents = [
            {
                "tid": tid,
                "state": JOB_STATE_DONE,
                "spec": None,
                "result": {"status": "ok", "loss": 0.0 if is_better else 1.0},
                "misc": _misc(columns, tid, row),
                "exp_key": None,
            }
            for tid, (row, is_better) in enumerate(zip(rows.tolist(), better.tolist(), strict=True))
        ]
        [document] = tpe.suggest(
            [len(rows)],
            _domain(columns),
            trials_from_docs(documents, validate=False),
            seed,
            n_startup_jobs=0,  # it would count its own way
            n_EI_candidates=candidates,
            # hyperopt takes the first ceil(gamma * sqrt(n)): this gamma makes them the better ones, whatever n is.
            gamma=(better.sum() - 0.5) / math.sqrt(len(rows)),
            verbose=False,
        )
    return _row(columns, document["misc"]["vals"])


def _misc(columns: tuple[Column, ...], tid: int, row: list[float]) -> dict[str, Any]:
    """A row as hyperopt keeps it: label -> list of one value, or of none where it is not active; options as int."""
    vals = {
        str(j): [] if math.isnan(value) else [int(value) if column.kind == CHOICE else value]
        for j, (column, value) in enumerate(zip(columns, row, strict=True))
    }
    return {"tid": tid, "idxs": {label: [tid] * len(value) for label, value in vals.items()}, "vals": vals}


def _row(columns: tuple[Column, ...], vals: dict[str, list[Any]]) -> Row:
    def value(j: int, column: Column) -> float:
        suggested = float(vals[str(j)][0])
        # Rounding may take a candidate out of its bounds: the exponential of a logarithm, half a step at an end.
        return suggested if column.kind == NORMAL else nearest(suggested, column.low, column.high, column.step)

    return assemble(columns, value)


@lru_cache(maxsize=16)
def _domain(columns: tuple[Column, ...]) -> Any:
    """hyperopt's own form of a space, built once per process; a column's label is its index."""
    from hyperopt import Domain, hp

    def branch(parent: int, value: int) -> dict[str, Any]:
        return {
            str(j): hyperparameter(j, column)
            for j, column in enumerate(columns)
            if (column.parent, column.branch) == (parent, value)
        }

    def hyperparameter(j: int, column: Column) -> Any:
        label, low, high, step = str(j), column.low, column.high, column.step
        if column.kind == CHOICE:
            return hp.choice(label, [branch(j, value) for value in range(int(high) + 1)])
        if column.kind == NORMAL:
            return hp.normal(label, low, high)
        if step == 0:
            return (
                hp.loguniform(label, math.log(low), math.log(high))
                if column.kind == LOG
                else hp.uniform(label, low, high)
            )
        # Half a step more at either end, so that the ends are as likely as what lies between.
        low, high = nearest(low, low, high, step) - step / 2, nearest(high, low, high, step) + step / 2
        if column.kind == LOG:
            return hp.qloguniform(label, math.log(low), math.log(high), step)
        return hp.quniform(label, low, high, step)

    return Domain(None, branch(-1, -1), pass_expr_memo_ctrl=False)
