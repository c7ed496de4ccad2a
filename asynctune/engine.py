"""Engine: the asyncio shell around a study. One coroutine per slot, all in one TaskGroup.

Here is everything that waits: for workers, for suggestions, for time. What is decided is decided by the study,
synchronously, in the callback that brings a frame in, and what a slot then takes up without waiting begins there too;
its coroutine is where it waits.
"""

import asyncio
import functools
import pickle
import shutil
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from time import monotonic_ns
from typing import Any

from asynctune import _wire as wire
from asynctune.advisor import Advisor
from asynctune.errors import RunFailed
from asynctune.journal import Journal
from asynctune.processes import InlineWorker, Worker
from asynctune.records import (
    ENDED,
    Action,
    Decided,
    Failed,
    Finished,
    Left,
    Record,
    Reported,
    Saved,
    Started,
    Stopping,
    Suggested,
    TrialState,
)
from asynctune.rundir import CHECKPOINTS, SEARCHER_LOG, log_file
from asynctune.searchers.base import Row
from asynctune.slots import SlotSpec
from asynctune.study import Release, Save, Study, Suggest

__all__ = ["Engine"]

#: How long, in seconds, trials may take to reach their next report once a run is to stop; then their workers are killed.
STOP_GRACE = 30.0

#: How long, in seconds, an idle worker may take to exit before it is signalled.
CLOSE_GRACE = 2.0

#: What may give a waiting slot something to do.
_WAKING = frozenset({Suggested, Saved, Failed, Finished, Stopping})


class _Slot:
    """A slot's worker and the job it has: the start of a trial that it runs, or holds warm (`parked`)."""

    def __init__(self, spec: SlotSpec, run_dir: Path) -> None:
        self.spec = spec
        self.log = run_dir / log_file(spec.index)
        self.worker: Worker | InlineWorker | None = None
        self.loaded: asyncio.Future[None] | None = None  # the worker has the trainable
        self.job = 0
        self.trial = -1
        self.segment = 0
        self.active = False  # user code of `job` runs, and what it sends counts
        self.parked = False
        self.began = 0.0  # when the job did
        self.log_start = 0  # bytes in the log before what it prints
        self.jobs: dict[int, tuple[int, int]] = {}  # job -> (trial, segment), of those that may still send frames
        self.idle: asyncio.Future[None] | None = None  # nothing runs, and nothing can be started at once
        self.holds: int | None = None  # the ended trial that the worker could still save
        self.kept: asyncio.Future[None] | None = None  # that was asked for, and is done

    def runs(self, job: int) -> bool:
        return self.active and job == self.job

    @property
    def loading(self) -> bool:
        return self.loaded is not None and not self.loaded.done()

    def log_size(self) -> int:
        return self.log.stat().st_size if self.log.exists() else 0


