"""Reference for the schedulers beyond ASHA and PBT, written to be read: their rules are what stands here.

As in reference.py, scores are oriented: larger is better, and those that are not finite are the worst.
"""

import math
import statistics
from dataclasses import dataclass, field

from tests.reference import oriented


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

    def finish(self, trial: int, failed: bool) -> None:
        if not failed and trial not in self.stopped:
            self.completed.add(trial)
