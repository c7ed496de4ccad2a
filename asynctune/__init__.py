"""asynctune: hyperparameter tuning on one multi-GPU box, embedded in your own script.

This module is a lazy table of contents: a name's room is imported when the name is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asynctune._run import run as run
    from asynctune._run import tune as tune
    from asynctune.errors import AsynctuneError as AsynctuneError
    from asynctune.errors import InvalidArgument as InvalidArgument
    from asynctune.errors import JournalError as JournalError
    from asynctune.errors import RunFailed as RunFailed
    from asynctune.errors import TrialEnded as TrialEnded
    from asynctune.population import Population as Population
    from asynctune.records import Action as Action
    from asynctune.records import TrialState as TrialState
    from asynctune.results import Result as Result
    from asynctune.results import TrialResult as TrialResult
    from asynctune.schedulers import ASHA as ASHA
    from asynctune.schedulers import FIFO as FIFO
    from asynctune.schedulers import MFPBT as MFPBT
    from asynctune.schedulers import PASHA as PASHA
    from asynctune.schedulers import PB2 as PB2
    from asynctune.schedulers import PBT as PBT
    from asynctune.schedulers import Hyperband as Hyperband
    from asynctune.schedulers import MedianStopping as MedianStopping
    from asynctune.schedulers import Replay as Replay
    from asynctune.searchers import TPE as TPE
    from asynctune.searchers import Grid as Grid
    from asynctune.searchers import HyperOpt as HyperOpt
    from asynctune.searchers import Optuna as Optuna
    from asynctune.searchers import Random as Random
    from asynctune.searchers import Sobol as Sobol
    from asynctune.simulation import simulate as simulate
    from asynctune.slots import Slots as Slots
    from asynctune.space import Space as Space
    from asynctune.space import choice as choice
    from asynctune.space import lograndint as lograndint
    from asynctune.space import loguniform as loguniform
    from asynctune.space import normal as normal
    from asynctune.space import ordinal as ordinal
    from asynctune.space import qloguniform as qloguniform
    from asynctune.space import quniform as quniform
    from asynctune.space import randint as randint
    from asynctune.space import uniform as uniform
    from asynctune.study import Assignment as Assignment
    from asynctune.study import Decision as Decision
    from asynctune.study import Study as Study
    from asynctune.tabular import Tabular as Tabular
    from asynctune.tuner import Tuner as Tuner
    from asynctune.worker.trial import Trial as Trial

_WHERE = {
    "ASHA": "schedulers",
    "Action": "records",
    "Assignment": "study",
    "AsynctuneError": "errors",
    "Decision": "study",
    "FIFO": "schedulers",
    "Grid": "searchers",
    "HyperOpt": "searchers",
    "Hyperband": "schedulers",
    "InvalidArgument": "errors",
    "JournalError": "errors",
    "MFPBT": "schedulers",
    "MedianStopping": "schedulers",
    "PASHA": "schedulers",
    "PB2": "schedulers",
    "Optuna": "searchers",
    "PBT": "schedulers",
    "Population": "population",
    "Random": "searchers",
    "Replay": "schedulers",
    "Result": "results",
    "RunFailed": "errors",
    "Slots": "slots",
    "Sobol": "searchers",
    "Space": "space",
    "Study": "study",
    "TPE": "searchers",
    "Tabular": "tabular",
    "Trial": "worker.trial",
    "TrialEnded": "errors",
    "TrialResult": "results",
    "TrialState": "records",
    "Tuner": "tuner",
    "choice": "space",
    "lograndint": "space",
    "loguniform": "space",
    "normal": "space",
    "ordinal": "space",
    "qloguniform": "space",
    "quniform": "space",
    "randint": "space",
    "run": "_run",
    "simulate": "simulation",
    "tune": "_run",
    "uniform": "space",
}

__all__ = list(_WHERE)


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_WHERE[name]}", __name__), name)
    globals()[name] = value  # the next use is a plain attribute
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
