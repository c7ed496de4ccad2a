"""The searchers and schedulers that must work with each other: what is here is tested with every space and beside all others."""

from collections.abc import Callable

import pytest

import asynctune as at
from asynctune.schedulers import Scheduler
from asynctune.searchers import Searcher

__all__ = ["SCHEDULERS", "SEARCHERS", "schedulers", "searchers"]

#: At most 9 steps; 60 trials. at.Replay is not among them: it has configurations of its own.
SCHEDULERS: dict[str, Callable[[], Scheduler]] = {
    "fifo": at.FIFO,
    "stopping": lambda: at.ASHA(max_resource=9, min_resource=1, reduction_factor=3),
    "promotion": lambda: at.ASHA(max_resource=9, min_resource=1, reduction_factor=3, brackets=2, type="promotion"),
    "hyperband": lambda: at.Hyperband(max_resource=9),
    "hyperband, synchronous": lambda: at.Hyperband(max_resource=9, synchronous=True),
    "median": lambda: at.MedianStopping(max_resource=9),
    "pasha": lambda: at.PASHA(max_resource=9),
    "pbt": lambda: at.PBT(perturbation_interval=3, max_resource=9),
    "pbt, perturbing only": lambda: at.PBT(perturbation_interval=2, max_resource=9, resample_probability=0.0),
    "pbt, synchronous": lambda: at.PBT(perturbation_interval=3, max_resource=9, synchronous=True),
    "mfpbt": lambda: at.MFPBT(perturbation_interval=2, max_resource=9, frequencies=(1, 2)),
    "pb2": lambda: at.PB2(perturbation_interval=3, max_resource=9),
}

#: Of grids, those that have 60 configurations of any space tested.
SEARCHERS: dict[str, Callable[[], Searcher]] = {
    "random": at.Random,
    "grid": lambda: at.Grid(points=4),
    "sobol": at.Sobol,
    "hyperopt": at.HyperOpt,
    "tpe": at.TPE,
    "optuna": lambda: at.Optuna("TPESampler"),
}

searchers = pytest.mark.parametrize("searcher", [pytest.param(make, id=name) for name, make in SEARCHERS.items()])
schedulers = pytest.mark.parametrize("scheduler", [pytest.param(make, id=name) for name, make in SCHEDULERS.items()])
