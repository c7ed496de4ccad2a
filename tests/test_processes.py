"""Processes: workers that die in every way there is, and are always heard of and reaped. Real processes, all waits bounded."""

import asyncio
import functools
import inspect
import os
import pickle
import resource
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import cloudpickle
import pytest

from asynctune import _wire as wire
from asynctune.errors import WorkerDied
from asynctune.processes import InlineWorker, Supervisor, Worker
from asynctune.worker import command
from tests import proctable

BOUND = 20.0  # seconds that anything here may take


class Hired:
    """A worker, what it sent, and how it ended."""

    def __init__(self, directory: Path) -> None:
        self.frames: list[Any] = []
        self.deaths: list[str] = []
        self.log = directory / "slot-0.log"
        self.directory = directory
        self.worker: Worker
        self._news = asyncio.Event()

    async def spawn(self, environment: dict[str, str] | None = None, supervisor: Supervisor | None = None) -> "Hired":
        self.worker = await Worker.spawn(environment or {}, self.log, self._come, self._death, supervisor)
        return self

    def call(self, function: Callable[[], object]) -> None:
        """Have a function called in the worker, job 1."""
        cloudpickle.register_pickle_by_value(sys.modules[__name__])
        try:
            self.worker.send(wire.Call(1, cloudpickle.dumps(function)))
        finally:
            cloudpickle.unregister_pickle_by_value(sys.modules[__name__])

    def run(self, function: Callable[[Any], object], **changes: Any) -> None:
        cloudpickle.register_pickle_by_value(sys.modules[__name__])
        try:
            payload = cloudpickle.dumps(function)
        finally:
            cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
        self.worker.send(wire.Load(payload, sys.path, str(self.directory)))
        fields: dict[str, Any] = {
            "job": 1, "trial": 0, "segment": 0, "seed": 0, "config": pickle.dumps({}), "metric": "loss", "step": 0, "stop": None, "until": None,
            "restore": None, "save_to": str(self.directory / "c"), "checkpoint_every": None, "device": "cpu",
        }  # fmt: skip
        self.worker.send(wire.Run(**(fields | changes)))

    def _come(self, frames: Sequence[wire.FromWorker]) -> None:
        assert not self.deaths, "a frame came after death"
        self.frames += frames
        self._news.set()

    def _death(self, cause: str) -> None:
        self.deaths.append(cause)
        self._news.set()

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(BOUND):
            while not condition():
                self._news.clear()
                await self._news.wait()

    async def frame(self, kind: type) -> Any:
        """The first frame of a kind."""
        await self.until(lambda: any(isinstance(frame, kind) for frame in self.frames))
        return next(frame for frame in self.frames if isinstance(frame, kind))

    async def death(self) -> str:
        await self.until(lambda: self.deaths)
        return self.deaths[0]

    def names(self) -> list[str]:
        return [type(frame).__name__ for frame in self.frames]


def hired(test: Callable[[Hired], Awaitable[None]]) -> Callable[[Path], None]:
    """A test with a worker of its own, which it need not close."""

    def wrapped(tmp_path: Path) -> None:
        async def main() -> None:
            hired = await Hired(tmp_path).spawn()
            try:
                await test(hired)
            finally:
                async with asyncio.timeout(BOUND):
                    await hired.worker.close(1.0)

        asyncio.run(main())

    return wrapped


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return (
        Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z" if sys.platform == "linux" else True
    )


async def gone(pid: int) -> None:
    async with asyncio.timeout(BOUND):
        while alive(pid):
            await asyncio.sleep(0.01)


# At work.


@hired
async def test_a_job_runs_from_ready_to_done(h: Hired) -> None:
    def train(trial: Any) -> None:
        print("hello from", os.getcwd())
        for step in trial.steps(3):
            trial.report(loss=1 / step)

    h.run(train)
    done = await h.frame(wire.Done)
    assert h.names() == ["Ready", "Loaded", "Report", "Report", "Report", "Done"]
    assert h.frames[0].pid == h.worker.pid
    start, stop = done.log
    assert h.log.read_bytes()[start:stop].decode() == f"hello from {h.directory}\n"


