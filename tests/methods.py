"""The searchers and schedulers that must work with each other: what is here is tested with every space and beside all others."""

from collections.abc import Callable
from importlib.util import find_spec

import pytest

import asynctune as at
from asynctune.schedulers import Scheduler
from asynctune.searchers import Searcher

__all__ = ["SCHEDULERS", "SEARCHERS", "needs_optuna", "schedulers", "searchers"]

needs_optuna = pytest.mark.skipif(find_spec("optuna") is None, reason="optuna is not installed")

#: At most 9 steps; 60 trials.
SCHEDULERS: dict[str, Callable[[], Scheduler]] = {
    "fifo": at.FIFO,
    "stopping": lambda: at.ASHA(max_resource=9, min_resource=1, reduction_factor=3),
    "promotion": lambda: at.ASHA(max_resource=9, min_resource=1, reduction_factor=3, brackets=2, type="promotion"),
    "pbt": lambda: at.PBT(perturbation_interval=3, max_resource=9),
    "pbt, perturbing only": lambda: at.PBT(perturbation_interval=2, max_resource=9, resample_probability=0.0),
    "pbt, synchronous": lambda: at.PBT(perturbation_interval=3, max_resource=9, synchronous=True),
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

searchers = pytest.mark.parametrize(
    "searcher",
    [pytest.param(make, id=name, marks=needs_optuna if name == "optuna" else ()) for name, make in SEARCHERS.items()],
)
schedulers = pytest.mark.parametrize("scheduler", [pytest.param(make, id=name) for name, make in SCHEDULERS.items()])
