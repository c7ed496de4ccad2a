import asyncio
import functools
import json
import math
import multiprocessing
import resource
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asynctune.errors import InvalidArgument, JournalError
from asynctune.journal import Journal, decode, encode, read, scan
from asynctune.records import (
    Action,
    Decided,
    Failed,
    Finished,
    Header,
    Left,
    Record,
    Reported,
    Saved,
    Started,
    Stopping,
    Suggested,
    TrialState,
)
from asynctune.rundir import JOURNAL

HEADER = Header(
    metric="loss",
    mode="min",
    num_trials=2,
    seed=0,
    space={"lr": "loguniform(1e-05, 0.1)"},
    searcher="Random()",
    scheduler="FIFO()",
    slots=1,
)


def report(step: int, **metrics: float) -> Reported:
    return Reported(time=0.5, trial=0, segment=0, step=step, metrics=metrics)


def write(path: Path, *records: Record) -> None:
    async def main() -> None:
        async with Journal(path) as journal:
            for record in records:
                journal.append(record)

    asyncio.run(main())


def test_every_kind_of_record_reads_back_as_it_was(tmp_path: Path) -> None:
    records = [
        HEADER,
        Suggested(trial=0, config={"lr": 0.1, "optimizer": {"name": "sgd"}, "nothing": None}),
        Started(trial=0, segment=0, step=0, until=None, slot=0),
        report(1, loss=1.0),
        Decided(trial=0, segment=0, step=1, action=Action.CONTINUE, until=3),
        Saved(trial=0, segment=0, step=1, checkpoint="0-0-1"),
        Started(trial=0, segment=1, step=1, until=3, slot=0, donor=1, config={"lr": 0.2}, how="exploited"),
        Failed(trial=0, error="ValueError: boom\x1b", retry=True, traceback="null"),
        Left(trial=0, segment=1, slot=0, busy=0.25, log=(0, 10)),
        Finished(trial=0, state=TrialState.STOPPED),
        Stopping(reason="because", failed=True),
    ]
    write(tmp_path / JOURNAL, *records)
    assert list(read(tmp_path / JOURNAL)) == records


@given(st.dictionaries(st.text(), st.floats()))
def test_metrics_that_json_lacks_read_back_as_they_were(metrics: dict[str, float]) -> None:
    line = encode(Reported(trial=0, segment=0, step=1, metrics=metrics))
    json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    back = decode(line)
    assert isinstance(back, Reported)
    assert back.metrics.keys() == metrics.keys()
    for name, value in metrics.items():
        assert back.metrics[name] == value or (math.isnan(value) and math.isnan(back.metrics[name]))


def test_an_infinite_constant_in_a_configuration_does_not_become_none() -> None:
    config = {"clip": math.inf, "nested": [{"low": -math.inf}], "text": "inf", "none": None}
    assert decode(encode(Suggested(trial=0, config=config))) == Suggested(trial=0, config=config)


def test_numpy_scalars_in_a_configuration_are_plain_numbers_on_disk() -> None:
    record = decode(encode(Suggested(trial=0, config={"a": np.float64(0.5), "b": np.int64(3)})))
    assert record == Suggested(trial=0, config={"a": 0.5, "b": 3})


def test_a_configuration_that_json_cannot_hold_is_refused_by_name() -> None:
    with pytest.raises(InvalidArgument, match=r"must hold numbers, strings.*<class 'int'>"):
        encode(Suggested(trial=0, config={"type": int}))


def test_a_run_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    run_dir = tmp_path / "runs" / "first"
    write(run_dir / JOURNAL, HEADER)
    assert stat.S_IMODE(run_dir.stat().st_mode) == 0o700
    assert stat.S_IMODE((run_dir / JOURNAL).stat().st_mode) == 0o600


def test_a_used_run_dir_is_not_overwritten(tmp_path: Path) -> None:
    write(tmp_path / JOURNAL, HEADER)
    with pytest.raises(InvalidArgument, match=f"run_dir must not hold a run already, got {str(tmp_path)!r}"):
        write(tmp_path / JOURNAL)
    assert list(read(tmp_path / JOURNAL)) == [HEADER]


def test_a_run_dir_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(JournalError, match="cannot make .*file"):
        write(tmp_path / "file" / JOURNAL)


def test_records_reach_the_disk_while_the_run_goes_on(tmp_path: Path) -> None:
    async def main() -> None:
        async with Journal(tmp_path / JOURNAL) as journal:
            journal.append(HEADER)
            async with asyncio.timeout(10):
                while not list(read(tmp_path / JOURNAL)):
                    await asyncio.sleep(0.001)

    asyncio.run(main())


def test_an_append_does_not_switch_tasks_and_keeps_its_order(tmp_path: Path) -> None:
    async def one(journal: Journal, trial: int) -> None:
        for step in range(1, 101):
            journal.append(Reported(trial=trial, segment=0, step=step, metrics={}))
            if step % 10 == 0:
                await asyncio.sleep(0)

    async def main() -> None:
        async with Journal(tmp_path / JOURNAL) as journal, asyncio.TaskGroup() as group:
            journal.append(HEADER)
            for trial in range(5):
                group.create_task(one(journal, trial))

    asyncio.run(main())
    steps: dict[int, list[int]] = {trial: [] for trial in range(5)}
    for record in read(tmp_path / JOURNAL):
        if isinstance(record, Reported):
            steps[record.trial].append(record.step)
    assert all(recorded == list(range(1, 101)) for recorded in steps.values())


