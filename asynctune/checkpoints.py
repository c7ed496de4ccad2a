"""Checkpoints: which of those on disk stay. The driver's side of the directory; workers make them (worker/checkpoint.py)."""

import asyncio
import contextlib
import itertools
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from asynctune.errors import InvalidArgument, RunFailed
from asynctune.rundir import CHECKPOINTS, checkpoint_path, is_checkpoint, is_directory, make_directory, open_regular

__all__ = ["Store"]


class Store:
    """The checkpoints of a run: those that a record needs, and those that are kept beyond that.

    Args:
        run_dir: the run's directory.
        keep: bytes; checkpoints that nothing needs any more stay as long as all of them together take no more than this.

    A checkpoint goes by taking another name at once, and is removed in a thread: one that is made anew meanwhile is another. One that
    cannot be removed is no reason to end a run.
    """

    def __init__(self, run_dir: Path, keep: int = 0) -> None:
        self._run_dir = run_dir
        self._directory = run_dir / CHECKPOINTS
        self._keep = keep
        self._needed: dict[str, int] = {}  # name -> bytes
        self._spare: dict[str, int] = {}  # those that no record needs; who was let go first comes first
        self._unsynced: set[str] = set()  # saved by this driver's workers
        self._total = 0  # bytes
        self._numbers = itertools.count()  # of removals
        self._removals: set[asyncio.Future[None]] = set()  # under way

    def create(self) -> None:
        """Make the directory of a new run.

        Raises:
            InvalidArgument: there is one with something in it, or what is none.
        """
        make_directory(self._directory)
        if any(self._directory.iterdir()):
            raise InvalidArgument(f"run_dir must hold no checkpoints before its run, got {str(self._directory)!r}")

    async def sweep(self, needed: Iterable[str]) -> None:
        """Take over what the last driver left: all but the checkpoints `needed` is as if let go, half-made ones are removed.

        Raises:
            InvalidArgument: a name that is needed is none, or the directory is none.
        """
        self._needed = dict.fromkeys(needed, 0)
        for name in self._needed:
            checkpoint_path(self._run_dir, name)
        make_directory(self._directory)
        await self._off_the_loop(self._take_over)
        self._trim()

    def saved(self, name: str, size: int) -> None:
        """A record needs the checkpoint, of `size` bytes; it may be one that was there before, made anew."""
        self._total += size - self._spare.pop(name, 0) - self._needed.get(name, 0)
        self._needed[name] = size
        self._unsynced.add(name)
        self._trim()

    def release(self, name: str) -> Callable[[], None]:
        """No record needs the checkpoint any more. It goes with the call that is returned, due once that is on disk, or is kept
        while `keep` allows; not if it has been saved anew by then."""
        size = self._needed.pop(name, 0)

        def let_go() -> None:
            if name in self._needed:
                self._total -= size
            else:
                self._spare.setdefault(name, size)
                self._trim()

        return let_go

    async def sync(self) -> None:
        """Put those on disk that were saved and are still there. With durability "process" workers leave that to the system: most are
        gone before it is due.

        Raises:
            RunFailed: the disk refuses it.
        """
        try:
            for name in self._unsynced & (self._needed.keys() | self._spare.keys()):
                await self._off_the_loop(_sync, checkpoint_path(self._run_dir, name))
            if self._unsynced:
                await self._off_the_loop(_sync_directory, self._directory)
        except OSError as error:
            raise RunFailed(f"cannot write {self._directory}: {error.strerror or error}") from error

    async def close(self) -> None:
        """Wait for removals under way, and remove what workers left half-made; none may run any more."""
        await asyncio.gather(*self._removals)
        await self._off_the_loop(self._clean)

    def _trim(self) -> None:
        """Let those go that are beyond the budget."""
        while self._spare and self._total > self._keep:
            name = next(iter(self._spare))
            self._total -= self._spare.pop(name)
            self._unsynced.discard(name)
            going = self._directory / f".{name}.{next(self._numbers)}"
            with contextlib.suppress(OSError):
                checkpoint_path(self._run_dir, name).rename(going)
                self._off_the_loop(_remove, going)

    def _off_the_loop(self, call: Callable[..., None], *arguments: Path) -> asyncio.Future[None]:
        removal = asyncio.get_running_loop().run_in_executor(None, call, *arguments)
        self._removals.add(removal)
        removal.add_done_callback(self._removals.discard)
        return removal

    def _take_over(self) -> None:
        """Weigh what lies there; what is no checkpoint goes."""
        found = []
        for path in self._directory.iterdir():
            if not (is_directory(path) and is_checkpoint(path.name)):
                _remove(path)
            elif path.name in self._needed:
                self._needed[path.name] = _size(path)
            else:
                found.append((path.stat().st_mtime_ns, path.name, _size(path)))
        self._spare = {name: size for _, name, size in sorted(found)}
        self._total = sum(self._needed.values()) + sum(self._spare.values())

    def _clean(self) -> None:
        with contextlib.suppress(OSError):
            for path in self._directory.glob(".*"):
                _remove(path)


def _remove(path: Path) -> None:
    """Remove what lies there; of a link, the link."""
    if is_directory(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def _sync(directory: Path) -> None:
    """Put a directory on disk, and all below."""
    for parent, _, names in os.walk(directory):
        for name in names:
            _sync_one(open_regular(os.path.join(parent, name), os.O_RDONLY))
        _sync_directory(Path(parent))


def _sync_directory(directory: Path) -> None:
    _sync_one(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))


def _sync_one(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _size(directory: Path) -> int:
    """Bytes of the files in a directory and below."""
    return sum(
        os.lstat(os.path.join(parent, name)).st_size for parent, _, names in os.walk(directory) for name in names
    )
