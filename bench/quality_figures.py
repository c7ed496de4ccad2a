"""Figures: what the runs of the quality benchmark say, by slots and way of drawing: regret, ranks, and time to random's regret."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

from measure import Row, padded
from quality_methods import BUDGETS, GRID, OURS, RECOMMENDED, Run

__all__ = ["Table", "plot", "rows", "tables"]

#: At which percentages of the budget methods are compared.
MARKS = (25, 50, 100)

#: What is to be not worse than what, run by run.
PAIRS = (("TPE", "HyperOpt"), ("TPE", "hyperopt"), ("TPE + ASHA", "TPE + ASHA blind"))

#: Those of ours that are drawn; of all there would be too many to tell apart.
DRAWN = ("random", "TPE", "ASHA", "BOHB", RECOMMENDED)

_DRAWS = 2000

Floats = npt.NDArray[np.float64]


class Table:
    """The runs of one setting. Methods that have not run on all its tasks are left out.

    tasks: their names. hours: how long a run is, by task. peers: those methods that are, of the ones given. seeds: by method, those that it has on
    all tasks. curves: by method, (tasks, seeds, 100). trials: by method, how many there are in a run, the median.
    """

    def __init__(self, slots: int, draw: str, lines: Mapping[Run, Mapping[str, Any]], peers: Sequence[str]) -> None:
        self.slots = slots
        self.draw = draw
        self.hours = {run.task: line["hours"] for run, line in lines.items()}
        self.tasks = sorted(self.hours, key=lambda name: name.zfill(9))
        seeds: defaultdict[str, defaultdict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
        for run in lines:
            seeds[run.method][run.task].add(run.seed)
        common = {
            method: sorted(set.intersection(*(seeds[method][task] for task in self.tasks)))
            for method in (*OURS, *peers)
            if method in seeds
        }
        self.seeds = {method: found for method, found in common.items() if found}
        self.peers = [peer for peer in peers if peer in self.seeds]
        self.curves: dict[str, Floats] = {}
        self.trials: dict[str, float] = {}
        for method, found in self.seeds.items():
            done = [[lines[Run(task, method, slots, draw, seed)] for seed in found] for task in self.tasks]
            self.curves[method] = np.array([[line["regrets"] for line in row] for row in done])
            self.trials[method] = float(np.median([[line["trials"] for line in row] for row in done]))

    @cached_property
    def means(self) -> dict[str, Floats]:
        """By method: the mean regret over seeds, (tasks, 100)."""
        return {method: curves.mean(axis=1) for method, curves in self.curves.items()}

    def regret(self, method: str, mark: int) -> tuple[float, float, float]:
        """The mean over tasks and seeds at a percentage of the budget, and its 95 % interval over seeds."""
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
        regrets = np.array([self.means[method][:, mark - 1] for method in methods])
        return dict(zip(methods, _places(regrets).mean(axis=1).tolist(), strict=True))

    def drawn(self, mark: int, methods: Sequence[str]) -> Floats:
        """(methods, draws) the same with mean regrets that other seeds might have shown."""
        chance = np.random.default_rng(0)
        regrets = [_drawn(self.curves[method][:, :, mark - 1], chance) for method in methods]
        return np.asarray(_places(np.array(regrets)).mean(axis=1))

    def reached(self, method: str) -> list[float]:
        """(tasks) at which percentage of the budget the mean regret is random's last one; infinity if never."""
        hit = self.means[method] <= self.means["random"][:, -1:]
        return [float(GRID[row.argmax()] * 100) if row.any() else math.inf for row in hit]

    @property
    def complete(self) -> bool:
        """Whether there is what the recommended pair is compared with."""
        return {RECOMMENDED, "random"} <= self.curves.keys()

    @property
    def where(self) -> str:
        """The setting, in short."""
        return f"{self.slots} slots, drawn {self.draw}"

    def text(self) -> str:
        """All of it, as Markdown."""
        drawn = "may be drawn again" if self.draw == "again" else "is drawn once at most"
        title = f"### {self.slots} slots, {BUDGETS[self.slots]} full trainings for each; a configuration {drawn}"
        parts = [title, self._methods()]
        if self.complete:
            parts += [part for part in (self._confidence(), self._by_task()) if part]
        differences = [
            f"- {one} less {other}: "
            + ", ".join(
                "{:+.4f} ({:+.4f} to {:+.4f})".format(*self.difference(one, other, mark)) + f" at {mark} %"
                for mark in MARKS
            )
            for one, other in PAIRS
            if one in self.curves and other in self.curves
        ]
        if differences:
            parts += ["Regret, run by run:", "\n".join(differences)]
        return "\n\n".join(parts)

    def _methods(self) -> str:
        ranks = {mark: self.ranks(mark, list(self.curves)) for mark in MARKS}
        head = [f"regret at {mark} %" for mark in MARKS] + [f"rank at {mark} %" for mark in MARKS]
        cells = [["method", "seeds", "trials", *head, "random's last regret at"]]
        for method in self.curves:
            form = "{:.3f} ({:.3f} to {:.3f})" if len(self.seeds[method]) > 1 else "{:.3f}"
            regrets = [form.format(*self.regret(method, mark)) for mark in MARKS]
            places = [f"{ranks[mark][method]:.2f}" for mark in MARKS]
            reached = _percent(float(np.median(self.reached(method)))) if "random" in self.curves else ""
            seeds, trials = str(len(self.seeds[method])), f"{self.trials[method]:,.0f}"
            cells.append([method, seeds, trials, *regrets, *places, reached])
        return _markdown(cells)

    def _confidence(self) -> str:
        """How sure the recommended pair's place among the peers is. One seed says nothing of what others would show."""
        methods = [method for method in (RECOMMENDED, *self.peers) if len(self.seeds[method]) > 1]
        if RECOMMENDED not in methods or len(methods) < 2:
            return ""
        told = []
        for mark in MARKS:
            places = self.drawn(mark, methods)
            low, high = np.percentile(places[0], [2.5, 97.5])
            first = float((places[0] < places[1:].min(axis=0)).mean())
            rank = self.ranks(mark, methods)[RECOMMENDED]
            told.append(f"{rank:.2f} ({low:.2f} to {high:.2f}) at {mark} %, the best in {100 * first:.0f} % of draws")
        sure = "" if len(methods) > len(self.peers) else " with more than one seed"
        return f"Average rank of `{RECOMMENDED}` among the {len(methods) - 1} peers{sure}: {'; '.join(told)}."

    def _by_task(self) -> str:
        """Where the recommended pair is better than the peers, and where not."""
        head = ["task", "a run", "random's last regret", f"{RECOMMENDED} reaches it", "the first peer"]
        cells = [[*head, *(f"place at {mark} %" for mark in MARKS)] if self.peers else head[:4]]
        for number, task in enumerate(self.tasks):
            last = f"{self.means['random'][number, -1]:.3f}"
            row = [task, _long(self.hours[task]), last, self._when(RECOMMENDED, number)]
            if self.peers:
                first = self.peers[int(np.argmin([self.reached(peer)[number] for peer in self.peers]))]
                regrets = np.array([self.means[method][number] for method in (RECOMMENDED, *self.peers)])
                places = [f"{_places(regrets[:, mark - 1])[0]:g}" for mark in MARKS]
                row += [f"{first}, {self._when(first, number)}", *places]
            cells.append(row)
        return _markdown(cells)

    def _when(self, method: str, number: int) -> str:
        """When a method reaches random's last regret on a task."""
        percent = self.reached(method)[number]
        hours = self.hours[self.tasks[number]] * percent / 100
        return "never" if math.isinf(percent) else f"{_long(hours)}, {_percent(percent)}"

    def figures(self) -> dict[str, Any]:
        """What the text says, for JSON, and the mean regret over time."""
        ranks = {mark: self.ranks(mark, list(self.curves)) for mark in MARKS}
        return {
            "slots": self.slots,
            "draw": self.draw,
            "tasks": self.tasks,
            "hours": [self.hours[task] for task in self.tasks],
            "methods": {
                method: {
                    "seeds": len(self.seeds[method]),
                    "trials": self.trials[method],
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


def tables(lines: Mapping[Run, Mapping[str, Any]], peers: Sequence[str]) -> list[Table]:
    """The tables of all settings, of lines of the file of results."""
    settings: defaultdict[tuple[int, str], dict[Run, Mapping[str, Any]]] = defaultdict(dict)
    for run, line in lines.items():
        settings[run.slots, run.draw][run] = line
    return [Table(slots, draw, found, peers) for (slots, draw), found in settings.items()]


def rows(settings: Sequence[Table]) -> list[Row]:
    """What is asked of the recommended pair: random's last regret in a tenth of the time, and a better rank than any peer's."""
    found = []
    for table in settings:
        if not table.complete:
            continue
        reached = {method: float(np.median(table.reached(method))) for method in (RECOMMENDED, *table.peers)}
        arrived = [peer for peer in table.peers if math.isfinite(reached[peer])]
        best = min(arrived, key=lambda peer: reached[peer], default=None)
        found.append(
            Row(
                what=f"{RECOMMENDED}: random's last regret, median task, {table.where}",
                unit="% of the time",
                median=reached[RECOMMENDED],
                beside=best,
                floor=None if best is None else reached[best],
                budget=10,
                rule="<= a tenth",
            )
        )
        for mark in MARKS if table.peers else ():
            ranks = table.ranks(mark, [RECOMMENDED, *table.peers])
            best = min(table.peers, key=lambda peer: ranks[peer])
            found.append(
                Row(
                    what=f"{RECOMMENDED}: average rank among the peers at {mark} %, {table.where}",
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
    """Mean regret over time, a panel for each setting: a few of ours, and all peers."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = min(2, len(settings))
    shape = -(-len(settings) // columns), columns
    figure, axes = pyplot.subplots(*shape, figsize=(7 * shape[1], 5 * shape[0]), sharey=True, squeeze=False)
    methods = dict.fromkeys((*DRAWN, *(peer for table in settings for peer in table.peers)))
    for axis, table in zip(axes.flat, settings, strict=False):
        for number, method in enumerate(methods):
            if method in table.means:
                ours = method == RECOMMENDED
                axis.plot(
                    GRID * 100,
                    table.means[method].mean(axis=0),
                    label=method,
                    color="black" if ours else pyplot.get_cmap("tab20")(number),
                    linewidth=2.5 if ours else 1.5,
                    linestyle="--" if method in table.peers else "-",
                )
        axis.set(yscale="log", xlabel="% of the budget", title=table.where)
    for axis in axes[:, 0]:
        axis.set_ylabel(f"mean normalised regret, {len(settings[0].tasks)} tasks")
    axes[0][-1].legend(*axes[0][0].get_legend_handles_labels(), fontsize="x-small", loc="upper right")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def _interval(samples: Floats) -> tuple[float, float, float]:
    """The mean of samples (seeds,), and its 95 % interval by Student's t, which holds for few of them as well."""
    mean, seeds = float(samples.mean()), len(samples)
    half = float(stdtrit(seeds - 1, 0.975) * samples.std(ddof=1) / math.sqrt(seeds)) if seeds > 1 else math.inf
    return mean, mean - half, mean + half


def _drawn(samples: Floats, chance: np.random.Generator) -> Floats:
    """(..., draws) what the mean of samples (..., seeds) may be in truth, by the same distribution."""
    seeds = samples.shape[-1]
    noise = chance.standard_t(seeds - 1, size=(*samples.shape[:-1], _DRAWS))
    error = samples.std(axis=-1, ddof=1, keepdims=True) / math.sqrt(seeds)
    return np.asarray(samples.mean(axis=-1, keepdims=True) + error * noise)


def _places(regrets: Floats) -> Floats:
    """Places along the first axis, from 1 on, the smallest first; of equals the middle one."""
    below = (regrets[None] < regrets[:, None]).sum(axis=1)
    equal = (regrets[None] == regrets[:, None]).sum(axis=1)
    return np.asarray(below + (equal + 1) / 2)


def _percent(value: float) -> str:
    return "never" if math.isinf(value) else f"{value:.0f} %"


def _long(hours: float) -> str:
    return f"{hours:.2f} h" if hours >= 0.01 else f"{hours * 3600:.0f} s"


def _markdown(cells: Sequence[Sequence[str]]) -> str:
    """A table, the first line of which is its head."""
    head, *lines = padded(cells)
    rule = "|".join("-" * (len(cell) + 2) for cell in head)
    return "\n".join(["| " + " | ".join(head) + " |", f"|{rule}|", *("| " + " | ".join(line) + " |" for line in lines)])