@hired
async def test_a_pause_is_continued_in_place(h: Hired) -> None:
    def train(trial: Any) -> None:
        trial.on_save(lambda path: None)
        for count, step in enumerate(trial.steps(4), 1):
            assert count == step  # the same process, the same loop
            trial.report(loss=step)

    h.run(train, until=2)
    await h.until(lambda: h.names().count("Report") == 2)
    h.worker.send(wire.End(99))  # of another job: not meant
    h.worker.send(wire.Pause(1))
    saved = await h.frame(wire.Saved)
    assert isinstance(saved, wire.Saved)
    assert (saved.job, saved.step, saved.checkpoint) == (1, 2, "0-0-2")
    h.worker.send(wire.Continue(1, 3))
    await h.until(lambda: h.names().count("Report") == 3)
    h.worker.send(wire.End(1))
    assert (await h.frame(wire.Done)).ended
    assert h.names().count("Report") == 3


@hired
async def test_a_stop_reaches_a_loop_between_milestones(h: Hired) -> None:
    def train(trial: Any) -> None:
        for _ in trial.steps(10**9):
            trial.report(loss=1)

    h.run(train)
    await h.frame(wire.Report)
    h.worker.send(wire.End(1))
    assert (await h.frame(wire.Done)).ended


@hired
async def test_a_worker_outlives_failed_trials(h: Hired) -> None:
    def train(trial: Any) -> None:
        sys.exit("enough")

    h.run(train)
    assert (await h.frame(wire.Error)).error == "SystemExit: enough"
    h.worker.send(wire.Call(2, pickle.dumps(os.getpid)))
    assert pickle.loads((await h.frame(wire.Returned)).payload) == h.worker.pid
    assert "SystemExit: enough" in h.log.read_text()


@hired
async def test_a_trial_is_saved_after_it_is_done(h: Hired) -> None:
    def train(trial: Any) -> None:
        trial.on_save(lambda path: (path / "notes").touch())
        trial.report(loss=1)

    h.run(train)
    assert (await h.frame(wire.Done)).saveable
    h.worker.send(wire.Save(0))
    h.worker.send(wire.Save(1))
    assert (await h.frame(wire.Saved)).checkpoint == "0-0-1"
    assert h.names().count("Saved") == 1


@hired
async def test_a_result_that_cannot_be_pickled_is_an_error_of_the_call(h: Hired) -> None:
    h.worker.send(wire.Call(1, pickle.dumps(threading.Lock)))
    assert (await h.frame(wire.Error)).error.startswith("TypeError: cannot pickle")
    h.worker.send(wire.Call(2, b"not a pickle"))
    await h.until(lambda: h.names().count("Error") == 2)


@hired
async def test_a_trainable_that_does_not_load_is_an_error_of_job_0(h: Hired) -> None:
    h.worker.send(wire.Load(b"cno_such_module\ntrain\n.", sys.path, str(h.directory)))
    error = await h.frame(wire.Error)
    assert (error.job, error.error) == (0, "ModuleNotFoundError: No module named 'no_such_module'")


@hired
async def test_a_flood_of_output_does_not_touch_the_frames(h: Hired) -> None:
    def train(trial: Any) -> None:
        for _ in trial.steps(20):
            print("x" * 100_000)
            os.write(1, b"\x00" * 100_000)
            os.write(2, b"\xff" * 100_000)
            trial.report(loss=1)

    h.run(train)
    start, stop = (await h.frame(wire.Done)).log
    assert h.names().count("Report") == 20
    assert stop - start == 20 * 300_001


