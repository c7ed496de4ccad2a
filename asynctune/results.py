"""Results: what came of a run, as views of its records.

A `Result` is the fold of a journal: of each trial it keeps a few numbers and where its records stand, and reads the rest
back from the file when it is asked for. So a run is read in the same way while it goes on, after its end, and years later;
and so is a simulated one, whose records lie in memory.
"""

import contextlib
import importlib
import itertools
import math
import os
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, overload

import numpy as np

from asynctune import logs
from asynctune.errors import AsynctuneError, InvalidArgument, JournalError, RunFailed, check_integer
from asynctune.journal import records_at, scan
from asynctune.observations import Observation, Observations, listed
from asynctune.records import (
    COMPLETED,
    FAILED,
    PAUSE,
    PAUSED,
    PENDING,
    RUNNING,
    Config,
    Decided,
    Failed,
    Finished,
    Header,
    Left,
    Lost,
    Record,
    Reopened,
    Reported,
    Saved,
    Started,
    Stopping,
    Suggested,
    TrialState,
)
from asynctune.rundir import JOURNAL, checkpoint_path, is_directory, log_file
from asynctune.tape import Tape

__all__ = ["Result", "Segment", "TrialResult", "Trials", "flat", "observed", "printable"]


_ESCAPE = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|[\]PX^_].*?(\x1b\\|\x07|$)|[ -/]*[0-~])", re.DOTALL)


def printable(text: str) -> str:
    """`text` as one line that cannot steer a terminal: escape sequences go, other control characters become blanks."""
    return "".join(c if c.isprintable() else " " for c in _ESCAPE.sub("", text)).rstrip()


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A configuration with its nesting spelled out: `{"optimizer": {"lr": 0.1}}` is `{"optimizer.lr": 0.1}`."""
    values: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            values |= flat(value, f"{prefix}{name}.")
        else:
            values[f"{prefix}{name}"] = value
    return values


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of a trial with one configuration. It begins after `step`, with the weights of `donor` (None: its own)."""

    segment: int
    step: int
    donor: int | None
    config: Config


class _Source(Protocol):
    """Where the records of a run are: each has a place, a number that grows from record to record. Its `str` names it."""

    def scan(self) -> Iterator[tuple[int, Record]]:
        """All records, the `Header` first, each with its place."""

    def at(self, places: Iterable[int]) -> Iterator[Record]:
        """The records at these places."""


