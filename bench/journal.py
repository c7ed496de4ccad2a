"""What the journal costs: a line, a write, a run with it and without; and how fast a long one is read back.

    python bench/journal.py [--repeat 5] [--folder FOLDER] [--quick] [--json FILE]

Appended: reports by `Journal.append` as fast as it takes them, until the last is written; beside it the same bytes by os.write,
2 ms of them at a time. A run: the same reports through a Study as well, by turns with a journal and without; no processes, so that
nothing else takes time. Latency: from an append, with nothing else under way, to the call that says it is written; beside it the
bare system calls. Whoever appends waits up to 2 ms for others to come along, by intention. Read back: `scan`, which checks and
decodes every line, into a list of offsets; beside it msgspec, which only decodes them. The journal lies in FOLDER: what fdatasync
takes is that disk's.
"""

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Literal

import msgspec

import asynctune as at
from asynctune.journal import Journal, decode, encode, scan
from asynctune.records import Header, Record, Reported, Started, Suggested
from asynctune.rundir import JOURNAL
from asynctune.study import Suggest
from measure import Row, arguments, calls, in_turn, show, spread

SPACE = {"lr": at.loguniform(1e-5, 1e-1)}
HEADER = Header(metric="loss", mode="min", num_trials=1, seed=0, space={}, searcher="", scheduler="", slots=1)
TURN = 500  # records between two turns of the loop: what comes in from workers at a time
BATCH = 1000  # lines of a write; some 2 ms of appending
READ_SECONDS = 5.0  # the budget of 10^6 records
LATENCY_MS = 5.0

Durability = Literal["process", "power"]


def report(step: int) -> Reported:
    return Reported(time=step * 1e-5, trial=0, segment=0, step=step, metrics={"loss": 1 / step})


async def written(journal: Journal) -> None:
    done = asyncio.get_running_loop().create_future()
    journal.when_written(partial(done.set_result, None))
    await done


def appended(folder: Path, reports: int, take: Callable[[Record], object] | None = None) -> float:
    """The seconds that a journal, and before it `take`, took for that many reports."""

    async def main() -> float:
        async with Journal(folder / JOURNAL) as journal:
            journal.append(HEADER)
            began = time.perf_counter()
            for step in range(1, reports + 1):
                record = report(step)
                if take is not None:
                    take(record)
                journal.append(record)
                if step % TURN == 0:
                    await (written(journal) if journal.behind else asyncio.sleep(0))
            await written(journal)
            return time.perf_counter() - began

    try:
        return asyncio.run(main())
    finally:
        (folder / JOURNAL).unlink()