@hired
async def test_a_worker_that_had_to_wait_loses_no_report(h: Hired) -> None:
    def train(trial: Any) -> None:
        for step in trial.steps(20_000):
            trial.report(loss=step)

    h.run(train)
    await h.frame(wire.Report)
    h.worker.pause()
    before = len(h.frames)
    await asyncio.sleep(0.1)
    assert len(h.frames) == before < 20_000
    h.worker.resume()
    await h.frame(wire.Done)
    assert [frame.step for frame in h.frames if isinstance(frame, wire.Report)] == list(range(1, 20_001))


@hired
async def test_interrupts_are_left_to_the_driver(h: Hired) -> None:
    def train(trial: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        trial.report(loss=1)
        # What user code starts is not deaf to it.
        with pytest.raises(subprocess.CalledProcessError):
            subprocess.run([sys.executable, "-c", "import os; os.kill(os.getpid(), 2)"], check=True)

    h.run(train)
    await h.frame(wire.Done)


def test_the_current_directory_cannot_shadow_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("signal", "socket", "typing", "msgspec", "asynctune"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('shadowed')")
    monkeypatch.chdir(tmp_path)

    async def main() -> None:
        hired = await Hired(tmp_path).spawn()
        await hired.frame(wire.Ready)
        await hired.worker.close(1.0)

    asyncio.run(main())


def test_the_slots_environment_reaches_the_worker(tmp_path: Path) -> None:
    async def main() -> None:
        hired = await Hired(tmp_path).spawn({"CUDA_VISIBLE_DEVICES": "GPU-1"})
        hired.worker.send(wire.Call(1, pickle.dumps(functools.partial(os.getenv, "CUDA_VISIBLE_DEVICES"))))
        assert pickle.loads((await hired.frame(wire.Returned)).payload) == "GPU-1"
        await hired.worker.close(1.0)

    asyncio.run(main())


def test_workers_live_under_a_loop_in_another_thread(tmp_path: Path) -> None:
    async def main() -> str:
        hired = await Hired(tmp_path).spawn()
        await hired.frame(wire.Ready)
        hired.worker.kill()
        cause = await hired.death()
        await hired.worker.close(1.0)
        return cause

    causes: list[str] = []
    thread = threading.Thread(target=lambda: causes.append(asyncio.run(main())))
    thread.start()
    thread.join(BOUND)
    assert causes == ["killed by asynctune"]


# Deaths.


def die_by_exit() -> None:
    os._exit(3)


def die_by_exit_without_an_error() -> None:
    os._exit(0)


def die_by_the_status_that_stands_for_none() -> None:
    os._exit(255)


def die_by_sigkill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_by_segfault() -> None:
    import faulthandler

    faulthandler._sigsegv()  # type: ignore[attr-defined]


def die_by_abort() -> None:
    os.abort()


DEATHS = pytest.mark.parametrize(
    ("die", "cause"),
    [
        (die_by_exit, "exited with code 3"),
        (die_by_exit_without_an_error, "exited with code 0"),
        (
            die_by_the_status_that_stands_for_none,
            "exited with code 255, or with an unknown one: something else may have waited for it",
        ),
        (die_by_sigkill, "killed by SIGKILL that asynctune did not send (out of memory?)"),
        (die_by_segfault, "killed by SIGSEGV"),
        (die_by_abort, "killed by SIGABRT"),
    ],
)


@DEATHS
def test_a_death_is_named_after_the_last_report(tmp_path: Path, die: Callable[[], None], cause: str) -> None:
    @hired
    async def test(h: Hired) -> None:
        def train(trial: Any) -> None:
            for _ in trial.steps(500):
                trial.report(loss=1)
            die()

        h.run(train)
        assert await h.death() == cause
        await h.worker.close(1.0)
        assert h.deaths == [cause]
        assert h.names().count("Report") == 500

    test(tmp_path)


@DEATHS
def test_a_death_while_nothing_runs_is_named(tmp_path: Path, die: Callable[[], None], cause: str) -> None:
    @hired
    async def test(h: Hired) -> None:
        def soon() -> None:
            threading.Timer(0.05, die).start()

        h.call(soon)
        assert await h.death() == cause
        assert h.names() == ["Ready", "Returned"]

    test(tmp_path)


@DEATHS
def test_a_death_before_the_first_frame_is_named(tmp_path: Path, die: Callable[[], None], cause: str) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal\n" + textwrap.dedent(inspect.getsource(die)) + f"{die.__name__}()\n"
    )

    async def main() -> None:
        paths = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
        hired = await Hired(tmp_path).spawn({"PYTHONPATH": paths})
        assert (await hired.death()).startswith(f"did not start: {cause}; its log ends with")
        await hired.worker.close(1.0)
        assert len(hired.deaths) == 1
        assert hired.frames == []

    asyncio.run(main())


def test_reports_that_nobody_has_read_outlive_their_worker(tmp_path: Path) -> None:
    @hired
    async def test(h: Hired) -> None:
        def train(trial: Any) -> None:
            for _ in trial.steps(100):
                trial.report(loss=1)
            os._exit(3)

        await h.frame(wire.Ready)
        assert h.worker._connection is not None
        h.worker._connection.pause_reading()
        h.run(train)
        assert await h.death() == "exited with code 3"
        assert h.names().count("Report") == 100

    test(tmp_path)


@hired
async def test_a_child_that_holds_the_socket_does_not_hide_a_death(h: Hired) -> None:
    def train(trial: Any) -> None:
        import time

        if (child := os.fork()) == 0:
            os.setsid()  # out of the reach of the group's signal
            time.sleep(60)
        trial.report(loss=0, child=child)
        os._exit(3)

    h.run(train)
    assert await h.death() == "exited with code 3"
    os.kill(int((await h.frame(wire.Report)).metrics["child"]), signal.SIGKILL)


@hired
async def test_children_die_with_their_worker(h: Hired) -> None:
    def train(trial: Any) -> None:
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        trial.report(loss=0, child=child.pid)
        os._exit(3)

    h.run(train)
    await h.death()
    await gone(int((await h.frame(wire.Report)).metrics["child"]))


def test_a_worker_that_never_gets_ready_shows_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "_BOOTSTRAP", "raise SystemExit('no such library')")

    @hired
    async def test(h: Hired) -> None:
        assert await h.death() == "did not start: exited with code 1; its log ends with\nno such library"

    test(tmp_path)