@dataclass(frozen=True)
class _File:
    """A journal; a place is a byte offset."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    def scan(self) -> Iterator[tuple[int, Record]]:
        return scan(self.path)

    def at(self, places: Iterable[int]) -> Iterator[Record]:
        return records_at(self.path, places)


@dataclass(slots=True)
class _History:
    """What became of a trial besides its reports: the fold of its events, all that is neither a report nor a decision."""

    lineage: list[Segment]
    error: str | None = None
    traceback: str = ""
    checkpoint: str | None = None
    logs: list[tuple[int, int, int]] = field(default_factory=list)  # slot, first byte, byte after the last

    def apply(self, record: Record) -> None:
        match record:
            case Suggested(config=config):
                self.lineage.append(Segment(0, 0, None, config))
            case Started(segment=segment, step=step, donor=donor, config=config, checkpoint=checkpoint):
                self.error, self.traceback = None, ""
                last = self.lineage[-1]
                if segment != last.segment:
                    self.lineage.append(Segment(segment, step, donor, last.config if config is None else config))
                    self.checkpoint = checkpoint
            case Saved(checkpoint=checkpoint):
                self.checkpoint = checkpoint
            case Lost():
                self.checkpoint = None
            case Left(slot=slot, log=(first, last)):
                self.logs.append((slot, first, last))
            case Failed(error=error, traceback=traceback):
                self.error, self.traceback = error, traceback


class TrialResult:
    """What came of one trial, as the journal had it when the result was loaded.

    State, value, step and busy are at hand; the rest is read from the journal when it is first asked for, and raises
    `JournalError` if that cannot be read any more. Two views of a trial of one result are equal.
    """

    def __init__(self, trials: "Trials", number: int) -> None:
        self._trials = trials
        self._id = number

    @property
    def id(self) -> int:
        """Its number, from 0 in the order of suggestion."""
        return self._id

    @property
    def trial_id(self) -> int:
        """The same as `id`: `result.best.trial_id` reads better than `result.best.id`."""
        return self._id

    @property
    def state(self) -> TrialState:
        """Where it stood at the end of the journal."""
        return TrialState(self._trials.states[self._id])

    @property
    def value(self) -> float | None:
        """The last reported value of the study's metric, NaN if that was NaN; None before the first report."""
        return self._trials.values[self._id] if self._trials.valued[self._id] else None

    @property
    def step(self) -> int:
        """The step of the last report; 0 before the first."""
        return self._trials.steps[self._id]

    @property
    def busy(self) -> float:
        """Seconds that user code had, without waiting for decisions and without saving."""
        return self._trials.busy[self._id]

    @cached_property
    def _history(self) -> _History:
        return self._trials.history(self._id)

    @property
    def lineage(self) -> list[Segment]:
        """Its segments, one more for each exploit or other change of its configuration."""
        return self._history.lineage

    @property
    def config(self) -> Config:
        """The configuration of its last segment."""
        return self._history.lineage[-1].config

    @property
    def error(self) -> str | None:
        """How the last attempt failed, in one line; None unless it did."""
        return self._history.error

    @property
    def traceback(self) -> str:
        """The failed attempt's traceback, "" where there was none."""
        return self._history.traceback

    @property
    def reports(self) -> list[dict[str, float]]:
        """Its reports: a dict of `step`, `segment` and the metrics for each."""
        reports = self._trials.reports(self._id)
        return [{"step": report.step, "segment": report.segment, **report.metrics} for report in reports]

    @property
    def checkpoint(self) -> Path | None:
        """The state to go on from: its last checkpoint, or a donor's that it took since; None if none is kept."""
        run_dir, checkpoint = self._trials.run_dir, self._history.checkpoint
        if run_dir is None or checkpoint is None:
            return None
        path = checkpoint_path(run_dir, checkpoint)
        return path if is_directory(path) else None

    def log(self) -> str:
        """What it printed, over all its starts."""
        run_dir = self._trials.run_dir
        if run_dir is None:
            return ""
        # An inline trial printed where the driver prints: there is no file.
        parts = (logs.read(run_dir / log_file(slot), first, last) for slot, first, last in self._history.logs)
        return b"".join(parts).decode(errors="replace")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TrialResult) and other._trials is self._trials and other._id == self._id

    def __hash__(self) -> int:
        return hash(self._id)

    def __repr__(self) -> str:
        return f"<TrialResult {self._id}: {self.state.name}, value {self.value!r} at step {self.step}>"


class _Chain:
    """The places of each trial's records: 4 bytes a trial, 12 a record.

    Each record knows the one before it, so that a trial's are found without a search, and the next is added at the end.
    """

    def __init__(self, trials: int = 0) -> None:
        self._last = array("i", [-1]) * trials  # trial -> its last record, an index into the other two; -1: it has none
        self._before = array("i")  # record -> the trial's record before it
        self._places = array("q")  # record -> its place

    def add_trial(self) -> None:
        self._last.append(-1)

    def add(self, trial: int, place: int) -> None:
        self._before.append(self._last[trial])
        self._last[trial] = len(self._places)
        self._places.append(place)

    def of(self, trial: int) -> list[int]:
        """The places of its records, ascending."""
        places = []
        record = self._last[trial]
        while record >= 0:
            places.append(self._places[record])
            record = self._before[record]
        return places[::-1]


