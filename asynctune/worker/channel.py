"""Channel: how a job talks to the driver."""

import os
import select
import signal
import socket
import sys
from _thread import allocate_lock, start_new_thread
from collections import deque
from time import monotonic
from typing import NoReturn, Protocol

from asynctune._wire import Decoder, FromWorker, ToWorker, encode

__all__ = ["Channel", "SocketChannel", "flush"]

#: Seconds from one look for frames to the next: a look is a system call, and takes a report almost as long as its sending.
LOOK_EVERY = 0.001


class Channel(Protocol):
    """Frames to and from the driver, in order.

    Attributes:
        shared: whether other threads than the job's may `send` too.
    """

    shared: bool

    def send(self, frame: FromWorker, *more: FromWorker) -> None:
        """Send a frame, or several at once: that wakes the driver once."""

    def receive(self) -> ToWorker:
        """The next frame; waits for it."""

    def poll(self) -> ToWorker | None:
        """The next frame if there is one already; it may take a millisecond to be seen."""


class SocketChannel:
    """A channel over a connected stream socket. Where the driver has gone, the process ends, wherever that is noticed."""

    shared = True

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._sending = allocate_lock()  # a frame may go in pieces, and nothing between them
        self._decoder = Decoder[ToWorker](ToWorker)
        self._frames: deque[ToWorker] = deque()
        self._readable = select.poll()
        self._readable.register(connection, select.POLLIN)
        self._looked = 0.0

    def send(self, frame: FromWorker, *more: FromWorker) -> None:
        data = encode(frame)
        for each in more:
            data += encode(each)
        try:
            with self._sending:
                self._socket.sendall(data)
        except OSError:
            leave()

    def receive(self) -> ToWorker:
        while not self._frames:
            self._readable.poll()  # who waits in recv is woken for nothing too, when the other end has read what we sent
            self._read()
        return self._frames.popleft()

    def poll(self) -> ToWorker | None:
        if self._frames:
            return self._frames.popleft()
        now = monotonic()
        if now - self._looked < LOOK_EVERY:
            return None
        self._looked = now
        # One look: a frame that comes in pieces is there at a later look.
        if self._readable.poll(0):
            self._read()
        return self._frames.popleft() if self._frames else None

    def _read(self) -> None:
        try:
            data = self._socket.recv(2**16)
        except OSError:
            leave()
        if not data:
            leave()
        self._frames += self._decoder.feed(data)

    def watch(self, beats: int) -> None:
        """End the process when the driver goes while user code runs, in a thread of its own, which also gives signs of life.

        The parent is looked at too: a process that the driver forked may hold its end of the socket open.

        Args:
            beats: a descriptor that does not block, written to once a second.
        """
        parent = os.getppid()
        gone = select.poll()
        gone.register(self._socket, 0)  # nothing but a hang-up or an error

        def wait() -> None:
            while os.getppid() == parent:
                try:
                    os.write(beats, b".")
                except OSError:  # full, since the driver has not looked for hours, or closed by user code
                    pass
                if gone.poll(1000):
                    break
            leave()

        start_new_thread(wait, ())


def flush() -> None:
    """Write out what user code printed."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):  # replaced, on a full disk, or closed by user code
            pass


def leave() -> NoReturn:
    """End this process at once, with all that user code started in its process group."""
    flush()
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(0)
