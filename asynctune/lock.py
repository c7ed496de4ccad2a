"""Lock: who has a run directory. A file beside the journal, locked with flock, in which the owner's process stands."""

import contextlib
import fcntl
import os
import re
import threading
import time
from pathlib import Path

from asynctune.errors import InvalidArgument
from asynctune.rundir import LOCK, open_regular

__all__ = ["PATIENCE", "acquire", "release"]

PATIENCE = 5.0  # seconds for what is left of a killed driver to end, and with it the lock

_OWNER = re.compile(rb"([1-9]\d{0,8}) ([!-~]{1,255})\n")  # as the lock file has it: process and host


def acquire(directory: Path, given_up: threading.Event) -> int:
    """The descriptor of a run directory's lock, which is ours until nobody has that descriptor open any more.

    Raises:
        InvalidArgument: another process has it, and lives; or what is left of that process has not let go after `PATIENCE`.
    """
    # It stays when a run is over: who removes a lock file may remove it under the hands of the next one.
    descriptor = open_regular(directory / LOCK, os.O_RDWR | os.O_CREAT)
    try:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                owner = _OWNER.fullmatch(os.pread(descriptor, 300, 0))
                alive = owner is not None and _lives(int(owner[1]), owner[2].decode())
                if alive or time.monotonic() > deadline or given_up.wait(0.02):
                    by = "" if owner is None else f" by process {int(owner[1])} on {owner[2].decode()}"
                    ended = "" if owner is None or alive else ", which has ended, but not all that it started"
                    raise InvalidArgument(f"run_dir is in use{by}{ended}, got {str(directory)!r}") from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()} {os.uname().nodename}\n".encode(), 0)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def release(descriptor: int) -> None:
    """Let go of a lock that `acquire` returned. A process that it was handed to may hold it for longer."""
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)  # who has it open still is not this process
    os.close(descriptor)


def _lives(process: int, host: str) -> bool:
    """Whether a process lives, as far as can be known here."""
    if host != os.uname().nodename:
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