class Trials(Sequence[TrialResult]):
    """The trials of a run, by id: 30 bytes for each and 12 for each of its events. A `TrialResult` is made when asked for.

    Attributes:
        run_dir: the directory that the run wrote; None: it was a simulation, which wrote none.
        states: (n,) where each stood at the end, as `TrialState`.
        steps: (n,) int64, of the last report; 0 before the first.
        values: (n,) float64, of the last report; NaN before the first.
        valued: (n,) 1 where `values` holds a value, 0 before the first.
        busy: (n,) float64, seconds in user code.
    """

    def __init__(self, source: _Source, run_dir: Path | None, metric: str) -> None:
        self.run_dir = run_dir
        self.states = array("B")
        self.steps = array("q")
        self.values = array("d")
        self.valued = array("B")
        self.busy = array("d")
        self._source = source
        self._metric = metric
        self._events = _Chain()
        self._last = 0  # the place of the last record taken in

    def __len__(self) -> int:
        return len(self.states)

    @overload
    def __getitem__(self, index: int) -> TrialResult: ...
    @overload
    def __getitem__(self, index: slice) -> list[TrialResult]: ...
    def __getitem__(self, index: int | slice) -> TrialResult | list[TrialResult]:
        numbers = range(len(self))[index]
        return TrialResult(self, numbers) if isinstance(numbers, int) else [TrialResult(self, i) for i in numbers]

    def __iter__(self) -> Iterator[TrialResult]:
        return (TrialResult(self, number) for number in range(len(self)))

    def __repr__(self) -> str:
        return f"<{len(self)} trials of {_named(self.run_dir)}>"

    def apply(self, place: int, record: Record) -> None:
        """Take in the next record. Raises `JournalError` if it is out of place."""
        # `type(...) is`, not `match`: where the class is another one, isinstance asks msgspec's metaclass, for 0.1 us. First comes
        # what there is most of.
        self._last = place
        trial = getattr(record, "trial", -1)
        if type(record) is Suggested and trial == len(self.states):
            self.states.append(PENDING)
            self.steps.append(0)
            self.values.append(math.nan)
            self.valued.append(0)
            self.busy.append(0.0)
            self._events.add_trial()
        elif type(record) is Suggested or not 0 <= trial < len(self.states):
            raise JournalError(f"{self._source}: the {record.kind!r} record at byte {place} is out of place")
        if type(record) is Reported:
            self.steps[trial] = record.step
            value = record.metrics.get(self._metric)
            if value is not None:
                self.values[trial] = value
                self.valued[trial] = 1
            return
        if type(record) is Decided:
            if record.action is PAUSE:
                self.states[trial] = PAUSED
            return
        if type(record) is Finished:
            self.states[trial] = record.state
            return
        if type(record) is Left:
            self.busy[trial] += record.busy
        elif type(record) is Started:
            self.states[trial] = RUNNING
            if record.step < self.steps[trial]:  # tried again: what came after its checkpoint is void
                self.steps[trial], self.values[trial], self.valued[trial] = record.step, math.nan, 0
        elif type(record) is Failed:
            self.states[trial] = PENDING if record.retry else FAILED
        elif type(record) is Lost:
            self.states[trial] = PENDING
        self._events.add(trial, place)

    def reopen(self) -> None:
        """Another driver took up the run: what ran is to be started again."""
        for trial, state in enumerate(self.states):
            if state == RUNNING:
                self.states[trial] = PENDING

    def history(self, trial: int) -> _History:
        """What became of a trial. Raises `JournalError` if the journal cannot be read any more."""
        history = _History([])
        for record in self._source.at(self._events.of(trial)):
            history.apply(record)
        return history

    def stretch(self, trial: int, checkpoint: str | None = None) -> tuple[int, Config, str | None]:
        """How a trial was trained last, or last before `checkpoint`: from which step on, with which configuration, from which checkpoint.

        Raises `JournalError` if the journal cannot be read any more.
        """
        step, origin = 0, None
        config: Config = {}
        for record in self._source.at(self._events.of(trial)):
            if isinstance(record, Suggested):
                config = record.config
            elif isinstance(record, Started) and record.config is not None:
                step, config, origin = record.step, record.config, record.checkpoint
            elif isinstance(record, Started) and record.checkpoint is None:  # from scratch, if it was lost
                step, origin = 0, None
            elif isinstance(record, Saved) and checkpoint is not None and record.checkpoint == checkpoint:
                break
        return step, config, origin

    def reports(self, trial: int) -> list[Reported]:
        """A trial's reports that count. Raises `JournalError` if the journal cannot be read any more."""
        reports: list[Reported] = []
        for record in self._source.at(self._reports.of(trial)):
            if isinstance(record, Reported):
                reports.append(record)
            elif isinstance(record, Started):  # tried again from a checkpoint: what came after that is void
                while reports and (reports[-1].segment, reports[-1].step) > (record.segment, record.step):
                    reports.pop()
        return reports

    @cached_property
    def _reports(self) -> _Chain:
        """Of reports, and of the starts that make some of them void. Made when first asked for: memory grows with reports."""
        chain = _Chain(len(self))
        for place, record in self._scan():
            if type(record) is Reported or type(record) is Started:
                chain.add(record.trial, place)
        return chain

    def _scan(self) -> Iterator[tuple[int, Record]]:
        """The records taken in, and not those written since."""
        return itertools.takewhile(lambda found: found[0] <= self._last, self._source.scan())

    def records(self) -> Iterator[Record]:
        """The records taken in, the `Header` left out. Raises `JournalError` if the journal cannot be read any more."""
        return (record for _, record in itertools.islice(self._scan(), 1, None))


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """What came of a run.

    Attributes:
        run_dir: the directory that the run wrote; None: it was a simulation, which wrote none.
        header: what the run was about: space, searcher, scheduler, seed.
        trials: every trial, by id.
        wall: seconds from the beginning to the last record.
        startup: seconds until the first user code ran; None if none did.
        stopping: why the run was ended early; None if it was not.
    """

    run_dir: Path | None
    header: Header
    trials: Trials
    wall: float
    startup: float | None
    stopping: str | None

    @classmethod
    def load(cls, run_dir: str | os.PathLike[str]) -> "Result":
        """Read the run in `run_dir`, which may still go on. Nothing in the directory is executed.

        Raises:
            InvalidArgument: there is no run in `run_dir`.
            JournalError: its journal is damaged; the message names the byte.
        """
        run_dir = Path(run_dir)
        path = run_dir / JOURNAL
        if not path.is_file():
            raise InvalidArgument(f"run_dir must hold a run, {os.fspath(path)!r} is missing")
        source = _File(path)
        return cls._fold(source, source.scan(), run_dir)

    @classmethod
    def of(cls, records: Iterable[Record]) -> "Result":
        """What comes of a run's records, the `Header` first; they are kept in memory."""
        tape = Tape()
        return cls._fold(tape, tape.take(records), None)

    @classmethod
    def _fold(cls, source: _Source, records: Iterator[tuple[int, Record]], run_dir: Path | None) -> "Result":
        _, header = next(records, (0, None))
        if not isinstance(header, Header):
            raise JournalError(f"{source}: empty")
        trials = Trials(source, run_dir, header.metric)
        wall = header.time
        startup: float | None = None
        stopping: str | None = None
        for place, record in records:
            wall = record.time
            if type(record) is Stopping:
                stopping = record.reason
                continue
            if type(record) is Reopened:
                stopping = None
                trials.reopen()
                continue
            trials.apply(place, record)
            if startup is None and type(record) is Started:
                startup = wall
        return cls(run_dir, header, trials, wall, startup, stopping)

    @property
    def metric(self) -> str:
        return self.header.metric

    @property
    def mode(self) -> str:
        return self.header.mode

    @property
    def best(self) -> TrialResult:
        """The trial with the best last value among those that completed, else among those at the highest step.

        Values that are not finite and trials that failed do not count; ties go to the lower id.

        Raises:
            AsynctuneError: no trial has a value that counts.
        """
        states, steps, values = (
            np.asarray(self.trials.states),
            np.asarray(self.trials.steps),
            np.asarray(self.trials.values),
        )
        able = np.isfinite(values) & (states != FAILED)
        if not able.any():
            raise AsynctuneError(f"no trial has a finite {self.metric}: {self.ending()}")
        among = able & (states == COMPLETED)
        if not among.any():
            among = able & (steps == steps[able].max())
        numbers = np.flatnonzero(among)
        scores = values[numbers]
        return self.trials[int(numbers[scores.argmax() if self.mode == "max" else scores.argmin()])]

    def observations(self, metric: str | None = None) -> list[Observation]:
        """What its trials have scored, as `observations` of another run takes it: all their reports of a metric, by default the run's own.

        Trials that were trained with more than one configuration are left out: their values are of none of them.

        Raises:
            InvalidArgument: no trial has reported this metric.
            JournalError: the journal cannot be read any more.
        """
        metric = self.metric if metric is None else metric
        observations, reported, named = [], False, False
        for trial in self.trials:
            reports = trial.reports
            values = {int(report["step"]): report[metric] for report in reports if metric in report}
            reported, named = reported or bool(reports), named or bool(values)
            if trial.state is FAILED:
                values[trial.step + 1] = math.nan
            if values and len(trial.lineage) == 1:
                observations.append(Observation(trial.config, values, trial.state is COMPLETED))
        if reported and not named:
            raise InvalidArgument(f"metric must be one that {self!r} has reported, got {metric!r}")
        return observations

    def schedule(self, trial: int) -> list[tuple[int, Config]]:
        """With which configurations a trial was trained to where it stands: (step, config), each from after that step on, the first from 0.

        Where it took over from another, the other's history comes before. `at.Replay` trains a trial like that.

        Raises:
            InvalidArgument: there is no such trial.
            JournalError: the journal cannot be read any more.
        """
        if check_integer("trial", trial, at_least=0) >= len(self.trials):
            raise InvalidArgument(f"trial must be one of the {len(self.trials)} trials, got {trial}")
        step, config, origin = self.trials.stretch(trial)
        schedule = [(step, config)]
        while origin is not None:
            step, config, origin = self.trials.stretch(int(origin.partition("-")[0]), origin)
            schedule.append((step, config))
        return schedule[::-1]

    def events(self) -> Iterator[Record]:
        """What happened, in order: the records that `async for event in tuner` shows.

        Raises:
            JournalError: the journal cannot be read any more.
        """
        return self.trials.records()

    def check(self, failure: str | None) -> None:
        """Raise `RunFailed` if the run was ended for a `failure`, or if nothing but failures came of it."""
        states = self.trials.states
        failed = states.count(FAILED)
        first = self.trials[states.index(FAILED)] if failed else None
        if failure is None and first is not None and failed == len(states):
            failure = f"every trial failed, the first with {first.error}"
        if failure is not None:
            error = RunFailed(printable(failure))
            if first is not None:
                lines = f"trial {first.id}, {first.error}\n{first.traceback}".strip().splitlines()
                error.add_note("\n".join(map(printable, lines)))
            if self.run_dir is not None:
                error.add_note(f"run directory: {self.run_dir}")
            raise error

    def to_dataframe(self) -> Any:
        """A pandas DataFrame with one row per trial: id, state, value, step, and each hyperparameter as `config.NAME`.

        Raises:
            AsynctuneError: pandas is not installed.
        """
        try:
            pandas = importlib.import_module("pandas")
        except ImportError:
            raise AsynctuneError("to_dataframe needs pandas, which is not installed") from None
        rows = (
            {"id": t.id, "state": t.state.name, "value": t.value, "step": t.step}
            | {f"config.{name}": value for name, value in flat(t.config).items()}
            for t in self.trials
        )
        return pandas.DataFrame(rows)

    def report(self, path: Path | str = "report.html") -> Path:
        """Write the run as one self-contained page to `path`; return where it is. Raises `InvalidArgument` if that is a symbolic link."""
        from asynctune.report import render

        path = Path(path)
        if path.is_symlink():  # in a run directory of somebody else's it may lead anywhere
            raise InvalidArgument(f"path must not be a symbolic link, got {os.fspath(path)!r}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(render(self), encoding="utf-8")
        return path

    def ending(self) -> str:
        """How many trials stand in each state, in words: `"18 completed, 2 failed"`."""
        count = Counter(self.trials.states)
        return ", ".join(f"{count[s]} {s.name.lower()}" for s in TrialState if count[s]) or "no trial started"

    def summary(self) -> str:
        """The run in one line: how its trials ended, the best one, the time."""
        plural = "" if len(self.trials) == 1 else "s"
        text = f"{len(self.trials)} trial{plural} in {self.wall:.1f} s: {self.ending()}"
        if self.stopping is not None:
            text += f"; ended early: {printable(self.stopping)}"
        try:
            best = self.best
        except AsynctuneError:
            return text
        return f"{text}; best {printable(self.metric)} {best.value:.6g} (trial {best.id}, step {best.step})"

    def __str__(self) -> str:
        lines = [self.summary()]
        with contextlib.suppress(AsynctuneError):
            lines += [
                printable(f"  {name} = {value:.6g}" if isinstance(value, float) else f"  {name} = {value}")
                for name, value in flat(self.best.config).items()
            ]
        if self.run_dir is not None:
            lines.append(f"run directory: {self.run_dir}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<Result {_named(self.run_dir)}: {self.ending()}>"


def _named(run_dir: Path | None) -> str:
    return "a simulation" if run_dir is None else repr(os.fspath(run_dir))


def observed(observations: Observations | str | os.PathLike[str], metric: str) -> list[Observation]:
    """The `observations` of a run one by one, those of an earlier run's directory included.

    Raises:
        InvalidArgument: they are not observations at all, or there is no run in the directory.
        JournalError: its journal is damaged.
    """
    return listed(Result.load(observations) if isinstance(observations, str | os.PathLike) else observations, metric)
