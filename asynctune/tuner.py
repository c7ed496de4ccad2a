"""Tuner: a run as a program holds it: its arguments checked, its events, its end."""

import asyncio
import contextlib
import inspect
import itertools
import math
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import cloudpickle

from asynctune import _wire as wire
from asynctune.engine import Engine
from asynctune.errors import AsynctuneError, InvalidArgument, RunFailed, check_integer
from asynctune.journal import Journal
from asynctune.progress import Progress
from asynctune.records import Header, Record, Reported, TrialState
from asynctune.results import Result
from asynctune.rundir import JOURNAL
from asynctune.schedulers import Scheduler
from asynctune.searchers import Searcher
from asynctune.slots import Slots, resolve
from asynctune.space import Space
from asynctune.study import Study

__all__ = ["Train", "Tuner"]

Train = Callable[..., Any]


class Tuner:
    """A run to look inside while it runs.

        async with at.Tuner(train, space, metric="loss", mode="min", num_trials=20) as tuner:
            async for event in tuner:
                ...
            result = await tuner.result()

    Args:
        train: the trainable, called as `train(trial)` in a worker process; any function that cloudpickle can send.
        space: a dict of domains, or a `Space`.
        metric: the metric that decides; every report must hold it.
        mode: `"min"` or `"max"`.
        num_trials: how many trials; None needs a `time_budget`.
        searcher: which configurations; default `Random()`.
        scheduler: which trials go on; default `FIFO()`.
        slots: an int (that many CPU slots), `Slots(...)`, or `"inline"` (one trial at a time in this very process, for
            debuggers and coverage). Default: every visible GPU, else CPUs.
        run_dir: where journal, logs and checkpoints go; it must not hold a run yet. Default: `runs/` and the time of day.
        seed: an integer >= 0.
        stop_when: called with each `reported` event; True ends the run.
        time_budget: seconds after which the run ends; what runs pauses at its next report.
        max_failures: how often a failed trial is tried again, from its last checkpoint.
        checkpoint_every: seconds between checkpoints of a running trial; default None: only when one is needed.
        callbacks: called with each event, in the driver; keep them short.
        progress: True or False shows or hides the progress on stderr; default: shown, but for `slots="inline"`.

    Raises:
        InvalidArgument: an argument breaks its rule; raised before any worker starts.
        RunFailed: (by `result`) workers do not start, or the first trials all fail in the same way.
    """

    def __init__(
        self,
        train: Train,
        space: Mapping[str, Any] | Space,
        *,
        metric: str,
        mode: str,
        num_trials: int | None = None,
        searcher: Searcher | None = None,
        scheduler: Scheduler | None = None,
        slots: int | Slots | str | None = None,
        run_dir: str | os.PathLike[str] | None = None,
        seed: int = 0,
        stop_when: Callable[[Reported], bool] | None = None,
        time_budget: float | None = None,
        max_failures: int = 0,
        checkpoint_every: float | None = None,
        callbacks: Iterable[Callable[[Record], object]] = (),
        progress: bool | None = None,
    ) -> None:
        _check_trainable(train)
        if num_trials is None and time_budget is None:
            raise InvalidArgument("num_trials must be given, or else a time_budget")
        if num_trials is not None:
            check_integer("num_trials", num_trials, at_least=1)
        for name, seconds in (("time_budget", time_budget), ("checkpoint_every", checkpoint_every)):
            if seconds is not None and not (isinstance(seconds, int | float) and 0 < seconds < math.inf):
                raise InvalidArgument(f"{name} must be a positive number of seconds, got {seconds!r}")
        if stop_when is not None and not callable(stop_when):
            raise InvalidArgument(f"stop_when must be a function of a report, got {stop_when!r}")
        self._watchers = list(callbacks) if isinstance(callbacks, Iterable) else []
        if not isinstance(callbacks, Iterable) or not all(map(callable, self._watchers)):
            raise InvalidArgument(f"callbacks must be a list of functions of an event, got {callbacks!r}")

        self.inline = slots == "inline"
        self._specs = resolve(1 if slots == "inline" else slots)[:num_trials]
        self._study = Study(
            space,
            metric=metric,
            mode=mode,
            num_trials=num_trials,
            searcher=searcher,
            scheduler=scheduler,
            seed=seed,
            max_failures=max_failures,
            num_slots=len(self._specs),
        )
        self._header = Header(
            metric=metric,
            mode=mode,
            num_trials=num_trials,
            seed=seed,
            space=self._study.space.describe(),
            searcher=repr(self._study.searcher),
            scheduler=repr(self._study.scheduler),
            slots=len(self._specs),
        )
        self._train = train
        self._load = None if self.inline else wire.Load(_pickled(train), sys.path, os.getcwd())
        self._given_dir = None if run_dir is None else Path(run_dir).expanduser().absolute()
        if self._given_dir is not None and self._given_dir.exists() and not self._given_dir.is_dir():
            raise InvalidArgument(f"run_dir must be a directory, got the file {str(run_dir)!r}")
        self._stop_when = stop_when
        self._time_budget = time_budget
        self._checkpoint_every = checkpoint_every
        self._progress = not self.inline if progress is None else progress
        self._engine: Engine | None = None
        self._heard = False  # the owner has had the result, or the error

    async def __aenter__(self) -> Self:
        if self._engine is not None:
            raise AsynctuneError("a Tuner runs once: make another")
        self.run_dir = _new_run_dir() if self._given_dir is None else self._given_dir
        self._engine = Engine(
            self._study,
            specs=self._specs,
            train=self._train,
            load=self._load,
            run_dir=self.run_dir,
            watchers=self._watchers,
            stop_when=self._stop_when,
            time_budget=self._time_budget,
            checkpoint_every=self._checkpoint_every,
        )
        opened = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._run(self._engine, opened), name="asynctune")
        self._task.add_done_callback(lambda task: opened.set())
        try:
            await opened.wait()
            if self._task.done():  # the run directory is used, or cannot be written
                self._task.result()
        except BaseException:
            await self.__aexit__(*sys.exc_info())
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Leaving the block early ends the run: workers are killed, the journal is closed."""
        self._task.cancel()
        try:
            await asyncio.shield(asyncio.wait([self._task]))
        finally:
            if not self._task.done():  # cancelled again: no more waiting
                self._entered().kill()
        if error is None and not self._task.cancelled() and not self._heard:
            self._task.result()

    async def __aiter__(self) -> AsyncIterator[Record]:
        """The run's events from here on, up to its end: records, each with a `kind` (suggested, started, resumed, exploited,
        retried, reported, saved, continued, paused, stopped, left, failed, finished, stopping)."""
        self._entered()
        events: asyncio.Queue[Record | None] = asyncio.Queue()
        self._watchers.append(events.put_nowait)
        self._task.add_done_callback(lambda task: events.put_nowait(None))
        try:
            while (event := await events.get()) is not None:
                yield event
        finally:
            self._watchers.remove(events.put_nowait)

    async def result(self) -> Result:
        """Wait for the run's end.

        Raises:
            RunFailed: workers did not start, or all trials or the first ones failed.
            JournalError: the journal could not be written.
            AsynctuneError: the block was left before the run's end.
        """
        self._entered()
        await asyncio.shield(asyncio.wait([self._task]))
        if self._task.cancelled():
            raise AsynctuneError("the run was left before its end; Result.load reads what there is of it")
        self._heard = True
        return self._task.result()

    def stop(self, trial_id: int | None = None) -> None:
        """Stop one trial at its next report (it becomes STOPPED); without an id, the run: what runs saves and pauses.

        Raises:
            InvalidArgument: there is no such trial yet.
        """
        engine = self._entered()
        if trial_id is None:
            engine.stop("stopped on request")
        else:
            self._study.state(trial_id)  # checks the id
            engine.stop_trial(trial_id)

    def interrupt(self) -> None:
        """What the first Ctrl-C does: what runs saves at its next report and pauses, however long that takes."""
        self._entered().stop("interrupted", grace=None)

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C came in the middle of an inline trial."""
        return self._entered().interrupted

    def _entered(self) -> Engine:
        if self._engine is None:
            raise AsynctuneError("a Tuner runs inside its block: async with at.Tuner(...) as tuner")
        return self._engine

    async def _run(self, engine: Engine, opened: asyncio.Event) -> Result:
        async with contextlib.AsyncExitStack() as stack:
            result: Result | None = None
            if self._progress:
                progress = Progress(
                    self._header, self.run_dir, max_resource=self._study.max_resource, time_budget=self._time_budget
                )
                self._watchers.insert(0, progress.update)
                stack.push_async_callback(lambda: asyncio.to_thread(progress.close, result))
            async with Journal(self.run_dir / JOURNAL) as journal:
                journal.append(self._header)
                opened.set()
                await engine.run(journal)
            await engine.clean()
            result = await asyncio.to_thread(Result.load, self.run_dir)
            _check(result, engine.failure)
            return result


