"""The supervisor: what is marked goes, whatever it did to get away, and nothing else. Real processes, all waits bounded."""

import asyncio
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest

from asynctune import processes, supervisor
from asynctune.errors import RunFailed
from asynctune.processes import Supervisor
from tests import proctable

BOUND = 20.0  # seconds that anything here may take

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")

TOKEN = os.urandom(8).hex()  # others may run these tests at the same time
RUN, WORKER = f"ASYNCTUNE_RUN={TOKEN}".encode(), TOKEN + "-worker"

SLEEP = [sys.executable, "-I", "-S", "-c", "import time; time.sleep(60)"]


def until(condition: Callable[[], object]) -> None:
    limit = monotonic() + BOUND
    while not condition():
        assert monotonic() < limit, "waited in vain"
        sleep(0.005)


def spared(process: subprocess.Popen[bytes]) -> bool:
    """Whether nobody has killed a process, which ends with this."""
    process.terminate()  # without effect on the exit status if SIGKILL came first
    return process.wait(BOUND) == -signal.SIGTERM


class Sleepers:
    """Processes that sleep; those of them that are left are killed in the end."""

    def __init__(self) -> None:
        self._processes: list[subprocess.Popen[bytes]] = []

    def __call__(self, **environment: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(SLEEP, env={**os.environ, **environment}, start_new_session=True)
        self._processes.append(process)
        until(Path(f"/proc/{process.pid}/environ").read_bytes)  # nothing yet while it is being exec'ed
        return process

    def end(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()


@pytest.fixture
def sleeper() -> Iterator[Sleepers]:
    sleepers = Sleepers()
    yield sleepers
    sleepers.end()


class Bare:
    """A supervisor without a Supervisor: its lifeline is a pipe."""

    def __init__(self, token: str, **environment: str) -> None:
        path = Path(supervisor.__file__)
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(path), str(os.getpid()), token],
            stdin=subprocess.PIPE,
            bufsize=0,
            env={**os.environ, **environment},
        )
        assert self.process.stdin is not None
        self.stdin = self.process.stdin

    def close(self) -> None:
        self.stdin.close()
        assert self.process.wait(BOUND) == 0


@pytest.fixture
def bare() -> Iterator[Bare]:
    bare = Bare(TOKEN)
    yield bare
    bare.stdin.close()
    bare.process.kill()
    bare.process.wait()


# Who goes, and who does not.


def test_nobody_else_is_killed(bare: Bare, sleeper: Sleepers) -> None:
    strangers = [
        sleeper(),
        sleeper(ASYNCTUNE_RUN="another-run"),
        sleeper(ASYNCTUNE_RUN=TOKEN + "2"),
        sleeper(ASYNCTUNE_RUN="2" + TOKEN),
        sleeper(NOTE=f"ASYNCTUNE_RUN={TOKEN}"),
        sleeper(NOTE=f"x\nASYNCTUNE_RUN={TOKEN}"),
        sleeper(ASYNCTUNE_WORKER=TOKEN),
    ]
    ours = sleeper(ASYNCTUNE_RUN=TOKEN)
    bare.close()
    assert ours.wait(BOUND) == -signal.SIGKILL
    assert all(spared(stranger) for stranger in strangers)


def test_a_worker_that_ended_takes_none_of_another_worker_along(bare: Bare, sleeper: Sleepers) -> None:
    mine = sleeper(ASYNCTUNE_RUN=TOKEN, ASYNCTUNE_WORKER=WORKER)
    another = sleeper(ASYNCTUNE_RUN=TOKEN, ASYNCTUNE_WORKER=WORKER + "2")
    bare.stdin.write(f"ended 1 {WORKER}\n".encode())
    assert mine.wait(BOUND) == -signal.SIGKILL
    assert spared(another)


def test_orders_that_come_in_pieces_are_followed(bare: Bare, sleeper: Sleepers) -> None:
    mine = sleeper(ASYNCTUNE_WORKER=WORKER)
    grouped = sleeper()
    for byte in f"began {grouped.pid}\nbegan 4194305\nended 4194305 {WORKER}\n".encode():
        bare.stdin.write(bytes([byte]))
        sleep(0.001)
    assert mine.wait(BOUND) == -signal.SIGKILL
    bare.close()
    assert grouped.wait(BOUND) == -signal.SIGKILL  # without a marker: by its group


