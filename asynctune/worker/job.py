"""Job: one assignment from beginning to end, whatever user code does."""

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from time import monotonic

from asynctune._wire import Done, Error, Lost, NotSaved, Report, Run, Save
from asynctune.errors import InvalidArgument, TrialEnded
from asynctune.worker.channel import Channel, flush
from asynctune.worker.checkpoint import FULL, DiskError, damage, disk_fault
from asynctune.worker.faults import is_out_of_memory
from asynctune.worker.session import Session
from asynctune.worker.trial import Trial, measurements

__all__ = ["error_frame", "run_job", "save_ended"]

LINE = 1000  # characters of an error in one line, at most
MESSAGE = 50_000  # characters of one part of a traceback: a frame, or a message
TRACEBACK = 100_000  # characters of a traceback


def run_job(
    function: Callable[[Trial], object],
    run: Run,
    channel: Channel,
    left: Callable[[BaseException | None], str | None] = lambda error: None,
) -> Session | None:
    """Let `function` train one trial, and report the end of it, Done or Error. Return the session, which can still `save`, unless it failed.

    Where the checkpoint to begin with is not as it was made, the end is Lost, and `function` is not called. `left` says, at the end, why
    no other trial may begin in this process.
    """
    if run.restore is not None and (wrong := damage(run.restore)) is not None:
        channel.send(Lost(run.job, _line(wrong)))
        return None
    session = Session(run, channel)
    start = _log_size()
    began = monotonic()
    try:
        try:
            result = function(Trial(session))
        except TrialEnded:
            result = None
        except BaseException:
            with suppress(Exception):  # the trial's own error comes first
                session.finish()
            raise
        session.finish()
        busy = monotonic() - began - session.away
        reports = _reports(result, session)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the driver hears of it, whatever it is
        busy = monotonic() - began - session.away
        channel.send(error_frame(run.job, error, busy, start, left(error)))
        return None
    worn = left(None)
    flush()
    done = Done(run.job, session.ended, session.tracked.saveable, busy, (start, _log_size()), worn)
    channel.send(*reports, done)  # both at once wake the driver once
    return session


def save_ended(session: Session | None, frame: Save, channel: Channel) -> None:
    """Save a trial that has ended, if it is the one that is still at hand."""
    if session is None or session.run.job != frame.job:
        return
    try:
        session.save()
    except Exception as error:  # noqa: BLE001 - of a state_dict or an on_save of the user's
        channel.send(NotSaved(frame.job, error_frame(frame.job, error).error))


def error_frame(job: int, error: BaseException, busy: float = 0.0, start: int = 0, worn: str | None = None) -> Error:
    """The frame about an exception of user code; its traceback goes to the log as well. Both are bounded, whatever the exception holds."""
    import traceback  # it costs more than all else here; most workers never need it

    lines = traceback.TracebackException.from_exception(error)
    message = _line(str(lines))
    del lines.stack[:1]  # our own call of user code
    # Each part by itself, so that a message of a gigabyte leaves room for the frames before it.
    text = _text("".join(part[:MESSAGE] for part in lines.format())[-TRACEBACK:])
    try:
        sys.stderr.write(text)
    except (AttributeError, OSError, ValueError):  # as in `flush`
        pass
    flush()
    kind = type(error).__name__
    disk = isinstance(error, DiskError) or disk_fault(error, FULL) is not None
    line = _line(f"{kind}: {message}" if message else kind)
    return Error(job, line, text, busy, (start, _log_size()), worn, disk, is_out_of_memory(error))


def _reports(result: object, session: Session) -> list[Report]:
    """What a trainable returned, a number or a dict of metrics, counts as a report."""
    if result is None:
        return []
    if not (isinstance(result, dict) or hasattr(result, "__float__")):
        raise InvalidArgument(f"a trainable returns a number, a dict of metrics or None, got {type(result).__name__}")
    if session.reported:
        raise InvalidArgument(
            f"a trainable either reports or returns its result; this one reported up to step {session.step} and returned {result!r}"
        )
    metric = session.run.metric
    metrics = dict(result) if isinstance(result, dict) else {metric: result}
    values = measurements(metrics, metric)
    session.step += 1
    return [Report(session.run.job, session.step, values)]


def _line(text: str) -> str:
    """`text` in one line of at most `LINE` characters."""
    return _text(" ".join(text[: 10 * LINE].split())[:LINE])


def _text(text: str) -> str:
    """`text` without lone surrogates, which file names may bring in and UTF-8 has no form for."""
    return text.encode("utf-8", "backslashreplace").decode()


def _log_size() -> int:
    """How long the log is that stdout goes to."""
    try:
        return os.fstat(1).st_size
    except OSError:  # closed by user code
        return 0
