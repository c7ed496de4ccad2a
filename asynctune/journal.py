"""Journal: the run on disk, and the only writer of it.

A run directory holds one append-only `journal.jsonl`: the list of the run's records, one JSON object per line, the
`Header` first. Each line begins with its number and ends with the CRC-32 of all before it:

    {"n":17,"t":"reported",...,"c":"9f3a12bc"}

`append` only encodes and queues; one writer task puts all that is queued into one write (group commit). A journal that
cannot be written ends the run: nothing happens that is not recorded.

What a crash leaves is a torn tail: bytes at the end with no intact line behind them. Readers leave it out, and a resumed run
sets it aside before it appends. An intact line behind a bad one, or out of its turn, is damage, which no crash brings
about: it is refused, until `repair` has set aside all from there on.

JSON has no NaN and no infinities. In metrics, which hold nothing but numbers, they are written as the strings
"nan", "inf" and "-inf"; in a configuration, which may hold any string, as {"$float": "nan"} and so on. Both read
back as the floats that they were.
"""

import asyncio
import contextlib
import errno
import io
import itertools
import math
import os
import shlex
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal, NamedTuple, Self, TypeVar
from zlib import crc32

import msgspec
from aiofiles.threadpool import wrap

from asynctune import lock
from asynctune.errors import AsynctuneError, InvalidArgument, JournalError
from asynctune.records import (
    Decided,
    Failed,
    Finished,
    Header,
    Left,
    Lost,
    Record,
    Reopened,
    Reported,
    Saved,
    Started,
    Stopping,
    Suggested,
)
from asynctune.rundir import check_no_links, open_regular

__all__ = [
    "MAX_LINE",
    "VERSION",
    "Follower",
    "Journal",
    "Repaired",
    "decode",
    "encode",
    "read",
    "records_at",
    "repair",
    "scan",
    "write",
]

T = TypeVar("T")

VERSION = 1  # of the format, as Header.version has it
MAX_LINE = 2**26  # bytes; what a reader holds in memory, whatever the file holds

GATHER = 0.002  # seconds from a record's arrival to the write that takes it along with all that came since
BACKLOG = 10_000  # records that may wait for their write; some 2 MB
PORTION = 2**16  # bytes of the file, about, that a follower takes at a time

_BEGIN = b'{"n":0,"t":"header"'  # of every journal
_END = len(b',"c":"9f3a12bc"}\n')


AnyRecord = (
    Header | Reopened | Suggested | Started | Reported | Saved | Decided | Left | Lost | Failed | Finished | Stopping
)


def _plain(value: Any) -> Any:
    """A NumPy scalar as the Python number that it holds; nothing else is foreign to JSON and yet welcome."""
    if hasattr(value, "dtype") and value.ndim == 0:
        return value.item()
    raise InvalidArgument(f"a configuration must hold numbers, strings, booleans, None, lists and dicts, got {value!r}")


_encode = msgspec.json.Encoder(enc_hook=_plain).encode
_decoder: msgspec.json.Decoder[AnyRecord] = msgspec.json.Decoder(
    AnyRecord,
    strict=False,  # "nan" is a float where a float is due
)


def _tagged(value: Any) -> Any:
    match value:
        case float() if not math.isfinite(value):
            return {"$float": str(float(value))}
        case dict():
            return {key: _tagged(inner) for key, inner in value.items()}
        case list() | tuple():
            return [_tagged(inner) for inner in value]
    return value


def _untagged(value: Any) -> Any:
    match value:
        case {"$float": str(text)}:
            return float(text)
        case dict():
            return {key: _untagged(inner) for key, inner in value.items()}
        case list():
            return [_untagged(inner) for inner in value]
    return value