def test_a_group_that_has_ended_is_not_killed_in_the_end(bare: Bare, sleeper: Sleepers) -> None:
    ended = sleeper()  # stands for a process that got the number since
    bare.stdin.write(f"began {ended.pid}\nended {ended.pid} {WORKER}\n".encode())
    bare.close()
    assert spared(ended)


def test_a_number_that_has_passed_to_another_process_is_spared(
    sleeper: Sleepers, monkeypatch: pytest.MonkeyPatch
) -> None:
    stranger, leader = sleeper(), sleeper()
    supervisor._end_group(stranger.pid, b"1")  # as of a leader that started at another time
    assert not supervisor._kill(stranger.pid, {RUN})  # as if the marked one was just listed here
    monkeypatch.delattr(os, "pidfd_open", raising=False)
    assert not supervisor._kill(stranger.pid, {RUN})
    assert spared(stranger)
    supervisor._end_group(leader.pid, supervisor._started(leader.pid))
    assert leader.wait(BOUND) == -signal.SIGKILL


def test_old_kernels_have_no_pidfd(sleeper: Sleepers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "pidfd_open", raising=False)
    ours = sleeper(ASYNCTUNE_RUN=TOKEN)
    assert supervisor._kill(ours.pid, {RUN})
    assert ours.wait(BOUND) == -signal.SIGKILL
    assert not supervisor._kill(ours.pid, {RUN})


def test_a_hunt_ends_where_there_is_no_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    def listdir(path: str) -> list[str]:
        raise FileNotFoundError(path)

    monkeypatch.setattr(os, "listdir", listdir)
    hunt = supervisor.Hunt()
    hunt.add(RUN)
    for _ in range(supervisor.CLEAN):
        assert hunt.markers
        hunt.go()
    assert not hunt.markers


