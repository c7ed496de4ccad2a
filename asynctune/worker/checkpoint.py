"""Checkpoint: what a trial tracks, as a directory on disk, and back.

A checkpoint is the directory `trial-segment-step`. It holds what `Trial.track` was given, in `state.pt` (torch.save) or `state.msgpack`;
what functions given to `Trial.on_save` wrote; and a manifest, by which `damage` tells whether all of it is as it was made.
Nothing in it is ever unpickled: reading a checkpoint executes nothing.
"""

import errno
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import msgspec

from asynctune._wire import Run
from asynctune.errors import AsynctuneError, InvalidArgument

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["FULL", "MANIFEST", "Checkpoints", "DiskError", "damage", "disk_fault", "transplant"]

MANIFEST = "manifest.msgpack"  # the path of each other file -> its size in bytes and its CRC-32

#: Numbers of the errors that say that a disk is full, and of all that are the disk's fault where something is written.
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_FAULTS = FULL | {errno.EFBIG, errno.EIO, errno.EROFS}

#: The hyperparameters of one parameter group of an optimizer, by name.
Group = dict[str, Any]

#: What learning-rate schedulers add to a group, or hold as a list with one element per group: all in proportion to the group's `lr`.
_GROUP_RATES = ("initial_lr", "max_lr", "min_lr")
_SCHEDULER_RATES = ("base_lrs", "_last_lr")

_ARRAY = 1  # MessagePack extension: a numpy array in numpy's own file format


class Snapshot(NamedTuple):
    """What `state.pt` and `state.msgpack` hold."""

    state: dict[str, Any]  # name -> state_dict
    optimizers: dict[str, Any]  # name -> its class and the groups that its constructor set


class DiskError(AsynctuneError):
    """A checkpoint cannot be written, since the disk is full or fails: no fault of the trial's."""