def test_a_worker_that_cannot_be_started_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(WorkerDied, match="did not start: .*No such file"):
        asyncio.run(Hired(tmp_path).spawn())


@hired
async def test_bytes_that_are_no_frame_end_the_worker(h: Hired) -> None:
    def train(trial: Any) -> None:
        import time

        for descriptor in range(3, 200):  # the socket has the number that it has in the driver
            try:
                os.write(descriptor, b"epoch 1: loss 0.3\n")
            except OSError:
                pass
        time.sleep(60)

    h.run(train)
    death = await h.death()
    assert death.startswith("sent a frame may have"), death


@hired
async def test_sending_to_the_dead_is_no_error(h: Hired) -> None:
    h.worker.kill("took too long")
    assert "took too long" in await h.death()
    h.worker.send(wire.End(1))
    h.worker.kill()
    assert len(h.deaths) == 1


# Hangs.


def train_asleep(trial: Any) -> None:
    import time

    trial.report(loss=1)
    time.sleep(60)


def train_with_the_interpreter_held(trial: Any) -> None:
    import ctypes

    trial.report(loss=1)
    ctypes.PyDLL(None).sleep(60)  # in C, without letting go of the GIL


def train_without_stderr(trial: Any) -> None:
    import time

    sys.stderr.close()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    trial.report(loss=1)
    time.sleep(60)


def train_to_a_stop(trial: Any) -> None:
    trial.report(loss=1)
    os.kill(os.getpid(), signal.SIGSTOP)


