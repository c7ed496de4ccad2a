"""Ranks: one trial as several processes that torch.distributed joins, each with a GPU to itself.

Rank 0 is the trial's worker. Another rank is a worker too, whose driver is rank 0: it takes the same steps and begins with the same
checkpoint, but reports and saves nothing, and at each turn of its loop waits to hear from rank 0 whether to go on. They talk over
socket pairs, so that neither a decision nor a pause, however long, is anything to torch.distributed.
"""

import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from time import monotonic, sleep
from typing import Any, NamedTuple, NoReturn

from msgspec.structs import replace

from asynctune._wire import (
    Call,
    Continue,
    Decoder,
    Done,
    End,
    Error,
    FromWorker,
    Load,
    Loaded,
    Returned,
    Run,
    ToWorker,
    encode,
)
from asynctune.errors import AsynctuneError, InvalidArgument, TrialEnded, check_integer
from asynctune.worker.channel import Channel
from asynctune.worker.command import command
from asynctune.worker.job import error_frame
from asynctune.worker.pickler import dumps
from asynctune.worker.session import Session
from asynctune.worker.trial import Trial

__all__ = ["RankFailed", "distributed"]

#: Seconds that rank 0 may take to come back once another has failed, and to tidy up; and the others to leave, once the trial was stopped.
GRACE = 5.0

#: Seconds that the failure of a rank may take to be heard of, when rank 0 has already seen what came of it.
DELAY = 1.0

#: Seconds from one look for ranks that have ended to the next: a process that one of them forked may keep its socket open.
LOOK_EVERY = 0.5

#: Seconds after which to look again when a rank fails: one that was killed is seen to be gone only after others have missed it.
LOOK_AGAIN = 0.1

_LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"
_HOST = "127.0.0.1"


class RankFailed(AsynctuneError):
    """A rank of a distributed trial failed, and with it the trial; the message is "rank 1: ValueError: ...", a note has its traceback.

    Attributes:
        frame: what the rank said; None if it died and said nothing.
    """

    def __init__(self, rank: int, error: str, frame: Error | None = None) -> None:
        super().__init__(f"rank {rank}: {error}")
        self.frame = frame
        self.out_of_memory = frame is not None and frame.memory
        if frame is not None:
            self.add_note(f"\nRank {rank}, {frame.traceback}")


def distributed(
    train: Callable[[Trial], object], processes: int | None = None, backend: str | None = None
) -> Callable[[Trial], object]:
    """A trainable that runs `train` in several processes at once, the ranks of one torch.distributed group.

        def train(trial: at.Trial) -> None:
            model = DistributedDataParallel(build(trial.config).to(trial.device))
            trial.track(model=model.module)
            ...

        at.run(asynctune.torch.distributed(train), space, slots=at.Slots(gpus_per_trial=2), ...)

    `train` is called in each rank, in a group that is initialised already. Its trial has the same number, seed, configuration and
    restored checkpoint everywhere; `trial.device` is the rank's own GPU, the current one. What rank 0 reports and saves counts; what
    the others report is checked only. All take the same turns of `trial.steps`, or the same reports outside of it: there a decision
    takes effect, in all ranks at once. A pause waits there, in all.

    The trial fails if any rank does, with `RankFailed` if that was not rank 0. `MASTER_ADDR`, `MASTER_PORT`, `RANK`, `LOCAL_RANK`,
    `WORLD_SIZE` and `LOCAL_WORLD_SIZE` are set while it runs. Ranks listen on the loopback interface, and on no other. Threads of
    torch's (`torch.get_num_threads`) are shared out among the ranks.

    Args:
        train: the trainable of one rank, as for `at.run`.
        processes: how many ranks, >= 1, at most the GPUs of a trial if it has any; default: its GPUs.
        backend: torch.distributed's; default: "nccl" with GPUs, else "gloo".

    Raises:
        InvalidArgument: an argument is none of these. Of the number of GPUs a trial says so, when it fails.
    """
    if not callable(train):
        raise InvalidArgument(f"train must be a function of one argument, the trial, got {train!r}")
    if processes is not None:
        check_integer("processes", processes, at_least=1)
    if backend is not None and not isinstance(backend, str):
        raise InvalidArgument(f"backend must be the name of one, such as 'gloo', got {backend!r}")
    return _Distributed(train, processes, backend)


class _Distributed:
    """The trainable in the driver, on its way to workers."""

    def __init__(self, train: Callable[[Trial], object], processes: int | None, backend: str | None) -> None:
        self._train = train
        self._processes = processes
        self._backend = backend

    def __reduce__(self) -> tuple[object, ...]:
        # As bytes, which go on to the other ranks as they came: rank 0's trials may leave their traces in a script's globals.
        return _Rank0, (dumps(self._train), self._processes, self._backend)

    def __call__(self, trial: Trial) -> NoReturn:
        raise InvalidArgument("a distributed trial needs a worker, and slots='inline' has none")


