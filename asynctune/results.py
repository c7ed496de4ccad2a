"""Results: what came of a run, as views of its records.

A `Result` is the fold of a journal: of each trial it keeps the outcome, and reads the reports back from the file when
they are asked for. So a run is read in the same way while it goes on, after its end, and years later.
"""

import contextlib
import importlib
import math
import os
import re
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from asynctune.errors import AsynctuneError, InvalidArgument, JournalError
from asynctune.journal import CHECKPOINTS, FILENAME, decode, log_file, scan
from asynctune.records import (
    Action,
    Config,
    Decided,
    Failed,
    Finished,
    Header,
    Left,
    Record,
    Reported,
    Saved,
    Started,
    Stopping,
    Suggested,
    TrialState,
)

__all__ = ["Result", "Segment", "TrialResult", "flat", "printable"]


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


class _Reports:
    """Where in a journal each trial's reports stand. Built when first asked, 16 bytes a report."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @cached_property
    def _index(self) -> tuple[np.ndarray[Any, np.dtype[np.int64]], np.ndarray[Any, np.dtype[np.int64]]]:
        """Trials, ascending, and byte offsets, ascending within a trial: (n,) int64 each."""
        trials, offsets = array("q"), array("q")
        for offset, record in scan(self._path):
            if isinstance(record, Reported | Started):
                trials.append(record.trial)
                offsets.append(offset)
        owners = np.array(trials, dtype=np.int64)
        order = np.argsort(owners, kind="stable")
        return owners[order], np.array(offsets, dtype=np.int64)[order]

    def of(self, trial: int) -> list[Reported]:
        trials, offsets = self._index
        first, last = np.searchsorted(trials, [trial, trial + 1])
        reports: list[Reported] = []
        with open(self._path, "rb") as file:
            for offset in offsets[first:last].tolist():
                file.seek(offset)
                record = decode(file.readline())
                if isinstance(record, Reported):
                    reports.append(record)
                elif isinstance(record, Started):  # tried again from a checkpoint: what came after that is void
                    while reports and (reports[-1].segment, reports[-1].step) > (record.segment, record.step):
                        reports.pop()
        return reports


@dataclass(slots=True, eq=False, repr=False)
class TrialResult:
    """What came of one trial.

    Attributes:
        id: its number, from 0 in the order of suggestion.
        state: where it stood at the end of the journal.
        value: the last reported value of the study's metric, NaN if that was NaN; None before the first report.
        step: the step of the last report; 0 before the first.
        lineage: its segments, one more for each exploit.
        error: how the last attempt failed, in one line; None unless it did.
        traceback: the failed attempt's traceback, "" where there was none.
        busy: seconds that user code had, without waiting for decisions and without saving.
    """

    id: int
    lineage: list[Segment]
    _run_dir: Path
    _reports: _Reports
    state: TrialState = TrialState.PENDING
    value: float | None = None
    step: int = 0
    error: str | None = None
    traceback: str = ""
    busy: float = 0.0
    _checkpoint: str | None = None
    _logs: list[tuple[int, int, int]] = field(default_factory=list)  # slot, first byte, byte after the last

    @property
    def trial_id(self) -> int:
        """The same as `id`: `result.best.trial_id` reads better than `result.best.id`."""
        return self.id

    @property
    def config(self) -> Config:
        """The configuration of its last segment."""
        return self.lineage[-1].config

    @property
    def reports(self) -> list[dict[str, float]]:
        """Its reports, read from the journal: a dict of `step`, `segment` and the metrics for each."""
        return [
            {"step": report.step, "segment": report.segment, **report.metrics} for report in self._reports.of(self.id)
        ]

    @property
    def checkpoint(self) -> Path | None:
        """The state to go on from: its last checkpoint, or a donor's that it took since; None if none is kept."""
        if self._checkpoint is None:
            return None
        path = self._run_dir / CHECKPOINTS / self._checkpoint
        return path if path.exists() else None

    def log(self) -> str:
        """What it printed, over all its starts."""
        parts = []
        for slot, first, last in self._logs:
            if not (self._run_dir / log_file(slot)).exists():  # an inline trial printed where the driver prints
                continue
            with open(self._run_dir / log_file(slot), "rb") as file:
                file.seek(first)
                parts.append(file.read(last - first))
        return b"".join(parts).decode(errors="replace")

    def __repr__(self) -> str:
        return f"<TrialResult {self.id}: {self.state.name}, value {self.value!r} at step {self.step}>"


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """What came of a run.

    Attributes:
        run_dir: the directory that the run wrote.
        header: what the run was about: space, searcher, scheduler, seed.
        trials: every trial, by id.
        wall: seconds from the beginning to the last record.
        startup: seconds until the first user code ran; None if none did.
        stopping: why the run was ended early; None if it was not.
    """

    run_dir: Path
    header: Header
    trials: Sequence[TrialResult]
    wall: float
    startup: float | None
    stopping: str | None

    @classmethod
    def load(cls, run_dir: Path | str) -> "Result":
        """Read the run in `run_dir`, which may still go on. Nothing in the directory is executed.

        Raises:
            InvalidArgument: there is no run in `run_dir`.
            JournalError: its journal is damaged; the message names the byte.
        """
        run_dir = Path(run_dir)
        path = run_dir / FILENAME
        if not path.is_file():
            raise InvalidArgument(f"run_dir must hold a run, {os.fspath(path)!r} is missing")
        records = scan(path)
        _, header = next(records, (0, None))
        if not isinstance(header, Header):
            raise JournalError(f"{path}: empty")
        return _fold(run_dir, header, records)

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
        able = [t for t in self.trials if t.state is not TrialState.FAILED and _finite(t.value)]
        if not able:
            raise AsynctuneError(f"no trial has a finite {self.metric}: {self.ending()}")
        completed = [t for t in able if t.state is TrialState.COMPLETED]
        highest = max(t.step for t in able)
        return _best(completed or [t for t in able if t.step == highest], self.mode)

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
        """Write the run as one self-contained page to `path`; return where it is."""
        from asynctune.report import render

        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(render(self), encoding="utf-8")
        return path

    def ending(self) -> str:
        """How many trials stand in each state, in words: `"18 completed, 2 failed"`."""
        states = Counter(trial.state for trial in self.trials)
        return ", ".join(f"{states[state]} {state.name.lower()}" for state in sorted(states)) or "no trial started"

    def summary(self) -> str:
        """The run in one line: how its trials ended, the best one, the time."""
        plural = "" if len(self.trials) == 1 else "s"
        text = f"{len(self.trials)} trial{plural} in {self.wall:.1f} s: {self.ending()}"
        if self.stopping is not None:
            text += f"; ended early: {self.stopping}"
        try:
            best = self.best
        except AsynctuneError:
            return text
        return f"{text}; best {self.metric} {best.value:.6g} (trial {best.id}, step {best.step})"

    def __str__(self) -> str:
        lines = [self.summary()]
        with contextlib.suppress(AsynctuneError):
            lines += [
                f"  {name} = {value:.6g}" if isinstance(value, float) else f"  {name} = {value}"
                for name, value in flat(self.best.config).items()
            ]
        return "\n".join([*lines, f"run directory: {self.run_dir}"])

    def __repr__(self) -> str:
        return f"<Result {os.fspath(self.run_dir)!r}: {self.ending()}>"


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _best(trials: Sequence[TrialResult], mode: str) -> TrialResult:
    values = [trial.value for trial in trials if trial.value is not None]
    return trials[values.index(max(values) if mode == "max" else min(values))]