def train_unabortable(trial: Any) -> None:
    signal.signal(signal.SIGABRT, signal.SIG_IGN)
    train_asleep(trial)


@pytest.mark.parametrize("train", [train_asleep, train_with_the_interpreter_held, train_without_stderr])
def test_an_aborted_worker_shows_where_it_hung(tmp_path: Path, train: Callable[[Any], None]) -> None:
    @hired
    async def test(h: Hired) -> None:
        h.run(train)
        await h.frame(wire.Report)
        h.worker.abort("sent no report for 600 s (report_timeout)")
        assert await h.death() == "sent no report for 600 s (report_timeout)"
        log = h.log.read_text()
        assert "Fatal Python error: Aborted" in log
        assert f"in {train.__name__}" in log
        assert log.count("(most recent call first)") == 2  # and the thread that watches
        h.worker.abort("too late")
        await h.worker.close(1.0)
        assert len(h.deaths) == 1

    test(tmp_path)


@pytest.mark.parametrize("train", [train_to_a_stop, train_unabortable])
def test_an_aborted_worker_that_does_not_react_is_killed(tmp_path: Path, train: Callable[[Any], None]) -> None:
    @hired
    async def test(h: Hired) -> None:
        h.run(train)
        await h.frame(wire.Report)
        if train is train_to_a_stop:
            await stopped(h.worker.pid)
        h.worker.abort("hung: gave no sign of life for 300 s")
        h.worker.abort("another")
        assert await h.death() == "hung: gave no sign of life for 300 s"
        assert not alive(h.worker.pid)
        await h.worker.close(1.0)
        assert len(h.deaths) == 1

    test(tmp_path)


def test_an_abort_before_the_first_frame_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "_BOOTSTRAP", "import time; print('importing', flush=True); time.sleep(60)")

    @hired
    async def test(h: Hired) -> None:
        while not h.log.read_text():
            await asyncio.sleep(0.01)
        h.worker.abort("hung: gave no sign of life for 300 s")
        assert await h.death() == "did not start: hung: gave no sign of life for 300 s; its log ends with\nimporting"

    test(tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="needs prlimit")
def test_an_abort_leaves_no_core(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
    try:

        @hired
        async def test(h: Hired) -> None:
            h.run(train_asleep)
            await h.frame(wire.Report)
            h.worker.abort("took too long")
            await h.death()

        test(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))
    assert list(tmp_path.glob("*core*")) == []


@hired
async def test_a_worker_that_runs_gives_signs_of_life(h: Hired) -> None:
    await beats(h)
    await beats(h)
    h.run(train_asleep)
    await h.frame(wire.Report)
    h.worker.beat()
    await beats(h)
    h.worker.kill()
    await h.death()
    assert not h.worker.beat()


def test_a_worker_that_does_not_run_gives_no_sign_of_life(tmp_path: Path) -> None:
    async def main() -> None:
        workers = []
        for train in (train_to_a_stop, train_with_the_interpreter_held):
            directory = tmp_path / train.__name__
            directory.mkdir()
            workers.append(hired := await Hired(directory).spawn())
            hired.run(train)
            await hired.frame(wire.Report)
        await asyncio.sleep(0.2)  # they are on their way there
        for hired in workers:
            hired.worker.beat()
        await asyncio.sleep(2.5)
        assert [hired.worker.beat() for hired in workers] == [False, False]
        await asyncio.gather(*(hired.worker.close(0.0) for hired in workers))

    asyncio.run(main())


async def beats(h: Hired) -> None:
    async with asyncio.timeout(BOUND):
        while not h.worker.beat():
            await asyncio.sleep(0.01)


async def stopped(pid: int) -> None:
    async with asyncio.timeout(BOUND):
        while proctable.state(pid) != "T":
            await asyncio.sleep(0.01)


# What it started.


