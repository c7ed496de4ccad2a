"""Saving: checkpoints that are written while training goes on, and what of them is put on disk."""

import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

import asynctune as at
from asynctune import _wire as wire
from asynctune import journal
from asynctune.records import Decided, Record, Saved, Started
from asynctune.rundir import CHECKPOINTS, JOURNAL
from asynctune.worker import checkpoint, state
from asynctune.worker.channel import SocketChannel
from asynctune.worker.checkpoint import damage
from asynctune.worker.state import copied, read
from asynctune.worker.trial import Trial
from tests.runs import local, options
from tests.test_worker import Clock, Counter, Driver, Runner, failure, last, saved
from tests.test_worker import at as when


@pytest.fixture
def run(tmp_path: Path) -> Runner:
    return Runner(tmp_path / "checkpoints")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("asynctune.worker.session.monotonic", clock)
    monkeypatch.setattr("asynctune.worker.job.monotonic", clock)
    return clock


class Shared(Driver):
    """A driver to whom several threads may send. What they send comes one after the other."""

    shared = True

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._lock = threading.Lock()

    def send(self, *frames: wire.FromWorker) -> None:
        with self._lock:
            super().send(*frames)


class Gate:
    """Holds up whoever writes a state, until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened = threading.Event()
        self.entered = threading.Event()
        self.then: Callable[[], object] = lambda: None
        really = state.write

        def write(*arguments: Any) -> None:
            self.entered.set()
            assert self.opened.wait(60)
            self.then()
            really(*arguments)

        monkeypatch.setattr(state, "write", write)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(monkeypatch)


ALWAYS: dict[str, Any] = {"checkpoint_every": 1e-9}


def counting(steps: int, at_step: Callable[[int], object] = lambda step: None) -> Callable[[Trial], None]:
    """A trainable whose state is a tensor that is changed in place."""

    def train(trial: Trial) -> None:
        tensor = torch.zeros(3)
        trial.track(counter=Counter({"tensor": tensor, "list": [tensor[:2]]}))
        for step in trial.steps(steps):
            tensor += 1
            at_step(step)
            trial.report(loss=1)

    return train


def test_training_waits_for_the_disk_or_changes_what_is_being_written(run: Runner, gate: Gate) -> None:
    def open_late(step: int) -> None:
        if step == 2:
            assert gate.entered.wait(60)
        if step == 6:
            gate.opened.set()

    driver = run(counting(6, open_late), Shared(), **ALWAYS)
    frames = driver.names()
    first = frames.index("Saved")
    assert frames[:first].count("Report") >= 5
    assert driver.sent[first].step == 1
    value = read(str(run.checkpoints / "7-0-1")).state["counter"]["value"]
    assert value["tensor"].tolist() == [1, 1, 1]
    assert value["list"][0].tolist() == [1, 1]


def test_a_second_checkpoint_is_begun_while_one_is_written(run: Runner, gate: Gate) -> None:
    saves: list[int] = []

    def train(trial: Trial) -> None:
        trial.track(counter=Counter())
        trial.on_save(lambda directory: saves.append(trial.step))
        for step in trial.steps(5):
            trial.report(loss=1)
            if step == 3:
                assert saves == [1]
                gate.opened.set()

    driver = run(train, Shared(), **ALWAYS)
    assert [frame.step for frame in driver.sent if isinstance(frame, wire.Saved)] == saves


def test_a_job_is_over_before_its_checkpoint_is(run: Runner, gate: Gate) -> None:
    def train(trial: Trial) -> None:
        trial.track(counter=Counter())
        trial.report(loss=1)
        threading.Timer(0.05, gate.opened.set).start()

    assert run(train, Shared(), **ALWAYS).names() == ["Report", "Saved", "Done"]


def test_a_job_that_fails_is_over_before_its_checkpoint_is(run: Runner, gate: Gate) -> None:
    def train(trial: Trial) -> None:
        trial.track(counter=Counter())
        trial.report(loss=1)
        threading.Timer(0.05, gate.opened.set).start()
        raise ValueError("no")

    driver = run(train, Shared(), **ALWAYS)
    assert driver.names() == ["Report", "Saved", "Error"]
    assert failure(driver) == "ValueError: no"


def test_a_pause_overtakes_the_checkpoint_that_is_being_written(run: Runner, gate: Gate) -> None:
    def answer(frame: Any) -> list[wire.ToWorker]:
        if isinstance(frame, wire.Saved):
            return [wire.End(1)] if frame.paused else []
        threading.Timer(0.05, gate.opened.set).start()
        return when(2, wire.Pause(1))(frame)

    driver = run(counting(5), Shared(answer), until=2, **ALWAYS)
    assert driver.names() == ["Report", "Report", "Saved", "Saved", "Done"]
    assert [(frame.step, frame.paused) for frame in driver.sent if isinstance(frame, wire.Saved)] == [
        (1, False),
        (2, True),
    ]


@pytest.mark.parametrize("steps", [1, 10**6])
def test_an_error_while_training_goes_on_is_nobodys(
    run: Runner, clock: Clock, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    """It comes out at a turn of the loop soon after, or at the latest where the job ends."""

    def train(trial: Trial) -> None:
        trial.track(counter=Counter(object()))
        for _ in trial.steps(steps):
            clock.advance(20 if trial.step == 1 else 1e-9)
            trial.report(loss=1)

    monkeypatch.setattr(state, "_checked", False)  # as in a fresh worker
    driver = run(train, Shared(), checkpoint_every=10.0)
    assert failure(driver).startswith("InvalidArgument: the state of what is tracked (counter) may hold tensors")
    assert steps == 1 or len(driver.steps()) < steps
    assert list(run.checkpoints.iterdir()) == []


def test_waiting_for_a_checkpoint_is_busy(run: Runner, clock: Clock, gate: Gate) -> None:
    def train(trial: Trial) -> None:
        trial.track(counter=Counter())
        for step in trial.steps(3):
            clock.advance(10 if step == 1 else 1)
            trial.report(loss=1)

    def answer(frame: Any) -> list[wire.ToWorker]:
        if isinstance(frame, wire.Saved):
            return [wire.Continue(1, None)] if frame.paused else []
        return when(2, wire.Pause(1))(frame)

    gate.then = lambda: clock.advance(100)  # the job waits by then
    driver = run(train, Shared(answer, gate.opened.set), until=2, checkpoint_every=10.0)
    assert driver.names() == ["Report", "Report", "Saved", "Saved", "Report", "Done"]
    assert last(driver).busy == 12


def test_a_trial_in_this_process_sends_from_another_thread(run: Runner) -> None:
    threads: set[str] = set()

    def answer(frame: Any) -> list[wire.ToWorker]:
        threads.add(threading.current_thread().name)
        return []

    driver = run(counting(3), Driver(answer), **ALWAYS)
    assert driver.names() == ["Report", "Saved"] * 3 + ["Done"]
    assert threads == {"MainThread"}


def test_frames_of_two_threads_run_into_each_other(run: Runner) -> None:
    ours, theirs = socket.socketpair()
    saves: list[Path] = []
    large: dict[str, Any] = {f"{number:0200}": 0.5 for number in range(990)}  # more than the socket takes at once

    def train(trial: Trial) -> None:
        trial.on_save(saves.append)
        for _ in trial.steps(10**6):
            trial.report(large, loss=1)
            if len(saves) == 10:
                break

    def job() -> None:
        run.start(train, SocketChannel(theirs), **ALWAYS)
        theirs.shutdown(socket.SHUT_WR)

    worker = threading.Thread(target=job)
    with ours, theirs:
        worker.start()
        data = b"".join(iter(lambda: ours.recv(2**12), b""))
        worker.join()
    frames = wire.Decoder[Any](wire.FromWorker).feed(data)
    steps = [frame.step for frame in frames if isinstance(frame, wire.Report)]
    assert steps == list(range(1, len(steps) + 1))
    assert sum(isinstance(frame, wire.Saved) for frame in frames) == 10
    assert isinstance(frames[-1], wire.Done)


def test_a_checkpoint_that_crosses_a_pause_passes_for_it(tmp_path: Path) -> None:
    """The worker is told to pause while it writes an earlier state: that one comes first, and is not what was asked for."""
    told = tmp_path / "told"

    @local
    def train(trial: at.Trial, told: Path = told) -> None:
        import time

        from asynctune.worker import state

        really = state.write

        def write(draft: Any, snapshot: Any) -> None:
            if draft.path.name == "0-0-1":
                while not told.exists():
                    time.sleep(0.005)
            really(draft, snapshot)

        if trial.id == 0:
            state.write = write
        trial.track(counter=Counting())
        for _ in trial.steps(4):
            trial.report(score=trial.id)

    class Counting:
        def state_dict(self) -> dict[str, Any]:
            return {}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            pass

    local(Counting)

    def look(event: Record) -> None:
        if isinstance(event, Decided) and event.trial == 0 and event.action is at_pause:
            told.touch()

    from asynctune.records import Action

    at_pause = Action.PAUSE
    result = at.run(
        train,
        {"x": at.uniform(0, 1)},
        **options(tmp_path, num_trials=2, slots=1, checkpoint_every=1e-9, callbacks=[look]),
        scheduler=at.PBT(2, 4, synchronous=False),
    )
    records = list(journal.read(tmp_path / "run" / JOURNAL))
    mine = [r for r in records if isinstance(r, Saved | Started) and r.trial == 0]
    assert isinstance(mine[1], Saved)
    assert (mine[1].step, mine[1].checkpoint) == (2, "0-0-2")
    assert not (tmp_path / "run" / CHECKPOINTS / "0-0-1").exists()
    assert [trial.step for trial in result.trials] == [4, 4]


# Sums.


@pytest.mark.parametrize("chunk", [2**16, 10**4, 2**24])
def test_a_flipped_byte_of_a_large_file_passes_for_the_checkpoint(
    run: Runner, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    """The sums that were taken while it was written, and those of several threads that read it."""
    monkeypatch.setattr(checkpoint, "CHUNK", chunk)
    monkeypatch.setattr(checkpoint, "PIECE", 2**14)

    def train(trial: Trial) -> None:
        trial.track(model=torch.nn.Linear(300, 300))
        trial.on_save(lambda directory: (directory / "notes").write_bytes(bytes(10**5)))
        for _ in trial.steps(1):
            trial.report(loss=1)

    path = saved(run, train)
    assert damage(str(path)) is None
    for name in ("state.pt", "notes"):
        whole = (path / name).read_bytes()
        for place in (0, 1, chunk - 1, chunk, chunk + 1, 3 * chunk, len(whole) - 1):
            flipped = bytearray(whole)
            flipped[min(place, len(whole) - 1)] ^= 4
            (path / name).write_bytes(flipped)
            assert f"'{name}' has changed" in str(damage(str(path)))
        (path / name).write_bytes(whole[:-1])
        assert f"'{name}' must have" in str(damage(str(path)))
        (path / name).write_bytes(whole)
    assert damage(str(path)) is None


def test_a_manifest_with_more_sums_than_chunks_is_an_error(run: Runner) -> None:
    path = saved(run, counting(1))
    manifest = msgspec.msgpack.decode((path / "manifest.msgpack").read_bytes())
    [(name, (size, sums))] = manifest.items()
    for others in ([], [*sums, 0], [-1]):
        (path / "manifest.msgpack").write_bytes(msgspec.msgpack.encode({name: (size, others)}))
        assert "'state.pt' has changed" in str(damage(str(path)))


# The copy.


def test_a_copy_shares_what_it_was_copied_from_or_grows_with_tied_weights() -> None:
    class Tied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = torch.nn.Linear(2, 2)
            self.two = torch.nn.Linear(2, 2)
            self.two.weight = self.one.weight
            self.norm = torch.nn.BatchNorm1d(2)

    model = Tied()
    before = model.state_dict()
    after = copied({"model": before})["model"]
    assert type(after) is type(before)
    assert after._metadata == before._metadata  # type: ignore[attr-defined]
    assert list(after) == list(before)
    assert after["one.weight"].data_ptr() == after["two.weight"].data_ptr() != before["one.weight"].data_ptr()
    expected = before["one.weight"].clone()
    with torch.no_grad():
        model.one.weight += 1
    assert torch.equal(after["one.weight"], expected)


def test_a_copy_changes_with_its_original() -> None:
    import numpy as np

    sparse = torch.eye(3).to_sparse()
    values: dict[str, Any] = {"array": np.zeros(2), "set": {1}, "deep": [({"x": [torch.zeros(1)]},)], "sparse": sparse}
    copy = copied(values)
    values["array"] += 1
    values["set"].add(2)
    values["deep"][0][0]["x"][0] += 1
    values["deep"][0][0]["x"].append(3)
    assert copy["array"].tolist() == [0, 0]
    assert copy["set"] == {1}
    assert copy["deep"] == [({"x": [torch.zeros(1)]},)]
    assert torch.equal(copy["sparse"].to_dense(), torch.eye(3))


def test_what_was_restored_holds_the_file(run: Runner) -> None:
    def mapped() -> bool:
        return str(run.checkpoints) in Path("/proc/self/maps").read_text(encoding="utf-8")

    def train(trial: Trial) -> None:
        model = torch.nn.Linear(100, 100)
        optimizer = torch.optim.Adam(model.parameters())
        counter = Counter(torch.zeros(10_000))
        trial.track(model=model, optimizer=optimizer, counter=counter)
        assert not mapped()
        for _ in trial.steps(2):
            model(torch.ones(100)).sum().backward()
            optimizer.step()
            trial.report(loss=1)

    driver = run(train, restore=str(saved(run, train)), step=1)
    assert isinstance(last(driver), wire.Done), last(driver)


# What is put on disk.


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The paths that were synced."""
    paths: list[str] = []
    really = os.fsync

    def fsync(descriptor: int) -> None:
        paths.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        really(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    yield paths


@pytest.mark.parametrize("durable", [False, True])
def test_a_worker_waits_for_the_disk_when_it_need_not(run: Runner, synced: list[str], durable: bool) -> None:
    path = saved(run, counting(1), durable=durable)
    making = {name.replace(f"{path.parent}/.7-0-1.{os.getpid()}", str(path)) for name in synced}
    files = {"state.pt", "manifest.msgpack"}
    assert making == ({str(path.parent), str(path), *(str(path / name) for name in files)} if durable else set())


@pytest.mark.parametrize("durability", ["process", "power"])
def test_a_run_ends_before_its_checkpoints_are_on_disk(tmp_path: Path, synced: list[str], durability: Any) -> None:
    @local
    def train(trial: at.Trial) -> None:
        trial.on_save(lambda directory: (directory / "notes").write_text("some"))
        for _ in trial.steps(2):
            trial.report(score=1 / (1 + trial.id))

    result = at.run(train, {"x": at.uniform(0, 1)}, **options(tmp_path, num_trials=2, durability=durability))
    best = result.best.checkpoint
    assert best is not None
    here = {path for path in synced if path.startswith(str(tmp_path / "run" / CHECKPOINTS))}
    files = {str(path) for path in best.iterdir()}
    assert files
    assert here == ({str(best), str(best.parent), *files} if durability == "process" else set())


def test_a_disk_that_fails_at_the_end_goes_unnoticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @local
    def train(trial: at.Trial) -> None:
        trial.on_save(lambda directory: (directory / "notes").write_text("some"))
        trial.report(score=1)

    def refuse(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(at.RunFailed, match=r"cannot write .*checkpoints: Input/output error"):
        at.run(train, {"x": at.uniform(0, 1)}, **options(tmp_path, num_trials=1, slots=1))
