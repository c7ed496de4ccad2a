"""What a report costs: in the training loop, at a milestone, and the driver.

    python bench/report.py [--repeat 5] [--quick] [--json FILE]

All by at.run, journal on. Between milestones: `report` in a loop of 50 us of work, while another trial keeps the driver busy: it
reports as fast as it can. Beside it, in the same loop, `sendall` of the same bytes to a socket at which nobody waits. Then with 2 ms of
sleep for work and nothing else to do for the driver: each report has to wake it, as each `sendall` beside it wakes a `cat`.

At a milestone: from the report to its decision (ASHA's, at a rung of its own), as the trial sees it. Beside it the same bytes sent
back by an asyncio.Protocol, as a process sees it at the other end of a socketpair. Both ends on one core, where only the code
counts, and on two.

For these the driver is pinned to one core, and what is timed to another where the rows do not say otherwise. Reports per second: as
many as the workers can, counted in the journal while all of them report. Memory: what the driver gains from the first report to its
peak. Linux only.
"""

import argparse
import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import asynctune as at
from asynctune._wire import Report, encode
from asynctune.journal import read
from asynctune.records import Reported
from asynctune.rundir import JOURNAL
from load import apart, peak, resident
from measure import Row, arguments, in_turn, pinned, show, spread

WORK = 50e-6  # seconds of a step of training
SLEEP = 2e-3  # seconds after which the driver sleeps
LEVELS = 50  # rungs of a trial
FLOOD_MB = 20  # what may wait for the journal takes memory, whatever there has been of it
FRAME = encode(Report(1, 1000, {"score": 0.5}))  # what a report is on the wire

ECHO = """
import os, socket, sys, time
descriptor, core, count, size = map(int, sys.argv[1:])
os.sched_setaffinity(0, {core})
data = bytes(size)
trips = []
with socket.socket(fileno=descriptor) as peer:
    for _ in range(count):
        began = time.perf_counter_ns()
        peer.sendall(data)
        peer.recv(2**16)
        trips.append(time.perf_counter_ns() - began)
print(*trips, sep="\\n")
"""

# What missed budgets would take.
WORKER = "two fifths of it is the system call; for less, reports would have to wait and go together, and the driver to learn of them later"
DRIVER = "most of what goes beyond the echo is Python in the driver, from the frame to the answer: frames, records and the journal's lines in C"

Train = Callable[[at.Trial], None]
Pair = tuple[list[float], list[float]]  # microseconds: ours, and what ran beside


def compute() -> None:
    until = time.perf_counter() + WORK
    while time.perf_counter() < until:
        pass


def training(core: int, steps: int) -> Train:
    """Trial 0 times its reports and a bare `sendall` after each; trial 1 keeps the driver busy meanwhile."""

    def train(trial: at.Trial) -> None:
        if trial.id:
            for _ in trial.steps(10**9):
                trial.report(score=0.5)
            return
        os.sched_setaffinity(0, {core})
        reports, sends = array("q"), array("q")
        here, there = socket.socketpair()
        for _ in trial.steps(steps):
            compute()
            began = time.perf_counter_ns()
            trial.report(score=0.5)
            reported = time.perf_counter_ns()
            here.sendall(FRAME)
            sends.append(time.perf_counter_ns() - reported)
            reports.append(reported - began)
            there.recv(len(FRAME))
        leave(trial, reports=reports, sends=sends)

    return train


def sleeping(core: int, steps: int) -> Train:
    """Times reports that find the driver asleep, and each time a `sendall` that finds a `cat` asleep."""

    def train(trial: at.Trial) -> None:
        here, there = socket.socketpair()
        with here, subprocess.Popen(["cat"], stdin=there.fileno(), stdout=subprocess.DEVNULL), there:
            os.sched_setaffinity(0, {core})
            reports, sends = array("q"), array("q")
            for _ in trial.steps(steps):
                time.sleep(SLEEP)
                began = time.perf_counter_ns()
                trial.report(score=0.5)
                reports.append(time.perf_counter_ns() - began)
                time.sleep(SLEEP)
                began = time.perf_counter_ns()
                here.sendall(FRAME)
                sends.append(time.perf_counter_ns() - began)
            here.shutdown(socket.SHUT_RDWR)
        leave(trial, reports=reports, sends=sends)

    return train


