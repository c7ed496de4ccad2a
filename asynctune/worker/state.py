"""State: what a trial tracks, and its random numbers to come, as one file of a checkpoint, and back.

`state.pt` is torch.save's, where torch is loaded and something is tracked; `state.msgpack` is MessagePack, with numpy's arrays in numpy's
own file format. Neither is unpickled: torch.load(weights_only=True).
"""

import os
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from asynctune.errors import InvalidArgument
from asynctune.worker.hyperparameters import Group

if TYPE_CHECKING:
    from pathlib import Path

    from asynctune.worker.checkpoint import Draft

__all__ = ["Snapshot", "copied", "read", "write"]

_ARRAY = 1  # MessagePack extension: a numpy array in numpy's own file format

#: Whether a state that this process saved has been read back: what a trainable tracks is of the same kinds in every trial.
_checked = False


class Snapshot(NamedTuple):
    """The state of a trial."""

    state: dict[str, Any]  # what is tracked -> its state_dict, or what else it gave
    built: dict[str, tuple[str, list[Group]]]  # optimizers and schedulers -> class, and what the constructor set
    drawn: str  # how far the shared random number generators have been drawn from; empty: none is loaded


def copied(value: Any, copies: dict[Any, Any] | None = None) -> Any:
    """A copy in main memory, which later steps of training leave alone. Tensors that are one, such as tied weights, stay one."""
    import copy  # by who copies: most trials do not

    copies = {} if copies is None else copies
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        if value.layout != torch.strided:
            return value.detach().to("cpu", copy=True)
        place = (value.device, value.data_ptr(), value.dtype, value.shape, value.stride())
        if place not in copies:
            copies[place] = value.detach().to("cpu", copy=True)
        return copies[place]
    if isinstance(value, dict):
        same = copy.copy(value)  # of its class, and with its attributes: a module's state_dict has its version there
        for key, inner in value.items():
            same[key] = copied(inner, copies)
        return same
    if type(value) is list or type(value) is tuple:
        return type(value)(copied(inner, copies) for inner in value)
    if isinstance(value, tuple) and hasattr(value, "_make"):
        return value._make(copied(inner, copies) for inner in value)
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return value
    return copy.deepcopy(value)


def write(draft: "Draft", snapshot: Snapshot) -> None:
    """Write a snapshot into a checkpoint.

    Raises:
        InvalidArgument: torch would not load it again.
        TypeError: it holds what MessagePack has no form for.
        FileExistsError: there is one.
    """
    contents = _plain(snapshot._asdict())
    if snapshot.state and (torch := sys.modules.get("torch")):
        # The manifest has sums of its own. Those in the zip archive, which torch itself never looks at, take as long again.
        summed = torch.serialization.get_crc32_options()
        torch.serialization.set_crc32_options(False)
        try:
            # Given the path, torch writes by itself, and says of a full disk that it is an error.
            with draft.create("state.pt") as file:
                torch.save(contents, file)
        finally:
            torch.serialization.set_crc32_options(summed)
        _check(torch, draft.directory / "state.pt", snapshot)
    else:
        with draft.create("state.msgpack") as file:
            file.write(msgspec.msgpack.encode(contents, enc_hook=_pack))


def _check(torch: Any, path: "Path", snapshot: Snapshot) -> None:
    """torch.save takes objects that it will not load again. Better to hear of it at the first checkpoint than at the first restart."""
    global _checked
    if _checked:
        return
    try:
        torch.load(path, weights_only=True, map_location="cpu", mmap=True)  # mapped, the tensors are not read
    except Exception as error:
        raise InvalidArgument(
            f"the state of what is tracked ({', '.join(snapshot.state)}) may hold tensors, numbers, strings and "
            f"containers of them; torch.load(weights_only=True) refuses this one: {error}"
        ) from error
    _checked = True


def read(checkpoint: str) -> Snapshot:
    """What `write` wrote there. Tensors are mapped: they are read when they are used, and hold the file until they go.

    Raises `InvalidArgument` for a file that `torch.save` would not have written.
    """
    path = os.path.join(checkpoint, "state.msgpack")
    if os.path.exists(path):
        with open(path, "rb") as file:
            return Snapshot(**msgspec.msgpack.Decoder(ext_hook=_unpack).decode(file.read()))
    path = os.path.join(checkpoint, "state.pt")
    if not os.path.exists(path):
        return Snapshot({}, {}, "")
    import torch

    with open(path, "rb") as file:
        # torch reads older formats too, by code that has had its holes (CVE-2025-32434).
        if file.read(4) != b"PK\3\4":
            raise InvalidArgument("state.pt must be a zip archive, as torch.save writes it")
    return Snapshot(**torch.load(path, weights_only=True, map_location="cpu", mmap=True))


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