def leave_a_daemon(path: str) -> None:
    """Twice forked, in a session of its own, deaf, without descriptors; its pid in a file."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            with open(path + "-", "w") as file:
                file.write(str(os.getpid()))
            os.rename(path + "-", path)
            os.closerange(0, 1000)
            signal.pause()
        os._exit(0)
    os.wait()


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize("end", ["exit", "kill", "abort", "close"])
def test_a_daemon_goes_with_its_worker_and_not_with_another(tmp_path: Path, end: str) -> None:
    async def main() -> None:
        deaths: list[str] = []
        supervisor = await Supervisor.spawn(None, deaths.append)
        one, other = tmp_path / "one", tmp_path / "other"
        for place in (one, other):
            place.mkdir()
        first = await Hired(one).spawn({}, supervisor)
        second = await Hired(other).spawn({}, supervisor)
        for hired in (first, second):
            hired.call(functools.partial(leave_a_daemon, str(hired.directory / "pid")))
            await hired.frame(wire.Returned)
            await exists(hired.directory / "pid")
        mine, another = (int((place / "pid").read_text()) for place in (one, other))
        match end:
            case "exit":
                first.call(die_by_exit)
                await first.death()
            case "kill":
                first.worker.kill()
            case "abort":
                first.worker.abort("took too long")
        if end != "close":
            await first.death()
        else:
            await first.worker.close(1.0)
        await gone(mine)
        assert alive(another)
        assert alive(second.worker.pid)
        await first.worker.close(1.0)
        await second.worker.close(1.0)
        assert deaths == []
        await supervisor.close()
        assert not alive(another)

    asyncio.run(main())


async def exists(path: Path) -> None:
    async with asyncio.timeout(BOUND):
        while not path.exists():  # noqa: ASYNC240
            await asyncio.sleep(0.01)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_nothing_of_a_run_listens(tmp_path: Path) -> None:
    program = f"""
import asynctune as at, sys, time

def train(trial):
    trial.report(score=1.0)
    open({str(tmp_path)!r} + f"/{{trial.id}}", "w").close()
    time.sleep(60)

if __name__ == "__main__":
    at.run(train, {{"x": at.uniform(0.0, 1.0)}}, metric="score", mode="max", num_trials=2, slots=2, searcher=at.HyperOpt(),
           run_dir={str(tmp_path / "run")!r}, progress=False)
"""
    script = tmp_path / "script.py"
    script.write_text(program)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    driver = subprocess.Popen([sys.executable, str(script)], env=environment, start_new_session=True)
    try:
        limit = monotonic() + BOUND
        while not all((tmp_path / str(trial)).exists() for trial in range(2)):
            assert driver.poll() is None
            assert monotonic() < limit
            sleep(0.01)
        family = proctable.family(driver.pid)
        assert len(family) >= 4  # driver, advisor, two workers
        assert proctable.listening(family) == []
    finally:
        driver.kill()
        driver.wait()


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize(
    ("family", "kind", "address"),
    [
        (socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0)),
        (socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0)),
        (socket.AF_UNIX, socket.SOCK_STREAM, ""),  # a name that Linux chooses
    ],
    ids=["tcp", "udp", "unix"],
)
def test_what_listens_is_seen(family: int, kind: int, address: Any) -> None:
    with socket.socket(family, kind) as listener:
        before = proctable.listening([os.getpid()])
        listener.bind(address)
        if kind == socket.SOCK_STREAM:
            listener.listen()
        assert len(proctable.listening([os.getpid()])) == len(before) + 1


# The end.


async def leaves(h: Hired) -> None:
    async with asyncio.timeout(BOUND):
        await h.worker.close(2 * BOUND)  # no signal within this time


@hired
async def test_an_idle_worker_leaves_when_the_driver_hangs_up(h: Hired) -> None:
    await h.frame(wire.Ready)
    await leaves(h)
    assert h.deaths == []


@hired
async def test_a_worker_in_user_code_leaves_when_the_driver_hangs_up(h: Hired) -> None:
    def train(trial: Any) -> None:
        import time

        trial.report(loss=1)
        time.sleep(60)

    h.run(train)
    await h.frame(wire.Report)
    await leaves(h)


@hired
async def test_a_stopped_worker_leaves_when_the_driver_hangs_up(h: Hired) -> None:
    h.run(train_to_a_stop)
    await h.frame(wire.Report)
    await stopped(h.worker.pid)
    await leaves(h)


@hired
async def test_a_worker_that_is_stuck_is_killed_on_close(h: Hired) -> None:
    def train(trial: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        trial.report(loss=1)
        os.kill(os.getpid(), signal.SIGSTOP)

    h.run(train)
    await h.frame(wire.Report)
    await h.worker.close(0.05)
    assert not alive(h.worker.pid)


def test_no_worker_outlives_a_driver_that_was_killed(tmp_path: Path) -> None:
    program = f"""
