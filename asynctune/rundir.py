"""Run directory: what lies where in it, and what is refused there. No user's text ever becomes a path."""

import errno
import os
import re
import stat
from pathlib import Path

from asynctune.errors import InvalidArgument

__all__ = [
    "CHECKPOINTS",
    "JOURNAL",
    "LOCK",
    "SEARCHER_LOG",
    "TRIALS",
    "check_no_links",
    "checkpoint_path",
    "is_checkpoint",
    "is_directory",
    "log_file",
    "make_directory",
    "open_regular",
]

JOURNAL = "journal.jsonl"
LOCK = "lock"  # held by the driver as long as a process of the run lives
SEARCHER_LOG = "searcher.log"
CHECKPOINTS = "checkpoints"  # a directory for each, `trial-segment-step`
TRIALS = "trials"  # a directory for each trial that asks for one, by id

_CHECKPOINT = re.compile(r"\d{1,19}-\d{1,19}-\d{1,19}", re.ASCII)


def log_file(slot: int) -> str:
    """The name of the file that takes what a slot's trials print."""
    return f"slot-{slot}.log"


def is_checkpoint(name: str) -> bool:
    """Whether a checkpoint can have that name."""
    return _CHECKPOINT.fullmatch(name) is not None


def checkpoint_path(run_dir: Path, name: str) -> Path:
    """Where the checkpoint of that name is.

    Raises:
        InvalidArgument: the name is not of the form `trial-segment-step`: a journal that names others was tampered with.
    """
    if not is_checkpoint(name):
        raise InvalidArgument(f"a checkpoint's name must be trial-segment-step, three integers, got {name!r}")
    return run_dir / CHECKPOINTS / name


def is_directory(path: Path) -> bool:
    """Whether a directory is there, and no link to one."""
    return path.is_dir() and not path.is_symlink()


def make_directory(path: Path) -> None:
    """Make a directory (mode 0700) unless it is there. Raises `InvalidArgument` if something else is, a link to a directory too."""
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        if not is_directory(path):
            raise InvalidArgument(f"in a run directory, {path.name!r} must be a directory, got {str(path)!r}") from None


def check_no_links(run_dir: Path) -> None:
    """Raise `InvalidArgument` if a symbolic link lies where a run writes or removes: it could lead out of the directory."""
    for directory in (run_dir, run_dir / CHECKPOINTS, run_dir / TRIALS):
        try:
            entries = os.scandir(directory)
        except FileNotFoundError:
            continue
        with entries:
            for entry in entries:
                if entry.is_symlink():
                    raise InvalidArgument(f"a run directory must hold no symbolic links, got {entry.path!r}")


def open_regular(path: Path | str, flags: int) -> int:
    """The descriptor of a regular file: neither a link, which may lead anywhere, nor a pipe, which would keep us waiting."""
    descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "Not a regular file")
    return descriptor
