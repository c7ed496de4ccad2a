"""No process of a run outlives its driver by more than two seconds, however that ended. Real drivers, workers and children."""

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic, sleep

import pytest

from tests import proctable

BOUND = 20.0  # seconds that anything here may take

PROMISE = 2.0
LOADED = 10.0  # seconds that are granted in place of PROMISE: this machine may have other things to do

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")

DRIVER = """
import asyncio, ctypes, fcntl, os, signal, subprocess, sys, time
from functools import partial
from pathlib import Path
import cloudpickle
from asynctune import _wire as wire
from asynctune.processes import Supervisor, Worker

# What a trial may do, at the worst. Each says that it has come to it by a file.

def sleeps(there):
    there.touch()
    time.sleep(60)

def spins(there):
    there.touch()
    while True:
        pass

def holds_the_interpreter(there):
    there.touch()
    ctypes.PyDLL(None).sleep(60)  # in C, without letting go of the GIL

def stops(there):
    there.touch()
    os.kill(os.getpid(), signal.SIGSTOP)

def is_deaf(there):
    for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD}:
        signal.signal(number, signal.SIG_IGN)
    there.touch()
    ctypes.PyDLL(None).sleep(60)

def forks(there):
    if os.fork() == 0:
        os.kill(os.getpid(), signal.SIGSTOP)
    there.touch()
    time.sleep(60)

def starts_a_group(there):
    subprocess.Popen(["sleep", "60"], process_group=0)
    subprocess.Popen(["sleep", "60"], start_new_session=True)
    there.touch()

def turns_daemon(there):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            os.closerange(0, 1000)
            there.touch()
            time.sleep(60)
        os._exit(0)
    os.wait()

def loses_its_marker(there):
    # By setproctitle, which writes over it, or as here. What is left is its group.
    child = subprocess.Popen(["sleep", "60"], env={})
    there.with_suffix(".pid").write_text(str(child.pid))
    there.touch()

def nests(there):
    async def inner():
        supervisor = await Supervisor.spawn(None, print)
        worker = await Worker.spawn({}, there.with_suffix(".log"), lambda frames: None, print, supervisor)
        worker.send(wire.Call(1, cloudpickle.dumps(partial(turns_daemon, there))))
        there.with_suffix(".token").write_text(supervisor.environment["ASYNCTUNE_RUN"])
        await asyncio.sleep(60)
    asyncio.run(inner())

DEEDS = [sleeps, spins, holds_the_interpreter, stops, is_deaf, forks, starts_a_group, turns_daemon, loses_its_marker, nests]

async def main(folder, deeds):
    lock = os.open(folder / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC)
    fcntl.flock(lock, fcntl.LOCK_EX)
    supervisor = await Supervisor.spawn(lock, lambda cause: (folder / "unsupervised").touch())
    (folder / "driver.token").write_text(supervisor.environment["ASYNCTUNE_RUN"])
    (folder / "supervisor").write_text(str(supervisor._process.pid))
    for deed in DEEDS:
        if deed.__name__ in deeds:
            log = folder / f"{deed.__name__}.log"
            worker = await Worker.spawn({}, log, lambda frames: None, print, supervisor)
            worker.send(wire.Load(b"", sys.path, str(folder)))
            worker.send(wire.Call(1, cloudpickle.dumps(partial(deed, folder / deed.__name__))))
    if os.fork() == 0:  # it holds the driver's ends of all sockets
        os.close(lock)
        time.sleep(60)
    (folder / "driver").touch()
    await asyncio.sleep(60)

if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, lambda number, frame: os._exit(7))
    signal.signal(signal.SIGUSR2, lambda number, frame: sys.exit(8))
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2:]))
"""

DEEDS = [
    "sleeps",
    "spins",
    "holds_the_interpreter",
    "stops",
    "is_deaf",
    "forks",
    "starts_a_group",
    "turns_daemon",
    "loses_its_marker",
    "nests",
]


