"""Bare: the same runs in plain processes that pull from a queue, without a tuner. The yardstick for the tuner's overhead."""

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

__all__ = ["BareTrial", "Job", "seconds"]

Job = tuple[dict[str, Any], int]  # a configuration, and how many steps to train it


class BareTrial:
    """What a training function sees of a trial, with nobody behind it."""

    device = "cpu"

    def __init__(self, config: dict[str, Any], stop: int, seed: int = 0) -> None:
        self.config = config
        self.seed = seed
        self.reports: list[dict[str, float]] = []
        self._stop = stop

    def track(self, **objects: Any) -> None:
        pass

    def steps(self, stop: int) -> Iterator[int]:
        for step in range(1, min(self._stop, stop) + 1):
            self.step = step
            yield step

    def report(self, **metrics: float) -> None:
        self.reports.append({"step": self.step, **metrics})


def seconds(train: Callable[[Any], object], jobs: list[Job], processes: int) -> float:
    """Train `jobs` in their order; return the seconds from the first one's first line to the last one's end.

    `train` is imported by spawned processes: it is a function of a module, or a `functools.partial` of one.
    """
    os.environ["OMP_NUM_THREADS"] = "1"  # for those spawned, as in the tuner's CPU slots
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        spans = list(pool.map(_train, [train] * len(jobs), jobs))
    return max(end for _, end in spans) - min(start for start, _ in spans)


def _train(train: Callable[[Any], object], job: Job) -> tuple[float, float]:
    start = time.monotonic()
    train(BareTrial(*job))
    return start, time.monotonic()
