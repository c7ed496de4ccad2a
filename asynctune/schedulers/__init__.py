"""Schedulers: go on, stop, pause, promote, exploit."""

from asynctune.schedulers.asha import ASHA, BoundASHA
from asynctune.schedulers.base import BoundScheduler, Resumption, Scheduler, Verdict
from asynctune.schedulers.fifo import FIFO
from asynctune.schedulers.hyperband import Hyperband
from asynctune.schedulers.median import MedianStopping
from asynctune.schedulers.mfpbt import MFPBT
from asynctune.schedulers.pasha import PASHA
from asynctune.schedulers.pb2 import PB2
from asynctune.schedulers.pbt import PBT, BoundPBT
from asynctune.schedulers.replay import Replay

__all__ = [
    "ASHA",
    "FIFO",
    "MFPBT",
    "PASHA",
    "PB2",
    "PBT",
    "BoundASHA",
    "BoundPBT",
    "BoundScheduler",
    "Hyperband",
    "MedianStopping",
    "Replay",
    "Resumption",
    "Scheduler",
    "Verdict",
]