def plainly(folder: Path, reports: int) -> float:
    """The seconds that the same bytes took by os.write."""
    lines = list(map(encode, map(report, range(1, reports + 1)), count(1)))
    batches = [b"".join(lines[first : first + BATCH]) for first in range(0, reports, BATCH)]
    file = os.open(folder / JOURNAL, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        began = time.perf_counter()
        for batch in batches:
            os.write(file, batch)
        return time.perf_counter() - began
    finally:
        os.close(file)
        (folder / JOURNAL).unlink()


def study() -> at.Study:
    """One whose only trial runs, and may report as long as it likes."""
    study = at.Study(SPACE, metric="loss", mode="min", num_trials=1, seed=0)
    offer = study.offer()
    assert isinstance(offer, Suggest)
    study.apply(Suggested(trial=0, config=study.space.decode(study.suggestion(0)())))
    started = study.offer()
    assert isinstance(started, Started)
    study.apply(started)
    return study


def without(reports: int) -> float:
    """The seconds that a study took for that many reports."""

    async def main() -> float:
        take = study().apply
        began = time.perf_counter()
        for step in range(1, reports + 1):
            take(report(step))
            if step % TURN == 0:
                await asyncio.sleep(0)
        return time.perf_counter() - began

    return asyncio.run(main())


def latencies(folder: Path, durability: Durability, times: int) -> list[float]:
    """The milliseconds from each append to the call that says it is written."""

    async def main() -> list[float]:
        waits = []
        async with Journal(folder / JOURNAL, durability=durability) as journal:
            journal.append(HEADER)
            await written(journal)
            for step in range(1, times + 1):
                began = time.perf_counter()
                journal.append(report(step))
                await written(journal)
                waits.append((time.perf_counter() - began) * 1e3)
        return waits

    try:
        return asyncio.run(main())
    finally:
        (folder / JOURNAL).unlink()


def bare(folder: Path, durability: Durability, times: int) -> list[float]:
    """The milliseconds of each bare write, and with "power" of the fdatasync after it."""
    file = os.open(folder / JOURNAL, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def put() -> None:
        os.write(file, line)
        if durability == "power":
            os.fdatasync(file)

    try:
        line = encode(report(1), 1)
        return [seconds * 1e3 for seconds in calls(put, times)]
    finally:
        os.close(file)
        (folder / JOURNAL).unlink()


def line_rows(lines: int, repeat: int) -> Iterator[Row]:
    record, line = report(12345), encode(report(12345), 12345)
    encoder, decoder = msgspec.json.Encoder(), msgspec.json.Decoder(Reported)

    def nanoseconds(call: Callable[[], object]) -> Callable[[], float]:
        def measure() -> float:
            began = time.perf_counter()
            for _ in range(lines):
                call()
            return (time.perf_counter() - began) / lines * 1e9

        return measure

    for what, ours, beside in (
        ("a report as a line, with number and CRC", partial(encode, record, 12345), partial(encoder.encode, record)),
        ("a line as a report, its CRC not looked at", partial(decode, line), partial(decoder.decode, line)),
    ):
        medians = map(statistics.median, in_turn(repeat, nanoseconds(ours), nanoseconds(beside)))
        median, floor = medians
        yield Row(what=what, unit="ns", median=median, beside="msgspec", floor=floor)


def rate_rows(folder: Path, reports: int, repeat: int) -> Iterator[Row]:
    def rate(seconds: list[float]) -> float:
        return reports / statistics.median(seconds)

    runs = in_turn(
        repeat,
        lambda: appended(folder, reports),
        lambda: plainly(folder, reports),
        lambda: appended(folder, reports, study().apply),
        lambda: without(reports),
    )
    alone, plain, run, off = map(rate, map(list, runs))
    yield Row(what="reports appended", unit="/s", median=alone, beside="os.write", floor=plain)
    yield Row(what="reports of a run, journal on", unit="/s", median=run, beside="journal off", floor=off)


def latency_rows(folder: Path, times: int) -> Iterator[Row]:
    for durability, beside in (("process", "write"), ("power", "write, fdatasync")):
        word: Durability = durability  # type: ignore[assignment]
        median, p99 = spread(latencies(folder, word, times))
        floor, _ = spread(bare(folder, word, times))
        yield Row(
            what=f"from append to written, {durability!r}",
            unit="ms",
            median=median,
            p99=p99,
            beside=beside,
            floor=floor,
            budget=LATENCY_MS if durability == "process" else None,
            rule=f"<= {LATENCY_MS:g} ms" if durability == "process" else "",
        )


def read_row(folder: Path, records: int, repeat: int) -> Row:
    path = folder / JOURNAL
    with path.open("wb") as file:
        file.write(encode(HEADER, 0))
        file.writelines(map(encode, map(report, range(1, records)), count(1)))
    decoder = msgspec.json.Decoder(Reported)

    def seconds(work: Callable[[], object]) -> Callable[[], float]:
        return lambda: calls(work, 1)[0]

    def offsets() -> None:
        assert len([offset for offset, _ in scan(path)]) == records

    def decoded() -> None:
        with path.open("rb") as file:
            next(file)
            for line in file:
                decoder.decode(line)

    ours, beside = map(statistics.median, in_turn(repeat, seconds(offsets), seconds(decoded)))
    path.unlink()
    return Row(
        what=f"{records:,} records read back",
        unit="s",
        median=ours,
        beside="msgspec",
        floor=beside,
        budget=READ_SECONDS,
        rule=f"<= {READ_SECONDS:g} s",
    )


def main() -> None:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--folder", type=Path, default=Path(tempfile.gettempdir()), help="default: the system's for temporary files"
        )

    given = arguments(__doc__, repeat=5, add=add)
    reports = 5000 if given.quick else 200_000
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        rows = [
            *line_rows(reports, given.repeat),
            *rate_rows(folder, reports, given.repeat),
            *latency_rows(folder, 20 if given.quick else 1000),
            read_row(folder, 5 * reports, min(3, given.repeat)),
        ]
    show(given, rows, packages=["msgspec", "aiofiles"])


if __name__ == "__main__":
    main()
