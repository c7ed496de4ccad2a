"""Reference: the tree-structured Parzen estimator, written to be read. The specification of `_core.Parzen`.

The densities are those of hyperopt 0.3 (tpe.py), whose names stand in brackets. All kernels are listed anew for each question.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from asynctune._core import CHOICE, LOG, NORMAL, SUGGEST, Stream
from asynctune.space import Column, nearest

Kernel = tuple[float, NormalDist]  # weight, and where it stands


def forgetting(n: int) -> list[float]:
    """The weights of n values, the oldest first: a ramp from 1 / n to 1, and 1 for the newest 25 [linear_forgetting_weights]."""
    ramp = np.linspace(1 / n, 1, n - 25).tolist() if n > 25 else []
    return [*ramp, *[1.0] * (n - len(ramp))]


def kernels(values: Sequence[float], prior_weight: float, prior: NormalDist) -> list[Kernel]:
    """One for each value, the oldest first, and the prior [adaptive_parzen_normal].

    A kernel is as wide as the farther of its neighbours is away, the prior's mean being one of them.
    """
    n = len(values)
    ordered = sorted(zip(values, forgetting(n), strict=True), key=lambda pair: pair[0])  # stable: ties by age
    place = bisect_left(ordered, prior.mean, key=lambda pair: pair[0])
    ordered.insert(place, (prior.mean, prior_weight))
    least = prior.stdev / min(100, n + 2)
    mixture = []
    for i, (value, weight) in enumerate(ordered):
        away = [abs(value - other) for other, _ in ordered[max(i - 1, 0) : i + 2]]
        width = prior.stdev / 2 if n == 1 else min(max(*away, least), prior.stdev)
        mixture.append((weight, prior if i == place else NormalDist(value, width)))
    return mixture


@dataclass
class Axis:
    """One hyperparameter: its values in the trials that count, by trial."""

    column: Column
    prior_weight: float

    def __post_init__(self) -> None:
        low, high, self.step = self.column.low, self.column.high, self.column.step
        if self.column.kind == NORMAL:
            self.low, self.high, self.prior = -math.inf, math.inf, NormalDist(low, high)
            return
        if self.step:  # half a step more at either end, so that the ends are as likely as what lies between
            low, high = (nearest(end, low, high, self.step) for end in (low, high))
            low, high = low - self.step / 2, high + self.step / 2
        self.low, self.high = self.straight(low), self.straight(high)
        self.prior = NormalDist((self.low + self.high) / 2, self.high - self.low)

    def straight(self, x: float) -> float:
        """Where a value stands: at its logarithm in a LOG domain."""
        if self.column.kind != LOG:
            return x
        return math.log(x) if x > 0 else -math.inf

    def counts(self, values: Sequence[float]) -> list[float]:
        """The weight of each option of a choice [bincount]."""
        counts = [self.prior_weight] * (int(self.column.high) + 1)
        for value, weight in zip(values, forgetting(len(values)), strict=True):
            counts[int(value)] += weight
        return counts

    def density(self, values: Sequence[float]) -> Callable[[float], float]:
        """The density of a value; on a grid and of an option its probability [GMM1_lpdf, LGMM1_lpdf, categorical_lpdf]."""
        if self.column.kind == CHOICE:
            counts = self.counts(values)
            return lambda x: counts[int(x)] / sum(counts)
        mixture = kernels([self.straight(value) for value in values], self.prior_weight, self.prior)

        def mass(low: float, high: float) -> float:
            def below(kernel: NormalDist, x: float) -> float:
                return kernel.cdf(x) if math.isfinite(x) else float(x > 0)

            return sum(weight * (below(kernel, high) - below(kernel, low)) for weight, kernel in mixture)

        total, passed = sum(weight for weight, _ in mixture), mass(self.low, self.high)

        def density(x: float) -> float:
            if self.step:
                low, high = self.straight(x - self.step / 2), self.straight(x + self.step / 2)
                return mass(max(low, self.low), min(high, self.high)) / passed
            height = sum(weight * kernel.pdf(self.straight(x)) for weight, kernel in mixture)
            return height / total / x if self.column.kind == LOG else height / passed

        return density

    def draw(self, values: Sequence[float], stream: Stream) -> float:
        """A value drawn from the density [GMM1, LGMM1, categorical]; at most 25 values, of which none is forgotten."""
        n, column = len(values), self.column
        if column.kind == CHOICE:
            options = int(column.high) + 1
            place = stream.uniform() * (n + self.prior_weight * options)
            return values[int(place)] if place < n else float(stream.below(options))
        mixture = kernels([self.straight(value) for value in values], self.prior_weight, self.prior)
        mixture.remove((self.prior_weight, self.prior))
        while True:
            place = stream.uniform() * (n + self.prior_weight)
            kernel = mixture[int(place)][1] if place < n else self.prior
            cell = int(stream.uniform() * 2**52)
            z = kernel.inv_cdf((cell + 0.5) / 2**52)
            if self.low <= z < self.high:
                break
        x = math.exp(z) if column.kind == LOG else z
        return x if column.kind == NORMAL else nearest(x, column.low, column.high, self.step)


@dataclass
class Parzen:
    """Both densities of each hyperparameter."""

    columns: Sequence[Column]
    prior_weight: float
    rows: dict[int, npt.NDArray[np.float64]] = field(default_factory=dict)  # of the trials that count
    better: set[int] = field(default_factory=set)

    def values(self, j: int, better: bool) -> list[float]:
        """Of the trials on one side in which the hyperparameter is active, the oldest first."""
        side = [float(self.rows[t][j]) for t in sorted(self.rows) if (t in self.better) == better]
        return [value for value in side if not math.isnan(value)]

    def density(self, j: int, better: bool) -> Callable[[float], float]:
        return Axis(self.columns[j], self.prior_weight).density(self.values(j, better))

    def candidates(self, j: int, seed: int, trial: int, count: int) -> list[tuple[float, float]]:
        """Draws for a hyperparameter, each with the ratio whose largest is suggested."""
        stream, axis = Stream(seed, SUGGEST, trial, j), Axis(self.columns[j], self.prior_weight)
        drawn = [axis.draw(self.values(j, better=True), stream) for _ in range(count)]
        good, bad = self.density(j, better=True), self.density(j, better=False)
        return [(x, good(x) / bad(x)) for x in drawn]
