"""Wire: the frames between driver and worker, and their bytes.

A frame is four bytes, the length of what follows (big-endian), and a MessagePack array: the frame's name, then its fields in order.
Everything here is pure; sockets are the business of `processes` and `worker.channel`.

`job` numbers the assignments of one worker, from 1; 0 stands for loading the trainable. Frames cross on their way, so a control
frame that names another job than the worker's own means a job that is over, and is ignored.
"""

from struct import Struct
from typing import Any, Generic, TypeVar

import msgspec

from asynctune.errors import ProtocolError

__all__ = [
    "MAX_LENGTH",
    "Call",
    "Continue",
    "Decoder",
    "Done",
    "End",
    "Error",
    "FromWorker",
    "Load",
    "Loaded",
    "Lost",
    "NotSaved",
    "Pause",
    "Ready",
    "Report",
    "Returned",
    "Run",
    "Save",
    "Saved",
    "ToWorker",
    "Worn",
    "encode",
]

#: The most bytes that one frame may have. Below the number that any four letters spell, so that text which strays onto the
#: socket is refused at once and not waited for.
MAX_LENGTH = 2**28

_HEAD = 4  # bytes that hold the length
_length = Struct(">I").unpack_from


class Frame(msgspec.Struct, frozen=True, array_like=True, tag=True, gc=False):
    """Base of all frames."""


class Load(Frame, frozen=True):
    """Work in the directory `cwd` with the import path `path`, import the modules `preload`, and unpickle the trainable; answered by
    Loaded or Error.

    `function` is cloudpickle's; empty for a worker that is only called (`Call`). `cpus` are the cores to be bound to, [] all.
    """

    function: bytes
    path: list[str]
    cwd: str
    preload: list[str] = []
    cpus: list[int] = []


class Run(Frame, frozen=True):
    """Run one assignment: the trial after `step`, up to `stop` (None: the trainable says how far)."""

    job: int
    trial: int
    segment: int
    seed: int
    config: bytes  # pickled: MessagePack would make lists of tuples
    metric: str  # what every report must hold
    step: int
    stop: int | None
    until: int | None  # the first report at this step or later is answered; None: none is
    restore: str | None  # the directory of the checkpoint to begin with
    save_to: str  # the directory in which checkpoints are made, one directory each
    checkpoint_every: float | None  # seconds
    device: str  # "cpu" or "cuda:0"
    durable: bool = True  # a checkpoint is on disk before it is Saved


class Continue(Frame, frozen=True):
    """Go on; the next answer is due at `until`."""

    job: int
    until: int | None


class Pause(Frame, frozen=True):
    """Save, then wait for Continue or End."""

    job: int


class Save(Frame, frozen=True):
    """Save and go on. Also after Done, until the next Run."""

    job: int


class End(Frame, frozen=True):
    """Leave without saving."""

    job: int


class Call(Frame, frozen=True):
    """Call a pickled function without arguments; answered by Returned or Error."""

    job: int
    payload: bytes


class Ready(Frame, frozen=True):
    """The worker is up."""

    pid: int


class Loaded(Frame, frozen=True):
    """The trainable is unpickled."""


class Report(Frame, frozen=True):
    """Metrics after a step."""

    job: int
    step: int
    metrics: dict[str, float]


class Saved(Frame, frozen=True):
    """The state after `step` is in the directory `checkpoint` of the assignment's `save_to`; None: there was nothing to save."""

    job: int
    step: int
    checkpoint: str | None
    size: int = 0  # bytes
    paused: bool = False  # the trial waits there, as Pause asked


class Lost(Frame, frozen=True):
    """The checkpoint to begin with is missing or damaged, as `error` says in one line; user code was not called."""

    job: int
    error: str


class Worn(Frame, frozen=True):
    """The worker is not fit for the job, as `cause` says in a phrase: it has not begun, and another worker had better do it."""

    job: int
    cause: str


class NotSaved(Frame, frozen=True):
    """A Save after Done raised `error`, one line."""

    job: int
    error: str


class Done(Frame, frozen=True):
    """The trainable returned; a result that it returned came before, as a Report.

    `ended`: it left because of End. `saveable`: a Save would find something to save. `busy` is the time in seconds in user code,
    without waiting for answers and without saving. `log` is the range of bytes in the worker's log that the job wrote. `worn` says why
    the worker is not fit for another trial.
    """

    job: int
    ended: bool
    saveable: bool
    busy: float
    log: tuple[int, int]
    worn: str | None = None


class Error(Frame, frozen=True):
    """What was asked for raised: `error` is one line, "ValueError: message". The rest is as in `Done`."""

    job: int
    error: str
    traceback: str
    busy: float = 0.0
    log: tuple[int, int] = (0, 0)
    worn: str | None = None
    disk: bool = False  # the disk is full or fails, which is not the trial's fault
    memory: bool = False  # there was not enough of it


class Returned(Frame, frozen=True):
    """The pickled result of a Call."""

    job: int
    payload: bytes


ToWorker = Load | Run | Continue | Pause | Save | End | Call
FromWorker = Ready | Loaded | Report | Saved | NotSaved | Lost | Worn | Done | Error | Returned

F = TypeVar("F")

_encode = msgspec.msgpack.Encoder().encode


def encode(frame: ToWorker | FromWorker) -> bytes:
    """The bytes of one frame.

    Raises:
        ProtocolError: it has more than `MAX_LENGTH` bytes.
        TypeError, OverflowError: it holds what MessagePack has no form for.
    """
    body = _encode(frame)
    if len(body) > MAX_LENGTH:
        raise ProtocolError(f"a {type(frame).__name__} frame may have {MAX_LENGTH} bytes, got {len(body)}")
    return len(body).to_bytes(_HEAD, "big") + body


class Decoder(Generic[F]):
    """Makes frames of one direction, `ToWorker` or `FromWorker`, out of bytes that arrive in pieces."""

    def __init__(self, frames: type[F] | Any) -> None:
        self._decode = msgspec.msgpack.Decoder(frames).decode
        self._rest = bytearray()  # of a frame that has not come to its end

    def feed(self, data: bytes | memoryview) -> list[F]:
        """The frames that `data` completes, in order. They hold copies: `data` may change afterwards.

        Raises:
            ProtocolError: the bytes are not a frame of this direction, or announce one longer than `MAX_LENGTH`. Frames before
                that come first: then the next call raises.
        """
        rest = self._rest
        if rest:
            rest += data
        source = rest or data  # mostly, what arrives is whole frames
        frames: list[F] = []
        start, size = 0, len(source)
        while (body := start + _HEAD) <= size:
            (length,) = _length(source, start)
            if length > MAX_LENGTH:
                if frames:
                    break
                raise ProtocolError(f"a frame may have {MAX_LENGTH} bytes, this one announces {length}")
            stop = body + length
            if stop > size:
                break
            try:
                frames.append(self._decode(source[body:stop]))
            except msgspec.DecodeError as error:
                if frames:
                    break
                raise ProtocolError(f"not a frame of this protocol: {error}") from error
            start = stop
        if source is rest:
            del rest[:start]
        elif start < size:
            rest += source[start:]
        return frames
