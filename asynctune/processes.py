"""Processes: the only room that starts, signals or reaps a process."""

import asyncio
import os
import resource
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from io import FileIO
from pathlib import Path

import asynctune
from asynctune._wire import Decoder, End, FromWorker, Run, Save, ToWorker, encode
from asynctune.errors import ProtocolError, RunFailed, WorkerDied
from asynctune.supervisor import RUN, WORKER
from asynctune.worker.command import command
from asynctune.worker.job import run_job, save_ended
from asynctune.worker.session import Session

__all__ = ["InlineWorker", "Supervisor", "Worker"]

_PACKAGE = Path(asynctune.__file__).absolute().parent
_SUPERVISOR = str(_PACKAGE / "supervisor.py")

#: How long, in seconds, the kernel may take to end a process that was sent SIGKILL before it is left to itself.
_KILL_TIME = 5.0

#: How long, in seconds, a worker that was sent SIGABRT may take to write its threads' tracebacks and end.
_ABORT_TIME = 1.0

#: How long, in seconds, the supervisor may take to end what is left of the run before it is left to do so alone.
_SWEEP_TIME = 3.0


class Supervisor(asyncio.Protocol):
    """The process that ends what a worker leaves behind, and all that is left of the run when the driver has ended: supervisor.py.

    A run does not go on without one: its death is an error to end the run with, not a reason to start another. It is a few
    megabytes that wait, deaf to SIGTERM: who ends it means it, and until another one had started nobody would keep watch.
    """

    def __init__(self, lock: int | None, on_death: Callable[[str], None]) -> None:
        #: What marks the processes of this run.
        self.environment: Mapping[str, str] = {RUN: os.urandom(16).hex()}
        self._on_death = on_death
        self._open = True  # neither closed nor dead
        self._gone = asyncio.Event()
        self._lifeline: asyncio.Transport
        self._socket, theirs = socket.socketpair()
        self._socket.setblocking(False)
        with theirs:
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", _SUPERVISOR, str(os.getpid()), self.environment[RUN]],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    # No marker of its own, nor of a run around this one: it outlives that one's sweep, to end what is in here.
                    env={name: value for name, value in os.environ.items() if name not in (RUN, WORKER)},
                    pass_fds=() if lock is None else (lock,),
                    start_new_session=True,
                )
            except BaseException:
                self._socket.close()
                raise

    @classmethod
    async def spawn(cls, lock: int | None, on_death: Callable[[str], None]) -> "Supervisor":
        """Start a supervisor; does not wait for it to be ready.

        Args:
            lock: a descriptor that it holds too, until nothing of the run is left.
            on_death: called once, if it ends before `close`, with a phrase that says how.

        Raises:
            RunFailed: the process cannot be started.
        """
        try:
            supervisor = cls(lock, on_death)
        except OSError as error:
            raise RunFailed(f"the supervisor did not start: {error}") from error
        try:
            await asyncio.get_running_loop().create_unix_connection(lambda: supervisor, sock=supervisor._socket)
        except BaseException:
            supervisor._open = False
            raise
        return supervisor

    def began(self, group: int) -> None:
        """There is a worker now, which leads this process group."""
        self._tell(f"began {group}\n")

    def ended(self, group: int, token: str) -> None:
        """That worker was reaped: end what it left behind."""
        self._tell(f"ended {group} {token}\n")

    async def close(self) -> None:
        """Let it end what is left of the run, and itself; wait for that, but not much longer than 3 s."""
        self._open = False
        if not self._lifeline.is_closing():
            self._lifeline.write_eof()
        try:
            async with asyncio.timeout(_SWEEP_TIME):
                await self._gone.wait()
        except TimeoutError:  # the kernel cannot end something yet: the supervisor stays, and with it the lock
            pass

    def _tell(self, line: str) -> None:
        if self._open and not self._lifeline.is_closing():
            self._lifeline.write(line.encode())

    # What the loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._lifeline = transport

    def connection_lost(self, error: Exception | None) -> None:
        # It holds the other end for as long as it lives, and nobody else does: it is about to be a zombie. Or the connection was
        # given up on this side, which is to it as if the driver had ended; asyncio closes the socket only after this.
        self._socket.close()
        code = self._process.wait()
        self._gone.set()
        if self._open:
            self._open = False
            self._on_death(_ending(code))