class Checkpoints:
    """The checkpoints that one assignment makes, and the one that it begins with."""

    #: Whether a checkpoint of this process has been read back: what a trainable tracks is of the same kinds in every trial.
    _checked: ClassVar[bool] = False

    def __init__(self, run: Run) -> None:
        self._run = run
        self._objects: dict[str, Any] = {}
        self._optimizers: dict[str, tuple[str, list[Group]]] = {}
        self._callbacks: list[Callable[[Path], object]] = []
        self._restored: Snapshot | None = None
        self._last = ("", 0)  # name and size of the last one made

    @property
    def saveable(self) -> bool:
        """Whether there is anything to save."""
        return bool(self._objects or self._callbacks)

    def on_save(self, save: "Callable[[Path], object]") -> None:
        if not callable(save):
            raise InvalidArgument(f"on_save takes a function of the checkpoint's directory, got {save!r}")
        self._callbacks.append(save)

    def track(self, objects: dict[str, Any]) -> None:
        """Save `objects` from now on; restore them if the assignment begins with a checkpoint."""
        for name, thing in objects.items():
            if not (callable(getattr(thing, "state_dict", None)) and callable(getattr(thing, "load_state_dict", None))):
                raise InvalidArgument(
                    f"track takes objects with state_dict and load_state_dict, got {name}={type(thing).__name__}; "
                    "for others there is on_save"
                )
            if name in self._objects:
                raise InvalidArgument(f"{name!r} is tracked already")
        for name, thing in objects.items():
            self._objects[name] = thing
            if _is_optimizer(thing):
                self._optimizers[name] = (_class(thing), [hyperparameters(group) for group in thing.param_groups])
        if self._run.restore is not None:
            if self._restored is None:
                self._restored = _read(self._run.restore)
            for name, thing in objects.items():
                self._restore(name, thing, self._restored)

    def _restore(self, name: str, thing: Any, snapshot: Snapshot) -> None:
        if name not in snapshot.state:
            found = ", ".join(map(repr, snapshot.state)) or "nothing"
            raise InvalidArgument(f"{name!r} is tracked, but the checkpoint holds {found}")
        state = snapshot.state.pop(name)  # a large model is not held twice for longer than it must be
        if name in self._optimizers:
            kind, new = self._optimizers[name]
            kind_then, old = snapshot.optimizers.get(name, (None, []))
            if kind != kind_then:
                return  # the state of another kind of optimizer means nothing to this one: it begins anew
            thing.load_state_dict(state)
            for group, then, now in zip(thing.param_groups, old, new, strict=True):
                transplant(group, then, now)
        else:
            thing.load_state_dict(state)
            for inner in (thing, *getattr(thing, "_schedulers", ())):
                self._rescale(inner, snapshot)

    def _rescale(self, scheduler: Any, snapshot: Snapshot) -> None:
        """A learning-rate scheduler whose optimizer is tracked keeps its place, in proportion to the new rate."""
        optimizer = getattr(scheduler, "optimizer", None)
        for name, (kind, new) in self._optimizers.items():
            if self._objects[name] is optimizer and name in snapshot.optimizers:
                kind_then, old = snapshot.optimizers[name]
                if kind == kind_then:
                    ratios = [rate_ratio(then, now) for then, now in zip(old, new, strict=True)]
                    for attribute in _SCHEDULER_RATES:
                        rates = getattr(scheduler, attribute, None)
                        if isinstance(rates, list) and len(rates) == len(ratios):
                            setattr(scheduler, attribute, [r * ratio for r, ratio in zip(rates, ratios, strict=True)])

    def save(self, step: int) -> tuple[str, int]:
        """Make the checkpoint of the state after `step`; return its name and its size in bytes. It is there whole, and on disk, or not at all.

        Raises:
            DiskError: the disk is full or fails.
            InvalidArgument: torch would not load the state again, or something is neither a file nor a directory.
        """
        import shutil
        from pathlib import Path

        name = f"{self._run.trial}-{self._run.segment}-{step}"
        parent = Path(self._run.save_to)
        if name == self._last[0] and (parent / name).exists():
            return self._last
        making = parent / f".{name}.{os.getpid()}"
        replaced = parent / f"{making.name}.replaced"
        try:
            parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            making.mkdir(mode=0o700)
            if self._objects:
                self._write(making)
            for callback in self._callbacks:
                callback(making)
            size = _seal(making)
            try:
                # An attempt that was lost before it could say so may have left one of this name.
                (parent / name).rename(replaced)
            except FileNotFoundError:
                pass
            making.rename(parent / name)
            _sync(parent)
        except Exception as error:
            fault = disk_fault(error, _FAULTS) or _refusal(parent)
            if fault is not None:
                raise DiskError(f"cannot write the checkpoint {name}: {fault.strerror}") from error
            raise
        finally:
            shutil.rmtree(making, ignore_errors=True)
            shutil.rmtree(replaced, ignore_errors=True)
        self._last = name, size
        return self._last

    def _write(self, directory: "Path") -> None:
        state = {name: thing.state_dict() for name, thing in self._objects.items()}
        contents = _plain({"state": state, "optimizers": self._optimizers})
        if torch := sys.modules.get("torch"):
            path = directory / "state.pt"
            with open(
                path, "wb"
            ) as file:  # given the path, torch writes by itself, and says of a full disk that it is an error
                torch.save(contents, file)
            if not Checkpoints._checked:
                # torch.save takes objects that it will not load again. Better to hear of it at the first checkpoint than at
                # the first restart. Mapped, the tensors are not read.
                try:
                    torch.load(path, weights_only=True, map_location="cpu", mmap=True)
                except Exception as error:
                    raise InvalidArgument(
                        f"state_dict() of what is tracked ({', '.join(self._objects)}) may hold tensors, numbers, strings and "
                        f"containers of them; torch.load(weights_only=True) refuses this one: {error}"
                    ) from error
                Checkpoints._checked = True
        else:
            (directory / "state.msgpack").write_bytes(msgspec.msgpack.encode(contents, enc_hook=_pack))


def _read(restore: str) -> Snapshot:
    path = os.path.join(restore, "state.pt")
    if os.path.exists(path):
        import torch

        with open(path, "rb") as file:
            if (
                file.read(4) != b"PK\3\4"
            ):  # torch reads older formats too, by code that has had its holes (CVE-2025-32434)
                raise InvalidArgument("state.pt must be a zip archive, as torch.save writes it")
        contents = torch.load(path, weights_only=True, map_location="cpu")
    else:
        path = os.path.join(restore, "state.msgpack")
        if not os.path.exists(path):
            return Snapshot({}, {})
        with open(path, "rb") as file:
            contents = msgspec.msgpack.Decoder(ext_hook=_unpack).decode(file.read())
    return Snapshot(contents["state"], contents["optimizers"])


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
            size, crc = files[os.fsencode(path)]
            size_now, crc_now = _digest(os.path.join(directory, path))
            if size_now != size:
                return f"{path!r} must have {size} bytes, it has {size_now}"
            if crc_now != crc:
                return f"{path!r} has changed: its CRC-32 must be {crc:08x}, it is {crc_now:08x}"
    except InvalidArgument as error:
        return str(error)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    except msgspec.DecodeError as error:
        return f"{MANIFEST} is damaged: {error}"
    return None