import asyncio, os, pathlib, time
from asynctune.processes import Worker
from asynctune import _wire as wire

async def main():
    ready = asyncio.Event()
    worker = await Worker.spawn({{}}, pathlib.Path({str(tmp_path / "log")!r}), lambda frames: ready.set(), print)
    await ready.wait()
    if os.fork() == 0:  # it holds the driver's end of the socket open
        time.sleep(60)
    print(worker.pid, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""
    driver = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": ":".join(filter(None, sys.path))},
    )
    assert driver.stdout is not None
    with driver.stdout:
        pid = int(driver.stdout.readline())
        driver.kill()
        driver.wait()
        asyncio.run(gone(pid))
        os.killpg(driver.pid, signal.SIGKILL)


def test_cancelling_a_spawn_at_any_await_leaves_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def connection_made(worker: Worker, transport: Any) -> None:
        pids.append(transport.get_pid())
        made(worker, transport)

    async def main() -> None:
        for turns in range(12):
            task = asyncio.ensure_future(Hired(tmp_path).spawn())
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            try:
                hired = await task
            except asyncio.CancelledError:
                continue
            await hired.worker.close(1.0)

    pids: list[int] = []
    made = Worker.connection_made
    monkeypatch.setattr(Worker, "connection_made", connection_made)
    asyncio.run(main())
    assert pids
    assert not any(map(alive, pids))


# Inline.


def test_an_inline_worker_pauses_saves_and_leaves(tmp_path: Path) -> None:
    def train(trial: Any) -> None:
        trial.on_save(lambda path: None)
        for step in trial.steps(5):
            trial.report(loss=step)

    def on_frames(come: Sequence[wire.FromWorker]) -> None:
        for frame in come:
            frames.append(frame)
            if isinstance(frame, wire.Report):
                worker.send(wire.Pause(3))
            if isinstance(frame, wire.Done):
                worker.send(wire.Save(3))

    frames: list[Any] = []
    worker = InlineWorker(train, on_frames)
    worker.send(wire.Run(3, 0, 0, 0, pickle.dumps({}), "loss", 0, None, 1, None, str(tmp_path / "c"), None, "cpu"))
    assert [type(frame).__name__ for frame in frames] == ["Report", "Saved", "Done", "Saved"]
    worker.send(wire.End(3))
    worker.send(wire.Run(4, 1, 0, 0, pickle.dumps({}), "loss", 5, None, None, None, str(tmp_path / "c"), None, "cpu"))
    assert [type(frame).__name__ for frame in frames[4:]] == ["Done"]


def test_a_keyboard_interrupt_comes_out_of_an_inline_worker(tmp_path: Path) -> None:
    def train(trial: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        InlineWorker(train, lambda frames: None).send(
            wire.Run(1, 0, 0, 0, pickle.dumps({}), "loss", 0, None, None, None, str(tmp_path), None, "cpu")
        )
