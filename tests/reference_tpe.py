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


def cell(stream: Stream) -> float:
    """The middle of one of 2^52 cells of (0, 1)."""
    return (int(stream.uniform() * 2**52) + 0.5) / 2**52


def joint_width(n: int, d: int) -> float:
    """Of n kernels in d dimensions, as a part of the prior's (Optuna's multivariate TPE)."""
    return max(0.2 * math.pow(max(n, 1), -1 / (d + 4)), 1 / min(100, n + 2))


def truncated(kernel: NormalDist, low: float, high: float, stream: Stream) -> float:
    """A draw from a kernel, repeated until it is in [low, high)."""
    while not low <= (z := kernel.inv_cdf(cell(stream))) < high:
        pass
    return z


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

    def value(self, z: float) -> float:
        """The value of the domain that stands there, or next to it."""
        column = self.column
        if column.kind in (CHOICE, NORMAL):
            return z
        return nearest(math.exp(z) if column.kind == LOG else z, column.low, column.high, self.step)

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
            z = kernel.inv_cdf(cell(stream))
            if self.low <= z < self.high:
                return self.value(z)


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

    def group(self, j: int) -> list[int]:
        """The columns that are active together with one."""
        switches = [(column.parent, column.branch) for column in self.columns]
        return [k for k, switch in enumerate(switches) if switch == switches[j]]

    def centres(self, group: list[int], better: bool) -> list[list[float]]:
        """Where the kernels of a joint density stand: the latest 1,000 trials on one side."""
        axes = [Axis(self.columns[j], self.prior_weight) for j in group]
        values = zip(*(self.values(j, better) for j in group), strict=True)
        points = [[axis.straight(value) for axis, value in zip(axes, point, strict=True)] for point in values]
        return points[-1000:]

    def joint_density(self, group: list[int], better: bool) -> Callable[[Sequence[float]], float]:
        """The density of a point of a group: products of kernels that are all as wide, and the domain itself as the prior."""
        axes = [Axis(self.columns[j], self.prior_weight) for j in group]
        points = self.centres(group, better)
        width = joint_width(len(points), len(group))

        def kernel(axis: Axis, centre: float, x: float) -> float:
            if axis.column.kind == CHOICE:
                return ((centre == x) + self.prior_weight / (axis.column.high + 1)) / (1 + self.prior_weight)
            return NormalDist(centre, width * axis.prior.stdev).pdf(x)

        def prior(axis: Axis, x: float) -> float:
            if axis.column.kind == CHOICE:
                return 1 / (axis.column.high + 1)
            return axis.prior.pdf(x) if axis.column.kind == NORMAL else 1 / axis.prior.stdev

        def density(point: Sequence[float]) -> float:
            total = self.prior_weight * math.prod(map(prior, axes, point))
            for centre, weight in zip(points, forgetting(len(points)), strict=True):
                total += weight * math.prod(map(kernel, axes, centre, point))
            return total / (sum(forgetting(len(points))) + self.prior_weight)

        return density

    def joint_draw(self, group: list[int], stream: Stream) -> list[float]:
        """A point from the joint density of the better trials, before it is rounded."""
        points = self.centres(group, better=True)
        width, place = joint_width(len(points), len(group)), stream.uniform() * (len(points) + self.prior_weight)
        centre = points[int(place)] if place < len(points) else None
        drawn: list[float] = []
        for axis in [Axis(self.columns[j], self.prior_weight) for j in group]:
            mean = None if centre is None else centre[len(drawn)]
            if axis.column.kind == CHOICE:
                anew = mean is None or stream.uniform() * (1 + self.prior_weight) >= 1
                drawn.append(float(stream.below(int(axis.column.high) + 1)) if anew or mean is None else mean)
            elif mean is None and axis.column.kind == NORMAL:
                drawn.append(axis.prior.inv_cdf(cell(stream)))
            elif mean is None:
                drawn.append(axis.low + (axis.high - axis.low) * stream.uniform())
            else:
                drawn.append(truncated(NormalDist(mean, width * axis.prior.stdev), axis.low, axis.high, stream))
        return drawn

    def joint_candidates(self, group: list[int], seed: int, trial: int, count: int) -> list[tuple[list[float], float]]:
        """As `candidates`, for the columns that are active together."""
        stream = Stream(seed, SUGGEST, trial, group[0])
        drawn = [self.joint_draw(group, stream) for _ in range(count)]
        good, bad = self.joint_density(group, better=True), self.joint_density(group, better=False)
        axes = [Axis(self.columns[j], self.prior_weight) for j in group]
        return [([a.value(z) for a, z in zip(axes, p, strict=True)], good(p) / bad(p)) for p in drawn]

    def candidates(self, j: int, seed: int, trial: int, count: int) -> list[tuple[float, float]]:
        """Draws for a hyperparameter, each with the ratio whose largest is suggested."""
        stream, axis = Stream(seed, SUGGEST, trial, j), Axis(self.columns[j], self.prior_weight)
        drawn = [axis.draw(self.values(j, better=True), stream) for _ in range(count)]
        good, bad = self.density(j, better=True), self.density(j, better=False)
        return [(x, good(x) / bad(x)) for x in drawn]
