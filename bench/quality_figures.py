"""Figures: what the runs of the quality benchmark say, by slots and way of drawing: regret, ranks, and time to random's regret."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from measure import Row
from quality_methods import BUDGETS, GRID, OURS, RECOMMENDED, Run

__all__ = ["Table", "plot", "rows", "tables"]

#: At which percentages of the budget methods are compared.
MARKS = (25, 50, 100)

#: What is to be not worse than what, run by run.
PAIRS = (("TPE", "HyperOpt"), ("TPE", "hyperopt"), ("TPE + ASHA", "TPE + ASHA blind"))

_RESAMPLES = 2000

Floats = npt.NDArray[np.float64]


class Table:
    """The runs of one setting. Methods that have not run on all its tasks are left out.

    tasks: their names. methods: as given. seeds: by method, those that it has on all tasks. curves: by method, (tasks, seeds, 100).
    """

    def __init__(self, slots: int, draw: str, runs: Mapping[Run, Sequence[float]], peers: Sequence[str]) -> None:
        self.slots = slots
        self.draw = draw
        self.tasks = sorted({run.task for run in runs}, key=lambda name: name.zfill(9))
        seeds: defaultdict[str, defaultdict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
        for run in runs:
            seeds[run.method][run.task].add(run.seed)
        common = {
            method: sorted(set.intersection(*(seeds[method][task] for task in self.tasks)))
            for method in (*OURS, *peers)
            if method in seeds
        }
        self.seeds = {method: found for method, found in common.items() if found}
        self.curves = {
            method: np.array([[runs[Run(task, method, slots, draw, seed)] for seed in found] for task in self.tasks])
            for method, found in self.seeds.items()
        }

    @cached_property
    def means(self) -> dict[str, Floats]:
        """By method: the mean regret over seeds, (tasks, 100)."""
        return {method: curves.mean(axis=1) for method, curves in self.curves.items()}

    def regret(self, method: str, mark: int) -> tuple[float, float, float]:
        """The mean over tasks and seeds at a percentage of the budget, and its 95 % bootstrap interval over seeds."""
        return _interval(self.curves[method][:, :, mark - 1].mean(axis=0))

    def difference(self, one: str, other: str, mark: int) -> tuple[float, float, float]:
        """The same of a difference, run by run."""
        common = [seed for seed in self.seeds[one] if seed in self.seeds[other]]
        first, second = (
            self.curves[method][:, [self.seeds[method].index(seed) for seed in common], mark - 1]
            for method in (one, other)
        )
        return _interval((first - second).mean(axis=0))

    def ranks(self, mark: int, methods: Sequence[str]) -> dict[str, float]:
        """By method: its average place, over tasks, among the mean regrets at a percentage of the budget; of equals the middle one."""
        regrets = np.array([self.means[method][:, mark - 1] for method in methods])  # (methods, tasks)
        below = (regrets[None] < regrets[:, None]).sum(axis=1)
        equal = (regrets[None] == regrets[:, None]).sum(axis=1)
        return dict(zip(methods, (below + (equal + 1) / 2).mean(axis=1).tolist(), strict=True))

    def reached(self, method: str) -> list[float]:
        """(tasks) at which percentage of the budget the mean regret is random's last one; infinity if never."""
        hit = self.means[method] <= self.means["random"][:, -1:]
        return [float(GRID[row.argmax()] * 100) if row.any() else math.inf for row in hit]

    def text(self) -> str:
        lines = [
            f"{self.slots} slots, {BUDGETS[self.slots]} full trainings each, drawn {self.draw}, {len(self.tasks)} tasks"
        ]
        head = [f"regret at {mark} %" for mark in MARKS] + [f"rank at {mark} %" for mark in MARKS]
        cells = [["method", "seeds", *head, "random's last at", "by task"]]
        ranks = {mark: self.ranks(mark, list(self.curves)) for mark in MARKS}
        for method in self.curves:
            spread = ["{:.4f} ({:.4f}, {:.4f})".format(*self.regret(method, mark)) for mark in MARKS]
            places = [f"{ranks[mark][method]:.2f}" for mark in MARKS]
            reached = self.reached(method) if "random" in self.curves else []
            median = f"{np.median(reached):.0f} %" if reached else ""
            by_task = " ".join(f"{percent:.0f}" for percent in reached)
            cells.append([method, str(len(self.seeds[method])), *spread, *places, median, by_task])
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines += [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells
        ]
        lines += [
            f"{one} - {other}: "
            + ", ".join(
                "{:+.4f} ({:+.4f}, {:+.4f})".format(*self.difference(one, other, mark)) + f" at {mark} %"
                for mark in MARKS
            )
            for one, other in PAIRS
            if one in self.curves and other in self.curves
        ]
        return "\n".join([*lines, "tasks: " + " ".join(self.tasks)])

    def figures(self) -> dict[str, Any]:
        """What the text says, for JSON, and the mean regret over time."""
        ranks = {mark: self.ranks(mark, list(self.curves)) for mark in MARKS}
        return {
            "slots": self.slots,
            "draw": self.draw,
            "tasks": self.tasks,
            "methods": {
                method: {
                    "seeds": len(self.seeds[method]),
                    "regret": {mark: self.regret(method, mark) for mark in MARKS},
                    "rank": {mark: ranks[mark][method] for mark in MARKS},
                    "reached": self.reached(method) if "random" in self.curves else None,
                    "curve": self.means[method].mean(axis=0).round(6).tolist(),
                }
                for method in self.curves
            },
            "differences": {
                f"{one} - {other}": {mark: self.difference(one, other, mark) for mark in MARKS}
                for one, other in PAIRS
                if one in self.curves and other in self.curves
            },
        }