class Worker(asyncio.SubprocessProtocol):
    """A worker process, the leader of its own session and process group."""

    def __init__(
        self,
        log: Path,
        on_frames: Callable[[Sequence[FromWorker]], None],
        on_death: Callable[[str], None],
        supervisor: Supervisor | None,
    ) -> None:
        self._log = log
        self._supervisor = supervisor
        self._token = os.urandom(16).hex()
        self._on_frames = on_frames
        self._on_death: Callable[[str], None] | None = on_death
        self._decoder = Decoder[FromWorker](FromWorker)
        self._ready = False
        self._reaped = asyncio.Event()
        self._cause: str | None = None  # why we killed it, if we did
        self._process: asyncio.SubprocessTransport | None = None
        self._connection: asyncio.Transport | None = None
        self._socket, self._theirs = socket.socketpair()
        self._socket.setblocking(False)
        self._pulse, self._beats = map(_nonblocking, os.pipe(), "rw")

    @classmethod
    async def spawn(
        cls,
        environment: Mapping[str, str],
        log: Path,
        on_frames: Callable[[Sequence[FromWorker]], None],
        on_death: Callable[[str], None],
        supervisor: Supervisor | None = None,
    ) -> "Worker":
        """Start a worker.

        Args:
            environment: what its environment has beyond the driver's.
            log: the file that its stdout and stderr are appended to.
            on_frames: called with what has come from it, a frame or several, in order; the first is `Ready`.
            on_death: called once, after the last frame, with a phrase that says how it ended, as in "exited with code 3"; never
                after `close`.
            supervisor: the run's, which ends what the worker started: when the worker has ended, or the driver.

        Both are called from the event loop, never before this has returned. An `on_frames` that raises is reported
        to the loop's exception handler, and ends the connection and so the worker.

        Raises:
            WorkerDied: the process cannot be started, or its log not be opened.
        """
        loop = asyncio.get_running_loop()
        try:
            # Neither a link, which may lead out of the run directory, nor a pipe, which would keep us waiting.
            flags = os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            output = os.open(log, os.O_WRONLY | flags, 0o600)
        except OSError as error:
            raise WorkerDied(f"did not start: {error}") from error
        try:
            worker = cls(log, on_frames, on_death, supervisor)
        except OSError as error:
            os.close(output)
            raise WorkerDied(f"did not start: {error}") from error
        marks = {} if supervisor is None else {**supervisor.environment, WORKER: worker._token}
        descriptors = (worker._theirs.fileno(), worker._beats.fileno())
        try:
            await loop.subprocess_exec(
                lambda: worker,
                *command(*descriptors),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **environment, **marks},
                pass_fds=descriptors,
                start_new_session=True,
            )
            # Last, so that no frame is read before the caller has the worker.
            worker._connection, _ = await loop.create_unix_connection(lambda: _Connection(worker), sock=worker._socket)
        except BaseException as error:
            await worker.close(0.0)
            if isinstance(error, OSError):
                raise WorkerDied(f"did not start: {error}") from error
            raise
        finally:
            worker._theirs.close()
            worker._beats.close()
            os.close(output)
        if worker._reaped.is_set():
            loop.call_soon(worker._bury)
        return worker

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.get_pid()

    def send(self, frame: ToWorker) -> None:
        """Send a frame; to a worker that has died, without effect."""
        if self._connection is not None and not self._connection.is_closing():
            self._connection.write(encode(frame))

    def pause(self) -> None:
        """Take nothing from the worker until `resume`; once its socket is full, it waits."""
        if self._connection is not None:
            self._connection.pause_reading()

    def resume(self) -> None:
        if self._connection is not None:
            self._connection.resume_reading()

    def beat(self) -> bool:
        """Whether the worker has given a sign of life since the last look; while its interpreter runs, it does once a second."""
        return not self._pulse.closed and bool(self._pulse.read(2**16))

    def kill(self, cause: str = "killed by asynctune") -> None:
        """Kill the worker and all that it started, at once; `on_death` follows, with `cause`."""
        if not self._reaped.is_set():
            self._cause = self._cause or cause
            self._signal(signal.SIGKILL)

    def abort(self, cause: str) -> None:
        """Have a worker that hangs write the tracebacks of its threads to its log, then kill it; `on_death` follows, with `cause`."""
        if self._reaped.is_set():
            return
        self._cause = self._cause or cause
        try:
            # No core: it would be as large as what the trial had in memory, and take longer than a second to write. What a crash
            # of its own leaves is up to the user's limits.
            if sys.platform == "linux":
                _, hard = resource.prlimit(self.pid, resource.RLIMIT_CORE)
                resource.prlimit(self.pid, resource.RLIMIT_CORE, (0, hard))
            os.kill(self.pid, signal.SIGABRT)
        except OSError:  # it has just ended, or has become somebody else's
            pass
        asyncio.get_running_loop().call_later(_ABORT_TIME, self.kill)

    async def close(self, grace: float) -> None:
        """End the worker: hang up, after `grace` seconds send SIGTERM, after as long again SIGKILL; wait until it is reaped."""
        self._on_death = None
        self._pulse.close()
        if self._connection is None:
            self._socket.close()
        else:
            self._connection.abort()
        if self._process is None:
            return
        try:
            self._signal(signal.SIGCONT)  # who is stopped would see neither
            if not await self._reaped_within(grace):
                self._signal(signal.SIGTERM)
                await self._reaped_within(grace)
        finally:
            self.kill()
            await self._reaped_within(_KILL_TIME)
            self._process.close()

    async def _reaped_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._reaped.wait()
        except TimeoutError:
            return False
        return True

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            try:
                os.killpg(self._process.get_pid(), number)
            except (ProcessLookupError, PermissionError):  # the latter on macOS, of a group of zombies
                pass

    # What the loop calls.

    def received(self, data: bytes | memoryview) -> None:
        """Bytes from the worker."""
        try:
            while frames := self._decoder.feed(data):
                self._ready = True
                self._on_frames(frames)
                data = b""  # once more: they may have come before what is no frame
        except ProtocolError as error:
            self.kill(f"sent {error}")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.SubprocessTransport)
        self._process = transport
        if self._supervisor is not None:
            self._supervisor.began(self.pid)

    def process_exited(self) -> None:
        # The pid tells of a death. The socket does not: a child of the worker may hold it open.
        self._reaped.set()
        self._signal(signal.SIGKILL)  # what is left of its group
        if self._supervisor is not None:
            self._supervisor.ended(self.pid, self._token)
        if self._connection is not None:
            self._bury()

    def _bury(self) -> None:
        """Deliver what the worker still had sent, then say how it ended."""
        assert self._connection is not None and self._process is not None
        try:
            while not self._connection.is_closing() and (data := self._socket.recv(2**18)):
                self.received(data)
        except BlockingIOError:
            pass
        finally:
            self._connection.abort()
            self._process.close()
            self._pulse.close()
            if self._on_death is not None:
                self._on_death(self._epitaph(self._process.get_returncode()))

    def _epitaph(self, code: int | None) -> str:
        cause = self._cause or _ending(code)
        return cause if self._ready else f"did not start: {cause}; its log ends with\n{_tail(self._log)}"


