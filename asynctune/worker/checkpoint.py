"""Checkpoint: a directory on disk that is as it was made, or not there at all.

A checkpoint is the directory `trial-segment-step`. It holds what was tracked (`state`), the random numbers to come (`generators`), what
functions given to `Trial.on_save` wrote; and a manifest, by which `damage` tells whether all of it is as it was made.
Nothing in it is ever unpickled: reading a checkpoint executes nothing.
"""

import errno
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

import msgspec

from asynctune.errors import AsynctuneError, InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path
    from types import TracebackType
    from typing import BinaryIO

__all__ = ["FULL", "MANIFEST", "DiskError", "Draft", "damage", "disk_fault", "seal"]

MANIFEST = "manifest.msgpack"  # the path of each other file -> its size in bytes, and the CRC-32 of each `CHUNK` of it

CHUNK = 2**24  # bytes of a file that have a CRC-32 of their own: several are computed at a time
PIECE = 2**20  # bytes that are read or written at once
THREADS = 8  # at most: one reads 0.7 to 1.5 GB/s

_Digest = tuple[int, list[int]]  # of a file: its size in bytes, and the CRC-32 of each `CHUNK`

#: Numbers of the errors that say that a disk is full, and of all that are the disk's fault where something is written.
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_FAULTS = FULL | {errno.EFBIG, errno.EIO, errno.EROFS}


class DiskError(AsynctuneError):
    """A checkpoint cannot be written, since the disk is full or fails: no fault of the trial's."""


class Draft:
    """A checkpoint in the making. `directory` is where to write, or `create`, which sums up what is written; `commit` gives it its name.

    As a context it watches over what is done for it: after an error nothing is left, and one of the disk's comes out as `DiskError`.

    Args:
        path: where the checkpoint is to be. The directory above is made if it is missing.
        durable: whether it is on disk when it has its name, so that it outlives the machine.
    """

    def __init__(self, path: "Path", *, durable: bool) -> None:
        self.path = path
        self.directory = path.parent / f".{path.name}.{os.getpid()}"
        self._replaced = path.parent / f"{self.directory.name}.replaced"
        self._durable = durable
        self._digests: dict[str, _Digest] = {}

    def make(self) -> None:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.directory.mkdir(mode=0o700)

    @contextmanager
    def create(self, name: str) -> "Iterator[_Summed]":
        """A new file, to be written from its beginning to its end. Its sums are taken on the way: it is not read for them."""
        with open(self.directory / name, "xb") as file:
            summed = _Summed(file)
            yield summed
        self._digests[name] = summed.size, summed.sums

    def commit(self) -> int:
        """Let it take its name, whole. Return its size in bytes.

        Raises `InvalidArgument` where something in it is neither a file nor a directory.
        """
        size = seal(self.directory, durable=self._durable, digests=self._digests)
        try:
            # An attempt that was lost before it could say so may have left one of this name.
            self.path.rename(self._replaced)
        except FileNotFoundError:
            pass
        self.directory.rename(self.path)
        if self._durable:
            _sync(self.path.parent)
        _remove(self._replaced)
        return size

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: "TracebackType | None"
    ) -> None:
        if error is None:
            return
        fault = None
        if isinstance(error, Exception):
            fault = disk_fault(error, _FAULTS) or _refusal(self.path.parent)
        _remove(self.directory)
        _remove(self._replaced)
        if fault is not None:
            raise DiskError(f"cannot write the checkpoint {self.path.name}: {fault.strerror}") from error


def damage(directory: str) -> str | None:
    """What is wrong with a checkpoint, in one line; None: nothing, it is as it was made. Reads all of it, follows no link."""
    try:
        found = _files(directory)
        if MANIFEST not in found:
            return f"{MANIFEST} is missing"
        with open(os.path.join(directory, MANIFEST), "rb") as file:
            files = _decode_manifest(file.read())
        found.remove(MANIFEST)
        for path in sorted(found | {os.fsdecode(path) for path in files}):
            if path not in found:
                return f"{path!r} is missing"
            if os.fsencode(path) not in files:
                return f"{path!r} is none of its files"
            size, sums = files[os.fsencode(path)]
            size_now, sums_now = _digest(os.path.join(directory, path))
            if size_now != size:
                return f"{path!r} must have {size} bytes, it has {size_now}"
            if sums_now != sums:
                changed = [pair for pair in zip(sums, sums_now, strict=False) if pair[0] != pair[1]]
                must, now = changed[0] if changed else (len(sums), len(sums_now))
                return f"{path!r} has changed: its CRC-32 must be {must:08x}, it is {now:08x}"
    except InvalidArgument as error:
        return str(error)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    except msgspec.DecodeError as error:
        return f"{MANIFEST} is damaged: {error}"
    return None


_decode_manifest = msgspec.msgpack.Decoder(dict[bytes, tuple[int, list[int]]]).decode