_decode_manifest = msgspec.msgpack.Decoder(dict[bytes, tuple[int, int]]).decode


def _seal(directory: "Path") -> int:
    """Write the manifest, and all of a checkpoint to disk. Return its size in bytes."""
    files = {os.fsencode(path): _digest(os.path.join(directory, path)) for path in sorted(_files(directory))}
    manifest = msgspec.msgpack.encode(files)
    with open(directory / MANIFEST, "xb") as file:
        file.write(manifest)
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


def _digest(path: str) -> tuple[int, int]:
    """The size of a file in bytes, and its CRC-32."""
    from zlib import crc32

    size = crc = 0
    buffer = memoryview(bytearray(2**20))
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            size += count
            crc = crc32(buffer[:count], crc)
    return size, crc


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


def transplant(group: Group, old: Group, new: Group) -> None:
    """Give a parameter group that was just restored the hyperparameters of the trial that takes it over.

    Args:
        group: the group as restored, with the values that the donor had reached; changed in place.
        old: what the donor's constructor had set.
        new: what this trial's constructor has set.

    What is the same in `old` and `new` stays as the donor had it. A float keeps its place in its schedule, in proportion: restored
    * new / old; where that cannot be, and for all else, the new value counts, element by element in a tuple (betas).
    """
    ratio = rate_ratio(old, new)
    for key in group:
        if key in old and key in new:
            group[key] = _moved(group[key], old[key], new[key])
        elif key in _GROUP_RATES:
            group[key] *= ratio


def rate_ratio(old: Group, new: Group) -> float:
    """By how much a group's learning rate, as its constructor set it, is larger than the donor's; 1 where that means nothing."""
    # A scheduler that warms up from 0 has set `lr` to 0 by the time the optimizer is tracked; it keeps what it found.
    for key in ("initial_lr", "lr"):
        if _is_number(old.get(key)) and _is_number(new.get(key)) and old[key] != 0:
            return float(new[key] / old[key])
    return 1.0


def hyperparameters(group: Group) -> Group:
    """What of a parameter group is a hyperparameter: plain values, not tensors."""
    return {key: value for key, value in group.items() if _is_plain(value)}


def _moved(restored: Any, old: Any, new: Any) -> Any:
    if all(isinstance(value, tuple | list) for value in (restored, old, new)) and len(restored) == len(old) == len(new):
        return type(new)(r if o == n else n for r, o, n in zip(restored, old, new, strict=True))
    if old == new:
        return restored
    values = (restored, old, new)
    scales = all(map(_is_number, values)) and any(isinstance(value, float) for value in values)
    return restored * (new / old) if scales and old != 0 and restored != old else new


def _is_number(value: Any) -> bool:
    return isinstance(value, float | int) and not isinstance(value, bool)


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _is_optimizer(thing: Any) -> bool:
    return isinstance(getattr(thing, "param_groups", None), list)


def _class(thing: Any) -> str:
    return f"{type(thing).__module__}.{type(thing).__qualname__}"


def _plain(value: Any) -> Any:
    """`value` with Python's numbers in place of numpy's, which come in by arithmetic on a learning rate."""
    if type(value) is dict:
        return {key: _plain(inner) for key, inner in value.items()}
    if type(value) is list or type(value) is tuple:
        return type(value)(map(_plain, value))
    numpy = sys.modules.get("numpy")
    return value.item() if numpy is not None and isinstance(value, numpy.generic) else value


def _pack(value: Any) -> Any:
    numpy = sys.modules.get("numpy")
    if numpy is None or not isinstance(value, numpy.ndarray):
        raise TypeError(
            f"a checkpoint may hold numbers, strings, arrays and containers of them, got {type(value).__name__}"
        )
    import io

    buffer = io.BytesIO()
    numpy.save(buffer, value, allow_pickle=False)
    return msgspec.msgpack.Ext(_ARRAY, buffer.getvalue())


def _unpack(code: int, data: memoryview) -> Any:
    if code != _ARRAY:
        raise ValueError(f"a checkpoint holds a value of the unknown kind {code}")
    import io

    import numpy

    return numpy.load(io.BytesIO(data), allow_pickle=False)


def _sync(path: "str | os.PathLike[str]") -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
