"""Errors: what can go wrong, in the words of the person who meets it; and the checks that many arguments share.

Everything that asynctune raises on purpose is an `AsynctuneError`. A wrong argument is also a
`ValueError`, so that code which knows nothing of asynctune can catch it.
"""

import math
import numbers
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = [
    "AsynctuneError",
    "InvalidArgument",
    "JournalError",
    "ProtocolError",
    "RunFailed",
    "TrialEnded",
    "WorkerDied",
    "check_factor",
    "check_integer",
    "check_metric",
    "check_mode",
    "check_real",
    "check_seconds",
    "named",
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


def check_integer(name: str, value: object, at_least: int, at_most: int | None = None) -> int:
    """`value` as an int. Raises `InvalidArgument` unless it is an integer in at_least..at_most."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or int(value) < at_least:
        raise InvalidArgument(f"{name} must be an integer >= {at_least}, got {value!r}")
    if at_most is not None and int(value) > at_most:
        raise InvalidArgument(f"{name} must be an integer <= {at_most}, got {value!r}")
    return int(value)


def check_real(name: str, value: object, low: float, high: float) -> float:
    """`value` as a float. Raises `InvalidArgument` unless it is a number in [low, high]."""
    number = _as_float(value)
    if not low <= number <= high:
        raise InvalidArgument(f"{name} must be a number in [{low}, {high}], got {value!r}")
    return number


def check_metric(metric: object) -> None:
    """Raise `InvalidArgument` unless it can be the name of a metric."""
    if not isinstance(metric, str) or not metric:
        raise InvalidArgument(f"metric must be the name of a reported metric, got {metric!r}")


def check_seconds(name: str, value: object) -> None:
    """Raise `InvalidArgument` unless it is a positive and finite number."""
    if not isinstance(value, int | float) or not 0 < value < math.inf:
        raise InvalidArgument(f"{name} must be a positive number of seconds, got {value!r}")


@contextmanager
def named(argument: str) -> Iterator[None]:
    """An `InvalidArgument` says which one of many it is about."""
    try:
        yield
    except InvalidArgument as error:
        raise InvalidArgument(f"{argument}: {error}") from None


def check_factor(value: object) -> float:
    """A `perturbation_factor` as a float. Raises `InvalidArgument` unless it is > 1 and finite."""
    number = _as_float(value)
    if not 1 < number < math.inf:
        raise InvalidArgument(f"perturbation_factor must be > 1 and finite, got {value!r}")
    return number


def check_mode(mode: object) -> None:
    """Raise `InvalidArgument` unless `mode` is "min" or "max"."""
    if mode not in ("min", "max"):
        raise InvalidArgument(f"mode must be 'min' or 'max', got {mode!r}")


def _as_float(value: object) -> float:
    """A real number as a float; NaN for anything else, and for what no float can hold."""
    try:
        return float(value) if isinstance(value, numbers.Real) and not isinstance(value, bool) else math.nan
    except OverflowError:
        return math.nan
