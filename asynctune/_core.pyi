"""The core, as Python sees it."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

SAMPLE: Final[int]
BRACKET: Final[int]
ORDER: Final[int]
DONOR: Final[int]
EXPLORE: Final[int]
SEED: Final[int]
SUGGEST: Final[int]

LINEAR: Final[int]
LOG: Final[int]
NORMAL: Final[int]
CHOICE: Final[int]
ORDINAL: Final[int]

class Stream:
    def __init__(self, seed: int, purpose: int, trial: int = 0, segment: int = 0, step: int = 0) -> None: ...
    def uniform(self) -> float: ...
    def below(self, n: int) -> int: ...

class Table:
    size: int
    def __init__(
        self,
        kind: npt.ArrayLike,
        low: npt.ArrayLike,
        high: npt.ArrayLike,
        step: npt.ArrayLike,
        parent: npt.ArrayLike,
        branch: npt.ArrayLike,
    ) -> None: ...
    def __len__(self) -> int: ...
    def sample(self, stream: Stream) -> npt.NDArray[np.float64]: ...
    def sample_many(self, values: npt.NDArray[np.float64], seed: int, first: int, last: int) -> None: ...
    def explore(
        self,
        row: npt.NDArray[np.float64],
        stream: Stream,
        resample_probability: float,
        perturbation_factor: float,
    ) -> npt.NDArray[np.float64]: ...
    def explore_many(
        self,
        values: npt.NDArray[np.float64],
        donor: npt.NDArray[np.int64],
        members: npt.NDArray[np.int64],
        seed: int,
        step: int,
        resample_probability: float,
        perturbation_factor: float,
    ) -> None: ...

def best(
    scores: npt.NDArray[np.float64], sign: float, k: int, scratch: npt.NDArray[np.float64]
) -> npt.NDArray[np.int64]: ...
def worst(
    scores: npt.NDArray[np.float64], sign: float, k: int, scratch: npt.NDArray[np.float64]
) -> npt.NDArray[np.int64]: ...
def draw_donors(
    donor: npt.NDArray[np.int64], best: npt.NDArray[np.int64], members: npt.NDArray[np.int64], seed: int, step: int
) -> None: ...

class Ladder:
    promotion: bool
    def __init__(
        self,
        levels: Sequence[int],
        reduction_factor: int,
        promotion: bool = False,
        minimize: bool = False,
        weights: Sequence[int] = (1,),
        seed: int = 0,
    ) -> None: ...
    def report(self, trial: int, step: int, score: float) -> int: ...
    def report_many(
        self, trials: npt.NDArray[np.int64], steps: npt.NDArray[np.int64], scores: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.bool_]: ...
    def offer(self, trial: int) -> None: ...
    def promotable(self) -> tuple[int, int] | None: ...
    def promote(self, trial: int) -> None: ...
    def promote_many(self, count: int) -> npt.NDArray[np.int64]: ...
    def retire(self, trial: int, failed: bool = False) -> int | None: ...
    def due(self, trial: int) -> int: ...

class Generations:
    population: int
    barrier: bool
    def __init__(self, population: int, depths: int, quantile_fraction: float, seed: int, barrier: bool) -> None: ...
    def record(self, trial: int, depth: int, score: float) -> bool: ...
    def save(self, trial: int, step: int, checkpoint: str | None) -> None: ...
    def undecided_depth(self, trial: int) -> int | None: ...
    def passed_depth(self, trial: int) -> int: ...
    def next(self, warm: int | None = None) -> int | None: ...
    def donor(self, trial: int) -> tuple[int, str, int, float] | None: ...
    def advance(self, trial: int) -> None: ...
    def leave(self, trial: int) -> None: ...
    def released(self) -> list[str]: ...
