"""The entry point of a worker process: `main(SOCKET, BEATS)`, with the descriptors that it inherited."""

import faulthandler
import io
import os
import pickle
import signal
import socket
import sys
from collections.abc import Callable

from asynctune._wire import Call, Continue, End, Load, Loaded, Pause, Ready, Returned, Run, Save, Worn
from asynctune.errors import ProtocolError
from asynctune.worker import pickler
from asynctune.worker.channel import SocketChannel
from asynctune.worker.job import error_frame, run_job, save_ended
from asynctune.worker.residue import Residue
from asynctune.worker.session import Session

__all__ = ["main"]


def main(descriptor: int, beats: int) -> None:
    """Serve the driver at the other end of a socket until it goes; give signs of life to a pipe, whose end does not block."""
    connection = socket.socket(fileno=descriptor)
    connection.set_inheritable(False)
    os.set_inheritable(beats, False)
    # Ctrl-C is the driver's to handle. A function, not SIG_IGN: what user code starts would inherit that.
    signal.signal(signal.SIGINT, lambda number, frame: None)
    log = os.dup(2)  # whatever user code makes of sys.stderr and of its descriptor
    faulthandler.enable(log)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True, errors="backslashreplace")  # what a crash leaves in the log
    pickler.install()
    channel = SocketChannel(connection)
    channel.watch(beats)
    channel.send(Ready(os.getpid()))
    serve(channel, log)


def serve(channel: SocketChannel, log: int) -> None:
    function: Callable[..., object] | None = None
    session: Session | None = None
    residue: Residue | None = None
    while True:
        frame = channel.receive()
        try:
            match frame:
                case Load():
                    sys.path[:] = frame.path
                    os.chdir(frame.cwd)
                    if frame.cpus:
                        os.sched_setaffinity(0, frame.cpus)
                    for name in frame.preload:
                        try:
                            __import__(name)
                        except ImportError as error:
                            raise ImportError(f"preload={name!r}: {error}") from error
                    if frame.function:
                        function = pickle.loads(frame.function)
                    residue = Residue()
                    channel.send(Loaded())
                case Run():
                    if function is None or residue is None:
                        raise ProtocolError("a Run frame came before a trainable")
                    session = None  # what the last trial tracked is let go before the next one begins
                    if (cause := residue.clear()) is not None:
                        channel.send(Worn(frame.job, cause))
                        continue
                    for descriptor in (1, 2):
                        os.dup2(
                            log, descriptor
                        )  # the last trial may have closed it; then the next file opened has its number
                    session = run_job(function, frame, channel, residue.left)
                case Save():
                    save_ended(session, frame, channel)
                case Call():
                    channel.send(Returned(frame.job, pickle.dumps(pickle.loads(frame.payload)())))
                case Continue() | Pause() | End():
                    pass  # it was on its way when its job ended
        except BaseException as error:  # noqa: BLE001 - user code raises what it likes, when it is unpickled too
            channel.send(error_frame(getattr(frame, "job", 0), error))
