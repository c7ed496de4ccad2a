"""Writer: records appended to a journal.

`append` only encodes and queues; one writer task puts all that is queued into one write (group commit). A journal that
cannot be written ends the run: nothing happens that is not recorded.
"""

import asyncio
import contextlib
import errno
import io
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, TypeVar

from aiofiles.threadpool import wrap

from asynctune import lock
from asynctune.errors import AsynctuneError, InvalidArgument, JournalError
from asynctune.journal.line import encode
from asynctune.journal.reader import PORTION, Follower
from asynctune.journal.sync import sync_data, sync_directory
from asynctune.journal.tail import set_aside
from asynctune.records import Record
from asynctune.rundir import check_no_links, open_regular

__all__ = ["Journal", "write"]

T = TypeVar("T")

GATHER = 0.002  # seconds from a record's arrival to the write that takes it along with all that came since
BACKLOG = 10_000  # records that may wait for their write; some 2 MB


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
        InvalidArgument: `resume` does not fit what is there, or another process has the directory.
        JournalError: the file cannot be opened.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        resume: bool | Literal["auto"] = False,
        durability: Literal["process", "power"] = "process",
    ) -> None:
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
                set_aside(self.path, self._raw.fileno(), reader.offset, "torn")
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
                sync_directory(parent)
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
            await asyncio.get_running_loop().run_in_executor(self._thread, sync_data, self._file.fileno())

    def _release(self) -> None:
        if self.lock >= 0:
            lock.release(self.lock)
            self.lock = -1


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
