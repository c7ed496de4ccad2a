"""Reader: the records of a journal, which may grow meanwhile."""

import contextlib
import os
import shlex
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from asynctune.errors import JournalError
from asynctune.journal.line import MAX_LINE, VERSION, decode, is_intact
from asynctune.records import Header, Record
from asynctune.rundir import open_regular

__all__ = ["Follower", "lines", "read", "records_at", "scan"]

PORTION = 2**16  # bytes of the file, about, that a follower takes at a time

_BEGIN = b'{"n":0,"t":"header"'  # of every journal


def lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines from here on; one that is too long comes in pieces, none of which is intact."""
    return iter(partial(file.readline, MAX_LINE), b"")


def _record(path: Path | str, offset: int, line: bytes) -> Record:
    try:
        return decode(line)
    except (ValueError, RecursionError) as error:
        # It may quote what the line holds, and will be shown in a terminal.
        raise _damage(path, offset, str(error).encode("unicode_escape").decode()) from None


def _damage(path: Path | str, offset: int, why: str) -> JournalError:
    run_dir = shlex.quote(os.path.dirname(os.path.abspath(path)))
    advice = f"`python -m asynctune repair {run_dir}` keeps what comes before it" if offset else "nothing can be kept"
    return JournalError(f"{path}: no record at byte {offset}: {why}; {advice}")


class Follower:
    """A reader of a journal that may grow meanwhile. It takes no lock.

    Args:
        path: the journal.
        offset, number: the byte at which the record begins that is read next, and its number.
    """

    def __init__(self, path: Path | str, offset: int = 0, number: int = 0) -> None:
        self.path = path
        self.offset = offset
        self.number = number

    def read(self) -> list[Record]:
        """The records that are new since the last call, in order, some 64 KiB of them at most; [] when there are none.

        Raises `JournalError` as `scan` does.
        """
        enough = self.offset + PORTION
        records = []
        for _, record in self.scan():
            records.append(record)
            if self.offset >= enough:
                break
        return records

    def scan(self) -> Iterator[tuple[int, Record]]:
        """All records from here on, each with the byte offset of its line. Raises `JournalError` as the function `scan` does."""
        try:
            with open(open_regular(self.path, os.O_RDONLY), "rb", buffering=PORTION) as file:
                file.seek(self.offset)
                for line in lines(file):
                    if not is_intact(line):
                        self._check_tail(line, file)
                        return
                    if not line.startswith(b'{"n":%d,' % self.number):
                        raise _damage(self.path, self.offset, f"out of turn, number {self.number} was due")
                    record = self._header(line) if self.number == 0 else _record(self.path, self.offset, line)
                    begin = self.offset
                    self.offset += len(line)
                    self.number += 1
                    yield begin, record
        except OSError as error:
            raise JournalError(f"cannot read {self.path}: {error.strerror or error}") from error

    def _header(self, line: bytes) -> Header:
        with contextlib.suppress(ValueError, RecursionError):
            version = _head.decode(line).version  # of a later one, nothing else may be as it is here
            if version != VERSION:
                raise JournalError(f"{self.path}: version must be {VERSION}, got {version!r:.100}")
        record = _record(self.path, self.offset, line)
        if not isinstance(record, Header):
            raise JournalError(f"{self.path}: not a journal, its first record is {record.kind!r}")
        return record

    def _check_tail(self, line: bytes, file: BinaryIO) -> None:
        """Raise `JournalError` unless all from the bad `line` on is a torn tail."""
        # A line without its end was the last one when it was read; what follows by now was written since.
        if line.endswith(b"\n") or len(line) == MAX_LINE:
            glued = line.rfind(b'{"n":%d,"t":' % (self.number + 1))  # if the damage hit the newline between them
            if (glued >= 0 and is_intact(line[glued:])) or any(map(is_intact, lines(file))):
                raise _damage(self.path, self.offset, "damaged, with intact records behind")
        if self.offset == 0:
            begun = line[: len(_BEGIN)].partition(b"\0")[0]
            if not _BEGIN.startswith(begun):
                raise JournalError(f"{self.path}: not a journal")


class _Head(msgspec.Struct):
    version: Any = VERSION


_head = msgspec.json.Decoder(_Head)


def scan(path: Path | str) -> Iterator[tuple[int, Record]]:
    """The journal's records, each with the byte offset of its line.

    A torn tail, which may be a line that is being written, is left out. Raises `JournalError` for anything else that is
    not a journal of this version, naming the file and the byte.
    """
    return Follower(path).scan()


def read(path: Path | str) -> Iterator[Record]:
    """The journal's records, the `Header` first. Raises `JournalError` as `scan` does."""
    return (record for _, record in scan(path))


def records_at(path: Path | str, offsets: Iterable[int]) -> Iterator[Record]:
    """The journal's records whose lines begin at these bytes. Raises `JournalError`, naming the byte, where none does."""
    try:
        with open(open_regular(path, os.O_RDONLY), "rb") as file:
            for offset in offsets:
                file.seek(offset)
                line = file.readline(MAX_LINE)
                if not is_intact(line):
                    raise _damage(path, offset, "damaged")
                yield _record(path, offset, line)
    except OSError as error:
        raise JournalError(f"cannot read {path}: {error.strerror or error}") from error