def encode(record: Record, number: int) -> bytes:
    """A record as the line of that number (the `Header`'s is 0).

    Raises:
        InvalidArgument: it holds what JSON cannot hold, or takes more than `MAX_LINE` bytes.
    """
    try:
        body = _encode(record)
        # "null" is how msgspec writes NaN and infinities, among other things. Not `in` and `match`, which take as long as the encoding.
        if body.find(b"null") >= 0:
            if type(record) is Reported:
                spelled: Any = {
                    name: value if math.isfinite(value) else str(float(value)) for name, value in record.metrics.items()
                }
                body = _encode(msgspec.structs.replace(record, metrics=spelled))
            elif (type(record) is Suggested or type(record) is Started) and record.config is not None:
                body = _encode(msgspec.structs.replace(record, config=_tagged(record.config)))
    except InvalidArgument:
        raise
    except (ValueError, RecursionError) as error:  # lone surrogates; a list that holds itself
        raise InvalidArgument(f"a record must be what JSON can hold: {error}") from None
    begun = b'{"n":%d,' % number + body[1:-1]
    if len(begun) > MAX_LINE - _END:
        raise InvalidArgument(f"a record must take at most {MAX_LINE} bytes in the journal, got {len(begun) + _END}")
    return b'%b,"c":"%08x"}\n' % (begun, crc32(begun))


def decode(line: bytes) -> Record:
    """The record of a line, whose number and CRC are not looked at.

    Raises `ValueError` (`msgspec.DecodeError` is one) or `RecursionError` for anything else.
    """
    record = _decoder.decode(line)
    # Not `isinstance` and `in`, as above.
    if (type(record) is Suggested or type(record) is Started) and line.find(b'"$float"') >= 0:
        record = msgspec.structs.replace(record, config=_untagged(record.config))
    return record


def _intact(line: bytes) -> bool:
    """Whether a line is what was once written, as its CRC has it."""
    return line[-_END:] == b',"c":"%08x"}\n' % crc32(line[:-_END])


def _lines(file: BinaryIO) -> Iterator[bytes]:
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
                for line in _lines(file):
                    if not _intact(line):
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
            if (glued >= 0 and _intact(line[glued:])) or any(map(_intact, _lines(file))):
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
                if not _intact(line):
                    raise _damage(path, offset, "damaged")
                yield _record(path, offset, line)
    except OSError as error:
        raise JournalError(f"cannot read {path}: {error.strerror or error}") from error


