"""Journal: the run on disk, and the only writer of it.

A run directory holds one append-only `journal.jsonl`: the list of the run's records, one JSON object per line,
the `Header` first. `append` only encodes and queues; one writer task puts all that is queued into one write
(group commit). A journal that cannot be written ends the run: nothing happens that is not recorded.

JSON has no NaN and no infinities. In metrics, which hold nothing but numbers, they are written as the strings
"nan", "inf" and "-inf"; in a configuration, which may hold any string, as {"$float": "nan"} and so on. Both read
back as the floats that they were.
"""

import asyncio
import contextlib
import math
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiofiles
import msgspec

from asynctune.errors import InvalidArgument, JournalError
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

__all__ = [
    "VERSION",
    "Journal",
    "decode",
    "encode",
    "read",
    "records_at",
    "scan",
]

VERSION = 1  # of the format, as Header.version has it

GATHER = 0.002  # seconds from a record's arrival to the write that takes it along with all that came since
BACKLOG = 10_000  # records that may wait for their write; some 2 MB


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


def encode(record: Record) -> bytes:
    """A record as one line of the journal.

    Raises `InvalidArgument` for a configuration that JSON cannot hold.
    """
    line = _encode(record)
    # "null" is how msgspec writes NaN and infinities, among other things. Not `in` and `match`, which take as long as the encoding.
    if line.find(b"null") >= 0:
        if type(record) is Reported:
            spelled: Any = {
                name: value if math.isfinite(value) else str(float(value)) for name, value in record.metrics.items()
            }
            line = _encode(msgspec.structs.replace(record, metrics=spelled))
        elif (type(record) is Suggested or type(record) is Started) and record.config is not None:
            line = _encode(msgspec.structs.replace(record, config=_tagged(record.config)))
    return line + b"\n"


def decode(line: bytes) -> Record:
    """The record of a line. Raises `msgspec.DecodeError` for anything else."""
    record = _decoder.decode(line)
    # Not `isinstance` and `in`, as above.
    if (type(record) is Suggested or type(record) is Started) and line.find(b'"$float"') >= 0:
        record = msgspec.structs.replace(record, config=_untagged(record.config))
    return record


class Journal:
    """The journal of a new run, open for writing: `async with Journal(run_dir / JOURNAL) as journal`.

    The directory is made if it is missing (mode 0700), the file is new (mode 0600). When a write fails, the task
    that entered the block is cancelled, and the block ends with the `JournalError`, whatever else was under way.

    Raises `InvalidArgument` on entry if the directory holds a journal already, `JournalError` if none can be made.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._lines: list[bytes] = []
        self._calls: list[Callable[[], object]] = []
        self._wake = asyncio.Event()
        self._closing = False
        self._error: JournalError | None = None

    def append(self, record: Record) -> None:
        """Queue `record` for the next write, due within 5 ms.

        Raises `JournalError` if the journal has failed or is closed, and `InvalidArgument` for a configuration that JSON cannot hold.
        """
        if self._closing:
            raise self._error or JournalError(f"{self.path} is closed")
        self._lines.append(encode(record))
        self._wake.set()

    @property
    def behind(self) -> bool:
        """Whether more waits for its write than should lie in memory: who appends had better wait (`when_written`)."""
        return len(self._lines) >= BACKLOG

    def when_written(self, call: Callable[[], object]) -> None:
        """Call when all that was appended so far is written; on the loop, right after the write."""
        self._calls.append(call)
        self._wake.set()

    async def __aenter__(self) -> Self:
        # A thread of its own: in the loop's shared executor, calls of the user's could starve the journal.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="asynctune-journal")
        try:
            opening = asyncio.create_task(self._make(), name="asynctune-journal")
            try:
                self._file = await asyncio.shield(opening)
            except asyncio.CancelledError:  # which does not stop the thread
                with contextlib.suppress(OSError):
                    await (await opening).close()
                    self.path.unlink()
                raise
        except BaseException as error:
            self._thread.shutdown(wait=False)
            if isinstance(error, FileExistsError) and self.path.exists():
                raise InvalidArgument(f"run_dir must not hold a run already, got {str(self.path.parent)!r}") from None
            if isinstance(error, OSError):
                raise JournalError(f"cannot make {self.path}: {error.strerror or error}") from error
            raise
        owner = asyncio.current_task()
        assert owner is not None
        self._owner = owner
        self._writer = asyncio.create_task(self._write(), name="asynctune-journal")
        return self

    async def _make(self) -> Any:
        return await aiofiles.open(
            self.path, "xb", buffering=0, opener=_create, executor=self._thread, loop=asyncio.get_running_loop()
        )

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
                    rest = b"".join(lines)
                    while rest:  # a full disk shows as a short write first, and as an error only then
                        rest = rest[await self._file.write(rest) :]
                    for call in calls:
                        call()
            finally:
                await self._file.close()
        except OSError as error:
            self._error = JournalError(f"cannot write {self.path}: {error.strerror or error}")
            if not self._closing:
                self._closing = True
                self._owner.cancel()
        finally:
            self._thread.shutdown(wait=False)


def _create(path: str, flags: int) -> int:
    os.makedirs(os.path.dirname(path) or ".", mode=0o700, exist_ok=True)
    return os.open(path, flags, 0o600)


def scan(path: Path | str) -> Iterator[tuple[int, Record]]:
    """The journal's records, each with the byte offset of its line.

    A last line without its newline is one that is being written: it is left out. Raises `JournalError` for anything
    else that is not a journal of this version, naming the file and the byte.
    """
    try:
        with open(path, "rb", buffering=2**18) as file:
            offset = 0
            for line in file:
                if not line.endswith(b"\n"):
                    break
                try:
                    record = decode(line)
                except (msgspec.DecodeError, ValueError) as error:
                    raise JournalError(f"{path}: no record at byte {offset}: {error}") from None
                if offset == 0:
                    if not isinstance(record, Header):
                        raise JournalError(f"{path}: not a journal, its first record is {record.kind!r}")
                    if record.version != VERSION:
                        raise JournalError(f"{path}: version must be {VERSION}, got {record.version!r}")
                yield offset, record
                offset += len(line)
    except OSError as error:
        raise JournalError(f"cannot read {path}: {error.strerror or error}") from error


def read(path: Path | str) -> Iterator[Record]:
    """The journal's records, the `Header` first. Raises `JournalError` as `scan` does."""
    return (record for _, record in scan(path))


def records_at(path: Path | str, offsets: Iterable[int]) -> Iterator[Record]:
    """The journal's records whose lines begin at these bytes. Raises `JournalError`, naming the byte, where none does."""
    try:
        with open(path, "rb") as file:
            for offset in offsets:
                file.seek(offset)
                try:
                    yield decode(file.readline())
                except (msgspec.DecodeError, ValueError) as error:
                    raise JournalError(f"{path}: no record at byte {offset}: {error}") from None
    except OSError as error:
        raise JournalError(f"cannot read {path}: {error.strerror or error}") from error