class Engine:
    """Drives one study to its end on slots.

    Args:
        study: the study, fresh.
        specs: the slots.
        train: the trainable, for `load` is None: then trials run in this very process.
        load: the trainable as workers get it.
        run_dir: the run's directory, for logs and checkpoints.
        watchers: called with each record, once it is applied and in the journal's hands; the list may change.
        stop_when: ends the run when it is true of a report.
        time_budget: seconds after which the run ends.
        checkpoint_every: seconds between checkpoints of a running trial.
    """

    def __init__(
        self,
        study: Study,
        *,
        specs: Sequence[SlotSpec],
        train: Callable[..., object],
        load: wire.Load | None,
        run_dir: Path,
        watchers: list[Callable[[Record], object]],
        stop_when: Callable[[Reported], bool] | None,
        time_budget: float | None,
        checkpoint_every: float | None,
    ) -> None:
        self._study = study
        self._slots = [_Slot(spec, run_dir) for spec in specs]
        self._train = train
        self._load = load
        self._run_dir = run_dir
        self._checkpoints = run_dir / CHECKPOINTS
        self._save_to = str(self._checkpoints)
        self._watchers = watchers
        self._stop_when = stop_when
        self._time_budget = time_budget
        self._checkpoint_every = checkpoint_every
        self._loop = asyncio.get_running_loop()
        self._origin = monotonic_ns()
        self._waiting: list[asyncio.Future[None]] = []  # slots, for something to do
        self._open = False
        self._task: asyncio.Task[Any] | None = None
        self._error: Exception | None = None
        self._journal: Journal
        self._records: deque[Record] = deque()  # that are to happen
        self._committing = False
        self._running: dict[int, _Slot] = {}  # trial -> the slot that runs it
        self._advisor: Advisor | None = None
        self._suggesting = False
        self._timers: list[asyncio.TimerHandle] = []
        self._removals: set[asyncio.Future[None]] = set()  # of checkpoints, under way
        self.failure: str | None = None  # why the run is to end with an error
        self.interrupted = False  # by Ctrl-C in an inline trial

    # What its owner calls.

    async def run(self, journal: Journal) -> None:
        """Drive the study to its end, or until it is cancelled; either way no process is left.

        Raises what user code in the driver (a watcher, `stop_when`) raised, and `RunFailed` if workers do not start.
        """
        self._journal = journal
        self._task = asyncio.current_task()
        self._checkpoints.mkdir(mode=0o700)
        self._open = True
        try:
            if self._time_budget is not None:
                self._after(self._time_budget, self._use_up)
            if self._study.preload is not None and self._load is not None:
                self._advisor = Advisor(self._run_dir / SEARCHER_LOG, self._study.preload)
                await self._advisor.start()
            async with asyncio.TaskGroup() as group:
                for slot in self._slots:
                    group.create_task(self._drive(slot), name=f"slot-{slot.spec.index}")
        except BaseExceptionGroup as errors:
            raise _first(errors) from None
        except asyncio.CancelledError:
            if self._error is None:
                raise
            assert self._task is not None
            self._task.uncancel()  # it was ours
            raise self._error from None
        finally:
            self._open = False
            for timer in self._timers:
                timer.cancel()
            if self._advisor is not None:
                await self._advisor.close(CLOSE_GRACE)

    async def clean(self) -> None:
        """Once the journal is closed: wait for removals under way, and remove what workers left half-written."""
        await asyncio.gather(*self._removals)
        for path in self._checkpoints.glob(".*"):
            await self._remove(path)

    def stop(self, reason: str, *, grace: float | None = STOP_GRACE) -> None:
        """End the run: what runs pauses at its next report, after `grace` seconds it is killed (None: never)."""
        if self._open and not self._study.stopping:
            if grace is not None:
                self._after(grace, self.kill)
            self._commit(Stopping(time=self._now(), reason=reason))

    def stop_trial(self, trial: int) -> None:
        """Stop one trial: at its next report if it runs."""
        if not self._open or self._study.state(trial) in ENDED:
            return
        if trial not in self._running:
            self._commit(Finished(time=self._now(), trial=trial, state=TrialState.STOPPED))
        elif self._study.final_state(trial) is not TrialState.STOPPED:
            self._decide(trial, Action.STOP)

    def kill(self) -> None:
        """Kill every process of the run."""
        for slot in self._slots:
            if slot.worker is not None:
                slot.worker.kill()
        if self._advisor is not None:
            self._advisor.kill()

    # A slot's life.

    async def _drive(self, slot: _Slot) -> None:
        """One slot, from its first trial to its last. All that it has to wait for, it waits for here."""
        try:
            while not (self._study.stopping or self._study.done):
                if self._load is None:
                    await asyncio.sleep(
                        0
                    )  # between two inline trials, timers and the rest of the program have their turn
                slot.idle = self._loop.create_future()
                try:
                    offer = self._advance(slot)
                except KeyboardInterrupt:  # out of an inline trial; let through, it would tear the loop apart
                    self.interrupted = True
                    self.stop("interrupted", grace=None)
                    self._fail(slot, "KeyboardInterrupt")
                    continue
                if offer is None:
                    await self._change()
                elif slot.worker is None:
                    await self._hire(slot)
                elif isinstance(offer, Started):
                    await slot.idle
                elif self._suggesting:
                    await self._change()
                else:
                    await self._consult(offer.trial)
            if slot.kept is not None:
                await slot.kept
        finally:
            if slot.worker is not None:
                if slot.active:
                    slot.worker.kill()
                await slot.worker.close(CLOSE_GRACE)

    def _advance(self, slot: _Slot) -> Started | Suggest | None:
        """Let a slot take up what it is to run next. Return that, or what has to be waited for first; None: for any change."""
        while True:
            now = self._now()
            offer = self._study.offer(slot.spec.index, time=now)
            if offer is None or slot.worker is None:
                return offer
            if isinstance(offer, Started):
                self._start(slot, offer)
                return offer
            if offer.slow and self._advisor is not None:
                return offer
            self._suggested(offer.trial, self._study.suggestion(offer.trial)(), now)

    async def _hire(self, slot: _Slot) -> None:
        """Give the slot a worker that has the trainable."""
        on_frames = functools.partial(self._guarded, self._received, slot)
        if self._load is None:
            slot.worker = InlineWorker(self._train, on_frames)
            return
        slot.loaded = self._loop.create_future()
        on_death = functools.partial(self._guarded, self._died, slot)
        slot.worker = await Worker.spawn(slot.spec.environment, slot.log, on_frames, on_death)
        slot.worker.send(self._load)
        await slot.loaded
        slot.log_start = slot.log_size()

    async def _consult(self, trial: int) -> None:
        """Have a slow suggestion made."""
        assert self._advisor is not None
        self._suggesting = True
        try:
            row = await self._advisor.ask(self._study.suggestion(trial))
        except RunFailed:
            if self._study.stopping:  # then it was killed
                return
            raise
        finally:
            self._suggesting = False
        self._suggested(trial, row, self._now())

    def _suggested(self, trial: int, row: Row, time: float) -> None:
        self._commit(Suggested(time=time, trial=trial, config=self._study.space.decode(row)))

    def _start(self, slot: _Slot, started: Started) -> None:
        """Let the slot's worker run one start of a trial."""
        assert slot.worker is not None
        in_place = slot.parked and slot.trial == started.trial and started.how == "resumed"
        if not in_place:
            if slot.parked:
                slot.worker.send(wire.End(slot.job))
            slot.holds = None
            slot.job += 1
            slot.trial, slot.segment = started.trial, started.segment
            slot.jobs[slot.job] = (started.trial, started.segment)
            slot.began = started.time
        slot.parked = False
        slot.active = True
        self._commit(started)
        self._running[started.trial] = slot
        if in_place:
            slot.worker.send(wire.Continue(slot.job, started.until))
        else:
            slot.worker.send(self._assignment(slot, started))

    def _assignment(self, slot: _Slot, started: Started) -> wire.Run:
        return wire.Run(
            job=slot.job,
            trial=started.trial,
            segment=started.segment,
            seed=self._study.trial_seed(started.trial),
            config=pickle.dumps(self._study.config(started.trial)),
            metric=self._study.metric,
            step=started.step,
            stop=self._study.max_resource,
            until=started.until,
            restore=None if started.checkpoint is None else str(self._checkpoints / started.checkpoint),
            save_to=self._save_to,
            checkpoint_every=self._checkpoint_every,
            device=slot.spec.device,
        )

    # What comes in from a worker: synchronous, in the order in which it was sent.

    def _received(self, slot: _Slot, frames: Sequence[wire.FromWorker]) -> None:
        for frame in frames:
            match frame:
                case wire.Report():
                    if slot.runs(frame.job) and frame.step > self._study.step(slot.trial):
                        self._report(slot, frame.step, frame.metrics)
                case wire.Done():
                    self._done(slot, frame)
                case wire.Saved():
                    self._saved(slot, frame)
                case wire.NotSaved():
                    _resolve(slot.kept)
                case wire.Error():
                    self._raised(slot, frame)
                case wire.Loaded():
                    _resolve(slot.loaded)
        if self._journal.behind and isinstance(slot.worker, Worker):
            # The disk is slower than the workers: they wait, and what is not yet written does not fill the memory.
            slot.worker.pause()
            self._journal.when_written(slot.worker.resume)

    def _report(self, slot: _Slot, step: int, metrics: dict[str, float]) -> None:
        report = Reported(time=self._now(), trial=slot.trial, segment=slot.segment, step=step, metrics=metrics)
        self._commit(report)
        if self._stop_when is not None and self._stop_when(report):
            self.stop(f"stop_when held at step {step} of trial {slot.trial}")
        elif self._time_budget is not None and report.time >= self._time_budget:
            self._use_up()  # an inline trial keeps the timer from it

    def _saved(self, slot: _Slot, frame: wire.Saved) -> None:
        trial, segment = slot.jobs[frame.job]
        self._commit(
            Saved(time=self._now(), trial=trial, segment=segment, step=frame.step, checkpoint=frame.checkpoint)
        )
        if not slot.runs(frame.job):
            _resolve(slot.kept)
        elif self._study.state(trial) is not TrialState.RUNNING:
            slot.parked = True
            self._vacate(slot)

    def _done(self, slot: _Slot, frame: wire.Done) -> None:
        if not self._left(slot, frame):
            return
        error = self._study.nothing_reported(slot.trial)
        if error is not None and not frame.ended:
            self._fail(slot, error)
            return
        slot.holds = slot.trial if frame.saveable else None
        state = self._study.final_state(slot.trial)
        self._commit(Finished(time=self._now(), trial=slot.trial, state=state))
        self._vacate(slot)

    def _raised(self, slot: _Slot, frame: wire.Error) -> None:
        if frame.job == 0:
            _reject(slot.loaded, RunFailed(f"a worker cannot load the trainable: {frame.error}"))
        elif self._left(slot, frame):
            self._fail(slot, frame.error, frame.traceback)

    def _left(self, slot: _Slot, frame: wire.Done | wire.Error) -> bool:
        """Take note that a job is over. Return whether its trial ends with it, and does not go on elsewhere."""
        trial, segment = slot.jobs[frame.job]
        slot.jobs.pop(frame.job - 1, None)  # all that it sends was sent before
        slot.log_start = frame.log[1]
        if frame.job == slot.job:
            slot.parked = False  # an inline worker cannot wait: it has left by itself
        self._leave(slot, trial, segment, frame.busy, frame.log)
        return slot.runs(frame.job)

    def _died(self, slot: _Slot, cause: str) -> None:
        slot.worker = None
        slot.jobs.clear()
        slot.parked, slot.holds = False, None
        if self._study.stopping or self._study.done:  # it may be we who killed it
            _resolve(slot.loaded)
        else:
            _reject(slot.loaded, RunFailed(f"the worker of slot {slot.spec.index} {cause}"))
        if slot.active:
            self._leave(slot, slot.trial, slot.segment, self._now() - slot.began, (slot.log_start, slot.log_size()))
            self._fail(slot, f"WorkerDied: {cause}")
        _resolve(slot.kept)
        self._wake()

    def _leave(self, slot: _Slot, trial: int, segment: int, busy: float, log: tuple[int, int]) -> None:
        where = slot.spec.index
        self._commit(Left(time=self._now(), trial=trial, segment=segment, slot=where, busy=busy, log=log))

    def _fail(self, slot: _Slot, error: str, traceback: str = "") -> None:
        retry = self._study.may_retry(slot.trial)
        self._commit(Failed(time=self._now(), trial=slot.trial, error=error, traceback=traceback, retry=retry))
        self._vacate(slot)

    def _vacate(self, slot: _Slot) -> None:
        """The slot has nothing that runs: it takes up what comes next, here and now if that takes no waiting."""
        self._running.pop(slot.trial, None)
        slot.active = False
        if self._load is not None:
            self._advance(slot)
        if not slot.active:
            _resolve(slot.idle)

    # What happens.

    def _commit(self, record: Record) -> None:
        """Let `record` happen, and all that follows: in the study, in the journal, in the workers, before all eyes.

        One after the other: what a watcher brings about happens after what it was shown has had its effects.
        """
        if self._committing:
            self._records.append(record)
            return
        self._committing = True
        try:
            self._happen(record)
            while self._records:
                self._happen(self._records.popleft())
        finally:
            self._committing = False
            self._records.clear()

    def _happen(self, record: Record) -> None:
        effects = self._study.apply(record)
        self._journal.append(record)
        for effect in effects:
            match effect:
                case Record():
                    self._records.append(effect)
                case Save(trial):
                    self._keep(trial)
                case Release(checkpoint):
                    # Not before it is on disk that nobody needs it.
                    self._journal.when_written(functools.partial(self._remove, self._checkpoints / checkpoint))
        if isinstance(record, Decided):
            self._carry_out(record)
        elif isinstance(record, Stopping):
            self._wind_down(record)
        for watcher in tuple(self._watchers):
            watcher(record)
        if type(record) in _WAKING:
            self._wake()

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

    def _keep(self, trial: int) -> None:
        """Have the trial saved that just completed as the best so far, if a worker still holds what it tracked."""
        for slot in self._slots:
            if slot.holds == trial and slot.worker is not None:
                slot.kept = self._loop.create_future()
                slot.worker.send(wire.Save(slot.job))

    def _wind_down(self, stopping: Stopping) -> None:
        if stopping.failed:
            self.failure = stopping.reason
        if self._advisor is not None:
            self._advisor.kill()  # nothing more will be asked
        for trial, slot in list(self._running.items()):
            if stopping.failed:
                self._decide(trial, Action.STOP)
                self._vacate(slot)
            elif self._study.runs_on(trial):
                self._decide(trial, Action.PAUSE)

    def _use_up(self) -> None:
        self.stop(f"the time budget of {self._time_budget:g} s is used up")

    def _remove(self, checkpoint: Path) -> asyncio.Future[None]:
        removal = self._loop.run_in_executor(None, shutil.rmtree, checkpoint, True)
        self._removals.add(removal)
        removal.add_done_callback(self._removals.discard)
        return removal

    # Time, and errors.

    def _now(self) -> float:
        """Seconds since the run began, whole microseconds of them: short in the journal."""
        return (monotonic_ns() - self._origin) // 1000 / 1e6

    def _after(self, seconds: float, call: Callable[[], None]) -> None:
        self._timers.append(self._loop.call_later(seconds, self._guarded, call))

    async def _change(self) -> None:
        """Wait for a record that may give a slot something to do."""
        change = self._loop.create_future()
        self._waiting.append(change)
        await change

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for change in waiting:
            _resolve(change)
        if self._study.done:
            for slot in self._slots:
                if slot.worker is not None and slot.loading:
                    slot.worker.kill()  # nobody waits for it any more

    def _guarded(self, call: Callable[..., None], *arguments: Any) -> None:
        """Call from the loop, where nobody would hear of an error: the run ends with it."""
        try:
            call(*arguments)
        except Exception as error:  # noqa: BLE001 - a watcher raises what it likes
            if self._error is None:
                self._error = error
                assert self._task is not None
                self._task.cancel()


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first error of a group, of groups in groups too."""
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _resolve(future: asyncio.Future[None] | None) -> None:
    if future is not None and not future.done():
        future.set_result(None)


def _reject(future: asyncio.Future[None] | None, error: BaseException) -> None:
    if future is not None and not future.done():
        future.set_exception(error)
