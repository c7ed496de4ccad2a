"""Progress: a run as it goes by, on stderr.

In a terminal a few lines are drawn anew five times a second: each slot and what it runs, how many trials stand where, the
best so far, the time. Elsewhere (a file, a notebook) there is one line for each trial that ends. A failure has its own
line in both. A thread draws, so that a slow or stopped terminal holds up nobody.
"""

import contextlib
import math
import os
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TextIO, TypeGuard

from asynctune.records import (
    ENDED,
    Action,
    Decided,
    Failed,
    Finished,
    Header,
    Lost,
    Record,
    Reopened,
    Reported,
    Started,
    Stopping,
    Suggested,
    TrialState,
)
from asynctune.results import Result, printable
from asynctune.rundir import log_file

__all__ = ["Board", "Progress"]

DRAW = 0.2  # seconds from one drawing to the next
QUIET = 30.0  # seconds without a line after which one says how the run stands
BURST = 5  # trials that may end between two drawings and still have a line each


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@dataclass(slots=True)
class _Trial:
    state: TrialState = TrialState.PENDING
    slot: int = 0
    step: int = 0
    value: float | None = None


class Board:
    """What there is to see of a run: the fold of its records so far. Holds only trials that have not ended."""

    def __init__(
        self, header: Header, run_dir: Path, *, max_resource: int | None = None, time_budget: float | None = None
    ) -> None:
        self.lines: deque[tuple[bool, str]] = deque(maxlen=1000)  # whether it is a failure, what to say; not yet shown
        self._metric = header.metric
        self._name = printable(header.metric)
        self._maximize = header.mode == "max"
        self._num_trials = header.num_trials
        self._num_slots = header.slots
        self._run_dir = run_dir
        self._max_resource = max_resource
        self._time_budget = time_budget
        self._trials: dict[int, _Trial] = {}
        self._slots: dict[int, int] = {}
        self._counts: Counter[TrialState] = Counter()
        self._steps = 0  # of the trials that have not ended, together
        self._best: tuple[float, int, int] | None = None  # value, trial, step of the best that completed
        self._stopping: str | None = None

    def apply(self, record: Record) -> None:
        """Take note of a record; about a microsecond."""
        match record:
            case Reported(trial=number, step=step, metrics=metrics):
                trial = self._trials[number]
                self._steps += step - trial.step
                trial.step = step
                trial.value = metrics.get(self._metric, trial.value)
            case Suggested(trial=number):
                self._trials[number] = _Trial()
                self._counts[TrialState.PENDING] += 1
            case Started(trial=number, slot=slot, step=step):
                trial = self._trials[number]
                self._steps += step - trial.step
                trial.step, trial.slot = step, slot
                self._slots[slot] = number
                self._move(number, TrialState.RUNNING)
            case Decided(trial=number, action=Action.PAUSE):
                self._move(number, TrialState.PAUSED)
            case Failed(trial=number, error=error, retry=retry):
                log = self._run_dir / log_file(self._trials[number].slot)
                again = "; it is tried again" if retry else ""
                self.lines.append((True, printable(f"trial {number} failed: {error}") + f" ({log}){again}"))
                self._move(number, TrialState.PENDING if retry else TrialState.FAILED)
            case Finished(trial=number, state=state):
                trial = self._trials[number]
                if state is TrialState.COMPLETED and self._better(trial.value, self._best):
                    self._best = trial.value, number, trial.step
                self._move(number, state)
                self.lines.append((False, f"trial {number} {state.name.lower()}{self._at(trial)}"))
            case Lost(trial=number, checkpoint=checkpoint, error=error):
                self.lines.append(
                    (True, printable(f"trial {number} begins anew, its checkpoint {checkpoint} is lost: {error}"))
                )
                self._move(number, TrialState.PENDING)
            case Reopened(num_trials=num_trials, slots=slots):
                self._num_trials, self._num_slots, self._stopping = num_trials, slots, None
                for number in list(self._slots.values()):
                    self._move(number, TrialState.PENDING)
            case Stopping(reason=reason):
                self._stopping = printable(reason)
                self.lines.append((True, f"stopping: {self._stopping}"))

    def _move(self, number: int, state: TrialState) -> None:
        trial = self._trials[number]
        self._counts[trial.state] -= 1
        self._counts[state] += 1
        trial.state = state
        if state is not TrialState.RUNNING and self._slots.get(trial.slot) == number:
            del self._slots[trial.slot]
        if state in ENDED:
            self._steps -= trial.step
            del self._trials[number]

    def _better(self, value: float | None, best: tuple[float, int, int] | None) -> TypeGuard[float]:
        if value is None or not math.isfinite(value):
            return False
        return best is None or (value > best[0] if self._maximize else value < best[0])

    def _at(self, trial: _Trial) -> str:
        return "" if trial.value is None else f": {self._name} = {trial.value:.5g} at step {trial.step}"

    # What a drawing shows. It may be asked from another thread while `apply` is called.

    def slots(self) -> Iterator[str]:
        """A line for each slot."""
        for slot in range(self._num_slots):
            number = self._slots.get(slot)
            trial = None if number is None else self._trials.get(number)
            if trial is None:
                yield f"slot {slot}  idle"
                continue
            until = "" if self._max_resource is None else f" of {self._max_resource}"
            value = "" if trial.value is None else f"  {self._name} {trial.value:.5g}"
            yield f"slot {slot}  trial {number}  step {trial.step}{until}{value}"

    def counts(self) -> str:
        """How many trials stand where, "2 running, 5 completed of 20"."""
        order = (TrialState.RUNNING, TrialState.PAUSED, TrialState.COMPLETED, TrialState.STOPPED, TrialState.FAILED)
        states = [f"{self._counts[state]} {state.name.lower()}" for state in order if self._counts[state]]
        total = "" if self._num_trials is None else f" of {self._num_trials}"
        return (", ".join(states) or "no trial yet") + total

    def best(self) -> str:
        """The best of the completed trials, else the best of the others as they stand; "" before the first value."""
        best = self._best
        if best is None:
            for number, trial in list(self._trials.items()):
                if self._better(trial.value, best):
                    best = trial.value, number, trial.step
        return "" if best is None else f"best {self._name} {best[0]:.5g} (trial {best[1]}, step {best[2]})"

    def fraction(self) -> float:
        """How much of the work is done, in [0, 1]: trials that ended, and the steps of the others; 0 if unknown."""
        if self._num_trials is None:
            return 0.0
        started = 0.0 if self._max_resource is None else self._steps / self._max_resource
        return min(1.0, (sum(self._counts[state] for state in ENDED) + started) / self._num_trials)

    def time(self, elapsed: float) -> str:
        """The time so far and what may be left of it, once there is something to go by."""
        fraction = self.fraction()
        left = elapsed * (1 - fraction) / fraction if fraction > 0.02 and elapsed > 2 else math.inf
        if self._time_budget is not None:
            left = min(left, max(0.0, self._time_budget - elapsed))
        if self._stopping is not None:
            return f"{_clock(elapsed)}, stopping: {self._stopping}"
        return _clock(elapsed) + ("" if math.isinf(left) else f", about {_clock(left)} left")

    def status(self, elapsed: float) -> str:
        """All of it in one line."""
        return "; ".join(filter(None, (self.counts(), self.best(), self.time(elapsed))))