def milestones(core: int) -> Train:
    """Every report is answered with a decision, always to go on: later trials are better."""

    def train(trial: at.Trial) -> None:
        os.sched_setaffinity(0, {core})
        trips = array("q")
        for level in range(LEVELS):
            began = time.perf_counter_ns()
            trial.report(score=trial.id, step=2**level)
            trips.append(time.perf_counter_ns() - began)
        leave(trial, trips=trips)

    return train


def flood(workers: int, reports: int) -> Train:
    """Once all have begun, each reports as fast as it can."""

    def train(trial: at.Trial) -> None:
        everybody = trial.dir.parent
        while len(os.listdir(everybody)) < workers:
            time.sleep(0.001)
        for _ in trial.steps(reports):
            trial.report(score=0.5)

    return train


@contextmanager
def ran(train: Train, num_trials: int, slots: int, **more: Any) -> Iterator[Path]:
    """A run, and its directory while the block lasts."""
    with tempfile.TemporaryDirectory() as folder:
        at.run(
            train,
            {"x": at.uniform(0.0, 1.0)},
            metric="score",
            mode="max",
            num_trials=num_trials,
            slots=slots,
            run_dir=folder + "/run",
            progress=False,
            **more,
        )
        yield Path(folder) / "run"


def leave(trial: at.Trial, **nanoseconds: "array[int]") -> None:
    for name, samples in nanoseconds.items():
        (trial.dir / name).write_bytes(samples.tobytes())


def left(run_dir: Path, trial: int, name: str) -> list[float]:
    """Microseconds."""
    return [ns / 1e3 for ns in array("q", (run_dir / "trials" / str(trial) / name).read_bytes())]


def between(train: Train, slots: int, steps: int) -> Pair:
    """Microseconds of each report of trial 0, and of each bare send."""
    with ran(train, slots, slots, stop_when=lambda event: event.trial == 0 and event.step == steps) as run_dir:
        return left(run_dir, 0, "reports"), left(run_dir, 0, "sends")


def trips(num_trials: int, core: int) -> list[float]:
    """Microseconds of each round trip."""
    scheduler = at.ASHA(max_resource=2**LEVELS, reduction_factor=2)
    with ran(milestones(core), num_trials, 1, scheduler=scheduler) as run_dir:
        return [us for trial in range(num_trials) for us in left(run_dir, trial, "trips")]


class Echo(asyncio.Protocol):
    """Sends back what it gets, until the other end hangs up."""

    def __init__(self) -> None:
        self.gone = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._transport.write(data)

    def connection_lost(self, error: Exception | None) -> None:
        self.gone.set()


def echoes(count: int, core: int) -> list[float]:
    """Microseconds of each round trip of a bare echo."""

    async def serve() -> None:
        _, echo = await asyncio.get_running_loop().create_unix_connection(Echo, sock=ours)
        await echo.gone.wait()

    ours, theirs = socket.socketpair()
    words = map(str, (theirs.fileno(), core, count, len(FRAME)))
    command = [sys.executable, "-c", ECHO, *words]
    with theirs, subprocess.Popen(command, stdout=subprocess.PIPE, text=True, pass_fds=[theirs.fileno()]) as process:
        theirs.close()
        asyncio.run(serve())
        assert process.stdout is not None
        return [int(line) / 1e3 for line in process.stdout]


