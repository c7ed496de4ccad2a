"""Records: what the rooms pass on, and what the journal is a list of.

A study takes records in and gives effects out; a run is the list of its records. Here are the
records, the states of a trial and the one table of transitions between them. No behaviour beyond that.
"""

import enum
from typing import Annotated, Any

import msgspec

from asynctune.errors import AsynctuneError

__all__ = [
    "Action",
    "Decided",
    "Failed",
    "Finished",
    "Header",
    "Left",
    "Lost",
    "Record",
    "Reopened",
    "Reported",
    "Saved",
    "Started",
    "Stopping",
    "Suggested",
    "TrialState",
    "check_transition",
]

Config = dict[str, Any]

#: What an array of int64 can hold: a journal that holds more was tampered with.
Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]


class TrialState(enum.IntEnum):
    """Where a trial stands. Every trial has exactly one state."""

    PENDING = 0  # has a configuration, waits for a slot (new, or to be tried again after a failure)
    RUNNING = 1
    PAUSED = 2  # saved, waits for a decision or for its turn
    COMPLETED = 3  # ended by itself, or reached max_resource
    STOPPED = 4  # ended by a decision, a time budget or a request
    FAILED = 5  # its last permitted attempt failed

    def __str__(self) -> str:
        return self.name

    def __format__(self, spec: str) -> str:
        return format(self.name, spec)


_NEXT: dict[TrialState, frozenset[TrialState]] = {
    TrialState.PENDING: frozenset({TrialState.RUNNING, TrialState.STOPPED}),
    TrialState.RUNNING: frozenset(TrialState) - {TrialState.RUNNING},
    TrialState.PAUSED: frozenset(TrialState) - {TrialState.PAUSED},
    TrialState.COMPLETED: frozenset(),
    TrialState.STOPPED: frozenset(),
    TrialState.FAILED: frozenset(),
}

ENDED = frozenset(state for state, following in _NEXT.items() if not following)


def check_transition(trial: int, before: TrialState, after: TrialState) -> None:
    """Raise `AsynctuneError` unless a trial may go from `before` to `after`."""
    if after not in _NEXT[before]:
        raise AsynctuneError(f"trial {trial}: {before.name} cannot become {after.name}")


class Action(enum.StrEnum):
    """What a trial does after a report on which a decision was due."""

    CONTINUE = "continue"
    PAUSE = "pause"
    STOP = "stop"


# The members by themselves, for hot paths: an enum looks one up in 0.1 us, a module in a tenth of that.
PENDING, RUNNING, PAUSED, COMPLETED, STOPPED, FAILED = TrialState
CONTINUE, PAUSE, STOP = Action


class Record(msgspec.Struct, frozen=True, tag_field="t", tag=str.lower, kw_only=True, gc=False):
    """One thing that happened. `time` is in seconds since the run began."""

    time: float = 0.0

    @property
    def kind(self) -> str:
        """The event's name, as `async for event in tuner` shows it."""
        return type(self).__name__.lower()


class Header(Record, frozen=True, kw_only=True):
    """The journal's first line: what the run is about."""

    version: int = 1
    metric: str
    mode: str
    num_trials: int | None
    seed: int
    space: dict[str, str]  # hyperparameter -> the text of its domain, for people
    searcher: str
    scheduler: str
    slots: Int64
    points_to_evaluate: str = "none"  # their number and a digest, by which they are known again
    observations: str = "none"  # the same


class Suggested(Record, frozen=True, kw_only=True):
    """A new trial has its configuration: it is PENDING."""

    trial: Int64
    config: Config


class Started(Record, frozen=True, kw_only=True):
    """A slot takes up a trial: it is RUNNING.

    It starts after `step`, from `checkpoint` (None: from scratch), and owes a decision at the first report
    whose step is `until` or later (None: never). With a `donor`, the trial took over that trial's weights, and
    `config` is what explore made of the donor's configuration. Each new `config` opens a new segment.
    """

    trial: Int64
    segment: Int64
    step: Int64
    until: int | None
    slot: Int64
    checkpoint: str | None = None
    donor: int | None = None
    config: Config | None = None
    how: str = "started"  # or "resumed", "retried", "restarted", "exploited", "changed"

    @property
    def kind(self) -> str:
        return self.how


class Reported(Record, frozen=True, kw_only=True):
    """A trial's metrics after a step. Steps increase within a segment."""

    trial: Int64
    segment: Int64
    step: Int64
    metrics: dict[str, float]


class Saved(Record, frozen=True, kw_only=True):
    """A checkpoint is complete on disk; it holds the trial's state after `step`."""

    trial: Int64
    segment: Int64
    step: Int64
    checkpoint: str | None  # None: user code gave nothing to save, the trial can go on only from scratch or in place


class Decided(Record, frozen=True, kw_only=True):
    """The answer to a report on which a decision was due."""

    trial: Int64
    segment: Int64
    step: Int64
    action: Action
    until: int | None = None  # CONTINUE: the step at which the next decision is due

    @property
    def kind(self) -> str:
        return {Action.CONTINUE: "continued", Action.PAUSE: "paused", Action.STOP: "stopped"}[self.action]


class Failed(Record, frozen=True, kw_only=True):
    """An attempt failed. `retry`: the trial is PENDING again; else it is FAILED."""

    trial: Int64
    error: str  # one line: the exception and its message, or how the worker ended
    retry: bool
    traceback: str = ""


class Left(Record, frozen=True, kw_only=True):
    """A slot is through with one start of a trial, whatever becomes of the trial.

    `busy` is the time in seconds that user code had, without waiting for decisions and without saving; `log` is the byte
    range of what it printed in the slot's log file.
    """

    trial: Int64
    segment: Int64
    slot: Int64
    busy: float
    log: tuple[int, int]


class Finished(Record, frozen=True, kw_only=True):
    """A trial is over: COMPLETED or STOPPED."""

    trial: Int64
    state: TrialState


class Lost(Record, frozen=True, kw_only=True):
    """The checkpoint that a start was to begin with is missing or damaged: the trial is PENDING again, from scratch."""

    trial: Int64
    checkpoint: str
    error: str  # what is wrong with it, one line


class Reopened(Record, frozen=True, kw_only=True):
    """Another driver takes the run up. What ran when the last one ended starts again from its last checkpoint."""

    num_trials: int | None
    slots: Int64


class Stopping(Record, frozen=True, kw_only=True):
    """No new trial starts from here on; what runs pauses at its next report. `failed`: the run ends with an error."""

    reason: str
    failed: bool = False
