"""Errors: what can go wrong, in the words of the person who meets it; and the checks that many arguments share.

Everything that asynctune raises on purpose is an `AsynctuneError`. A wrong argument is also a
`ValueError`, so that code which knows nothing of asynctune can catch it.
"""

import numbers

__all__ = [
    "AsynctuneError",
    "InvalidArgument",
    "JournalError",
    "ProtocolError",
    "RunFailed",
    "TrialEnded",
    "WorkerDied",
    "check_integer",
    "check_real",
]


class AsynctuneError(Exception):
    """Base of every error that asynctune raises on purpose."""


class InvalidArgument(AsynctuneError, ValueError):
    """An argument breaks a rule; the message names the rule and the value."""


class RunFailed(AsynctuneError):
    """The run cannot go on: workers do not start, or the first trials all fail in the same way."""


class WorkerDied(AsynctuneError):
    """A worker process ended without finishing its trial; the message says how it ended."""


class ProtocolError(AsynctuneError):
    """Driver and worker disagree on a frame; a bug in asynctune or a stray writer on its socket."""


class JournalError(AsynctuneError):
    """The journal of a run cannot be written or read; the message names the file and the place."""


class TrialEnded(BaseException):
    """Raised inside user code, by `Trial.report`, when the trial must end outside `Trial.steps`.

    A `BaseException`, as `asyncio.CancelledError` is: an `except Exception` in a training loop must
    not swallow the decision to stop.
    """


def check_integer(name: str, value: object, at_least: int) -> None:
    """Raise `InvalidArgument` unless `value` is an integer >= `at_least`."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < at_least:
        raise InvalidArgument(f"{name} must be an integer >= {at_least}, got {value!r}")


def check_real(name: str, value: object, low: float, high: float) -> None:
    """Raise `InvalidArgument` unless `value` is a number in [low, high]."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool) or not low <= float(value) <= high:
        raise InvalidArgument(f"{name} must be a number in [{low}, {high}], got {value!r}")
