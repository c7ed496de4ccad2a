"""Session: one assignment as it stands. What was reported, what the driver asks for, and when that takes effect."""

from collections.abc import Callable
from time import monotonic
from typing import NoReturn

from asynctune._wire import Continue, End, Error, Pause, Report, Run, Save, Saved, ToWorker
from asynctune.errors import ProtocolError
from asynctune.worker.channel import Channel, leave
from asynctune.worker.tracking import Tracked

__all__ = ["Session"]


class Session:
    """One assignment while it runs, and after that for as long as it may be saved.

    Requests only leave a mark when they arrive; `settle` carries them out, at the places where the trial's state is complete:
    a turn of its loop, or a report outside of one.
    """

    def __init__(self, run: Run, channel: Channel) -> None:
        self.run = run
        self.step = run.step  # the state is the one after this step
        self.reported = False
        self.ended = False
        self.away = 0.0  # seconds spent waiting and saving
        self.tracked = Tracked(run)
        self.on_settled: Callable[[], object] | None = None
        self._channel = channel
        self._until = run.until
        self._waiting = False  # for Continue or End
        self._saving = False
        self._paused = False
        self._saved = monotonic()
        self._errand: _Errand | None = None  # a checkpoint that is being written while training goes on

    def report(self, step: int, metrics: dict[str, float]) -> None:
        """Send a report, and take note of what has arrived meanwhile."""
        self._channel.send(Report(self.run.job, step, metrics))
        self.step = step
        self.reported = True
        if self._until is not None and step >= self._until:
            self._waiting = True
        else:
            while (frame := self._channel.poll()) is not None:
                self._obey(frame)

    def settle(self, *, complete: bool = True) -> None:
        """Carry out what the driver asked for, and wait for the answer if one is due. After it, `ended` is up to date.

        Unless the state is `complete`, the one after `step`, no periodic checkpoint is made.
        """
        if self._waiting or self._saving or (complete and self.run.checkpoint_every):
            self._carry_out(complete)
        if self.on_settled is not None:
            self.on_settled()

    def _carry_out(self, complete: bool) -> None:
        every = self.run.checkpoint_every
        began = monotonic()
        while self._waiting and not self.ended:
            if self._saving:
                self.save()
            self._obey(self._channel.receive())
        if not self.ended:
            if self._errand is not None and not self._errand.under_way:
                self._wait()  # an error of its is one of this trial's, from here on
            if self._saving:
                self.save()
            elif complete and every is not None and self.tracked.saveable and began - self._saved >= every:
                self._save_meanwhile()
        self.away += monotonic() - began

    def save(self) -> None:
        """Make a checkpoint if there is anything to save, and tell the driver. Raises as `Tracked.prepare` does."""
        self._wait()
        self._saving = False
        name, size = self.tracked.prepare(self.step, later=False)() if self.tracked.saveable else (None, 0)
        self._saved = monotonic()
        self._channel.send(Saved(self.run.job, self.step, name, size, self._paused))

    def finish(self) -> None:
        """The trainable has returned, or raised. Raises what went wrong with a checkpoint that was still being written."""
        began = monotonic()
        self._wait()
        self.away += monotonic() - began

    def _wait(self) -> None:
        """Wait for the checkpoint that is being written, if there is one."""
        if self._errand is not None:
            errand, self._errand = self._errand, None
            errand.finish()

    def _save_meanwhile(self) -> None:
        """Copy the state, and let training go on while the checkpoint is written; one at a time."""
        if not self._channel.shared:
            self.save()
        elif self._errand is None:  # else the disk is slower than `checkpoint_every`
            self._saved = monotonic()
            step, complete = self.step, self.tracked.prepare(self.step, later=True)

            def write() -> None:
                name, size = complete()
                self._channel.send(Saved(self.run.job, step, name, size))

            self._errand = _Errand(write)

    def give_up(self, error: Error) -> NoReturn:
        """Say, from another thread than the trial's, how it failed, and end this process with all that user code started."""
        self._channel.send(error)
        leave()

    def _obey(self, frame: ToWorker) -> None:
        match frame:
            case Continue() | Pause() | Save() | End() if frame.job != self.run.job:
                pass  # it was on its way when its job ended
            case Continue(until=until):
                self._until = until
                self._waiting = self._paused = False
            case Pause():
                self._saving = self._waiting = self._paused = True
            case Save():
                self._saving = True
            case End():
                self.ended = True
            case _:
                raise ProtocolError(f"a job is running, and a {type(frame).__name__} frame came")


class _Errand:
    """A call in a thread of its own."""

    def __init__(self, call: Callable[[], object]) -> None:
        from threading import Thread

        self._call = call
        self._error: BaseException | None = None
        self._thread = Thread(target=self._run, name="asynctune-checkpoint", daemon=True)
        self._thread.start()

    @property
    def under_way(self) -> bool:
        return self._thread.is_alive()

    def finish(self) -> None:
        """Wait until it has returned, or raise what it raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            self._call()
        except BaseException as error:  # noqa: BLE001 - it is raised where it is waited for
            self._error = error
        del self._call  # and the copy of the state with it