def tables(runs: Mapping[Run, Sequence[float]], peers: Sequence[str]) -> list[Table]:
    settings: defaultdict[tuple[int, str], dict[Run, Sequence[float]]] = defaultdict(dict)
    for run, regrets in runs.items():
        settings[run.slots, run.draw][run] = regrets
    return [Table(slots, draw, found, peers) for (slots, draw), found in settings.items()]


def rows(settings: Sequence[Table], peers: Sequence[str]) -> list[Row]:
    """What is asked of the recommended pair: random's last regret in a tenth of the time, and a better rank than any peer's."""
    found = []
    for table in settings:
        if not {RECOMMENDED, "random"} <= table.curves.keys():
            continue
        where = f"{table.slots} slots, drawn {table.draw}"
        present = [peer for peer in peers if peer in table.curves]
        reached = {method: float(np.median(table.reached(method))) for method in (RECOMMENDED, *present)}
        best = min(present, key=lambda peer: reached[peer], default=None)
        found.append(
            Row(
                what=f"{RECOMMENDED}: random's last regret, median task, {where}",
                unit="% of the time",
                median=reached[RECOMMENDED],
                beside=best,
                floor=None if best is None else reached[best],
                budget=10,
                rule="<= a tenth",
            )
        )
        for mark in MARKS if present else ():
            ranks = table.ranks(mark, [RECOMMENDED, *present])
            best = min(present, key=lambda peer: ranks[peer])
            found.append(
                Row(
                    what=f"{RECOMMENDED}: average rank among the peers at {mark} %, {where}",
                    unit="",
                    median=ranks[RECOMMENDED],
                    beside=best,
                    floor=ranks[best],
                    budget=ranks[best],
                    rule="<= the best peer's",
                )
            )
    return found


def plot(settings: Sequence[Table], path: Path) -> None:
    """Mean regret over time, a panel for each setting."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(settings), figsize=(6 * len(settings), 5), sharey=True, squeeze=False)
    for axis, table in zip(axes[0], settings, strict=True):
        for method, means in table.means.items():
            style = {"linewidth": 2.5, "color": "black"} if method == RECOMMENDED else {"linewidth": 1.0}
            axis.plot(GRID * 100, means.mean(axis=0), label=method, linestyle="-" if method in OURS else "--", **style)
        axis.set(yscale="log", xlabel="% of the budget", title=f"{table.slots} slots, drawn {table.draw}")
    axes[0][0].set_ylabel(f"mean normalised regret, {len(settings[0].tasks)} tasks")
    axes[0][-1].legend(fontsize="x-small", loc="upper right")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _interval(samples: Floats) -> tuple[float, float, float]:
    """The mean of samples (seeds,), and its 95 % percentile bootstrap interval."""
    picks = np.random.default_rng(0).integers(len(samples), size=(_RESAMPLES, len(samples)))
    low, high = np.percentile(samples[picks].mean(axis=1), [2.5, 97.5])
    return float(samples.mean()), float(low), float(high)
