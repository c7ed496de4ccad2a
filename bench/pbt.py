"""Population-based training on problems with a definition: what exploit and explore are each worth.

    python bench/pbt.py [--repeat 40] [--quick] [--json FILE]

Two problems, step by step under a virtual clock. The quadratic of the PBT paper (Jaderberg et al., 2017, figure 2): two workers climb a
surrogate of which each sees one half, and are scored on the whole. Ray Tune's triangle wave (examples/pbt_function.py): the best learning rate
rises and falls with the accuracy that was reached, and every step is noisy.

Beside PBT, on equal terms: the same members with the hyperparameters that they were given (random search), members that explore at
every interval but never exploit, and members that exploit but never explore. MF-PBT, whose sub-populations evolve at intervals of their own, is
set beside PBT with as many members. A figure is the mean, over as many seeds as --repeat says, of the best member's value at the end; the note has
its standard error. A budget is what the others reach.
"""

import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

import asynctune as at
from asynctune._core import EXPLORE, Stream
from asynctune.schedulers import Scheduler
from asynctune.searchers import Searcher
from asynctune.searchers.base import Row, Suggestion
from asynctune.searchers.random import BoundRandom
from asynctune.space import Rows, Space
from measure import Row as Figure
from measure import arguments, show

Steps = tuple[Any, float, float]


class Quadratic:
    """Two parameters from (0.9, 0.9) climb 1.2 - (a x^2 + b y^2) in steps of 0.01 x gradient; the score is 1.2 - (x^2 + y^2), 1.2 at best."""

    space: ClassVar[dict[str, Any]] = {"a": at.uniform(0.0, 1.0), "b": at.uniform(0.0, 1.0)}
    metric = "score"
    mode = "max"
    max_resource = 200

    def step(self, state: tuple[float, float] | None, config: dict[str, Any], seed: int) -> Steps:
        x, y = state or (0.9, 0.9)
        x, y = x - 0.02 * config["a"] * x, y - 0.02 * config["b"] * y
        return (x, y), 1.2 - (x * x + y * y), 1.0


class TriangleWave:
    """Accuracy rises fastest at a learning rate that itself rises up to an accuracy of 100 and falls from there to 200.

    A rate within 3 times the best one gains up to 1 a step, the less the further off; a larger one loses; noise of 2 comes on top.
    """

    space: ClassVar[dict[str, Any]] = {"lr": at.uniform(1e-4, 0.02)}
    metric = "accuracy"
    mode = "max"
    max_resource = 200

    def step(self, state: float | None, config: dict[str, Any], seed: int) -> Steps:
        chance = random.Random(seed)
        accuracy = state or 0.0
        lr, best = config["lr"], min(0.01, max(0.001, 0.01 - 0.01 * abs(accuracy - 100) / 100))
        off = max(lr, best) / min(lr, best)
        if off < 3:
            accuracy += chance.random() / off
        elif lr > best:
            accuracy -= (off - 3) * chance.random()
        accuracy = max(0.0, accuracy + 2 * chance.gauss(0.0, 1.0))
        return accuracy, accuracy, 1.0


class Alone:
    """Every member explores at each interval as PBT's recipients do, and keeps its weights: a benchmark around another."""

    def __init__(self, benchmark: Any, interval: int) -> None:
        self._inner = benchmark
        self._interval = interval
        self._space = Space(benchmark.space)
        self.space, self.metric, self.mode = self._space, benchmark.metric, benchmark.mode
        self.max_resource = benchmark.max_resource

    def step(self, state: tuple[int, Row, Any] | None, config: dict[str, Any], seed: int) -> Steps:
        step, row, inner = state or (0, self._space.encode(config), None)
        if step and step % self._interval == 0:
            row = self._space.table.explore(row, Stream(seed, EXPLORE, 0), 0.25, 1.2)
        inner, value, seconds = self._inner.step(inner, self._space.decode(row), seed)
        return (step + 1, row, inner), value, seconds


@dataclass(frozen=True)
class Corners(Searcher):
    """The paper's two workers: the first sees only x, the second only y."""

    def bind(self, *, space: Space, seed: int, num_trials: int | None, rows: Rows) -> "BoundCorners":
        return BoundCorners(space.table, seed)


class BoundCorners(BoundRandom):
    def prepare(self, trial: int) -> Suggestion:
        return lambda: np.array([1.0, 0.0] if trial % 2 == 0 else [0.0, 1.0])


@dataclass(frozen=True)
class Problem:
    """A benchmark and a population for it. frequencies: MF-PBT's, where it takes part."""

    name: str
    benchmark: Any
    members: int
    slots: int
    interval: int
    searcher: Searcher
    frequencies: tuple[int, ...] = ()

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """What is to come out ahead of what."""
        pairs = [("PBT", other) for other in ("random search", "no exploit", "no explore")]
        return [*pairs, ("MF-PBT", "PBT")] if self.frequencies else pairs

    def ends(self, method: str, seeds: Sequence[int]) -> list[float]:
        """The best member's last value, for each seed."""
        shape: dict[str, Any] = {
            "perturbation_interval": self.interval,
            "max_resource": self.benchmark.max_resource,
            "quantile_fraction": 0.25 if self.members > 2 else 0.5,
        }
        benchmark: Any = self.benchmark
        scheduler: Scheduler = at.FIFO()
        if method == "PBT":
            scheduler = at.PBT(**shape)
        elif method == "MF-PBT":
            scheduler = at.MFPBT(**shape, frequencies=self.frequencies)
        elif method == "no exploit":
            benchmark = Alone(self.benchmark, self.interval)
        elif method == "no explore":
            scheduler = at.PBT(**shape, resample_probability=0.0, perturbation_factor=1 + 1e-12)
        runs = (
            at.simulate(
                benchmark,
                searcher=self.searcher,
                scheduler=scheduler,
                num_trials=self.members,
                num_slots=self.slots,
                seed=seed,
            )
            for seed in seeds
        )
        return [max(run.trials.values) for run in runs]


PROBLEMS = [
    Problem("quadratic, 2 members on 2 slots", Quadratic(), 2, 2, 4, Corners()),
    Problem("triangle wave, 8 members on 8 slots", TriangleWave(), 8, 8, 4, at.Random()),
    Problem("triangle wave, 20 members on 2 slots", TriangleWave(), 20, 2, 4, at.Random(), frequencies=(1, 4)),
    Problem("triangle wave, 32 members on 4 slots", TriangleWave(), 32, 4, 4, at.Random(), frequencies=(1, 4)),
]


def main() -> None:
    given = arguments(__doc__, repeat=40)
    rows, notes = [], []
    for problem in PROBLEMS:
        methods = list(dict.fromkeys(method for pair in problem.pairs for method in pair))
        ends = {method: problem.ends(method, range(given.repeat)) for method in methods}
        means = {method: statistics.fmean(values) for method, values in ends.items()}
        errors = {method: statistics.stdev(values) / math.sqrt(len(values)) for method, values in ends.items()}
        rows += [
            Figure(
                what=f"{problem.name}: {method}",
                unit=problem.benchmark.metric,
                median=means[method],
                beside=other,
                floor=means[other],
                budget=means[other],
                at_least=True,
                rule=f">= {other}",
            )
            for method, other in problem.pairs
        ]
        told = ", ".join(f"{method} {means[method]:.4g} +- {errors[method]:.2g}" for method in ends)
        notes.append(f"{problem.name}: {told}")
    show(given, rows, note="\n".join(notes))


if __name__ == "__main__":
    main()
