"""Gaussian: a Gaussian process for a function that drifts, and where it is best to look next.

Bogunovic et al., Time-Varying Gaussian Process Bandit Optimization, AISTATS 2016 (arXiv:1601.06650).
"""

import math
from itertools import product

import numpy as np
import numpy.typing as npt

from asynctune._core import Stream

__all__ = ["Drifting", "choose"]

Floats = npt.NDArray[np.float64]

#: What the length scale, the drift and the noise may be: the likeliest of all combinations is taken.
_GRID = ((0.1, 0.2, 0.4, 0.8, 1.6), (0.01, 0.1, 0.4), (1e-3, 1e-2, 1e-1))

#: Candidates drawn anywhere, and a quarter as many round after round in a smaller box around the best.
_CANDIDATES = 256
_RADII = (0.2, 0.05, 0.01)


class Drifting:
    """A Gaussian process with k((t, x), (t', x')) = v exp(-|x - x'|^2 / 2 length^2) (1 - drift)^(|t - t'| / 2), and noise.

    length, drift and noise, in units of v, are those of the largest marginal likelihood; v is, with them, in closed form.

    Args:
        times: (n,).
        points: (n, d), of about unit size.
        values: (n,), of mean 0, not all 0.
    """

    def __init__(self, times: Floats, points: Floats, values: Floats) -> None:
        self._times, self._points, self._values = times, points, values
        self._apart = _apart(times, points, times, points)
        self._fit(min(product(*_GRID), key=self._fit))

    def __len__(self) -> int:
        return len(self._times)

    def mean(self, time: float, points: Floats) -> Floats:
        """(m,) what values at points (m, d) are expected to be."""
        across = self._kernel(*_apart(np.full(len(points), time), points, self._times, self._points))
        means: Floats = across @ self._weights
        return means

    def deviation(self, time: float, points: Floats, pending_times: Floats, pending: Floats) -> Floats:
        """(m,) the standard deviations of values at points (m, d), as if those at `pending` (p, d) were known, too."""
        times, known = np.concatenate([self._times, pending_times]), np.concatenate([self._points, pending])
        covariance = self._kernel(*_apart(times, known, times, known)) + self.noise * np.eye(len(known))
        across = self._kernel(*_apart(times, known, np.full(len(points), time), points))
        explained = (across * np.linalg.solve(covariance, across)).sum(0)
        deviations: Floats = np.sqrt(self.variance * np.maximum(0.0, 1.0 - explained))
        return deviations

    def _fit(self, parameters: tuple[float, float, float]) -> float:
        """Take length, drift and noise. Return -2 times the logarithm of the likelihood that they give the values, but for a constant."""
        self.length, self.drift, self.noise = parameters
        n = len(self)
        covariance = self._kernel(*self._apart) + self.noise * np.eye(n)
        self._weights: npt.NDArray[np.floating] = np.linalg.solve(covariance, self._values)
        self.variance = float(self._values @ self._weights) / n
        return n * math.log(self.variance) + float(np.linalg.slogdet(covariance)[1])

    def _kernel(self, squares: Floats, intervals: Floats) -> Floats:
        """Without the variance."""
        exponents: Floats = squares / (-2 * self.length**2) + intervals * (math.log(1 - self.drift) / 2)
        return np.exp(exponents)


def _apart(times: Floats, points: Floats, other_times: Floats, others: Floats) -> tuple[Floats, Floats]:
    """(n, m) the squares of the distances in space, and the distances in time."""
    return ((points[:, None] - others) ** 2).sum(-1), abs(times[:, None] - other_times)


def choose(
    model: Drifting,
    time: float,
    context: Floats,
    free: npt.NDArray[np.bool_],
    pending_times: Floats,
    pending: Floats,
    stream: Stream,
) -> Floats:
    """The point (d,) with the largest upper confidence bound at `time`: `context` (d,) where it is not `free` (d,), else in [0, 1].

    Beta is as in the authors' code of PB2. Pending points narrow the deviation and leave the mean alone (Desautels et al., JMLR 2014).
    """
    root_beta = math.sqrt(0.2 + max(0.0, math.log(0.4 * len(model))))
    best, bound = np.where(free, 0.5, context), -math.inf
    for radius in (0.5, *_RADII):
        count = _CANDIDATES if radius == 0.5 else _CANDIDATES // 4
        candidates = np.tile(best, (count, 1))
        draws = np.array([stream.uniform() for _ in range(count * int(free.sum()))]).reshape(count, -1)
        candidates[:, free] = np.clip(best[free] + radius * (2 * draws - 1), 0.0, 1.0)
        bounds = model.mean(time, candidates) + root_beta * model.deviation(time, candidates, pending_times, pending)
        if bounds.max() > bound:
            best, bound = candidates[bounds.argmax()], bounds.max()
    return best