class _Screen(Protocol):
    def draw(self, board: Board, elapsed: float) -> None: ...
    def close(self, board: Board, text: str) -> None: ...


class _Lines:
    """For files, pipes and notebooks: lines, and few enough of them to be read."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._last = 0.0

    def draw(self, board: Board, elapsed: float) -> None:
        ended = self._flush(board, elapsed)
        if ended > BURST or elapsed - self._last > QUIET:
            self._say(board.status(elapsed), elapsed)

    def close(self, board: Board, text: str) -> None:
        self._flush(board, self._last)
        self._say(text, self._last)

    def _flush(self, board: Board, elapsed: float) -> int:
        """Say what has come up. Return how many trials ended; if they are many, only the failures among them are said."""
        ended = sum(not failure for failure, _ in board.lines)
        while board.lines:
            failure, text = board.lines.popleft()
            if failure or ended <= BURST:
                self._say(text, elapsed)
        return ended

    def _say(self, text: str, elapsed: float) -> None:
        print(text, file=self._file, flush=True)
        self._last = elapsed


class _Terminal:
    """For terminals: a few lines, drawn in place; failures scroll by above them."""

    def __init__(self, file: TextIO) -> None:
        from rich.console import Console
        from rich.live import Live

        self._console = Console(file=file, highlight=False)
        # What the script prints goes above the lines; but never from a redirected stdout to stderr.
        self._live = Live(console=self._console, auto_refresh=False, redirect_stdout=sys.stdout.isatty())
        self._live.start()
        self._console.show_cursor(True)  # a driver that is killed could not bring it back

    def draw(self, board: Board, elapsed: float) -> None:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.text import Text

        self._print_failures(board)
        slots = list(board.slots())
        room = max(1, self._console.height - 6)
        if len(slots) > room:
            slots[room - 1 :] = [f"and {len(slots) - room + 1} more slots"]
        lines = [Text(line, style="dim" if line.endswith("idle") else "") for line in slots]
        lines.append(Text(board.counts()))
        lines.append(Text(board.best() or " ", style="bold"))
        bar = ProgressBar(total=1.0, completed=board.fraction(), width=min(40, self._console.width // 2))
        lines.append(Text(f"  {board.time(elapsed)}", style="dim"))  # beside the bar, which ends no line
        for line in lines:
            line.truncate(self._console.width - (bar.width or 0 if line is lines[-1] else 0), overflow="ellipsis")
        self._live.update(Group(*lines[:-1], bar, lines[-1]), refresh=True)

    def close(self, board: Board, text: str) -> None:
        from rich.text import Text

        self._print_failures(board)
        self._live.update(Text(""))
        self._live.transient = True
        self._live.stop()
        self._console.print(Text(text), soft_wrap=True)

    def _print_failures(self, board: Board) -> None:
        from rich.text import Text

        while board.lines:
            failure, text = board.lines.popleft()
            if failure:
                self._console.print(Text(text, style="red"), soft_wrap=True)


class Progress:
    """Shows a run on `file` (default: stderr), from `Progress(...)` to `close()`.

    Args:
        header: what the run is about.
        run_dir: where it is, for pointing at logs.
        max_resource: the step at which a trial completes, for the time left.
        time_budget: seconds after which the run ends, for the time left.
        file: where to; lines are drawn in place if it is a terminal.
    """

    def __init__(
        self,
        header: Header,
        run_dir: Path | str,
        *,
        max_resource: int | None = None,
        time_budget: float | None = None,
        file: TextIO | None = None,
    ) -> None:
        self._board = Board(header, Path(run_dir), max_resource=max_resource, time_budget=time_budget)
        self._run_dir = run_dir
        self._began = time.monotonic()
        self._result: Result | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(
            target=self._show, args=(file or sys.stderr,), name="asynctune-progress", daemon=True
        )
        self._thread.start()

    def update(self, record: Record) -> None:
        """Take note of a record. Draws nothing itself."""
        self._board.apply(record)

    def replay(self, record: Record) -> None:
        """Take note of a record of an earlier driver's, which has said already what there was to say."""
        self._board.apply(record)
        self._board.lines.clear()

    def close(self, result: Result | None = None) -> None:
        """Show the result (None: there is none), and where the run is. Waits for a stopped terminal, but not for long."""
        self._result = result
        self._closing.set()
        self._thread.join(timeout=2.0)

    def _show(self, file: TextIO) -> None:
        # A terminal that is gone, a closed file: then there is nobody to tell.
        with contextlib.suppress(OSError, ValueError):
            screen: _Screen = _Lines(file)
            in_place = file.isatty() and os.environ.get("TERM") != "dumb"
            while not self._closing.wait(DRAW):
                if in_place and isinstance(screen, _Lines):  # only now: what is over by then needs no rich
                    screen = _Terminal(file)
                screen.draw(self._board, self._elapsed())
            status = self._board.status(self._elapsed()) if self._result is None else self._result.summary()
            screen.close(self._board, f"{printable(status)}\nrun directory: {self._run_dir}")

    def _elapsed(self) -> float:
        return time.monotonic() - self._began