class _Seat(NamedTuple):
    """The place of one rank."""

    rank: int
    processes: int
    backend: str
    port: int  # of rank 0's store
    device: str

    @property
    def environment(self) -> dict[str, str]:
        return {
            "MASTER_ADDR": _HOST,
            "MASTER_PORT": str(self.port),
            "RANK": str(self.rank),
            "LOCAL_RANK": str(self.rank),
            "WORLD_SIZE": str(self.processes),
            "LOCAL_WORLD_SIZE": str(self.processes),
            # Left to themselves, they listen where the host's name leads.
            "GLOO_SOCKET_IFNAME": _LOOPBACK,
            "NCCL_SOCKET_IFNAME": f"={_LOOPBACK}",
        }

    def prepare(self) -> None:
        """Make this process ready to join."""
        import torch

        # Its functions take the group there is when it is imported, and keep that for good (torch 2.13).
        import torch.distributed.nn.functional

        torch.set_num_threads(max(1, torch.get_num_threads() // self.processes))
        if self.device != "cpu":
            torch.cuda.set_device(self.device)

    def join(self, store: Any) -> None:
        """Enter the group; waits for all others."""
        from torch import distributed as dist

        dist.init_process_group(self.backend, store=store, rank=self.rank, world_size=self.processes)


class _Rank0:
    """The trainable in a worker: the trial's rank 0, which has the others started."""

    def __init__(self, train: bytes, processes: int | None, backend: str | None) -> None:
        self._pickled = train
        self._train: Callable[[Trial], object] = pickle.loads(train)
        self._processes = processes
        self._backend = backend

    def __call__(self, trial: Trial) -> object:
        store, seats = self._seats(trial.device)
        with _seated(seats[0]):
            # Where NCCL has lost a rank, what waits for it waits forever, or torch aborts the process with an error of its own.
            ranks = _Ranks(trial._session, patience=0.0 if seats[0].backend == "nccl" else GRACE)
            try:
                ranks.start(seats[1:], self._pickled)
                seats[0].join(store)
                del store  # it is the group's; a traceback that holds this frame would keep its socket open
                result = ranks.lead(self._train, trial)
                ranks.part()
            except BaseException as error:
                ranks.fail(error)
                raise
            finally:
                _dissolve()
                ranks.close()
        return result

    def _seats(self, device: str) -> tuple[Any, list[_Seat]]:
        """The store where the ranks meet, and the places of all."""
        import torch
        from torch import distributed as dist

        gpus = 0 if device == "cpu" else torch.cuda.device_count()
        processes = self._processes or gpus
        if not processes:
            raise InvalidArgument(
                "processes must be given where a trial has no GPUs, as in distributed(train, processes=2)"
            )
        if gpus and processes > gpus:
            raise InvalidArgument(f"processes must be at most the number of GPUs of a trial, {gpus}, got {processes}")
        listener = socket.create_server((_HOST, 0))  # torch's own would listen on every interface
        port = listener.getsockname()[1]
        store = dist.TCPStore(  # type: ignore[attr-defined]
            _HOST, port, processes, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach()
        )
        backend = self._backend or ("nccl" if gpus else "gloo")
        devices = [f"cuda:{rank}" if gpus else "cpu" for rank in range(processes)]
        return store, [_Seat(rank, processes, backend, port, device) for rank, device in enumerate(devices)]


@contextmanager
def _seated(seat: _Seat) -> Iterator[None]:
    """Have this process in its place, and as it was afterwards."""
    import torch

    before = {name: os.environ.get(name) for name in seat.environment}
    threads = torch.get_num_threads()
    hook = sys.excepthook  # joining a group wraps it in another
    os.environ.update(seat.environment)
    try:
        seat.prepare()
        yield
    finally:
        sys.excepthook = hook
        torch.set_num_threads(threads)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _part() -> None:
    """Leave the group, with all others, unless the trainable has done so."""
    from torch import distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def _end() -> None:
    """Leave the group, and have all done that is to be done at the end of a process: a DataLoader's own are let go."""
    import atexit

    _part()
    atexit._run_exitfuncs()


def _dissolve() -> None:
    """Leave a group of which others may have been killed."""
    from torch import distributed as dist

    if dist.is_initialized():
        with suppress(Exception):  # there is an error on its way already
            if dist.get_backend() == "nccl":
                dist.distributed_c10d._abort_process_group()
            else:
                dist.destroy_process_group()


class _Member(NamedTuple):
    """A rank that was started."""

    rank: int
    process: subprocess.Popen[bytes]
    connection: socket.socket
    decoder: Decoder[FromWorker]


class _Ranks:
    """The other ranks, as rank 0 has them. A thread listens to them, and ends the worker if one fails and rank 0 does not come back."""

    def __init__(self, session: Session, patience: float) -> None:
        self._session = session
        self._patience = patience  # seconds that rank 0 may take to come back once another has failed
        self._began = monotonic()
        self._log = os.fstat(1).st_size
        self._members: list[_Member] = []
        self._listener = threading.Thread(target=self._listen, name="asynctune-ranks", daemon=True)
        self._changed = threading.Condition()
        # All that follows is the condition's.
        self._heard: Counter[type] = Counter()  # frames, by their kind
        self._reason: BaseException | None = None  # why the trial fails
        self._over = False  # ranks may end now
        self._failing = False  # rank 0 has come back, and tidies up
        self._closed = False

    def start(self, seats: Sequence[_Seat], train: bytes) -> None:
        """Start ranks; return when all have loaded what they need, and are about to join the group."""
        session = self._session
        for seat in seats:
            self._members.append(_spawn(seat))
        if self._members:
            self._listener.start()
        for seat, member in zip(seats, self._members, strict=True):
            recruit = _Recruit(seat, train, session.run.restore)
            _send(member, Load(pickle.dumps(recruit), sys.path, os.getcwd()))
        self._expect(Loaded)
        for member in self._members:
            _send(member, replace(session.run, restore=None))  # rank 0 has looked at it for damage

    def lead(self, train: Callable[[Trial], object], trial: Trial) -> object:
        """Let rank 0 train, and the others follow."""
        self._session.on_settled = self._tell
        try:
            return train(trial)
        except TrialEnded:
            return None
        finally:
            self._session.on_settled = None

    def _tell(self) -> None:
        """Let the others know what was settled."""
        session = self._session
        with self._changed:
            if self._reason is not None:
                raise self._reason
        frame = End(session.run.job) if session.ended else Continue(session.run.job, session.step + 1)
        for member in self._members:
            self._push(member, encode(frame))

    def _push(self, member: _Member, data: bytes) -> None:
        """Send to a rank that may be late. Raises why the trial fails if it does meanwhile."""
        writable = select.poll()
        writable.register(member.connection, select.POLLOUT)
        while data:
            if self._reason is not None:
                raise self._reason
            try:
                if writable.poll(1000 * LOOK_EVERY):
                    data = data[member.connection.send(data, socket.MSG_DONTWAIT) :]
            except BlockingIOError:
                pass
            except OSError:  # it has ended, which will be heard of
                return

    def part(self) -> None:
        """Wait until the others have returned as well, and take leave of them. Raises `RankFailed`."""
        job = self._session.run.job
        for member in self._members:
            self._push(member, encode(End(job)))  # for one that would take more turns than rank 0
        if self._expect(Done, GRACE if self._session.ended else None):
            for member in self._members:
                _send(member, Call(job, pickle.dumps(_end)))
            _part()
            self._expect(Returned, GRACE)
        with self._changed:
            self._over = True

    def fail(self, error: BaseException) -> None:
        """End the others, since rank 0 fails with `error`. Raises what came first, if that was the failure of one of them."""
        with self._changed:
            if isinstance(error, RuntimeError):  # as torch's are: it may come of a failure that is about to be heard of
                self._changed.wait_for(lambda: self._reason is not None, DELAY)
            if self._reason is None or _alike(self._reason, error):
                self._reason = error
            self._failing = True
            self._changed.notify_all()
        self._kill()
        if self._reason is not error:
            raise self._reason from None

    def close(self) -> None:
        """End what is left of the ranks."""
        with self._changed:
            self._over = self._closed = True
            self._changed.notify_all()
        self._kill()
        for member in self._members:
            member.process.wait()
            with suppress(OSError):
                member.connection.shutdown(socket.SHUT_RDWR)  # wakes the listener
        if self._listener.is_alive():
            self._listener.join()
        for member in self._members:
            member.connection.close()
        self._reason = None  # its traceback leads to this object: a circle, which would keep all that it passes by

    def _kill(self) -> None:
        for member in self._members:
            member.process.kill()

    def _expect(self, frame: type, seconds: float | None = None) -> bool:
        """Wait until each rank has sent such a frame, and return True; False if that takes longer. Raises why the trial fails."""
        with self._changed:
            came = self._changed.wait_for(
                lambda: self._reason is not None or self._heard[frame] == len(self._members), seconds
            )
            if self._reason is not None:
                raise self._reason
            return came

    # The listener.

    def _listen(self) -> None:
        readable = select.poll()
        for member in self._members:
            readable.register(member.connection, select.POLLIN)
        while self._reason is None and not self._over:
            failure = self._next(readable)
            with self._changed:
                if self._reason is None and not self._over:
                    self._reason = failure
                self._changed.notify_all()
        if self._reason is None:
            return
        self._kill()
        with self._changed:
            came_back = self._changed.wait_for(lambda: self._failing or self._closed, self._patience)
            if came_back and self._changed.wait_for(lambda: self._closed, GRACE):
                return
            session = self._session
            busy = monotonic() - self._began - session.away
            session.give_up(error_frame(session.run.job, self._reason, busy, self._log, "its ranks are gone"))

    def _next(self, readable: select.poll) -> RankFailed | None:
        """Take in what comes from ranks next. Return which of them failed."""
        errors: dict[int, RankFailed] = {}
        hung_up = False
        for descriptor, _ in readable.poll(1000 * LOOK_EVERY):
            [member] = (member for member in self._members if member.connection.fileno() == descriptor)
            try:
                data = member.connection.recv(2**16)
            except OSError:
                data = b""
            if not data:
                readable.unregister(descriptor)
                hung_up = True
            for frame in member.decoder.feed(data):
                with self._changed:
                    self._heard[type(frame)] += 1
                if isinstance(frame, Error):
                    errors[member.rank] = RankFailed(member.rank, frame.error, frame)
        if errors or hung_up:
            sleep(LOOK_AGAIN)
        for member in self._members:
            if (code := member.process.poll()) is not None:
                return errors.get(member.rank) or RankFailed(member.rank, _ending(code))
        return next(iter(errors.values()), None)


def _spawn(seat: _Seat) -> _Member:
    """Start the process of a rank."""
    ours, theirs = socket.socketpair()
    beats = os.open(os.devnull, os.O_WRONLY)  # of its signs of life: when it hangs, so does rank 0
    try:
        process = subprocess.Popen(
            command(theirs.fileno(), beats),
            stdin=subprocess.DEVNULL,
            env=os.environ | seat.environment,
            pass_fds=(theirs.fileno(), beats),
        )
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
        os.close(beats)
    return _Member(seat.rank, process, ours, Decoder(FromWorker))


def _send(member: _Member, frame: ToWorker) -> None:
    """Send a frame; without effect if the rank has ended, which will be heard of."""
    with suppress(OSError):
        member.connection.sendall(encode(frame))


def _alike(failure: BaseException, error: BaseException) -> bool:
    """Whether a rank failed in the same way as rank 0 with `error`; then the latter is to be seen."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return isinstance(failure, RankFailed) and failure.frame is not None and failure.frame.error[:500] == text[:500]


def _ending(code: int) -> str:
    """How a process ended, as its exit status has it."""
    return f"exited with code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"


# What runs in the others.


class _Recruit(NamedTuple):
    """What makes a process the rank of a seat when it is unpickled there."""

    seat: _Seat
    train: bytes
    restore: str | None

    def __reduce__(self) -> tuple[object, ...]:
        return _Rank, tuple(self)


class _Rank:
    """The trainable of another rank than 0."""

    def __init__(self, seat: _Seat, train: bytes, restore: str | None) -> None:
        seat.prepare()
        self._seat = seat
        self._train: Callable[[Trial], object] = pickle.loads(train)
        self._restore = restore

    def __call__(self, trial: Trial) -> None:
        from torch import distributed as dist

        seat = self._seat
        seat.join(dist.TCPStore(_HOST, seat.port, seat.processes, is_master=False))  # type: ignore[attr-defined]
        session = trial._session
        run = replace(session.run, device=seat.device, restore=self._restore)
        self._train(Trial(_Follower(run, session._channel)))


class _Follower(Session):
    """The session of another rank than 0."""

    def __init__(self, run: Run, channel: Channel) -> None:
        super().__init__(run, channel)
        self.tracked.goes_on = (
            False  # the random numbers in the checkpoint are rank 0's: with the same, ranks would drop the same
        )

    def report(self, step: int, metrics: dict[str, float]) -> None:
        """Rank 0's reports are the trial's."""
        self.step = step
        self.reported = True

    def settle(self, *, complete: bool = True) -> None:
        """Wait for what rank 0 has settled."""
        frame = self._channel.receive()
        if isinstance(frame, Continue) and frame.until is not None and frame.until != self.step + 1:
            raise InvalidArgument(
                f"all ranks must take the same steps and make the same reports, but this one is at step {self.step}, rank 0 at {frame.until - 1}"
            )
        self._obey(frame)
