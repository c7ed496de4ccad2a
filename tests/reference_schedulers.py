"""Reference for the schedulers beyond ASHA and PBT, written to be read: their rules are what stands here.

As in reference.py, scores are oriented: larger is better, and those that are not finite are the worst.
"""

import math
import statistics
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np

from asynctune.records import TrialState
from tests.reference import ASHA, oriented, rank


@dataclass
class Halving:
    """Synchronous successive halving among the trials of one bracket (Li et al., JMLR 2018, Algorithm 1, the inner loop)."""

    levels: list[int]
    eta: int
    members: set[int]
    first: int  # the bracket's first rung
    results: list[dict[int, float]] = field(default_factory=list)  # by rung: trial -> score
    resumed: set[tuple[int, int]] = field(default_factory=set)  # (trial, rung): it went on towards that rung
    at_rest: set[int] = field(default_factory=set)  # saved at the rung where it is held
    gone: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.results = [{} for _ in self.levels]

    def behind(self, trial: int) -> int:
        return self.first + sum(trial in results for results in self.results)

    def comes(self, trial: int) -> bool:
        rung = self.behind(trial)
        return trial not in self.gone and (rung == self.first or (trial, rung) in self.resumed)

    def due(self, trial: int) -> int:
        return self.levels[self.behind(trial) - (not self.comes(trial))]

    def members_at(self, rung: int) -> set[int]:
        """Who is to be compared at a rung: all at first, then who was chosen below, and who jumped."""
        return self.members if rung == self.first else self.chosen(rung - 1) | set(self.results[rung])

    def complete(self, rung: int) -> bool:
        below = rung == self.first or self.complete(rung - 1)
        return below and all(trial in self.results[rung] or trial in self.gone for trial in self.members_at(rung))

    def chosen(self, rung: int) -> set[int]:
        """The best max(1, n // eta) of all that are recorded at a complete rung; ties go to the lower trial."""
        if not self.complete(rung):
            return set()
        results = self.results[rung]
        best = sorted(results, key=lambda trial: (-results[trial], trial))[: max(1, len(results) // self.eta)]
        return {trial for trial in best if math.isfinite(results[trial])}

    def report(self, trial: int, step: int, score: float) -> list[int]:
        if not self.comes(trial):
            return []
        reached = [rung for rung in range(self.behind(trial), len(self.levels)) if self.levels[rung] <= step]
        for rung in reached:
            self.results[rung][trial] = oriented(score)
        self.at_rest.discard(trial)
        return [self.levels[rung] for rung in reached]

    def save(self, trial: int) -> None:
        if self.behind(trial) > self.first and not self.comes(trial):
            self.at_rest.add(trial)

    def resumable(self) -> set[tuple[int, int]]:
        """Who may go on, and to which rung."""
        return {
            (trial, rung + 1)
            for rung in range(self.first, len(self.levels) - 1)
            for trial in self.chosen(rung)
            if trial in self.at_rest - self.gone and self.behind(trial) == rung + 1 and not self.comes(trial)
        }

    def resume(self, trial: int) -> None:
        self.resumed.add((trial, self.behind(trial)))

    def finish(self, trial: int, failed: bool) -> list[int]:
        levels = []
        if failed and self.comes(trial):
            rung = self.behind(trial)
            self.results[rung][trial] = -math.inf
            levels = [self.levels[rung]]
        self.gone.add(trial)
        return levels


def shares(total: int, weights: list[int]) -> list[int]:
    """`total` divided in proportion to `weights`, by largest remainder; of equal ones the first."""
    exact = [total * weight / sum(weights) for weight in weights]
    sizes = [math.floor(share) for share in exact]
    while sum(sizes) < total:
        j = max(range(len(weights)), key=lambda j: (round(exact[j] - sizes[j], 9), -j))
        sizes[j] += 1
    return sizes


@dataclass
class Median:
    """The median stopping rule (Golovin et al., KDD 2017, section 3.2.2), asked at some steps: the levels."""

    grace_period: int
    min_samples: int
    interval: int
    max_resource: int | None
    reports: dict[int, dict[int, float]] = field(default_factory=dict)  # trial -> step -> score
    at: dict[int, dict[int, int]] = field(
        default_factory=dict
    )  # trial -> level -> the report's step that brought it there
    stopped: set[int] = field(default_factory=set)
    completed: set[int] = field(default_factory=set)

    def begin(self, trial: int) -> None:
        self.reports[trial] = {}
        self.at[trial] = {}

    def level(self, step: int) -> int:
        """The last level up to a step: a multiple of the interval, not before the grace period, or the end; 0: none."""
        if self.max_resource is not None and step >= self.max_resource:
            return self.max_resource
        return max((s for s in range(self.grace_period, step + 1) if s % self.interval == 0), default=0)

    def due(self, trial: int) -> int:
        step = max(self.reports[trial], default=0) + 1
        while self.level(step) < step:
            step += 1
        return step

    def report(self, trial: int, step: int, score: float) -> list[int]:
        before = max(self.reports[trial], default=0)
        if step <= before:
            return []
        self.reports[trial][step] = oriented(score)
        level = self.level(step)
        if level <= before:
            return []
        self.at[trial][level] = step
        averages = [self.average(other, level) for other in self.completed if level in self.at[other]]
        enough = len(averages) >= self.min_samples and level != self.max_resource
        if enough and max(self.reports[trial].values()) < statistics.median(averages):
            self.stopped.add(trial)
        return [level]

    def average(self, trial: int, level: int) -> float:
        scores = [score for step, score in self.reports[trial].items() if step <= self.at[trial][level]]
        return sum(scores) / len(scores)

    def finish(self, trial: int, state: TrialState) -> None:
        if state is TrialState.COMPLETED:
            self.completed.add(trial)


class PASHA(ASHA):
    """Progressive ASHA (Bohdal et al., ICLR 2023, section 4): promotion below the highest open rung only."""

    def __init__(self, levels: list[int], reduction_factor: int) -> None:
        super().__init__(levels, reduction_factor, promotion=True)
        self.open = min(1, len(levels) - 1)
        self.curves: dict[int, dict[int, float]] = {}  # trial -> step -> score
        self.ranked: list[list[int]] = [[] for _ in levels]  # by rung: who reported there, as they came
        self.distances: list[float] = []
        self.epsilon = 0.0

    def report(self, trial: int, step: int, score: float) -> list[int]:
        reached = super().report(trial, step, score)
        curve = self.curves.setdefault(trial, {})
        if step > max(curve, default=0):
            curve[step] = oriented(score)
        for level in reached:
            self.ranked[self.levels.index(level)].append(trial)
        if reached and self.open < len(self.levels) - 1 and reached[-1] >= self.levels[self.open]:
            new = [self.noise(trial, other) for other in self.ranked[self.open] if other != trial]
            new = [distance for distance in new if 0 < distance < math.inf]
            if new:
                self.distances += new
                self.epsilon = float(np.percentile(self.distances, 90))
            while self.open < len(self.levels) - 1 and not self.stable():
                self.open += 1
                self.distances = []
        return reached

    def noise(self, a: int, b: int) -> float:
        """|f_j(a) - f_j(b)| at the last common step j if there are i < h < j at which b, then a was the other's better; else 0."""
        steps = sorted(self.curves[a].keys() & self.curves[b].keys())
        for better, worse in ((self.curves[a], self.curves[b]), (self.curves[b], self.curves[a])):
            signs = [(better[step] > worse[step]) - (better[step] < worse[step]) for step in steps]
            if signs and signs[-1] > 0:
                for i, h in combinations(range(len(steps) - 1), 2):
                    if signs[i] > 0 > signs[h]:
                        return better[steps[-1]] - worse[steps[-1]]
        return 0.0

    def stable(self) -> bool:
        """Whether each place in the ranking of the highest open rung is among those that its trial may have one rung below."""
        top = {trial: self.results[self.open][trial] for trial in self.ranked[self.open]}
        below = {trial: self.results[self.open - 1][trial] for trial in top}
        order = rank(below)
        for place, trial in enumerate(rank(top)):
            theirs, its = below[order[place]], below[trial]
            if theirs != its and not abs(theirs - its) <= self.epsilon:
                return False
        return True

    def promotable(self) -> int | None:
        for rung in reversed(range(min(self.open, len(self.levels) - 1))):
            for trial in rank(self.results[rung]):
                waits = (trial, rung) in self.offered - self.promoted and trial not in self.ended
                if waits and self.among_best(trial, rung, at_least=0):
                    return trial
        return None


@dataclass
class Gains:
    """What PB2 learns from (Parker-Holder et al., NeurIPS 2020, section 4): how fast scores rose, from where, and with what.

    A stretch begins with a member's first report, at each level where it is recorded, and with the donor's step and score where it exploits.
    """

    interval: int
    since: dict[int, tuple[int, float]] = field(default_factory=dict)  # member -> step and score
    gains: list[tuple[float, float, list[float], float]] = field(default_factory=list)  # time, score, row, rate

    def report(self, trial: int, step: int, score: float, recorded: bool, row: list[float]) -> None:
        if recorded and trial in self.since:
            begin, before = self.since[trial]
            if step > begin and math.isfinite(score) and math.isfinite(before):
                self.gains.append((begin / self.interval, before, row, (score - before) / (step - begin)))
        if recorded or trial not in self.since:
            self.since[trial] = step, score


def posterior(
    known: list[tuple[float, list[float], float]],  # time, point, value
    time: float,
    point: list[float],
    length: float,
    drift: float,
    noise: float,
) -> tuple[float, float, float]:
    """Mean, standard deviation and log likelihood (but for a constant) of the time-varying Gaussian process, with an inverse matrix."""

    def k(one: tuple[float, list[float]], other: tuple[float, list[float]]) -> float:
        apart = sum((a - b) ** 2 for a, b in zip(one[1], other[1], strict=True))
        return math.exp(-apart / (2 * length**2)) * math.pow(1 - drift, abs(one[0] - other[0]) / 2)

    places = [(time, point) for time, point, _ in known]
    values = np.array([value for *_, value in known])
    covariance = np.array([[k(a, b) + noise * (i == j) for j, b in enumerate(places)] for i, a in enumerate(places)])
    inverse = np.linalg.inv(covariance)
    variance = float(values @ inverse @ values) / len(values)
    across = np.array([k(place, (time, point)) for place in places])
    deviation = math.sqrt(max(0.0, variance * (1 - across @ inverse @ across)))
    likelihood = -len(values) / 2 * math.log(variance) - math.log(np.linalg.det(covariance)) / 2
    return float(across @ inverse @ values), deviation, likelihood
