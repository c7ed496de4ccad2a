"""Searchers: which configuration next."""

from asynctune.searchers.base import BoundSearcher, Searcher
from asynctune.searchers.grid import Grid
from asynctune.searchers.hyperopt import HyperOpt
from asynctune.searchers.optuna import Optuna
from asynctune.searchers.random import Random
from asynctune.searchers.sobol import Sobol
from asynctune.searchers.tpe import TPE

__all__ = ["TPE", "BoundSearcher", "Grid", "HyperOpt", "Optuna", "Random", "Searcher", "Sobol"]