def _fold(run_dir: Path, header: Header, records: Iterator[tuple[int, Record]]) -> Result:
    path = run_dir / FILENAME
    reports = _Reports(path)
    trials: list[TrialResult] = []
    wall = header.time
    startup: float | None = None
    stopping: str | None = None
    for offset, record in records:
        wall = record.time
        match record:
            case Suggested(trial=number, config=config) if number == len(trials):
                trials.append(TrialResult(number, [Segment(0, 0, None, config)], run_dir, reports))
                continue
            case Stopping(reason=reason):
                stopping = reason
                continue
            case Started() if startup is None:
                startup = record.time
        number = getattr(record, "trial", -1)
        if not 0 <= number < len(trials):
            raise JournalError(f"{path}: the {record.kind!r} record at byte {offset} is out of place")
        _apply(trials[number], record, header.metric)
    return Result(run_dir, header, trials, wall, startup, stopping)


def _apply(trial: TrialResult, record: Record, metric: str) -> None:
    match record:
        case Reported(step=step, metrics=metrics):
            trial.step = step
            trial.value = metrics.get(metric, trial.value)
        case Started(segment=segment, step=step, donor=donor, config=config):
            trial.state = TrialState.RUNNING
            trial.error, trial.traceback = None, ""
            if step < trial.step:  # tried again: what came after its checkpoint is void
                trial.step, trial.value = step, None
            if segment != trial.lineage[-1].segment:
                trial.lineage.append(Segment(segment, step, donor, config if config is not None else trial.config))
                trial._checkpoint = record.checkpoint
        case Saved(checkpoint=checkpoint):
            trial._checkpoint = checkpoint
        case Decided(action=Action.PAUSE):
            trial.state = TrialState.PAUSED
        case Left(slot=slot, busy=busy, log=(first, last)):
            trial.busy += busy
            trial._logs.append((slot, first, last))
        case Failed(error=error, traceback=traceback, retry=retry):
            trial.state = TrialState.PENDING if retry else TrialState.FAILED
            trial.error, trial.traceback = error, traceback
        case Finished(state=state):
            trial.state = state
