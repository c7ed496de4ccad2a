"""Tail: what lies behind a journal's last good record. It is set aside, never removed."""

import contextlib
import itertools
import os
import shutil
import threading
import time
from collections import deque
from pathlib import Path
from typing import NamedTuple

from asynctune import lock
from asynctune.errors import JournalError
from asynctune.journal.line import is_intact
from asynctune.journal.reader import Follower, lines
from asynctune.journal.sync import sync_directory
from asynctune.rundir import check_no_links, open_regular

__all__ = ["Repaired", "repair", "set_aside"]


def set_aside(path: Path, descriptor: int, offset: int, what: str) -> Path:
    """Move all from `offset` on out of a journal into a new file beside it; return that. Both are on disk then."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    for number in itertools.count(1):
        aside = path.with_name(f"{path.stem}.{what}-{stamp}{f'-{number}' if number > 1 else ''}")
        with contextlib.suppress(FileExistsError):
            target = open_regular(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            break
    try:
        with open(target, "wb") as copy, open(open_regular(path, os.O_RDONLY), "rb") as source:
            source.seek(offset)
            shutil.copyfileobj(source, copy)
            copy.flush()
            os.fsync(copy.fileno())
        sync_directory(path.parent)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    os.ftruncate(descriptor, offset)
    os.fsync(descriptor)
    return aside


class Repaired(NamedTuple):
    """What `repair` did."""

    kept: int  # records
    offset: int  # of the first byte that is lost
    size: int  # bytes that are lost; 0: there was nothing to repair
    intact: int  # records among them that were intact, but behind the damage
    aside: Path | None  # where they are now


def repair(path: Path | str) -> Repaired:
    """Cut a journal before its first damage, and set all from there on aside in `journal.damaged-` and the time, beside it.

    Raises:
        InvalidArgument: the run is in use.
        JournalError: there is no journal, or nothing of it can be kept; it is left as it is.
    """
    path = Path(path)
    try:
        os.stat(path)  # no run, no lock
        check_no_links(path.parent)
        held = lock.acquire(path.parent, threading.Event())
        try:
            return _repair(path)
        finally:
            lock.release(held)
    except OSError as error:
        raise JournalError(f"cannot repair {path}: {error.strerror or error}") from error


def _repair(path: Path) -> Repaired:
    reader = Follower(path)
    try:
        deque(reader.scan(), maxlen=0)
    except JournalError:
        if reader.number == 0:
            raise
    kept, offset = reader.number, reader.offset
    with open(open_regular(path, os.O_RDWR), "rb") as file:
        size = os.fstat(file.fileno()).st_size - offset
        if size == 0:
            return Repaired(kept, offset, 0, 0, None)
        file.seek(offset)
        intact = sum(map(is_intact, lines(file)))
        return Repaired(kept, offset, size, intact, set_aside(path, file.fileno(), offset, "damaged"))
