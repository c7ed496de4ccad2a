"""What `trial.report` costs the training loop, and what the reports of all workers cost the driver.

    python bench/report.py [--repeat 5] [--quick] [--json FILE]

All by at.run, journal on. Between milestones: the call in a loop that trains for 100 us a step, in a worker on a core of its own, while
the driver has its hands full with the reports of another. Milestone: the call outside of `steps`, which waits for ASHA's decision, beside
the same number of bytes sent back at once by a bare asyncio protocol over a socketpair; driver and worker share one core, since the way
from core to core would take longer than what is compared. Throughput: workers that do nothing but report, from the first report to
the last, by the journal. Memory: what a flood of reports through two workers adds to the driver, at its highest.
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
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asynctune as at
from asynctune import _wire as wire
from asynctune.journal import FILENAME, read
from asynctune.records import Record, Reported
from load import apart, peak
from measure import Row, arguments, pinned, show, spread

SPACE = {"x": at.uniform(0.0, 1.0)}
STEP = 100e-6  # seconds that a step of training takes
RUNGS = 30  # milestones of a trial
FLOOD_MB = 20  # the journal's queue is what can grow

ECHO = """
import json, socket, sys
from time import perf_counter

descriptor, size, count = map(int, sys.argv[1:])
connection = socket.socket(fileno=descriptor)
data = bytes(size)
seconds = []
for _ in range(count):
    began = perf_counter()
    connection.sendall(data)
    connection.recv(size)
    seconds.append(perf_counter() - began)
