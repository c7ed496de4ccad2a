"""Tuner: the asyncio shell around a study. One coroutine per slot, all in one TaskGroup.

Here is everything that waits: for workers, for suggestions, for the journal, for time. What is decided is decided by the
study, synchronously, in the callback that brings a frame in; a slot's coroutine only sees a trial begin and end.
"""

import asyncio
import math
import os
import shutil
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import cloudpickle

from asynctune import _wire as wire
from asynctune.advisor import Advisor
from asynctune.errors import InvalidArgument, RunFailed
from asynctune.journal import CHECKPOINTS, FILENAME, Journal, log_file
from asynctune.processes import InlineWorker, Worker
from asynctune.progress import Progress
from asynctune.records import (
    ENDED,
    Action,
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
from asynctune.results import Result
from asynctune.schedulers import Scheduler
from asynctune.searchers import Searcher
from asynctune.slots import Slots, SlotSpec, resolve
from asynctune.space import Space
from asynctune.study import Release, Save, Study, Suggest

__all__ = ["Train", "Tuner"]

Train = Callable[..., Any]

#: How long, in seconds, trials may take to reach their next report once a run is to stop; then their workers are killed.
STOP_GRACE = 30.0

#: How long, in seconds, an idle worker may take to exit before it is signalled.
CLOSE_GRACE = 2.0


class _Slot:
    """A slot's worker and the job it has: the start of a trial that it runs, or holds warm (`parked`)."""

    def __init__(self, spec: SlotSpec) -> None:
        self.spec = spec
        self.worker: Worker | InlineWorker | None = None
        self.job = 0
        self.trial = -1
        self.segment = 0
        self.active = False  # user code of `job` runs, and what it sends counts
        self.parked = False
        self.jobs: dict[int, tuple[int, int]] = {}  # job -> (trial, segment), of those that may still send frames
        self.saveable = False
        self.loaded: asyncio.Future[None] | None = None
        self.free: asyncio.Future[None] | None = None  # the job is over or parked
        self.kept: asyncio.Future[None] | None = None  # the best trial's checkpoint, wanted after its end, is there

    def runs(self, job: int) -> bool:
        return self.active and job == self.job

    def release(self) -> None:
        self.active = False
        _resolve(self.free)


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
        if not callable(train):
            raise InvalidArgument(f"train must be a function of one argument, the trial, got {train!r}")
        if num_trials is None and time_budget is None:
            raise InvalidArgument("num_trials must be given, or else a time_budget")
        for name, seconds in (("time_budget", time_budget), ("checkpoint_every", checkpoint_every)):
            if seconds is not None and not (isinstance(seconds, int | float) and 0 < seconds < math.inf):
                raise InvalidArgument(f"{name} must be a positive number of seconds, got {seconds!r}")
        if stop_when is not None and not callable(stop_when):
            raise InvalidArgument(f"stop_when must be a function of a report, got {stop_when!r}")
        self._callbacks = list(callbacks)
        for callback in self._callbacks:
            if not callable(callback):
                raise InvalidArgument(f"callbacks must be functions of an event, got {callback!r}")

        self.inline = slots == "inline"
        specs = resolve(1 if slots == "inline" else slots)[:num_trials]
        self._slots = [_Slot(spec) for spec in specs]
        self._study = Study(
            space,
            metric=metric,
            mode=mode,
            num_trials=num_trials,
            searcher=searcher,
            scheduler=scheduler,
            seed=seed,
            max_failures=max_failures,
            num_slots=len(specs),
        )
        self._header = Header(
            metric=metric,
            mode=mode,
            num_trials=num_trials,
            seed=seed,
            space=self._study.space.describe(),
            searcher=repr(self._study.searcher),
            scheduler=repr(self._study.scheduler),
            slots=len(specs),
        )
        self._train = train
        self._load = None if self.inline else wire.Load(_pickled(train), sys.path, os.getcwd())
        self.run_dir = Path(time.strftime("runs/%Y-%m-%dT%H-%M-%S") if run_dir is None else run_dir).absolute()
        self._stop_when = stop_when
        self._time_budget = time_budget
        self._checkpoint_every = checkpoint_every
        self._progress = not self.inline if progress is None else progress
        self._running: dict[int, _Slot] = {}  # trial -> the slot that runs it
        self._stopping: Stopping | None = None
        self._advisor: Advisor | None = None
        self._suggesting = False
        self._events: deque[Record] | None = None
        self._timers: list[asyncio.TimerHandle] = []
        self._removals: set[asyncio.Future[None]] = set()  # of checkpoints, under way

    # What people call.

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._origin = self._loop.time()
        self._changed = asyncio.Event()
        self._open = asyncio.Event()
        self._task = self._loop.create_task(self._run(), name="asynctune")
        self._task.add_done_callback(self._end)
        await self._open.wait()
        if self._task.done():  # the run directory is used, or cannot be written
            self._task.result()
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
                self._kill()
        if error is None and not self._task.cancelled():
            self._task.result()

    async def __aiter__(self) -> AsyncIterator[Record]:
        """The run's events from here on, up to its end: records, each with a `kind` (suggested, started, resumed, exploited,
        retried, reported, saved, continued, paused, stopped, left, failed, finished, stopping)."""
        if self._events is None:
            self._events = deque()
        while True:
            while self._events:
                yield self._events.popleft()
            if self._task.done():
                break
            await self._change()

    async def result(self) -> Result:
        """Wait for the run's end.

        Raises:
            RunFailed: workers did not start, or the first trials all failed in the same way.
            JournalError: the journal could not be written.
        """
        return await asyncio.shield(self._task)

    def stop(self, trial_id: int | None = None) -> None:
        """Stop one trial at its next report (it becomes STOPPED); without an id, the run: what runs saves and pauses."""
        if trial_id is None:
            self._stop("stopped on request")
        elif trial_id in self._running:
            if self._study.final_state(trial_id) is not TrialState.STOPPED:
                self._decide(trial_id, Action.STOP)
        elif self._study.state(trial_id) not in ENDED:
            self._commit(Finished(time=self._now(), trial=trial_id, state=TrialState.STOPPED))

    def interrupt(self) -> None:
        """What the first Ctrl-C does: what runs saves at its next report and pauses, however long that takes."""
        self._stop("interrupted", grace=None)

    # The run.

    async def _run(self) -> Result:
        result: Result | None = None
        progress: Progress | None = None
        if self._progress:
            progress = Progress(
                self._header, self.run_dir, max_resource=self._study.max_resource, time_budget=self._time_budget
            )
            self._callbacks.insert(0, progress.update)
        try:
            async with Journal(self.run_dir / FILENAME) as self._journal:
                self._journal.append(self._header)
                self.checkpoints.mkdir(mode=0o700)
                self._open.set()
                await self._drive_all()
                await asyncio.gather(*self._removals)
            if self._stopping is not None and self._stopping.failed:
                raise RunFailed(self._stopping.reason)
            result = Result.load(self.run_dir)
            return result
        finally:
            for timer in self._timers:
                timer.cancel()
            if progress is not None:
                await asyncio.to_thread(progress.close, result)

    def _end(self, task: asyncio.Task[Result]) -> None:
        self._open.set()
        self._changed.set()

    async def _drive_all(self) -> None:
        if self._time_budget is not None:
            self._after(self._time_budget, self._stop, f"the time budget of {self._time_budget:g} s is used up")
        try:
            if self._study.preload is not None and not self.inline:
                self._advisor = Advisor(self.run_dir / "searcher.log", self._study.preload)
                await self._advisor.start()
            async with asyncio.TaskGroup() as group:
                for slot in self._slots:
                    group.create_task(self._drive(slot), name=f"slot-{slot.spec.index}")
        except BaseExceptionGroup as errors:
            raise _first(errors) from None
        finally:
            if self._advisor is not None:
                await self._advisor.close(CLOSE_GRACE)

    async def _drive(self, slot: _Slot) -> None:
        """One slot, from its first trial to its last."""
        try:
            while True:
                if slot.worker is None:
                    await self._hire(slot)
                started = await self._next(slot)
                if started is None:
                    break
                await self._serve(slot, started)
            if slot.kept is not None:
                await slot.kept
        finally:
            if slot.worker is not None:
                if slot.active:
                    slot.worker.kill()
                await slot.worker.close(CLOSE_GRACE)

    async def _hire(self, slot: _Slot) -> None:
        """Give the slot a worker that has the trainable."""

        def on_frame(frame: wire.FromWorker) -> None:
            try:
                self._received(slot, frame)
            except Exception as error:  # noqa: BLE001 - of a callback of the user's, or a bug of ours: the run ends with it
                _reject(slot.loaded, error) or _reject(slot.free, error)

        if self._load is None:
            slot.worker = InlineWorker(self._train, on_frame)
            return
        slot.loaded = self._loop.create_future()
        slot.worker = await Worker.spawn(
            slot.spec.environment,
            self.run_dir / log_file(slot.spec.index),
            on_frame,
            lambda cause: self._died(slot, cause),
        )
        slot.worker.send(self._load)
        await slot.loaded

    async def _next(self, slot: _Slot) -> Started | None:
        """What the slot is to run next; None: nothing ever again."""
        while True:
            warm = slot.trial if slot.parked else None
            offer = self._study.offer(slot.spec.index, warm=warm, time=self._now())
            if isinstance(offer, Started):
                return offer
            if isinstance(offer, Suggest) and not (offer.slow and self._suggesting):
                await self._suggest(offer)
            elif self._study.stopping or self._study.done:
                return None
            else:
                await self._change()

    async def _suggest(self, wanted: Suggest) -> None:
        if wanted.slow and self._advisor is not None:
            self._suggesting = True
            try:
                row = await self._advisor.ask(wanted.call)
            finally:
                self._suggesting = False
        else:
            row = wanted.call()
        self._commit(Suggested(time=self._now(), trial=wanted.trial, config=self._study.space.decode(row)))

    async def _serve(self, slot: _Slot, started: Started) -> None:
        """Let the slot's worker run one start of a trial, until it ends or is paused."""
        assert slot.worker is not None
        in_place = slot.parked and slot.trial == started.trial and started.how == "resumed"
        self._commit(started)
        slot.free = self._loop.create_future()
        slot.active = True
        self._running[started.trial] = slot
        if in_place:
            slot.worker.send(wire.Continue(slot.job, started.until))
        else:
            if slot.parked:
                slot.worker.send(wire.End(slot.job))
            slot.job += 1
            slot.trial, slot.segment = started.trial, started.segment
            slot.jobs[slot.job] = (started.trial, started.segment)
            slot.worker.send(self._assignment(slot, started))
        slot.parked = False
        await slot.free

    def _assignment(self, slot: _Slot, started: Started) -> wire.Run:
        return wire.Run(
            job=slot.job,
            trial=started.trial,
            segment=started.segment,
            seed=self._study.trial_seed(started.trial),
            config=self._study.config(started.trial),
            step=started.step,
            stop=self._study.max_resource,
            until=started.until,
            restore=None if started.checkpoint is None else str(self.checkpoints / started.checkpoint),
            save_to=str(self.checkpoints),
            checkpoint_every=self._checkpoint_every,
            device=slot.spec.device,
        )

    # What comes in from a worker: synchronous, in the order in which it was sent.

    def _received(self, slot: _Slot, frame: wire.FromWorker) -> None:
        match frame:
            case wire.Report():
                if slot.runs(frame.job) and frame.step > self._study.step(slot.trial):  # else: repeated after a failure
                    self._report(slot, frame.step, frame.metrics)
            case wire.Saved():
                self._saved(slot, frame)
            case wire.Done():
                self._done(slot, frame)
            case wire.Error():
                self._error(slot, frame)
            case wire.Loaded():
                _resolve(slot.loaded)

    def _report(self, slot: _Slot, step: int, metrics: dict[str, float]) -> None:
        metric = self._study.metric
        if metric not in metrics:
            reported = ", ".join(map(repr, metrics))
            self._stop(f"trial {slot.trial} reported {reported}, but the metric is {metric!r}", failed=True)
            return
        report = Reported(time=self._now(), trial=slot.trial, segment=slot.segment, step=step, metrics=metrics)
        self._commit(report)
        if self._stop_when is not None and self._stop_when(report):
            self._stop(f"stop_when held at step {step} of trial {slot.trial}")

    def _saved(self, slot: _Slot, frame: wire.Saved) -> None:
        trial, segment = slot.jobs[frame.job]
        self._commit(
            Saved(time=self._now(), trial=trial, segment=segment, step=frame.step, checkpoint=frame.checkpoint)
        )
        if not slot.runs(frame.job):
            _resolve(slot.kept)
        elif self._study.state(trial) is not TrialState.RUNNING:
            del self._running[trial]
            slot.parked = True
            slot.release()

    def _done(self, slot: _Slot, frame: wire.Done) -> None:
        if not self._left(slot, frame):
            return
        trial, slot.saveable = slot.trial, frame.saveable
        del self._running[trial]
        returned = frame.metrics if frame.value is None else {self._study.metric: frame.value}
        if returned is not None:
            self._report(slot, self._study.step(trial) + 1, returned)
        if self._study.step(trial) == 0 and not frame.ended:
            self._fail(slot, f"ended without a report of {self._study.metric!r}")
            return
        self._commit(Finished(time=self._now(), trial=trial, state=self._study.final_state(trial)))
        slot.release()

    def _error(self, slot: _Slot, frame: wire.Error) -> None:
        if frame.job == 0:
            _reject(slot.loaded, RunFailed(f"a worker cannot load the trainable: {frame.error}"))
        elif self._left(slot, frame):
            self._fail(slot, frame.error, frame.traceback)

    def _left(self, slot: _Slot, frame: wire.Done | wire.Error) -> bool:
        """Take note that a job is over. Return whether its trial ends with it, and does not go on elsewhere."""
        trial, segment = slot.jobs[frame.job]
        slot.jobs = {job: trial for job, trial in slot.jobs.items() if job >= frame.job}
        where = slot.spec.index
        self._commit(Left(time=self._now(), trial=trial, segment=segment, slot=where, busy=frame.busy, log=frame.log))
        return slot.runs(frame.job)

    def _died(self, slot: _Slot, cause: str) -> None:
        slot.worker = None
        slot.jobs.clear()
        slot.parked = False
        _resolve(slot.kept)
        if not _reject(slot.loaded, RunFailed(f"the worker of slot {slot.spec.index} {cause}")) and slot.active:
            self._fail(slot, f"WorkerDied: {cause}")

    def _fail(self, slot: _Slot, error: str, traceback: str = "") -> None:
        self._running.pop(slot.trial, None)
        retry = self._stopping is not None or self._study.may_retry(slot.trial)
        self._commit(Failed(time=self._now(), trial=slot.trial, error=error, traceback=traceback, retry=retry))
        slot.release()

    # What happens.

    def _commit(self, record: Record) -> None:
        """Let `record` happen, and all that follows: in the study, in the journal, in the workers, before all eyes."""
        records = deque([record])
        while records:
            record = records.popleft()
            effects = self._study.apply(record)
            self._journal.append(record)
            if isinstance(record, Decided):
                self._carry_out(record)
            for effect in effects:
                match effect:
                    case Record():
                        records.append(effect)
                    case Save(trial):
                        self._keep(trial)
                    case Release(checkpoint):
                        self._remove(checkpoint)
            if isinstance(record, Stopping):
                self._stopping = record
                self._wind_down(record)
            for callback in self._callbacks:
                callback(record)
            if self._events is not None:
                self._events.append(record)
        self._changed.set()
        self._changed = asyncio.Event()

    def _decide(self, trial: int, action: Action) -> None:
        study = self._study
        self._commit(
            Decided(time=self._now(), trial=trial, segment=study.segment(trial), step=study.step(trial), action=action)
        )

    def _carry_out(self, decision: Decided) -> None:
        slot = self._running.get(decision.trial)
        if slot is None or slot.worker is None:
            return
        match decision.action:
            case Action.CONTINUE:
                slot.worker.send(wire.Continue(slot.job, decision.until))
            case Action.PAUSE:
                slot.worker.send(wire.Pause(slot.job))
            case Action.STOP:
                slot.worker.send(wire.End(slot.job))

    def _remove(self, checkpoint: str) -> None:
        removal = self._loop.run_in_executor(None, shutil.rmtree, self.checkpoints / checkpoint, True)
        self._removals.add(removal)
        removal.add_done_callback(self._removals.discard)

    def _keep(self, trial: int) -> None:
        """Have the trial saved that just completed as the best so far: its worker still holds what it tracked."""
        for slot in self._slots:
            if slot.trial == trial and slot.saveable and slot.worker is not None:
                slot.kept = self._loop.create_future()
                slot.worker.send(wire.Save(slot.job))

    def _stop(self, reason: str, *, grace: float | None = STOP_GRACE, failed: bool = False) -> None:
        if self._stopping is None and not self._task.done():
            self._commit(Stopping(time=self._now(), reason=reason, failed=failed))
            if grace is not None:
                self._after(grace, self._kill)

    def _wind_down(self, stopping: Stopping) -> None:
        for trial, slot in list(self._running.items()):
            if stopping.failed:
                slot.release()
            elif self._study.runs_on(trial):
                self._decide(trial, Action.PAUSE)

    def _kill(self) -> None:
        for slot in self._running.values():
            if slot.worker is not None:
                slot.worker.kill()

    @property
    def checkpoints(self) -> Path:
        """Where the run's checkpoints are, one directory each, named trial-segment-step."""
        return self.run_dir / CHECKPOINTS

    def _now(self) -> float:
        return round(self._loop.time() - self._origin, 6)

    def _after(self, seconds: float, call: Callable[..., None], *arguments: Any) -> None:
        self._timers.append(self._loop.call_later(seconds, call, *arguments))

    async def _change(self) -> None:
        await self._changed.wait()


def _pickled(train: Train) -> bytes:
    try:
        return bytes(cloudpickle.dumps(train))
    except Exception as error:
        raise InvalidArgument(f"train must be picklable, to be sent to a worker: {error}") from error


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first error of a group, of groups in groups too."""
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _resolve(future: asyncio.Future[None] | None) -> bool:
    if future is None or future.done():
        return False
    future.set_result(None)
    return True


def _reject(future: asyncio.Future[Any] | None, error: BaseException) -> bool:
    if future is None or future.done():
        return False
    future.set_exception(error)
    return True