class _Connection(asyncio.BufferedProtocol):
    """The driver's end of a worker's socket. What arrives is taken out of one buffer before more can arrive."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._buffer = memoryview(bytearray(2**16))

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self._worker.received(self._buffer[:nbytes])


def _ending(code: int | None) -> str:
    """How a process ended, as its exit status has it."""
    if code == 255:  # as asyncio has it when somebody else in the driver called waitpid
        return "exited with code 255, or with an unknown one: something else may have waited for it"
    if code is None or code >= 0:
        return f"exited with code {code}"
    if -code == signal.SIGKILL:
        return "killed by SIGKILL that asynctune did not send (out of memory?)"
    names = {member.value: member.name for member in signal.Signals}
    return f"killed by {names.get(-code, f'signal {-code}')}"


def _nonblocking(descriptor: int, mode: str) -> FileIO:
    os.set_blocking(descriptor, False)
    return FileIO(descriptor, mode)


def _tail(log: Path) -> str:
    """The last lines of a log."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 2000))
        return "\n".join(file.read().decode(errors="replace").splitlines()[-10:])


class InlineWorker:
    """A worker that is no process: `send` of a Run trains the trial right there, and `on_frames` is called from within.

    It cannot wait: a trial that is told to pause saves and leaves. A KeyboardInterrupt comes out of `send`.
    """

    def __init__(self, function: Callable[..., object], on_frames: Callable[[Sequence[FromWorker]], None]) -> None:
        self._function = function
        self._channel = _InlineChannel(on_frames)
        self._session: Session | None = None
        self._running = False

    def send(self, frame: ToWorker) -> None:
        frames = self._channel.frames
        frames.append(frame)
        if self._running:
            return
        self._running = True
        try:
            while frames:
                self._handle(frames.popleft())
        finally:
            self._running = False

    def kill(self) -> None:
        """Without effect: nothing runs outside of `send`."""

    async def close(self, grace: float) -> None:
        self._session = None

    def _handle(self, frame: ToWorker) -> None:
        match frame:
            case Run():
                self._session = None
                self._channel.job = frame.job
                self._session = run_job(self._function, frame, self._channel)
            case Save():
                save_ended(self._session, frame, self._channel)
            case _:
                pass  # as in a worker: its job is over


class _InlineChannel:
    """A channel whose other end answers within `send`."""

    shared = False

    def __init__(self, on_frames: Callable[[Sequence[FromWorker]], None]) -> None:
        self.job = 0
        self.frames: deque[ToWorker] = deque()
        self._on_frames = on_frames

    def send(self, *frames: FromWorker) -> None:
        self._on_frames(frames)

    def receive(self) -> ToWorker:
        return self.frames.popleft() if self.frames else End(self.job)

    def poll(self) -> ToWorker | None:
        return self.frames.popleft() if self.frames else None
