"""Dataset: tensors that the slots of a box share. One process makes a file of them, and all map it into their memory."""

import fcntl
import os
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from asynctune.errors import InvalidArgument

__all__ = ["shared"]


def shared(path: str | os.PathLike[str], build: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `build()` returns, made once and then mapped from the file `path` by every process that asks for it.

        def tables() -> dict[str, torch.Tensor]:
            ...  # download, decode, tokenise

        data = asynctune.torch.shared("/dev/shm/tables-2", tables)

    The file's pages are in memory once, however many processes read them. Tensors may be written to: the pages that are touched become
    this process's own, and neither the file nor anybody else sees it.

    The first to come builds, while the others wait. It may be killed at that: the next one begins anew. Where the file is there, `build`
    is not called, whatever it would return today: another data set needs another path. Nobody removes the file.

    Args:
        path: a file on a local disk or in `/dev/shm`, which is memory; beside it come `path.lock` and, while it is built, `path.part`.
        build: a function without arguments that returns a dict of tensors on the CPU, of numbers and strings, and of dicts, lists and
            tuples of these. A tensor that is a view of a larger one brings all of that along: `clone` it.

    Raises:
        InvalidArgument: `build` returns something else, or the file at `path` was not made here.
        OSError: the file cannot be written, since the disk is full, for instance. There is no file then.
    """
    path = Path(path)
    if not path.exists():
        with open(_beside(path, ".lock"), "ab", opener=_private) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # let go of by closing, and by dying
            if not path.exists():  # nobody has built it meanwhile
                _make(path, build)
    return _mapped(path)


def _make(path: Path, build: Callable[[], dict[str, Any]]) -> None:
    """Write what `build` returns. It is at `path` whole, and on disk, or not at all."""
    import torch

    contents = build()
    if not isinstance(contents, dict):
        raise InvalidArgument(f"build must return a dict of tensors, got {type(contents).__name__}")
    _check("build()", contents)
    part = _beside(path, ".part")
    try:
        with open(part, "wb", opener=_private) as file:
            torch.save(contents, file)
            file.flush()
            os.fsync(file.fileno())
        part.rename(path)
    except RuntimeError as error:
        fault = error.__context__
        if isinstance(fault, OSError):  # of a full disk, torch says that it found an unexpected position
            raise OSError(fault.errno, fault.strerror, str(path)) from error
        raise
    finally:
        part.unlink(missing_ok=True)


def _check(name: str, value: object) -> None:
    """Raise `InvalidArgument` unless `torch.load(weights_only=True)` will give the value back."""
    import torch

    if type(value) is dict:
        for key, inner in value.items():
            _check(f"{name}[{key!r}]", inner)
    elif type(value) in (list, tuple):
        for index, inner in enumerate(cast("Sequence[object]", value)):
            _check(f"{name}[{index}]", inner)
    elif type(value) not in (torch.Tensor, bool, int, float, str, type(None)):
        raise InvalidArgument(
            "a shared data set may hold tensors, numbers, strings, None, and dicts, lists and tuples of these, "
            f"but {name} is of the class {type(value).__name__}"
        )


def _mapped(path: Path) -> dict[str, Any]:
    import mmap

    import torch

    try:
        with torch.serialization.set_default_mmap_options(mmap.MAP_PRIVATE):
            contents: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
    except (RuntimeError, pickle.UnpicklingError) as error:
        raise InvalidArgument(
            f"path must be a file that shared has made, or none, got {str(path)!r}: {error}"
        ) from error
    return contents


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(path.name + ending)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)
