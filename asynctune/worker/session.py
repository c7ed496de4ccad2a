"""Session: one assignment as it stands. What was reported, what the driver asks for, and when that takes effect."""

from collections.abc import Callable
from time import monotonic
from typing import NoReturn

from asynctune._wire import Continue, End, Error, Pause, Report, Run, Save, Saved, ToWorker
from asynctune.errors import ProtocolError
from asynctune.worker.channel import Channel, leave
from asynctune.worker.checkpoint import Checkpoints

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
        self.checkpoints = Checkpoints(run)
        self.on_settled: Callable[[], object] | None = None
        self._channel = channel
        self._until = run.until
        self._waiting = False  # for Continue or End
        self._saving = False
        self._saved = monotonic()

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

    def settle(self) -> None:
        """Carry out what the driver asked for, and wait for the answer if one is due. After it, `ended` is up to date."""
        if self._waiting or self._saving or self.run.checkpoint_every:
            self._carry_out()
        if self.on_settled is not None:
            self.on_settled()

    def _carry_out(self) -> None:
        every = self.run.checkpoint_every
        began = monotonic()
        periodic = every is not None and self.checkpoints.saveable and began - self._saved >= every
        while self._waiting and not self.ended:
            if self._saving:
                self.save()
                periodic = False
            self._obey(self._channel.receive())
        # Not while an answer is due: it may be Pause, and a save that crosses it would pass for its own.
        if not self.ended and (self._saving or periodic):
            self.save()
        self.away += monotonic() - began

    def save(self) -> None:
        """Make a checkpoint if there is anything to save, and tell the driver."""
        self._saving = False
        name, size = self.checkpoints.save(self.step) if self.checkpoints.saveable else (None, 0)
        self._saved = monotonic()
        self._channel.send(Saved(self.run.job, self.step, name, size))

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
                self._waiting = False
            case Pause():
                self._saving = self._waiting = True
            case Save():
                self._saving = True
            case End():
                self.ended = True
            case _:
                raise ProtocolError(f"a job is running, and a {type(frame).__name__} frame came")
