"""Engine: the asyncio shell around a study. One coroutine per slot, all in one TaskGroup.

Here is everything that waits: for workers, for suggestions, for time. What is decided is decided by the study,
synchronously, in the callback that brings a frame in, and what a slot then takes up without waiting begins there too;
its coroutine is where it waits.
"""

import asyncio
import functools
import pickle
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from time import monotonic, monotonic_ns
from typing import Any

from asynctune import _wire as wire
from asynctune.advisor import Advisor
from asynctune.checkpoints import Store
from asynctune.errors import RunFailed
from asynctune.gate import Gate
from asynctune.journal import Journal
from asynctune.logs import CAP, cap, note
from asynctune.processes import InlineWorker, Supervisor, Worker
from asynctune.records import (
    ENDED,
    Action,
    Decided,
    Failed,
    Finished,
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
from asynctune.resume import Replay
from asynctune.rundir import CHECKPOINTS, SEARCHER_LOG, checkpoint_path
from asynctune.searchers.base import Row
from asynctune.slot import Slot, resolve
from asynctune.slots import SlotSpec
from asynctune.study import Release, Save, Study, Suggest
from asynctune.watch import TICK, Watch

__all__ = ["Engine"]

#: How long, in seconds, trials may take to reach their next report once a run is to stop; then their workers are killed.
STOP_GRACE = 30.0

#: How long, in seconds, an idle worker may take to exit before it is signalled.
CLOSE_GRACE = 2.0

#: What may give a waiting slot something to do.
_WAKING = frozenset({Suggested, Saved, Failed, Left, Lost, Finished, Stopping})


class Engine:
    """Drives one study to its end on slots.

    Args:
        study: the study, as the journal leaves it.
        run_dir: the run's directory, for logs and checkpoints.
        journal: the run's journal, open.
        specs: the slots.
        train: the trainable, for `load` is None: then trials run in this very process.
        load: the trainable as workers get it.
        fresh: whether each start of a trial has a process of its own.
        watchers: called with each record, once it is applied and in the journal's hands; the list may change.
        stop_when: ends the run when it is true of a report.
        time_budget: seconds after which the run ends.
        trial_timeout: seconds that a start of a trial may take.
        report_timeout: seconds without a report that a start of a trial may take.
        durable: whether a record is on the disk before a worker learns of it.
        checkpoint_every: seconds between checkpoints of a running trial.
        keep_checkpoints: bytes within which checkpoints stay that nothing needs.
    """

    def __init__(
        self,
        study: Study,
        run_dir: Path,
        journal: Journal,
        *,
        specs: Sequence[SlotSpec],
        train: Callable[..., object],
        load: wire.Load | None,
        fresh: bool,
        watchers: list[Callable[[Record], object]],
        stop_when: Callable[[Reported], bool] | None,
        time_budget: float | None,
        trial_timeout: float | None,
        report_timeout: float | None,
        durable: bool,
        checkpoint_every: float | None,
        keep_checkpoints: int,
    ) -> None:
        self._study = study
        self._journal = journal
        self._slots = [Slot(spec, run_dir) for spec in specs]
        for slot in self._slots:
            gpus = set(slot.spec.gpus)
            slot.neighbours = [other for other in self._slots if other is not slot and gpus & set(other.spec.gpus)]
        self._gate = Gate(gpu for spec in specs for gpu in spec.gpus)
        self._train = train
        self._load = load
        self._fresh = fresh
        self._run_dir = run_dir
        self._store = Store(run_dir, keep_checkpoints)
        self._save_to = str(run_dir / CHECKPOINTS)
        self._watch = Watch(monotonic(), trial_timeout=trial_timeout, report_timeout=report_timeout)
        self._durable = durable
        self._watchers = watchers
        self._stop_when = stop_when
        self._time_budget = time_budget
        self._checkpoint_every = checkpoint_every
        self._loop = asyncio.get_running_loop()
        self._origin = monotonic_ns()
        self._changed = asyncio.Event()  # set for a moment only: who waits then is woken
        self._open = False
        self._task: asyncio.Task[Any] | None = None
        self._error: Exception | None = None
        self._records: deque[Record] = deque()  # that are to happen
        self._committing = False
        self._running: dict[int, Slot] = {}  # trial -> the slot that runs it
        self._short: set[int] = set()  # trials that ran out of memory: their next start has its GPUs to itself
        self._tried: set[int] = set()  # those that have had such a start
        self._supervisor: Supervisor | None = None
        self._advisor: Advisor | None = None
        self._suggesting = False
        self._timers: dict[Callable[[], None], asyncio.TimerHandle] = {}  # by what they call, one each
        self.failure: str | None = None  # why the run is to end with an error
        self.interrupted = False  # by Ctrl-C in an inline trial

    # What its owner calls.

    async def run(self, replay: Replay, num_trials: int | None) -> None:
        """Drive the study to its end, or until it is cancelled; either way no process is left.

        `replay` is of the journal, and empty if the run is new; `num_trials` may be more than the journal has it.

        Raises what user code in the driver (a watcher, `stop_when`) raised, and `RunFailed` if workers do not start, or if they find
        the disk full or failing: then the run can be resumed.
        """
        self._task = asyncio.current_task()
        self._origin -= int(replay.time * 1e9)
        self._open = True
        try:
            try:
                if replay.header is None:
                    self._store.create()
                else:
                    await self._store.sweep(replay.checkpoints)
            except OSError as error:
                raise RunFailed(f"cannot use {self._save_to}: {error.strerror or error}") from error
            if replay.header is not None and not self._reopen(replay.due, num_trials):
                return
            if self._time_budget is not None:
                self._after(max(0.0, self._time_budget - replay.time), self._use_up)
            if self._load is not None:
                self._supervisor = await Supervisor.spawn(
                    self._journal.lock, functools.partial(self._guarded, self._unsupervised)
                )
                self._after(TICK, self._look)
                await self._gate.measure()
                if self._study.preload is not None:
                    self._advisor = Advisor(self._run_dir / SEARCHER_LOG, self._study.preload, self._supervisor)
                    await self._advisor.start()
            async with asyncio.TaskGroup() as group:
                for slot in self._slots:
                    group.create_task(self._drive(slot), name=f"slot-{slot.spec.index}")
            if not self._durable:
                await self._journal.written()  # what is released by then need not be
                await self._store.sync()
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
            for timer in self._timers.values():
                timer.cancel()
            if self._advisor is not None:
                await self._advisor.close(CLOSE_GRACE)
            if self._supervisor is not None:
                await self._supervisor.close()
            await self._journal.written()  # what is released by then is to go as well
            await self._store.close()

    def _reopen(self, due: Sequence[Record], num_trials: int | None) -> bool:
        """Take up the run where its journal ends. Return whether anything is left to do."""
        for record in due:
            self._commit(record)
        study = self._study
        if study.done and not study.stopping and study.num_trials == num_trials:
            return False
        self._commit(Reopened(time=self._now(), num_trials=num_trials, slots=len(self._slots)))
        return True

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

    async def _drive(self, slot: Slot) -> None:
        """One slot, from its first trial to its last. All that it has to wait for, it waits for here."""
        try:
            while not (self._study.stopping or self._study.done):
                if self._load is None:
                    # Between two inline trials, timers and the rest of the program have their turn.
                    await asyncio.sleep(0)
                slot.idle = self._loop.create_future()
                try:
                    offer = self._advance(slot)
                except KeyboardInterrupt:  # out of an inline trial; let through, it would tear the loop apart
                    self.interrupted = True
                    self.stop("interrupted", grace=None)
                    self._fail(slot, "KeyboardInterrupt")
                    continue
                if slot.worn is not None:
                    await self._retire(slot)
                elif offer is None:
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

    def _advance(self, slot: Slot) -> Started | Suggest | None:
        """Let a slot take up what it is to run next. Return that, or what has to be waited for first; None: for any change."""
        if slot.handed_back:
            assert slot.started is not None
            if slot.worker is not None and slot.worn is None:
                slot.handed_back = False
                self._assign(slot, slot.started)
                self._tell(slot, self._study.told(slot.trial))  # it may have been decided on meanwhile
            return slot.started
        while True:
            if any(other.alone for other in slot.neighbours):
                slot.wear("a trial needs its GPU alone")
                return None
            now = self._now()
            offer = self._study.offer(slot.spec.index, time=now)
            alone = isinstance(offer, Started) and offer.trial in self._short
            elsewhere = alone and any(other.alone and not other.active for other in self._slots if other is not slot)
            self._reserve(slot, alone and not elsewhere)
            if elsewhere:
                return None  # that slot waits for it
            if alone and any(other.worker is not None or other.active for other in slot.neighbours):
                slot.wear("a trial needs its GPU alone")  # the next one is hired when the others' memory is free
                return None
            if offer is None or slot.worker is None or slot.worn is not None:
                return offer
            if isinstance(offer, Started):
                if self._fresh and slot.started is not None and not self._in_place(slot, offer):
                    slot.wear("each trial has a process of its own")
                else:
                    self._start(slot, offer)
                return offer
            if offer.slow and self._advisor is not None:
                return offer
            self._suggested(offer.trial, self._study.suggestion(offer.trial)(), now)

    def _reserve(self, slot: Slot, alone: bool) -> None:
        """Keep the slot's GPUs to what it is to run next, or give them free: its neighbours see to it when they are woken."""
        if slot.alone is not alone:
            slot.alone = alone
            self._wake()

    async def _retire(self, slot: Slot) -> None:
        """Let a worker go that is worn, once all is heard that it still has to say."""
        if slot.parked:
            self._watch.began(slot.spec.index, monotonic())
            self._send(slot, wire.End(slot.job))
        while slot.parked:
            await self._change()
        if slot.kept is not None:
            await slot.kept
        self._watch.gone(slot.spec.index)
        await slot.retire(CLOSE_GRACE)
        self._wake()

    async def _hire(self, slot: Slot) -> None:
        """Give the slot a worker that has the trainable."""
        on_frames = functools.partial(self._guarded, self._received, slot)
        if self._load is None:
            slot.worker = InlineWorker(self._train, on_frames)
            return
        on_death = functools.partial(self._guarded, self._died, slot)
        if slot.job:
            in_use = await self._gate.passed(slot.spec.gpus, functools.partial(self._matters, slot))
            if in_use is not None:
                note(slot.log, in_use)
            if self._study.stopping or self._study.done:
                return
        self._watch.spawned(slot.spec.index, monotonic())
        await slot.hire(self._load, self._supervisor, on_frames, on_death)

    def _matters(self, slot: Slot) -> bool:
        """Whether memory that is in use on the slot's GPUs should be waited for: not beside others, whose it may be, nor at the end."""
        over = self._study.stopping or self._study.done
        return not over and not any(other.worker for other in slot.neighbours)

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

    def _in_place(self, slot: Slot, started: Started) -> bool:
        """Whether the slot's worker holds the trial as it paused, to go on from there: it has not been elsewhere since."""
        return slot.parked and started.how == "resumed" and self._study.held(slot.spec.index) == started.trial

    def _start(self, slot: Slot, started: Started) -> None:
        """Let the slot's worker run one start of a trial."""
        in_place = self._in_place(slot, started)
        if not in_place:
            if slot.parked:
                self._send(slot, wire.End(slot.job))
            slot.holds = None
            slot.job += 1
            slot.trial, slot.segment = started.trial, started.segment
            slot.jobs[slot.job] = (started.trial, started.segment)
            slot.began = started.time
            slot.started = started
        slot.parked = False
        slot.active = True
        if started.trial in self._short:
            self._short.remove(started.trial)
            self._tried.add(started.trial)
            self._wake()  # others may have waited for it
        self._commit(started)
        self._running[started.trial] = slot
        if in_place:
            self._watch.began(slot.spec.index, monotonic())
            self._send(slot, wire.Continue(slot.job, started.until))
        else:
            self._assign(slot, started)

    def _assign(self, slot: Slot, started: Started) -> None:
        self._watch.began(slot.spec.index, monotonic())
        self._send(slot, self._assignment(slot, started))

    def _assignment(self, slot: Slot, started: Started) -> wire.Run:
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
            restore=None if started.checkpoint is None else str(checkpoint_path(self._run_dir, started.checkpoint)),
            save_to=self._save_to,
            checkpoint_every=self._checkpoint_every,
            device=slot.spec.device,
            durable=self._durable,
        )

    # What comes in from a worker: synchronous, in the order in which it was sent.

    def _received(self, slot: Slot, frames: Sequence[wire.FromWorker]) -> None:
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
                    resolve(slot.kept)
                case wire.Lost():
                    self._lost(slot, frame)
                case wire.Worn():
                    self._handed_back(slot, frame)
                case wire.Error():
                    self._raised(slot, frame)
                case wire.Loaded():
                    slot.hired()
        if self._journal.behind and isinstance(slot.worker, Worker):
            # The disk is slower than the workers: they wait, and what is not yet written does not fill the memory.
            slot.worker.pause()
            self._journal.when_written(slot.worker.resume)

    def _report(self, slot: Slot, step: int, metrics: dict[str, float]) -> None:
        report = Reported(time=self._now(), trial=slot.trial, segment=slot.segment, step=step, metrics=metrics)
        self._watch.reported(slot.spec.index, monotonic())
        self._commit(report)
        if self._stop_when is not None and self._stop_when(report):
            self.stop(f"stop_when held at step {step} of trial {slot.trial}")
        elif self._time_budget is not None and report.time >= self._time_budget:
            self._use_up()  # an inline trial keeps the timer from it

    def _saved(self, slot: Slot, frame: wire.Saved) -> None:
        trial, segment = slot.jobs[frame.job]
        name = frame.checkpoint
        if name is not None:
            self._store.saved(name, frame.size)
            if slot.runs(frame.job) and not (frame.paused or self._study.runs_on(trial)):
                # It crossed the word to pause, or to stop; what that leads to is yet to come.
                if name != self._study.checkpoint(
                    trial
                ):  # as where a trial that was retried has come to the same step again
                    self._store.release(name)()
                return
        saved = Saved(time=self._now(), trial=trial, segment=segment, step=frame.step, checkpoint=name)
        self._commit(saved)
        if not slot.runs(frame.job):
            resolve(slot.kept)
        elif self._study.state(trial) is not TrialState.RUNNING:
            slot.parked = True
            self._vacate(slot)

    def _done(self, slot: Slot, frame: wire.Done) -> None:
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

    def _raised(self, slot: Slot, frame: wire.Error) -> None:
        if frame.job == 0:
            slot.hired(RunFailed(f"a worker cannot load the trainable: {frame.error}"))
        elif frame.disk:  # no trial's fault: the run stops here, and can be resumed
            raise RunFailed(f"trial {slot.jobs[frame.job][0]} cannot write: {frame.error}")
        elif self._left(slot, frame):
            # Once more where it has the GPU to itself, and no oftener: it would not do better.
            again = not (frame.memory and slot.trial in self._tried)
            if frame.memory:
                self._short.add(slot.trial)
            self._fail(slot, frame.error, frame.traceback, again=again)

    def _lost(self, slot: Slot, frame: wire.Lost) -> None:
        slot.jobs.pop(frame.job - 1, None)
        if not slot.runs(frame.job):
            return
        checkpoint = self._study.checkpoint(slot.trial)
        assert checkpoint is not None
        self._commit(Lost(time=self._now(), trial=slot.trial, checkpoint=checkpoint, error=frame.error))
        self._vacate(slot)

    def _handed_back(self, slot: Slot, frame: wire.Worn) -> None:
        slot.jobs.pop(frame.job - 1, None)
        if slot.runs(frame.job):
            slot.wear(frame.cause)
            slot.handed_back = True
            self._watch.ended(slot.spec.index)
            resolve(slot.idle)

    def _left(self, slot: Slot, frame: wire.Done | wire.Error) -> bool:
        """Take note that a job is over. Return whether its trial ends with it, and does not go on elsewhere."""
        trial, segment = slot.jobs[frame.job]
        slot.jobs.pop(frame.job - 1, None)  # all that it sends was sent before
        slot.log_start = frame.log[1]
        if frame.job == slot.job:
            slot.parked = False  # an inline worker cannot wait: it has left by itself
            if frame.worn is not None:
                slot.wear(frame.worn)
        self._leave(slot, trial, segment, frame.busy, frame.log)
        return slot.runs(frame.job)

    def _died(self, slot: Slot, cause: str) -> None:
        slot.gone()
        self._watch.gone(slot.spec.index)
        if self._study.stopping or self._study.done:  # it may be we who killed it
            slot.hired()
        else:
            slot.hired(RunFailed(f"the worker of slot {slot.spec.index} {cause}"))
        if slot.active and not slot.handed_back:
            self._leave(slot, slot.trial, slot.segment, self._now() - slot.began, (slot.log_start, slot.log_size()))
            self._fail(slot, f"WorkerDied: {cause}")
        resolve(slot.kept)
        self._wake()

    def _unsupervised(self, cause: str) -> None:
        raise RunFailed(f"the supervisor {cause}")

    def _leave(self, slot: Slot, trial: int, segment: int, busy: float, log: tuple[int, int]) -> None:
        if log[1] - log[0] > CAP:
            self._cap(slot, *log)
        where = slot.spec.index
        self._commit(Left(time=self._now(), trial=trial, segment=segment, slot=where, busy=busy, log=log))

    def _fail(self, slot: Slot, error: str, traceback: str = "", *, again: bool = True) -> None:
        retry = again and self._study.may_retry(slot.trial)
        self._commit(Failed(time=self._now(), trial=slot.trial, error=error, traceback=traceback, retry=retry))
        self._vacate(slot)

    def _vacate(self, slot: Slot) -> None:
        """The slot has nothing that runs: it takes up what comes next, here and now if that takes no waiting."""
        self._running.pop(slot.trial, None)
        slot.active = slot.handed_back = False
        self._watch.ended(slot.spec.index)
        if self._load is not None:
            self._advance(slot)
        if not slot.active:
            resolve(slot.idle)

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
                    self._journal.when_written(self._store.release(checkpoint))
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
        if slot is not None:
            if decision.action is Action.CONTINUE:
                self._send(slot, wire.Continue(slot.job, decision.until))
            self._tell(slot, decision.action)

    def _tell(self, slot: Slot, action: Action) -> None:
        if action is Action.PAUSE:
            self._send(slot, wire.Pause(slot.job))
        elif action is Action.STOP:
            self._send(slot, wire.End(slot.job))

    def _keep(self, trial: int) -> None:
        """Have the trial saved that just completed as the best so far, if a worker still holds what it tracked."""
        for slot in self._slots:
            if slot.holds == trial and slot.worker is not None:
                slot.kept = self._loop.create_future()
                self._send(slot, wire.Save(slot.job))

    def _wind_down(self, stopping: Stopping) -> None:
        if stopping.failed:
            self.failure = stopping.reason
        if self._advisor is not None:
            self._advisor.kill()  # nothing more will be asked
        for trial, slot in list(self._running.items()):
            if stopping.failed:  # what runs is RUNNING to the end, so that it goes on when the run is resumed
                self._vacate(slot)
                if slot.worker is not None:
                    slot.worker.kill()
            elif self._study.runs_on(trial):
                self._decide(trial, Action.PAUSE)

    def _use_up(self) -> None:
        self.stop(f"the time budget of {self._time_budget:g} s is used up")

    def _send(self, slot: Slot, frame: wire.ToWorker) -> None:
        """Send what follows from the records so far; if that was asked for, not before they are on the disk."""
        worker = slot.worker
        if worker is None:
            return
        if self._durable:
            self._journal.when_written(functools.partial(self._guarded, worker.send, frame))
        else:
            worker.send(frame)

    def _look(self) -> None:
        """Once a second: who has been silent for too long, and who prints too much?"""
        now = monotonic()
        for slot in self._slots:
            if isinstance(slot.worker, Worker):
                if slot.worker.beat():
                    self._watch.alive(slot.spec.index, now)
                if slot.active:
                    self._cap(slot, slot.log_start)
                    if self._journal.behind:  # it may have reported, and we do not listen
                        self._watch.reported(slot.spec.index, now)
        for index, cause in self._watch.overdue(now):
            worker = self._slots[index].worker
            if isinstance(worker, Worker):
                worker.abort(cause)
        self._after(TICK, self._look)

    def _cap(self, slot: Slot, first: int, last: int | None = None) -> None:
        self._loop.run_in_executor(None, cap, slot.log, first, last)  # where much is printed, it takes a while

    # Time, and errors.

    def _now(self) -> float:
        """Seconds since the run began, whole microseconds of them: short in the journal."""
        return (monotonic_ns() - self._origin) // 1000 / 1e6

    def _after(self, seconds: float, call: Callable[[], None]) -> None:
        self._timers[call] = self._loop.call_later(seconds, self._guarded, call)

    async def _change(self) -> None:
        """Wait for what may give a slot something to do."""
        await self._changed.wait()

    def _wake(self) -> None:
        self._changed.set()
        self._changed.clear()
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