def rate(workers: int, reports: int) -> float:
    """Reports per second."""
    with ran(flood(workers, reports), workers, workers) as run_dir:
        times = [record.time for record in read(run_dir / JOURNAL) if isinstance(record, Reported)]
    assert len(times) == workers * reports, "the journal has lost reports"
    return len(times) / (times[-1] - times[0])


def gained(reports: int) -> float:
    """Bytes by which the driver grows while two workers report."""
    before = 0

    def watch(event: object) -> None:
        nonlocal before
        if not before and isinstance(event, Reported):
            before = resident()

    with ran(flood(2, reports // 2), 2, 2, callbacks=[watch]):
        return peak() - before


def timed_rows(repeat: int, *, quick: bool) -> Iterator[Row]:
    steps, idle_steps, num_trials = (2000, 100, 10) if quick else (20_000, 1000, 100)
    cores = sorted(os.sched_getaffinity(0))
    with pinned():
        runs = in_turn(
            repeat,
            lambda: between(training(cores[0], steps), 2, steps),
            lambda: between(sleeping(cores[0], idle_steps), 1, idle_steps),
            lambda: (trips(num_trials, cores[-1]), echoes(num_trials * LEVELS, cores[-1])),
            lambda: (trips(num_trials, cores[0]), echoes(num_trials * LEVELS, cores[0])),
        )
    busy, idle, *both = map(middle, runs)
    median, p99, floor = busy
    yield Row(
        what="report between milestones, driver busy",
        unit="us",
        median=median,
        p99=p99,
        beside="sendall",
        floor=floor,
        budget=5.0,
        rule="<= 5 us",
        missed=WORKER,
    )
    median, p99, floor = idle
    yield Row(what="the same, driver asleep", unit="us", median=median, p99=p99, beside="sendall to cat", floor=floor)
    for where, (median, p99, floor) in zip(("one core", "two cores"), both, strict=True):
        yield Row(
            what=f"report at a milestone, until its decision, {where}",
            unit="us",
            median=median,
            p99=p99,
            beside="asyncio echo",
            floor=floor,
            budget=2 * floor,
            rule="<= 2 x the echo",
            missed=DRIVER,
        )


def middle(pairs: Iterable[Pair]) -> tuple[float, float, float]:
    """Over several runs, the middle one of our medians, of our 99th percentiles, and of the medians beside."""
    spreads = [(*spread(ours), spread(beside)[0]) for ours, beside in pairs]
    median, p99, floor = map(statistics.median, zip(*spreads, strict=True))
    return median, p99, floor


def rate_rows(reports: int, repeat: int) -> Iterator[Row]:
    for workers in (1, 2, 8):
        yield Row(
            what=f"reports into one driver, {workers} worker{'s' * (workers > 1)}",
            unit="/s",
            median=statistics.median(rate(workers, reports // workers) for _ in range(repeat)),
            budget=50_000 if workers == 2 else None,
            at_least=True,
            rule=">= 50,000 /s" if workers == 2 else "",
        )


def memory_row(reports: int, repeat: int) -> Row:
    few, many = (
        statistics.median(apart(__file__, "--gained", n) for _ in range(repeat)) / 1e6 for n in (reports // 4, reports)
    )
    return Row(
        what=f"{reports:,} reports from two workers: the driver gains",
        unit="MB",
        median=many,
        beside="a quarter of them",
        floor=few,
        budget=FLOOD_MB,
        rule=f"<= {FLOOD_MB} MB",
    )


def main() -> None:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--gained", type=int, help=argparse.SUPPRESS)  # what a process of its own measures

    given = arguments(__doc__, repeat=5, add=add)
    if given.gained:
        print(json.dumps(gained(given.gained)))
        return
    reports = 4000 if given.quick else 100_000
    rows = [
        *timed_rows(given.repeat, quick=given.quick),
        *rate_rows(reports, given.repeat),
        memory_row(4 * reports, min(3, given.repeat)),
    ]
    show(given, rows, packages=["msgspec"])


if __name__ == "__main__":
    main()