def seal(directory: "Path", *, durable: bool, digests: "Mapping[str, _Digest] | None" = None) -> int:
    """Write the manifest; with `durable`, all of a checkpoint to disk. Return its size in bytes. Files in `digests` are not read."""
    digests = digests or {}
    files = {
        os.fsencode(path): digests.get(path) or _digest(os.path.join(directory, path))
        for path in sorted(_files(directory))
    }
    manifest = msgspec.msgpack.encode(files)
    with open(directory / MANIFEST, "xb") as file:
        file.write(manifest)
    if durable:
        for parent, _, names in os.walk(directory):
            for name in (*names, ""):
                _sync(os.path.join(parent, name))
    return len(manifest) + sum(size for size, _ in files.values())


def _files(directory: "str | os.PathLike[str]") -> set[str]:
    """The paths of the files in a directory and below. Raises `InvalidArgument` where there is a link, or what is no file."""
    if os.path.islink(directory):
        raise InvalidArgument("it is a link")
    files: set[str] = set()
    inner = [""]
    while inner:
        inside = inner.pop()
        with os.scandir(os.path.join(directory, inside)) as entries:
            for entry in entries:
                path = os.path.join(inside, entry.name)
                if entry.is_dir(follow_symlinks=False):
                    inner.append(path)
                elif entry.is_file(follow_symlinks=False):
                    files.add(path)
                else:
                    raise InvalidArgument(f"a checkpoint may hold regular files and directories, {path!r} is neither")
    return files


class _Summed:
    """A file that is written once, and sums up what passes."""

    def __init__(self, file: "BinaryIO") -> None:
        self.size = 0
        self.sums: list[int] = []
        self._file = file

    def write(self, data: "bytes | memoryview") -> int:
        view = memoryview(data)
        while view:
            if self.size % CHUNK == 0:
                self.sums.append(0)
            part = view[: CHUNK - self.size % CHUNK]
            if len(part) < PIECE:
                self._sum(part)
                self._file.write(part)
            else:
                self._sum_and_write(part)
            self.size += len(part)
            view = view[len(part) :]
        return len(data)

    def _sum_and_write(self, part: memoryview) -> None:
        """Both at once: they take about as long, and neither needs the interpreter."""
        from threading import Thread

        summing = Thread(target=self._sum, args=(part,), daemon=True)
        summing.start()
        try:
            self._file.write(part)
        finally:
            summing.join()  # whose memory it is may change it then

    def _sum(self, part: memoryview) -> None:
        from zlib import crc32

        self.sums[-1] = crc32(part, self.sums[-1])

    def flush(self) -> None:
        self._file.flush()


def _digest(path: str) -> "_Digest":
    """The size of a file in bytes, and the CRC-32 of each `CHUNK` of it."""
    # Read, not mapped: where the disk fails, reading is an OSError, and a map the end of the process.
    descriptor = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(descriptor).st_size
        sums = [0] * -(-size // CHUNK)
        if len(sums) < 2:
            _sum(descriptor, sums, iter(range(len(sums))))
        else:
            _sum_in_threads(descriptor, sums)
        return size, sums
    finally:
        os.close(descriptor)


def _sum(descriptor: int, sums: list[int], chunks: "Iterator[int]") -> None:
    """Put the CRC-32 of each chunk into `sums`."""
    from zlib import crc32

    buffer = memoryview(bytearray(min(PIECE, os.fstat(descriptor).st_size)))
    for chunk in chunks:
        crc, offset, end = 0, chunk * CHUNK, (chunk + 1) * CHUNK
        while offset < end and (count := os.preadv(descriptor, [buffer[: end - offset]], offset)):
            crc = crc32(buffer[:count], crc)
            offset += count
        sums[chunk] = crc


def _sum_in_threads(descriptor: int, sums: list[int]) -> None:
    from threading import Thread

    def work() -> None:
        try:
            _sum(descriptor, sums, chunks)
        except OSError as error:
            errors.append(error)

    errors: list[OSError] = []
    chunks = iter(range(len(sums)))  # which all threads share
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = [Thread(target=work, daemon=True) for _ in range(min(THREADS, cores, len(sums)) - 1)]
    for thread in threads:
        thread.start()
    work()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def disk_fault(error: BaseException, numbers: frozenset[int]) -> OSError | None:
    """The OSError with one of these numbers that `error` is, or was raised after."""
    for _ in range(100):  # a chain may be a circle
        if isinstance(error, OSError) and error.errno in numbers:
            return error
        before = error.__cause__ or error.__context__
        if before is None:
            return None
        error = before
    return None


def _refusal(directory: "Path") -> OSError | None:
    """What the disk says to another megabyte, if it refuses it: libraries that write by themselves do not pass its errors on."""
    import tempfile

    try:
        with tempfile.TemporaryFile(dir=directory) as file:
            file.write(bytes(2**20))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return disk_fault(error, _FAULTS)
    return None


def _remove(directory: "Path") -> None:
    import shutil  # by who removes something: most trials do not

    shutil.rmtree(directory, ignore_errors=True)


def _sync(path: "str | os.PathLike[str]") -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
