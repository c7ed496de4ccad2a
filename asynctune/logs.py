"""Logs: what workers print. Each slot has a file, which its processes append to by themselves; here it is kept small, and read back.

Of what one start of a trial prints `CAP` bytes are kept, the first half and the last half. What is between them goes back to the
file system and leaves a hole, so that all else stays at the place that the journal names.
"""

import os
import stat
from pathlib import Path

from asynctune.errors import InvalidArgument

__all__ = ["CAP", "cap", "note", "read"]

CAP = 64 * 2**20  # bytes

_LEAST = 4096  # bytes of a hole: a smaller one frees nothing, and has no room for the line
_KEEP_SIZE, _PUNCH_HOLE = 0x01, 0x02  # modes of fallocate(2)


def cap(path: Path, first: int, last: int | None = None, *, cap: int = CAP) -> None:
    """Of the bytes from `first` up to `last` (default: the file's end), keep the first and the last `cap // 2`.

    A line where the hole begins says how many bytes went. To be called again while the file grows, in a thread: a gigabyte may take
    0.3 s; with nothing to do it is one system call. Raises nothing: where a file system has no holes all stays, and a log is no
    reason to end a run.
    """
    try:
        if last is None:
            last = os.lstat(path).st_size
        begin, end = first + cap // 2, last - cap // 2
        if end - begin < _LEAST:
            return
        descriptor = os.open(
            path, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK
        )  # not O_APPEND, with which pwrite appends
        try:
            line = _dropped(end - begin)
            if _punch(descriptor, begin + len(line), end):
                os.pwrite(descriptor, line, begin)
        finally:
            os.close(descriptor)
    except OSError:
        pass


def note(path: Path, text: str) -> None:
    """Add a line of our own. Raises nothing: a log is no reason to end a run."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            os.write(descriptor, f"asynctune: {text}\n".encode("utf-8", "backslashreplace"))
        finally:
            os.close(descriptor)
    except OSError:
        pass


def read(path: Path, first: int, last: int, *, cap: int = CAP) -> bytes:
    """What was printed from byte `first` up to `last`; of more than `cap` bytes the two halves, and between them the line about the rest.

    b"" if there is no such file. Bytes that are 0 are left out: that is how a hole reads.

    Raises:
        InvalidArgument: it is a link, or else no regular file.
        OSError: it cannot be read.
    """
    if path.is_symlink():
        raise InvalidArgument(f"a run directory must hold no symbolic links, got {str(path)!r}")
    try:
        # Not blocking: a pipe without another end would be waited for.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return b""
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise InvalidArgument(f"a log must be a regular file, got {str(path)!r}")
        last = min(max(last, 0), status.st_size)  # they come from a journal
        first = min(max(first, 0), last)
        dropped = last - first - cap
        file.seek(first)
        text = file.read(last - first if dropped <= 0 else cap // 2)
        if dropped > 0:
            file.seek(last - cap // 2)
            text += _dropped(dropped) + file.read(cap // 2)
        return text.replace(b"\0", b"")


def _dropped(count: int) -> bytes:
    return f"\n… {count:,} bytes dropped …\n".encode()


def _punch(descriptor: int, begin: int, end: int) -> bool:
    """Make the bytes from `begin` up to `end` a hole. Return whether the file system does that."""
    import ctypes

    try:
        fallocate = ctypes.CDLL(None, use_errno=True).fallocate
    except AttributeError:  # not Linux
        return False
    fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    return bool(fallocate(descriptor, _KEEP_SIZE | _PUNCH_HOLE, begin, end - begin) == 0)
