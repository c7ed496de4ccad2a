"""Methods: the tasks of the quality benchmark, its budgets, and the pairs of searcher and scheduler that are ours."""

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

import asynctune as at
from asynctune.records import Reported, Suggested, TrialState
from asynctune.searchers import Searcher
from asynctune.searchers.base import BoundSearcher, Suggestion
from asynctune.space import Rows, Space

__all__ = ["BUDGETS", "DIGITS", "GRID", "OURS", "RECOMMENDED", "Run", "Task", "load", "names", "regrets", "simulated"]

#: Slots -> how long a run is, in mean full trainings of the task for each slot.
BUDGETS = {4: 25, 64: 4}

#: The fractions of the budget at which a run's regret is kept.
GRID = np.arange(1, 101) / 100

#: The task that comes with asynctune. It is neither for choosing nor for reporting on LCBench.
DIGITS = "digits"

#: LCBench's tasks by id. Every second one of the 17, from the second on, is for choosing defaults; on the others is reported.
LCBENCH = (
    *(3945, 34539, 126026, 146212, 167149, 167161, 167181, 167185, 167200, 168329, 168331, 168868, 168910),
    *(189862, 189866, 189905, 189908),
)
GROUPS = {"dev": LCBENCH[1::2], "test": LCBENCH[::2], "digits": (DIGITS,), "all": (*LCBENCH, DIGITS)}

STEPS = 50


class Task:
    """A table of learning curves, larger values better, and what it takes to say how far a run is from its best.

    seconds: of a full training, the mean. best: the largest value of all, at any step. span: from there to the median of the
    last values. worst: what is known before the first report.
    """

    def __init__(self, table: at.Tabular) -> None:
        curves = [table.curve(number) for number in range(len(table))]
        values = np.array([curve for curve, _ in curves])
        assert table.mode == "max" and table.max_resource == STEPS and np.isfinite(values).all()
        self.table = table
        self.seconds = float(np.mean([seconds[-1] for _, seconds in curves]))
        self.best = float(values.max())
        self.span = self.best - float(np.median(values[:, -1]))
        self.worst = float(values.min())


class Run(NamedTuple):
    """What is run: a line of the file of results begins with it. draw: whether a recorded configuration comes up `"again"` or `"once"`."""

    task: str
    method: str
    slots: int
    draw: str
    seed: int

    def benchmark(self, task: Task) -> Any:
        return task.table if self.draw == "again" else task.table.once()

    def num_trials(self, task: Task) -> int | None:
        """A table of which nothing comes up twice is used up some time."""
        return None if self.draw == "again" else len(task.table)

    def budget(self, task: Task) -> float:
        """In seconds."""
        return BUDGETS[self.slots] * task.seconds


Report = tuple[float, float]  # when, and the value


def names(group: str) -> list[str]:
    return [str(name) for name in GROUPS[group]]


@lru_cache
def load(name: str, data: Path | None) -> Task:
    return Task(at.Tabular.digits() if name == DIGITS or data is None else at.Tabular.lcbench(data, name))


def regrets(task: Task, budget: float, reports: list[Report]) -> npt.NDArray[np.float64]:
    """(100,) the distance of the best value reported so far to the task's best, in spans, at the fractions of a budget."""
    times = np.array([0.0, *(time for time, _ in reports)])
    values = np.maximum.accumulate([task.worst, *(value for _, value in reports)])
    incumbent = values[np.searchsorted(times, GRID * budget, side="right") - 1]
    return np.asarray((task.best - incumbent) / task.span)


def simulated(searcher: Searcher, scheduler: Any, task: Task, run: Run) -> tuple[list[Report], int]:
    """What trials of ours report, and how many there are."""
    result = at.simulate(
        run.benchmark(task),
        searcher=searcher,
        scheduler=scheduler,
        num_trials=run.num_trials(task),
        num_slots=run.slots,
        seed=run.seed,
        time_budget=run.budget(task),
    )
    reports, trials = [], 0
    for record in result.events():
        if isinstance(record, Reported):
            reports.append((record.time, record.metrics[task.table.metric]))
        elif isinstance(record, Suggested):
            trials += 1
    return reports, trials


@dataclass(frozen=True)
class Blind(Searcher):
    """A searcher that is told the last value of a trial when it ends, wherever that was: what those do that do not know of fidelity."""

    searcher: Searcher = field(default_factory=at.TPE)

    def bind(self, *, space: Space, seed: int, num_trials: int | None, rows: Rows) -> "_BoundBlind":
        return _BoundBlind(self.searcher.bind(space=space, seed=seed, num_trials=num_trials, rows=rows))


class _BoundBlind:
    preload = None

    def __init__(self, bound: BoundSearcher) -> None:
        self._bound = bound
        self._last: dict[int, float] = {}

    def prepare(self, trial: int) -> Suggestion:
        return self._bound.prepare(trial)

    def slow(self, trial: int) -> bool:
        return False

    def started(self, trial: int) -> None:
        self._bound.started(trial)

    def observe(self, trial: int, level: int, score: float) -> None:
        self._last[trial] = score

    def ended(self, trial: int, state: TrialState) -> None:
        if trial in self._last:
            self._bound.observe(trial, 0, self._last.pop(trial))
        self._bound.ended(trial, state)


RECOMMENDED = "recommended"
STOPPING = at.ASHA(STEPS)
PROMOTION = at.ASHA(STEPS, type="promotion")

#: Method -> searcher and scheduler.
OURS: dict[str, tuple[Searcher, Any]] = {
    "random": (at.Random(), at.FIFO()),
    "HyperOpt": (at.HyperOpt(), at.FIFO()),
    "TPE": (at.TPE(), at.FIFO()),
    "TPE multivariate": (at.TPE(multivariate=True), at.FIFO()),
    "ASHA": (at.Random(), STOPPING),
    "ASHA promotion": (at.Random(), PROMOTION),
    "TPE + ASHA": (at.TPE(), STOPPING),
    "TPE + ASHA promotion": (at.TPE(), PROMOTION),
    "TPE + ASHA blind": (Blind(), STOPPING),
    RECOMMENDED: (at.TPE(multivariate=True, startup=10), STOPPING),
    "Hyperband": (at.Random(), at.Hyperband(STEPS)),
    "BOHB": (at.TPE(), at.Hyperband(STEPS)),
    "PASHA": (at.Random(), at.PASHA(STEPS)),
    "median": (at.Random(), at.MedianStopping(max_resource=STEPS)),
}
