"""Tuner: a run as a program holds it: its arguments checked, its events, its end."""

import asyncio
import contextlib
import functools
import inspect
import itertools
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from asynctune import _wire as wire
from asynctune.engine import Engine
from asynctune.errors import AsynctuneError, InvalidArgument, check_integer, check_seconds
from asynctune.journal import Journal
from asynctune.observations import Observations
from asynctune.progress import Progress
from asynctune.records import Config, Header, Record, Reported
from asynctune.results import Result, observed, printable
from asynctune.resume import Replay
from asynctune.rundir import JOURNAL
from asynctune.schedulers import Scheduler
from asynctune.searchers import Searcher
from asynctune.slots import Slots, resolve
from asynctune.space import Space
from asynctune.study import Study
from asynctune.worker import pickler

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
        num_trials: how many trials; None needs a `time_budget`, or `Grid`: then it is the whole grid.
        searcher: which configurations; default `Random()`.
        scheduler: which trials go on; default `FIFO()`.
        slots: an int (that many CPU slots), `Slots(...)`, or `"inline"` (one trial at a time in this very process, for
            debuggers and coverage). Default: every visible GPU, else CPUs.
        run_dir: where journal, logs and checkpoints go. Default: `runs/` and the time of day.
        resume: False: `run_dir` must not hold a run yet; True: it must, and that run goes on where its journal ends; "auto": what fits.
            Space, metric, mode, searcher, scheduler and seed must be the same; `num_trials` and `time_budget` may be raised, all else
            may change. Trials that ran go on from their last checkpoint; steps reported again count once.
        seed: an integer >= 0.
        points_to_evaluate: configurations to try first, in this order; they count as trials, of which there must be as many.
        observations: what is known already, for the searcher to learn from: a list of `(config, value)` or `(config, {step: value})`,
            a `Result`, the directory of an earlier run, or a `Study`. They are no trials of this run, and its scheduler does not see them.
        stop_when: called with each `reported` event; True ends the run.
        time_budget: seconds after which the run ends, those before it was resumed included; what runs pauses at its next report.
        trial_timeout: seconds from a trial's start in a slot after which it has failed, and its worker is killed; default: none.
        report_timeout: the same for seconds without a report.
        max_failures: how often a failed trial is tried again, from its last checkpoint.
        durability: `"process"`: whatever happens to a process, nothing is lost; a power cut may cost the last records, and trials their progress.
            `"power"`: every record is on the disk (fdatasync) before a trial learns what follows from it.
        checkpoint_every: seconds between checkpoints of a running trial; default None: only when one is needed.
        keep_checkpoints: bytes; checkpoints that nothing needs any more stay as long as all together take no more than this;
            default 0: they go at once.
        callbacks: called with each event, in the driver; keep them short.
        progress: True or False shows or hides the progress on stderr; default: shown, but for `slots="inline"`.

    Raises:
        InvalidArgument: an argument breaks its rule; raised before any worker starts.
        RunFailed: (by `result`) workers do not start, the first trials all fail in the same way, or a disk is full.
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
        resume: bool | Literal["auto"] = False,
        seed: int = 0,
        points_to_evaluate: Sequence[Config] = (),
        observations: Observations | str | os.PathLike[str] = (),
        stop_when: Callable[[Reported], bool] | None = None,
        time_budget: float | None = None,
        trial_timeout: float | None = None,
        report_timeout: float | None = None,
        max_failures: int = 0,
        durability: Literal["process", "power"] = "process",
        checkpoint_every: float | None = None,
        keep_checkpoints: int = 0,
        callbacks: Iterable[Callable[[Record], object]] = (),
        progress: bool | None = None,
    ) -> None:
        _check_trainable(train)
        self.inline = slots == "inline"
        for name, seconds in (
            ("time_budget", time_budget),
            ("trial_timeout", trial_timeout),
            ("report_timeout", report_timeout),
            ("checkpoint_every", checkpoint_every),
        ):
            if seconds is None:
                continue
            check_seconds(name, seconds)
            if self.inline and name.endswith("timeout"):
                raise InvalidArgument(f'{name} needs a worker to kill, got slots="inline"')
        check_integer("keep_checkpoints", keep_checkpoints, at_least=0)
        if durability not in ("process", "power"):
            raise InvalidArgument(f"durability must be 'process' or 'power', got {durability!r}")
        if self.inline and durability == "power":
            raise InvalidArgument('durability="power" needs workers that can wait, got slots="inline"')
        if (
            resume is not False and resume is not True and resume != "auto"
        ):  # 1 == True, but is not what `is True` finds
            raise InvalidArgument(f"resume must be False, True or 'auto', got {resume!r}")
        if resume and run_dir is None:
            raise InvalidArgument(f"resume={resume!r} needs a run_dir")
        if stop_when is not None and not callable(stop_when):
            raise InvalidArgument(f"stop_when must be a function of a report, got {stop_when!r}")
        self._watchers = list(callbacks) if isinstance(callbacks, Iterable) else []
        if not isinstance(callbacks, Iterable) or not all(map(callable, self._watchers)):
            raise InvalidArgument(f"callbacks must be a list of functions of an event, got {callbacks!r}")

        specs = resolve(1 if slots == "inline" else slots)
        self._bind = functools.partial(
            Study,
            space,
            metric=metric,
            mode=mode,
            searcher=searcher,
            scheduler=scheduler,
            seed=seed,
            max_failures=max_failures,
            points_to_evaluate=points_to_evaluate,
            observations=observed(observations, metric),
        )
        self._study = self._bind(num_trials=num_trials, num_slots=len(specs))
        self._study.check_end(time_budget)
        self._specs = specs[: self._study.num_trials]
        self._header = self._study.header(len(self._specs))
        shape = slots if isinstance(slots, Slots) else Slots()
        self._load = (
            None if self.inline else wire.Load(_pickled(train), sys.path, os.getcwd(), preload=list(shape.preload))
        )
        self._given_dir = None if run_dir is None else Path(run_dir).expanduser().absolute()
        if self._given_dir is not None and self._given_dir.exists() and not self._given_dir.is_dir():
            raise InvalidArgument(f"run_dir must be a directory, got the file {str(run_dir)!r}")
        self._resume = resume
        self._durability = durability
        self._time_budget = time_budget
        self._make_engine = functools.partial(
            Engine,
            specs=self._specs,
            train=train,
            load=self._load,
            fresh=shape.fresh,
            watchers=self._watchers,
            stop_when=stop_when,
            time_budget=time_budget,
            trial_timeout=trial_timeout,
            report_timeout=report_timeout,
            durable=durability == "power",
            checkpoint_every=checkpoint_every,
            keep_checkpoints=keep_checkpoints,
        )
        self._progress = not self.inline if progress is None else progress
        self._task: asyncio.Task[Result] | None = None
        self._engine: Engine | None = None  # once the journal is open
        self._heard = False  # the owner has had the result, or the error

    async def __aenter__(self) -> Self:
        if self._task is not None:
            raise AsynctuneError("a Tuner runs once: make another")
        self.run_dir = _new_run_dir() if self._given_dir is None else self._given_dir
        opened = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._run(opened), name="asynctune")
        self._task.add_done_callback(lambda task: opened.set())
        try:
            await opened.wait()
            if self._engine is None:  # the run directory is used, of another run, damaged, or cannot be written
                self._task.result()
        except BaseException:
            await self.__aexit__(*sys.exc_info())
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Leaving the block early ends the run: workers are killed, the journal is closed."""
        assert self._task is not None
        self._task.cancel()
        try:
            await asyncio.shield(asyncio.wait([self._task]))
        finally:
            if not self._task.done() and self._engine is not None:  # cancelled again: no more waiting
                self._engine.kill()
        if error is None and not self._task.cancelled() and not self._heard:
            self._task.result()

    async def __aiter__(self) -> AsyncIterator[Record]:
        """The run's events from here on, up to its end: records, each with a `kind` (suggested, started, resumed, exploited, changed,
        retried, restarted, reported, saved, continued, paused, stopped, left, lost, failed, finished, stopping, reopened).

        They are read back from the journal, so a loop that takes its time holds up nobody, and nothing piles up in memory.
        """
        _, task = self._entered()
        follower = self._journal.follow()
        happened = asyncio.Event()

        def note(record: Record) -> None:
            happened.set()

        self._watchers.append(note)
        task.add_done_callback(lambda task: happened.set())
        try:
            while True:
                for event in follower.read():
                    yield event
                    happened.set()  # there may be more
                if task.done() and not happened.is_set():
                    return
                await happened.wait()
                happened.clear()
                if not task.done():
                    await self._journal.written()
        finally:
            self._watchers.remove(note)

    async def result(self) -> Result:
        """Wait for the run's end.

        Raises:
            RunFailed: workers did not start, or all trials or the first ones failed.
            JournalError: the journal could not be written.
            AsynctuneError: the block was left before the run's end.
        """
        _, task = self._entered()
        await asyncio.shield(asyncio.wait([task]))
        if task.cancelled():
            raise AsynctuneError("the run was left before its end; Result.load reads what there is of it")
        self._heard = True
        return task.result()

    def stop(self, trial_id: int | None = None) -> None:
        """Stop one trial at its next report (it becomes STOPPED); without an id, the run: what runs saves and pauses.

        Raises:
            InvalidArgument: there is no such trial yet.
        """
        engine, _ = self._entered()
        if trial_id is None:
            engine.stop("stopped on request")
        else:
            self._study.state(trial_id)  # checks the id
            engine.stop_trial(trial_id)

    def interrupt(self) -> None:
        """What the first Ctrl-C does: what runs saves at its next report and pauses, however long that takes."""
        self._entered()[0].stop("interrupted", grace=None)

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C came in the middle of an inline trial."""
        return self._entered()[0].interrupted

    def _entered(self) -> tuple[Engine, asyncio.Task[Result]]:
        if self._engine is None or self._task is None:
            raise AsynctuneError("a Tuner runs inside its block: async with at.Tuner(...) as tuner")
        return self._engine, self._task

    async def _run(self, opened: asyncio.Event) -> Result:
        async with contextlib.AsyncExitStack() as stack:
            result: Result | None = None
            progress: Progress | None = None
            if self._progress:
                progress = Progress(
                    self._header, self.run_dir, max_resource=self._study.max_resource, time_budget=self._time_budget
                )
                stack.push_async_callback(lambda: asyncio.to_thread(progress.close, result))
            journal = Journal(self.run_dir / JOURNAL, resume=self._resume, durability=self._durability)
            async with journal:
                self._journal = journal
                replay = Replay(self._study_of, progress.replay if progress else None)
                if not journal.empty:
                    await journal.replay(replay.take)
                if replay.header is None:
                    journal.append(self._header)
                    await journal.written()  # ahead of all else: without it, a run that has left things behind is none
                else:
                    self._study = replay.study
                    self._study.check_num_trials(self._header.num_trials)
                engine = self._engine = self._make_engine(self._study, self.run_dir, journal)
                if progress:
                    self._watchers.insert(0, progress.update)
                opened.set()
                await engine.run(replay, self._header.num_trials)
            result = await asyncio.to_thread(Result.load, self.run_dir)
            result.check(engine.failure)
            return result

    def _study_of(self, header: Header) -> Study:
        """The study that a journal's header is about. Raises `InvalidArgument` unless it is this Tuner's, but for the number of trials."""
        ours = self._header
        differences = [
            f"{name} was {getattr(header, name)} and is {getattr(ours, name)}"
            for name in ("metric", "mode", "searcher", "scheduler", "seed", "points_to_evaluate", "observations")
            if getattr(header, name) != getattr(ours, name)
        ]
        if list(header.space.items()) != list(ours.space.items()):
            differences.append(_difference(header.space, ours.space))
        if differences:
            what = printable("; ".join(differences))
            raise InvalidArgument(f"resume must be of the same run, but in {self.run_dir}: {what}")
        return self._bind(num_trials=header.num_trials, num_slots=header.slots)


def _difference(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """In what two spaces differ."""
    names = [name for name in dict.fromkeys((*before, *now)) if before.get(name) != now.get(name)]
    parts = [f"{name} was {before.get(name, 'missing')} and is {now.get(name, 'missing')}" for name in names]
    return f"space: {', '.join(parts)}" if parts else "space: its hyperparameters come in another order"


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
        return pickler.dumps(train)
    except Exception as error:
        raise InvalidArgument(
            f"train must be picklable, to be sent to a worker: {error}; what it needs of this kind, make inside of it"
        ) from error
