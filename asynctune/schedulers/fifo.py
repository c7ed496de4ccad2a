"""FIFO: every trial runs to its own end."""

from collections.abc import Sequence
from dataclasses import dataclass

from asynctune.records import Action, TrialState
from asynctune.schedulers.base import BoundScheduler, Scheduler, Verdict
from asynctune.space import Rows, Space

__all__ = ["FIFO"]

_GO_ON = Verdict(Action.CONTINUE, None, ())


@dataclass(frozen=True)
class FIFO(Scheduler):
    """First in, first out: no trial is stopped or paused."""

    def bind(
        self,
        *,
        seed: int = 0,
        num_trials: int | None = None,
        num_slots: int | None = None,
        space: Space | None = None,
        rows: Rows | None = None,
    ) -> "BoundFIFO":
        return BoundFIFO()


class BoundFIFO(BoundScheduler):
    """Never a decision."""

    def begin(self, trial: int) -> None:
        return None

    def report(self, trial: int, step: int, score: float) -> Verdict:
        return _GO_ON

    def retried(self, trial: int, step: int) -> None:
        return None

    def finish(self, trial: int, state: TrialState) -> Sequence[int]:
        return ()