async def _cancelled(journal: Journal) -> None:
    journal.append(report(1, loss=1.0))
    raise asyncio.CancelledError


async def _broken(journal: Journal) -> None:
    journal.append(report(1, loss=1.0))
    raise ZeroDivisionError


@pytest.mark.parametrize(("body", "error"), [(_cancelled, asyncio.CancelledError), (_broken, ZeroDivisionError)])
def test_a_body_that_ends_badly_loses_no_record(
    tmp_path: Path, body: Callable[[Journal], Awaitable[None]], error: type[BaseException]
) -> None:
    async def main() -> None:
        async with Journal(tmp_path / JOURNAL) as journal:
            journal.append(HEADER)
            await body(journal)

    with pytest.raises(error):
        asyncio.run(main())
    assert list(read(tmp_path / JOURNAL)) == [HEADER, report(1, loss=1.0)]


def test_a_closed_journal_takes_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        async with Journal(tmp_path / JOURNAL) as journal:
            journal.append(HEADER)
        with pytest.raises(JournalError, match="is closed"):
            journal.append(report(1))

    asyncio.run(main())


def on_a_full_disk(test: Callable[[Path], None]) -> Callable[[Path], None]:
    """Run a test in a process of its own, in which no file may grow beyond 4 KiB: the kernel writes short, then fails."""

    def limited(tmp_path: Path) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        test(tmp_path)

    @functools.wraps(test)
    def run(tmp_path: Path) -> None:
        process = multiprocessing.get_context("fork").Process(target=limited, args=(tmp_path,))
        process.start()
        process.join(60)
        assert process.exitcode == 0

    return run


@on_a_full_disk
def test_a_full_disk_ends_a_waiting_run(tmp_path: Path) -> None:
    async def main() -> None:
        async with Journal(tmp_path / JOURNAL) as journal:
            journal.append(HEADER)
            journal.append(Failed(trial=0, error="x" * 5000, retry=False))
            async with asyncio.TaskGroup() as group:
                group.create_task(asyncio.Event().wait())

    async def program() -> None:
        with pytest.raises(JournalError, match=f"cannot write .*{JOURNAL}: File too large"):
            await main()
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0  # the program around the run goes on uncancelled
        await asyncio.sleep(0)

    asyncio.run(program())
    assert list(read(tmp_path / JOURNAL)) == [HEADER]


@on_a_full_disk
def test_a_full_disk_is_seen_at_the_end_at_the_latest(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="File too large"):
        write(tmp_path / JOURNAL, HEADER, Failed(trial=0, error="x" * 5000, retry=False))


@on_a_full_disk
def test_nothing_is_recorded_behind_a_failed_write(tmp_path: Path) -> None:
    async def main() -> None:
        async with Journal(tmp_path / JOURNAL) as journal:
            journal.append(Failed(trial=0, error="x" * 5000, retry=False))
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                with pytest.raises(JournalError):
                    journal.append(report(1))

    with pytest.raises(JournalError):
        asyncio.run(main())
    assert (tmp_path / JOURNAL).stat().st_size == 4096


def test_a_line_that_is_being_written_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / JOURNAL
    whole, torn = encode(HEADER), encode(report(1, loss=1.0))
    for length in range(len(torn)):
        path.write_bytes(whole + torn[:length])
        assert list(read(path)) == [HEADER]


@pytest.mark.parametrize("line", [b"\n", b"{}\n", b'{"t":"unknown"}\n', b"\xff\n", b'{"t":"reported","trial":1}\n'])
def test_damage_is_refused_with_its_place(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / JOURNAL
    path.write_bytes(encode(HEADER) + line + encode(report(1)))
    with pytest.raises(JournalError, match=f"{JOURNAL}: no record at byte {len(encode(HEADER))}"):
        list(read(path))


def test_another_file_is_not_taken_for_a_journal(tmp_path: Path) -> None:
    path = tmp_path / JOURNAL
    path.write_bytes(encode(report(1)))
    with pytest.raises(JournalError, match="its first record is 'reported'"):
        list(read(path))
    with pytest.raises(JournalError, match="cannot read .*missing"):
        list(read(tmp_path / "missing"))


def test_a_journal_of_a_later_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / JOURNAL
    path.write_bytes(encode(HEADER).replace(b'"version":1', b'"version":2'))
    with pytest.raises(JournalError, match="version must be 1, got 2"):
        list(read(path))


def test_offsets_are_where_lines_begin(tmp_path: Path) -> None:
    path = tmp_path / JOURNAL
    write(path, HEADER, report(1, loss=math.nan), report(2, loss=1.0))
    data = path.read_bytes()
    assert [decode(data[offset:].split(b"\n", 1)[0] + b"\n").kind for offset, _ in scan(path)] == [
        "header",
        "reported",
        "reported",
    ]