connection.close()
print(json.dumps(seconds[count // 10:]))
"""


def run(train: Any, run_dir: Path, **more: Any) -> at.Result:
    return at.run(train, SPACE, metric="loss", mode="min", run_dir=run_dir, progress=False, **more)


def samples(run_dir: Path, *trials: int) -> "array[float]":
    """The seconds that trials have left in their directories."""
    seconds = array("d")
    for trial in trials:
        seconds.frombytes((run_dir / "trials" / str(trial) / "seconds").read_bytes())
    return seconds


def between(steps: int, *, busy: bool) -> list[float]:
    """The seconds that each report took in a worker, with the driver busy or with nothing else to do."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []

    def train(trial: at.Trial) -> None:
        from array import array
        from time import perf_counter, sleep

        first, second = (trial.dir.parent / str(number) / "seconds" for number in range(2))
        if trial.id:  # keeps the driver busy until the other is through
            second.touch()
            while not first.exists():
                for _ in range(1000):
                    trial.report(loss=1.0)
            return
        if len(cores) > 1:
            os.sched_setaffinity(0, {cores[0]})  # the driver and the other worker have the last
        while busy and not second.exists():
            sleep(0.001)
        seconds = array("d")
        for _ in trial.steps(steps):
            until = perf_counter() + STEP
            while perf_counter() < until:
                pass
            began = perf_counter()
            trial.report(loss=1.0)
            seconds.append(perf_counter() - began)
        first.write_bytes(seconds.tobytes())

    with tempfile.TemporaryDirectory() as folder, pinned():
        run_dir = Path(folder, "run")
        run(train, run_dir, num_trials=1 + busy, slots=1 + busy)
        return list(samples(run_dir, 0))


def milestones(trials: int) -> list[float]:
    """The seconds from each report to the decision on it."""

    def train(trial: at.Trial) -> None:
        from array import array
        from time import perf_counter

        seconds = array("d")
        for rung in range(RUNGS):
            began = perf_counter()
            trial.report({"loss": -trial.id}, step=2**rung)  # better than all before: it goes on
            seconds.append(perf_counter() - began)
        (trial.dir / "seconds").write_bytes(seconds.tobytes())

    with tempfile.TemporaryDirectory() as folder, pinned():
        run_dir = Path(folder, "run")
        scheduler = at.ASHA(max_resource=2**RUNGS, reduction_factor=2)
        run(train, run_dir, num_trials=trials, slots=1, scheduler=scheduler)
        return list(samples(run_dir, *range(trials // 10, trials)))


def echo(count: int) -> list[float]:
    """The seconds that the bytes of a report take there and back."""
    size = len(wire.encode(wire.Report(1, 1, {"loss": 1.0})))
    ours, theirs = socket.socketpair()

    class Echo(asyncio.Protocol):
        def __init__(self) -> None:
            self.gone = asyncio.Event()

        def connection_made(self, transport: Any) -> None:
            self._transport = transport

        def data_received(self, data: bytes) -> None:
            self._transport.write(data)

        def connection_lost(self, error: Exception | None) -> None:
            self.gone.set()

    async def serve() -> None:
        _, protocol = await asyncio.get_running_loop().create_unix_connection(Echo, sock=ours)
        await protocol.gone.wait()

    with pinned(), theirs:
        command = [sys.executable, "-c", ECHO, *map(str, (theirs.fileno(), size, count))]
        with subprocess.Popen(command, pass_fds=[theirs.fileno()], stdout=subprocess.PIPE) as process:
            theirs.close()
            asyncio.run(serve())
            assert process.stdout is not None
            seconds: list[float] = json.load(process.stdout)
            return seconds


def throughput(workers: int, steps: int) -> float:
    """Reports per second."""

    def train(trial: at.Trial) -> None:
        from time import sleep

        folder = trial.dir.parent
        while len(os.listdir(folder)) < workers:
            sleep(0.001)
        for _ in trial.steps(steps):
            trial.report(loss=1.0)

    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder, "run")
        run(train, run_dir, num_trials=workers, slots=workers)
        times = [record.time for record in read(run_dir / FILENAME) if isinstance(record, Reported)]
        return len(times) / (times[-1] - times[0])


def flood(steps: int) -> float:
    """The bytes that a flood of reports adds to this process, at its highest."""
    before = after = 0

    def look(event: Record) -> None:
        nonlocal before, after
        if event.kind == "started":
            before = peak()
        elif event.kind == "finished":
            after = peak()

    def train(trial: at.Trial) -> None:
        for _ in trial.steps(steps):
            trial.report(loss=1.0)

    with tempfile.TemporaryDirectory() as folder:
        run(train, Path(folder, "run"), num_trials=2, slots=2, callbacks=[look])
    return after - before


def between_rows(steps: int, repeat: int) -> Iterator[Row]:
    for what, busy in (("busy", True), ("idle", False)):
        median, p99 = middle([between(steps, busy=busy) for _ in range(repeat)])
        yield Row(
            what=f"report between milestones, driver {what}",
            unit="us",
            median=median,
            p99=p99,
            budget=5 if busy else None,
            rule="<= 5 us" if busy else "",
        )


def milestone_row(trials: int, repeat: int) -> Row:
    ours, floor = [], []
    for _ in range(repeat):
        ours.append(milestones(trials))
        floor.append(echo(trials * RUNGS))
    median, p99 = middle(ours)
    bare, _ = middle(floor)
    return Row(
        what="report at a milestone, until its decision is there",
        unit="us",
        median=median,
        p99=p99,
        beside="bare echo",
        floor=bare,
        budget=2 * bare,
        rule="<= 2 x the echo",
    )


def throughput_rows(steps: int, repeat: int) -> Iterator[Row]:
    for workers in (1, 2, 8):
        yield Row(
            what=f"reports into one driver, {workers} worker{'s' * (workers > 1)}",
            unit="/s",
            median=statistics.median(throughput(workers, steps // workers) for _ in range(repeat)),
            budget=50_000 if workers == 2 else None,
            at_least=True,
            rule=">= 50,000 /s" if workers == 2 else "",
        )


def middle(runs: list[list[float]]) -> tuple[float, float]:
    """The middle one of the runs' medians, and of their 99th percentiles, in us."""
    medians, tails = zip(*map(spread, runs), strict=True)
    return statistics.median(medians) * 1e6, statistics.median(tails) * 1e6


def main() -> None:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--flood", type=int, help=argparse.SUPPRESS)  # what a process of its own measures

    given = arguments(__doc__, repeat=5, add=add)
    if given.flood:
        print(json.dumps(flood(given.flood)))
        return
    part = 20 if given.quick else 1
    few, many = 20_000 // part, 400_000 // part
    shown = [
        *between_rows(few // 2, given.repeat),
        milestone_row(few // 100, given.repeat),
        *throughput_rows(many // 4, given.repeat),
        Row(
            what=f"a flood of {many:,} reports: memory that it adds to the driver",
            unit="MB",
            median=statistics.median(apart(__file__, "--flood", many // 2) for _ in range(min(3, given.repeat))) / 1e6,
            budget=FLOOD_MB,
            rule=f"<= {FLOOD_MB} MB",
        ),
    ]
    show(given, shown, packages=["msgspec"])


if __name__ == "__main__":
    main()
