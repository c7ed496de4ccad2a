"""Searchers: which configuration next."""

from asynctune.searchers.base import BoundSearcher, Searcher
from asynctune.searchers.hyperopt import HyperOpt
from asynctune.searchers.random import Random

__all__ = ["BoundSearcher", "HyperOpt", "Random", "Searcher"]
