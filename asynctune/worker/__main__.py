"""The entry point of a worker process: `main(FD)`, with the number of a connected socket that it inherited."""

import faulthandler
import io
import os
import pickle
import signal
import socket
import sys
from collections.abc import Callable

from asynctune._wire import Call, Continue, End, Load, Loaded, Pause, Ready, Returned, Run, Save
from asynctune.errors import ProtocolError
from asynctune.worker.channel import SocketChannel
from asynctune.worker.job import error_frame, run_job, save_ended
from asynctune.worker.session import Session

__all__ = ["main"]


def main(descriptor: int) -> None:
    """Serve the driver at the other end until it goes."""
    connection = socket.socket(fileno=descriptor)
    connection.set_inheritable(False)
    # Ctrl-C is the driver's to handle. A function, not SIG_IGN: what user code starts would inherit that.
    signal.signal(signal.SIGINT, lambda number, frame: None)
    faulthandler.enable()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True, errors="backslashreplace")  # what a crash leaves in the log
    channel = SocketChannel(connection)
    channel.watch()
    channel.send(Ready(os.getpid()))
    serve(channel)


def serve(channel: SocketChannel) -> None:
    function: Callable[..., object] | None = None
    session: Session | None = None
    while True:
        frame = channel.receive()
        try:
            match frame:
                case Load():
                    sys.path[:] = frame.path
                    os.chdir(frame.cwd)
                    if frame.function:
                        function = pickle.loads(frame.function)
                    channel.send(Loaded())
                case Run():
                    if function is None:
                        raise ProtocolError("a Run frame came before a trainable")
                    session = None  # what the last trial tracked is let go before the next one begins
                    session = run_job(function, frame, channel)
                case Save():
                    save_ended(session, frame, channel)
                case Call():
                    channel.send(Returned(frame.job, pickle.dumps(pickle.loads(frame.payload)())))
                case Continue() | Pause() | End():
                    pass  # it was on its way when its job ended
        except BaseException as error:  # noqa: BLE001 - user code raises what it likes, when it is unpickled too
            channel.send(error_frame(getattr(frame, "job", 0), error))


if __name__ == "__main__":
    main(int(sys.argv[1]))