def test_whom_it_may_not_kill_does_not_keep_it(sleeper: Sleepers, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise PermissionError

    monkeypatch.delattr(os, "pidfd_open", raising=False)
    monkeypatch.setattr(os, "kill", refuse)
    sleeper(ASYNCTUNE_RUN=TOKEN)
    hunt = supervisor.Hunt()
    hunt.add(RUN)
    for _ in range(supervisor.CLEAN):
        hunt.go()
    assert not hunt.markers


# Its own life.


def test_signals_that_end_everybody_else_do_not_end_it(bare: Bare, sleeper: Sleepers) -> None:
    ours = sleeper(ASYNCTUNE_RUN=TOKEN, ASYNCTUNE_WORKER=WORKER)
    bare.stdin.write(f"ended 1 {WORKER}\n".encode())
    assert ours.wait(BOUND) == -signal.SIGKILL  # so it is up
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        bare.process.send_signal(number)
    ours = sleeper(ASYNCTUNE_RUN=TOKEN)
    bare.close()
    assert ours.wait(BOUND) == -signal.SIGKILL


def test_a_lifeline_that_somebody_else_holds_does_not_hide_the_drivers_end(sleeper: Sleepers, tmp_path: Path) -> None:
    program = f"""
import os, subprocess, sys, time
supervisor = subprocess.Popen(
    [sys.executable, "-I", "-S", {supervisor.__file__!r}, str(os.getpid()), {TOKEN!r}], stdin=subprocess.PIPE)
if os.fork() == 0:
    time.sleep(60)
print(supervisor.pid, flush=True)
"""
    ours = sleeper(ASYNCTUNE_RUN=TOKEN)
    driver = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert driver.stdout is not None
    with driver.stdout:
        pid = int(driver.stdout.readline())
        assert driver.wait(BOUND) == 0
        assert ours.wait(BOUND) == -signal.SIGKILL
        until(lambda: proctable.state(pid) in (None, "Z"))
        os.killpg(driver.pid, signal.SIGKILL)


def test_a_driver_that_is_gone_already_is_not_waited_for(sleeper: Sleepers) -> None:
    ours = sleeper(ASYNCTUNE_RUN=TOKEN)
    read, write = os.pipe()
    process = subprocess.Popen([sys.executable, "-I", "-S", supervisor.__file__, "1", TOKEN], stdin=read)
    assert process.wait(BOUND) == 0
    assert ours.wait(BOUND) == -signal.SIGKILL
    os.close(read)
    os.close(write)


# The driver's side.


def test_a_closed_supervisor_has_ended_everything_and_let_go_of_the_lock(sleeper: Sleepers, tmp_path: Path) -> None:
    lock = os.open(tmp_path / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC)
    fcntl.flock(lock, fcntl.LOCK_EX)
    deaths: list[str] = []

    async def main() -> None:
        keeper = await Supervisor.spawn(lock, deaths.append)
        os.close(lock)  # now only the supervisor holds it
        ours = sleeper(**keeper.environment)
        with (tmp_path / "lock").open() as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        async with asyncio.timeout(BOUND):
            await keeper.close()
            keeper.began(1)
            await keeper.close()
        assert ours.poll() == -signal.SIGKILL
        with (tmp_path / "lock").open() as other:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert proctable.state(keeper._process.pid) is None

    asyncio.run(main())
    assert deaths == []


def test_a_supervisor_that_dies_is_heard_of_and_written_to_in_vain() -> None:
    deaths: list[str] = []

    async def main() -> None:
        keeper = await Supervisor.spawn(None, deaths.append)
        keeper._process.kill()
        for number in range(10_000):  # more than its socket holds, before and after the loop knows
            keeper.began(number)
            keeper.ended(number, "a")
        async with asyncio.timeout(BOUND):
            while not deaths:
                await asyncio.sleep(0.005)
            keeper.began(1)
            await keeper.close()

    asyncio.run(main())
    assert deaths == ["killed by SIGKILL that asynctune did not send (out of memory?)"]


def test_a_supervisor_that_fails_at_its_start_is_heard_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_SUPERVISOR", str(tmp_path / "supervisor.py"))
    deaths: list[str] = []

    async def main() -> None:
        keeper = await Supervisor.spawn(None, deaths.append)
        async with asyncio.timeout(BOUND):
            while not deaths:
                await asyncio.sleep(0.005)
        await keeper.close()

    asyncio.run(main())
    assert deaths == ["exited with code 2"]


def test_a_supervisor_that_cannot_be_started_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(RunFailed, match="the supervisor did not start: .*No such file"):
        asyncio.run(Supervisor.spawn(None, lambda cause: None))


def test_cancelling_a_spawn_at_any_await_leaves_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(keeper: Supervisor, *arguments: Any) -> None:
        begin(keeper, *arguments)
        pids.append(keeper._process.pid)

    async def main() -> None:
        for turns in range(6):
            task = asyncio.ensure_future(Supervisor.spawn(None, deaths.append))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            try:
                await (await task).close()
            except asyncio.CancelledError:
                pass

    pids: list[int] = []
    deaths: list[str] = []
    begin = Supervisor.__init__
    monkeypatch.setattr(Supervisor, "__init__", start)
    asyncio.run(main())
    assert pids
    assert [pid for pid in pids if proctable.state(pid)] == []
    assert deaths == []


def test_closing_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_SWEEP_TIME", 0.05)

    async def main() -> None:
        keeper = await Supervisor.spawn(None, lambda cause: None)
        os.kill(keeper._process.pid, signal.SIGSTOP)
        async with asyncio.timeout(BOUND):
            await keeper.close()
            os.kill(keeper._process.pid, signal.SIGCONT)
            await keeper._gone.wait()  # it still does what it is there for

    asyncio.run(main())


def test_a_supervisor_carries_no_marker_not_even_of_a_run_around_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASYNCTUNE_RUN", TOKEN)
    monkeypatch.setenv("ASYNCTUNE_WORKER", TOKEN)

    async def main() -> None:
        keeper = await Supervisor.spawn(None, lambda cause: None)
        [own] = keeper.environment.items()
        assert proctable.marked(f"ASYNCTUNE_RUN={TOKEN}", f"ASYNCTUNE_WORKER={TOKEN}", "=".join(own)) == set()
        await keeper.close()

    asyncio.run(main())


def test_it_loads_next_to_nothing() -> None:
    code = "import sys; exec(open(sys.argv[1]).read(), {'__name__': 'supervisor'}); print(*sys.modules)"
    command = [sys.executable, "-I", "-S", "-c", code, supervisor.__file__]
    loaded = set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert "select" in loaded
    assert not {"asynctune", "asyncio", "collections", "enum", "signal", "site", "subprocess", "typing"} & loaded