def _check(result: Result, failure: str | None) -> None:
    """Raise `RunFailed` if the run was ended for a failure, or nothing but failures came of it."""
    states = result.trials.states
    failed = states.count(TrialState.FAILED)
    first = result.trials[states.index(TrialState.FAILED)] if failed else None
    if failure is None and first is not None and failed == len(states):
        failure = f"every trial failed, the first with {first.error}"
    if failure is not None:
        error = RunFailed(failure)
        if first is not None:
            error.add_note(f"trial {first.id}, {first.error}\n{first.traceback}".strip())
        error.add_note(f"run directory: {result.run_dir}")
        raise error


def _new_run_dir() -> Path:
    """A directory named by the time of day, made here, so that no two runs get the same."""
    name = time.strftime("%Y-%m-%dT%H-%M-%S")
    for number in itertools.count(1):
        path = Path("runs", name if number == 1 else f"{name}-{number}").absolute()
        try:
            path.mkdir(mode=0o700, parents=True)
        except FileExistsError:
            continue
        return path
    raise AssertionError


def _check_trainable(train: object) -> None:
    if not callable(train):
        raise InvalidArgument(f"train must be a function of one argument, the trial, got {train!r}")
    if inspect.iscoroutinefunction(train):
        raise InvalidArgument(
            f"train must be a plain function, it has a process to itself, got the coroutine function {train!r}"
        )
    try:
        signature = inspect.signature(train)
    except (TypeError, ValueError):  # compiled, without one
        return
    try:
        signature.bind(None)
    except TypeError as error:
        raise InvalidArgument(f"train must take one argument, the trial, got {train!r}: {error}") from None


def _pickled(train: Train) -> bytes:
    try:
        return bytes(cloudpickle.dumps(train))
    except Exception as error:
        raise InvalidArgument(
            f"train must be picklable, to be sent to a worker: {error}; what it needs of this kind, make inside of it"
        ) from error