def write(path: Path | str, records: Iterable[Record]) -> None:
    """Write a whole journal, whose records nothing waits for: a simulation's. The directory is made if it is missing (mode 0700).

    Raises:
        InvalidArgument: there is one already, or another process has the directory.
        JournalError: the file cannot be written.
    """
    path = Path(path)
    directory = path.parent
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        check_no_links(directory)
        held = lock.acquire(directory, threading.Event())
        try:
            with open(open_regular(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb", buffering=PORTION) as file:
                file.writelines(encode(record, number) for number, record in enumerate(records))
        finally:
            lock.release(held)
    except FileExistsError:
        raise InvalidArgument(f"run_dir must not hold a run already, got {str(directory)!r}") from None
    except OSError as error:
        raise JournalError(f"cannot write {path}: {error.strerror or error}") from error


class Journal:
    """The journal of a run, open for writing: `async with Journal(run_dir / JOURNAL) as journal`.

    The directory is made if it is missing (mode 0700), and so is the file (mode 0600). One process at a time has it: the
    lock beside it is held until the block ends, and by whom `lock` was handed to. When a write fails, the task that entered
    the block is cancelled, and the block ends with the `JournalError`, whatever else was under way.

    Args:
        path: the file.
        resume: False: there must be none yet; True: there must be one, which goes on; "auto": as it is.
        durability: what is written has left this process, and outlives it ("process"), or is on the disk, and outlives the
            machine ("power").

    Attributes:
        lock: the descriptor of the lock file, while the block lasts.
        empty: there is no record yet; before `replay`, no byte.

    Raises (on entry):
        InvalidArgument: an argument breaks its rule, or another process has the directory.
        JournalError: the file cannot be opened.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        resume: bool | Literal["auto"] = False,
        durability: Literal["process", "power"] = "process",
    ) -> None:
        if resume not in (False, True, "auto"):
            raise InvalidArgument(f"resume must be False, True or 'auto', got {resume!r}")
        if durability not in ("process", "power"):
            raise InvalidArgument(f"durability must be 'process' or 'power', got {durability!r}")
        self.path = Path(path)
        self.lock = -1
        self.empty = True
        self._resume = resume
        self._durable = durability == "power"
        self._made = False  # the file is ours
        self._replayed = False  # or there was nothing to replay
        self._raw: io.FileIO | None = None
        self._size = 0  # bytes that the file has once all is written that was appended so far
        self._number = 0  # of the next line
        self._lines: list[bytes] = []
        self._calls: list[Callable[[], object]] = []
        self._wake = asyncio.Event()
        self._given_up = threading.Event()  # what the thread is at; nobody waits for it any more
        self._closing = False
        self._error: JournalError | None = None

    def append(self, record: Record) -> None:
        """Queue `record` for the next write, due within 5 ms.

        Raises:
            JournalError: the journal has failed or is closed.
            InvalidArgument: the record cannot be encoded.
            AsynctuneError: what it holds already was not replayed.
        """
        if self._closing:
            raise self._error or JournalError(f"{self.path} is closed")
        if not self._replayed:
            raise AsynctuneError(f"{self.path} holds records: replay comes before append")
        line = encode(record, self._number)
        self._lines.append(line)
        self._number += 1
        self._size += len(line)
        self.empty = False
        self._wake.set()

    @property
    def behind(self) -> bool:
        """Whether more waits for its write than should lie in memory: who appends had better wait (`when_written`)."""
        return len(self._lines) >= BACKLOG

    def when_written(self, call: Callable[[], object]) -> None:
        """Call when all that was appended so far is written, and with "power" on the disk; on the loop, right after that."""
        self._calls.append(call)
        self._wake.set()

    def follow(self) -> Follower:
        """A reader of what is appended from here on."""
        return Follower(self.path, self._size, self._number)

    async def written(self) -> None:
        """Wait until all that was appended so far is written, or never will be."""
        if not self._closing:
            written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self.when_written(lambda: written.set_result(None))
            await asyncio.wait([written, self._writer], return_when=asyncio.FIRST_COMPLETED)

    async def replay(self, take: Callable[[Record], object]) -> None:
        """Call `take` with each record there is, in the journal's own thread; then set a torn tail aside.

        The tail is copied to `journal.torn-` and the time beside the journal, which is cut behind its last record. What
        `take` raises goes through.

        Raises:
            JournalError: the journal is damaged, and left as it is; or the tail cannot be set aside.
        """
        await self._settled(asyncio.get_running_loop().run_in_executor(self._thread, self._replay, take))

    def _replay(self, take: Callable[[Record], object]) -> None:
        reader = Follower(self.path)
        for _, record in reader.scan():
            if self._given_up.is_set():
                return
            take(record)
        assert self._raw is not None
        try:
            if os.fstat(self._raw.fileno()).st_size > reader.offset:
                _set_aside(self.path, self._raw.fileno(), reader.offset, "torn")
        except OSError as error:
            raise JournalError(f"cannot set aside the torn tail of {self.path}: {error.strerror or error}") from error
        self._number, self._size = reader.number, reader.offset
        self.empty = reader.number == 0
        self._replayed = True

    async def __aenter__(self) -> Self:
        # A thread of its own: in the loop's shared executor, calls of the user's could starve the journal.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="asynctune-journal")
        loop = asyncio.get_running_loop()
        try:
            raw = await self._settled(loop.run_in_executor(self._thread, self._open))
        except BaseException as error:
            self._thread.shutdown(wait=False)
            with contextlib.suppress(OSError):
                if self._raw is not None:
                    self._raw.close()
                if self._made:
                    self.path.unlink()
            self._release()
            if isinstance(error, OSError):
                raise JournalError(f"cannot open {self.path}: {error.strerror or error}") from error
            raise
        self._file = wrap(raw, loop=loop, executor=self._thread)
        owner = asyncio.current_task()
        assert owner is not None
        self._owner = owner
        self._writer = asyncio.create_task(self._write(), name="asynctune-journal")
        return self

    def _open(self) -> io.FileIO:
        directory = self.path.parent
        if self._resume is True and not self.path.exists():
            raise InvalidArgument(f"run_dir must hold a run to resume, {str(self.path)!r} is missing")
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        check_no_links(directory)
        self.lock = lock.acquire(directory, self._given_up)
        flags = os.O_WRONLY | os.O_APPEND
        try:
            descriptor = open_regular(self.path, flags | os.O_CREAT | os.O_EXCL)
            self._made = True
        except FileExistsError:
            if not self._resume:
                raise InvalidArgument(
                    f"run_dir must not hold a run already, got {str(directory)!r}; resume=True goes on with it"
                ) from None
            descriptor = open_regular(self.path, flags)
        self._raw = io.FileIO(descriptor, "a")
        if self._made and self._durable:
            for parent in (directory, directory.parent):
                _sync_directory(parent)
        self.empty = self._replayed = os.fstat(descriptor).st_size == 0
        return self._raw

    async def _settled(self, work: asyncio.Future[T]) -> T:
        """What the thread made of it. Cancelled, it waits until the thread is through, which gives up soon."""
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            self._given_up.set()
            while not work.done():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait([work])
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._closing:  # by the writer, which failed and has cancelled this block
            self._owner.uncancel()
        self._closing = True
        self._wake.set()
        # Shielded: a second cancellation must not keep the last records from the disk.
        await asyncio.shield(self._writer)
        if self._error is not None:
            raise self._error from error

    async def _write(self) -> None:
        try:
            try:
                while self._lines or self._calls or not self._closing:
                    # Cancelled with all tasks of a loop that is torn down: the owner's block still ends, and closes.
                    with contextlib.suppress(asyncio.CancelledError):
                        await self._wake.wait()
                        if not self._closing:
                            await asyncio.sleep(GATHER)
                    self._wake.clear()
                    lines, self._lines = self._lines, []
                    calls, self._calls = self._calls, []
                    if lines:
                        await self._put(b"".join(lines))
                    for call in calls:
                        call()
            finally:
                await self._file.close()
        except OSError as error:
            # The end: after an fsync that failed, the next one may succeed without having written anything.
            self._error = JournalError(f"cannot write {self.path}: {error.strerror or error}")
            if not self._closing:
                self._closing = True
                self._owner.cancel()
        finally:
            self._thread.shutdown(wait=False)
            self._release()

    async def _put(self, data: bytes) -> None:
        while data:  # a full disk shows as a short write first, and as an error only then
            data = data[await self._file.write(data) :]
        if os.fstat(self._file.fileno()).st_nlink == 0:  # the run directory, most likely: nobody will ever read this
            raise FileNotFoundError(errno.ENOENT, "it was removed")
        if self._durable:
            await asyncio.get_running_loop().run_in_executor(self._thread, _sync_data, self._file.fileno())

    def _release(self) -> None:
        if self.lock >= 0:
            lock.release(self.lock)
            self.lock = -1


def _sync_data(descriptor: int) -> None:
    (os.fdatasync if hasattr(os, "fdatasync") else os.fsync)(descriptor)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _set_aside(path: Path, descriptor: int, offset: int, what: str) -> Path:
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
        _sync_directory(path.parent)
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
        intact = sum(map(_intact, _lines(file)))
        return Repaired(kept, offset, size, intact, _set_aside(path, file.fileno(), offset, "damaged"))