class Run:
    """A driver whose workers are all at their deeds."""

    def __init__(self, folder: Path, deeds: list[str]) -> None:
        self.folder = folder
        script = folder / "script.py"
        script.write_text(DRIVER)
        paths = [str(Path(__file__).parent.parent), *sys.path]
        self.driver = subprocess.Popen(
            [sys.executable, str(script), str(folder), *deeds],
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        )
        self.deeds = deeds

    def wait(self) -> None:
        """Until all are at their deeds."""
        self.until(lambda: all((self.folder / name).exists() for name in ["driver", *self.deeds]))

    def until(self, condition: Callable[[], object]) -> None:
        limit = monotonic() + BOUND
        while not condition():
            assert self.driver.poll() is None, "the driver has ended"
            assert monotonic() < limit, f"there is only {sorted(path.name for path in self.folder.iterdir())}"
            sleep(0.005)

    def left(self) -> set[int]:
        """Processes of the run, and of runs within it."""
        found = proctable.marked(*(f"ASYNCTUNE_RUN={path.read_text()}" for path in self.folder.glob("*.token")))
        unmarked = {int(path.read_text()) for path in self.folder.glob("*.pid")}
        return found | {pid for pid in unmarked if proctable.state(pid) not in (None, "Z")}

    def ended(self) -> float:
        """The seconds until nothing is left, and the lock is free, which it is only then."""
        began = monotonic()
        while self._locked() or self.left():
            assert monotonic() - began < LOADED, f"left: {[(pid, proctable.state(pid)) for pid in self.left()]}"
            sleep(0.01)
        return monotonic() - began

    def pid(self, name: str) -> int:
        return int((self.folder / name).read_text())

    def _locked(self) -> bool:
        with (self.folder / "lock").open() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False


@contextmanager
def running(folder: Path, deeds: list[str] = DEEDS) -> Iterator[Run]:
    run = Run(folder, deeds)
    try:
        yield run
    finally:
        with suppress(ProcessLookupError):
            os.killpg(run.driver.pid, signal.SIGKILL)  # the child of the driver's own, too
        run.driver.wait()
        for pid in run.left():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGKILL, -9), (signal.SIGTERM, -15), (signal.SIGUSR1, 7), (signal.SIGUSR2, 8)],
    ids=["kill", "terminate", "os._exit", "sys.exit"],
)
def test_nothing_outlives_the_driver(tmp_path: Path, number: signal.Signals, code: int) -> None:
    with running(tmp_path) as run:
        run.wait()
        inside = run.left()
        assert len(inside) >= len(DEEDS)
        os.kill(run.driver.pid, number)
        assert run.driver.wait(BOUND) == code
        seconds = run.ended()
        print(f"{len(inside)} processes ended in {seconds:.2f} s (promised: {PROMISE:g} s)")
        assert not (tmp_path / "unsupervised").exists()


@pytest.mark.parametrize("delay", [0.0, 0.01, 0.03, 0.1, 0.3])
def test_nothing_outlives_a_driver_that_is_killed_while_it_starts(tmp_path: Path, delay: float) -> None:
    with running(tmp_path) as run:
        run.until(lambda: (tmp_path / "driver.token").exists() and run.left())
        sleep(delay)
        run.driver.kill()
        run.driver.wait(BOUND)
        print(f"ended in {run.ended():.2f} s (promised: {PROMISE:g} s)")


def test_workers_leave_by_themselves_when_the_supervisor_was_killed_before_the_driver(tmp_path: Path) -> None:
    with running(tmp_path, ["sleeps", "spins"]) as run:
        run.wait()
        os.kill(run.pid("supervisor"), signal.SIGKILL)
        run.until((tmp_path / "unsupervised").exists)
        run.driver.kill()
        run.driver.wait(BOUND)
        print(f"ended in {run.ended():.2f} s (promised: {PROMISE:g} s)")
