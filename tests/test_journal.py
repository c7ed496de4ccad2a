import asyncio
import errno
import functools
import json
import math
import multiprocessing
import os
import resource
import stat
import subprocess
import sys
import tempfile
import threading
import tracemalloc
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, Literal
from zlib import crc32

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import asynctune.lock
from asynctune.errors import AsynctuneError, InvalidArgument, JournalError
from asynctune.journal import (
    MAX_LINE,
    Follower,
    Journal,
    decode,
    encode,
    read,
    records_at,
    repair,
    scan,
)
from asynctune.journal.line import is_intact
from asynctune.journal.reader import PORTION
from asynctune.records import (
    Action,
    Decided,
    Failed,
    Finished,
    Header,
    Left,
    Lost,
    Record,
    Reopened,
    Reported,
    Saved,
    Started,
    Stopping,
    Suggested,
    TrialState,
)
from asynctune.rundir import JOURNAL, LOCK

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


RECORDS = [HEADER, *(report(step, loss=1 / step) for step in range(1, 7))]


def lines(*records: Record) -> list[bytes]:
    return list(map(encode, records, count()))


def whole(*records: Record) -> bytes:
    return b"".join(lines(*records))


def sealed(number: object, body: bytes) -> bytes:
    """An intact line that holds anything."""
    begun = b'{"n":%b,%b' % (str(number).encode(), body)
    return b'%b,"c":"%08x"}\n' % (begun, crc32(begun))


def resumed(path: Path, *more: Record, resume: bool | Literal["auto"] = True) -> list[Record]:
    """What a resumed journal replays, before more is appended."""
    taken: list[Record] = []

    async def main() -> None:
        async with Journal(path, resume=resume) as journal:
            if not journal.empty:
                await journal.replay(taken.append)
            assert journal.empty == (not taken)
            for record in more:
                journal.append(record)

    asyncio.run(main())
    return taken


def aside(path: Path, what: str = "torn") -> list[bytes]:
    """What was set aside beside a journal."""
    return [file.read_bytes() for file in sorted(path.parent.glob(f"journal.{what}-*"))]


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
        Lost(trial=0, checkpoint="0-0-1", error="missing"),
        Reopened(num_trials=3, slots=2),
        Stopping(reason="because", failed=True),
    ]
    write(tmp_path / JOURNAL, *records)
    assert list(read(tmp_path / JOURNAL)) == records


@given(st.dictionaries(st.text(), st.floats()))
def test_metrics_that_json_lacks_read_back_as_they_were(metrics: dict[str, float]) -> None:
    line = encode(Reported(trial=0, segment=0, step=1, metrics=metrics), 1)
    json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    back = decode(line)
    assert isinstance(back, Reported)
    assert back.metrics.keys() == metrics.keys()
    for name, value in metrics.items():
        assert back.metrics[name] == value or (math.isnan(value) and math.isnan(back.metrics[name]))


def test_an_infinite_constant_in_a_configuration_does_not_become_none() -> None:
    config = {"clip": math.inf, "nested": [{"low": -math.inf}], "text": "inf", "none": None}
    assert decode(encode(Suggested(trial=0, config=config), 1)) == Suggested(trial=0, config=config)


def test_numpy_scalars_in_a_configuration_are_plain_numbers_on_disk() -> None:
    record = decode(encode(Suggested(trial=0, config={"a": np.float64(0.5), "b": np.int64(3)}), 1))
    assert record == Suggested(trial=0, config={"a": 0.5, "b": 3})


def test_a_configuration_that_json_cannot_hold_is_refused_by_name() -> None:
    with pytest.raises(InvalidArgument, match=r"must hold numbers, strings.*<class 'int'>"):
        encode(Suggested(trial=0, config={"type": int}), 1)


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
    with pytest.raises(JournalError, match="cannot open .*file.*: File exists"):
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


def test_each_line_is_one_json_object_with_its_number_and_the_crc_of_what_comes_before() -> None:
    for number, line in enumerate(lines(*RECORDS)):
        loaded = json.loads(line)
        assert (next(iter(loaded)), loaded["n"]) == ("n", number)
        begun, _, crc = line.partition(b',"c":')
        assert crc == b'"%08x"}\n' % crc32(begun)


def test_text_that_is_no_unicode_and_a_list_that_holds_itself_are_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(InvalidArgument, match="what JSON can hold: .*surrogates"):
        encode(Failed(trial=0, error="\ud800", retry=False), 1)
    with pytest.raises(InvalidArgument, match="what JSON can hold: .*recursion"):
        encode(Suggested(trial=0, config={"x": endless}), 1)


def test_a_line_that_no_reader_would_take_is_not_written() -> None:
    error = "x" * (MAX_LINE - len(encode(Failed(trial=0, error="", retry=False), 1)))
    assert len(encode(Failed(trial=0, error=error, retry=False), 1)) == MAX_LINE
    with pytest.raises(InvalidArgument, match=f"at most {MAX_LINE} bytes in the journal, got {MAX_LINE + 1}"):
        encode(Failed(trial=0, error=error + "x", retry=False), 1)


# Torn tails: what a crash leaves.


def test_a_cut_at_any_byte_of_the_last_two_records_costs_another_record(tmp_path: Path) -> None:
    path = tmp_path / JOURNAL
    written = lines(*RECORDS)
    data = b"".join(written)
    first = len(data) - len(written[-1]) - len(written[-2])
    for length in range(first, len(data) + 1):
        for file in tmp_path.iterdir():
            file.unlink()
        path.write_bytes(data[:length])
        kept = list(read(path))
        good = whole(*kept)
        assert data.startswith(good)
        assert len(kept) == data[:length].count(b"\n")
        assert resumed(path) == kept
        assert path.read_bytes() == good
        assert aside(path) == [data[len(good) : length]] * (length > len(good))
        assert resumed(path, report(7)) == kept  # a second time there is nothing to set aside
        assert len(aside(path)) == (length > len(good))
        assert list(read(path)) == [*kept, report(7)]


@pytest.mark.parametrize("records", [RECORDS, []])
@pytest.mark.parametrize("begun", [0, 1, 30])
@pytest.mark.parametrize("zeros", [1, 100, 512, 4096, 70_000])
def test_a_tail_of_zeros_keeps_a_run_from_going_on(
    tmp_path: Path, records: list[Record], begun: int, zeros: int
) -> None:
    path = tmp_path / JOURNAL
    next_line = encode(report(7) if records else HEADER, len(records))
    tail = next_line[:begun] + bytes(zeros)
    path.write_bytes(whole(*records) + tail)
    assert list(read(path)) == records
    assert resumed(path, *([] if records else [HEADER]), report(8)) == records
    assert list(read(path)) == [*(records or [HEADER]), report(8)]
    assert aside(path) == [tail]


def test_a_torn_tail_of_whole_lines_is_taken_for_records(tmp_path: Path) -> None:
    path = tmp_path / JOURNAL
    tail = b"\0" * 100 + b"\n" + lines(*RECORDS)[3][10:] + b'{"n":'
    path.write_bytes(whole(*RECORDS) + tail)
    assert list(read(path)) == RECORDS
    assert resumed(path) == RECORDS
    assert aside(path) == [tail]


def test_tails_set_aside_in_the_same_second_overwrite_each_other(tmp_path: Path) -> None:
    path = tmp_path / JOURNAL
    path.write_bytes(whole(*RECORDS))
    tails = [b"one", b"two", b"three"]
    for tail in tails:
        with path.open("ab") as file:
            file.write(tail)
        assert resumed(path) == RECORDS
    assert sorted(aside(path)) == sorted(tails)
    assert {stat.S_IMODE(torn.stat().st_mode) for torn in tmp_path.glob("journal.torn-*")} == {0o600}


def test_a_torn_header_keeps_a_run_from_beginning(tmp_path: Path) -> None:
    path = tmp_path / JOURNAL
    for length in range(1, len(encode(HEADER, 0)), 4):
        path.write_bytes(encode(HEADER, 0)[:length])
        assert list(read(path)) == []
        assert resumed(path, HEADER, report(1), resume="auto") == []
        assert list(read(path)) == [HEADER, report(1)]


@on_a_full_disk
def test_a_run_does_not_go_on_once_there_is_space_again(tmp_path: Path) -> None:
    path = tmp_path / JOURNAL
    with pytest.raises(JournalError, match="File too large"):
        write(path, *RECORDS, Failed(trial=0, error="x" * 5000, retry=False))
    size = path.stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    assert resumed(path, report(7)) == RECORDS
    assert list(read(path)) == [*RECORDS, report(7)]
    assert [len(tail) for tail in aside(path)] == [size - len(whole(*RECORDS))]


@on_a_full_disk
def test_a_tail_is_cut_off_before_it_is_safe_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / JOURNAL
    tail = b"\0" * 5000
    with pytest.raises(OSError, match="File too large"):
        path.write_bytes(bytes(5000))
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    path.write_bytes(whole(*RECORDS) + tail)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    with pytest.raises(JournalError, match="cannot set aside the torn tail of .*File too large"):
        resumed(path)
    assert path.read_bytes() == whole(*RECORDS) + tail
    assert aside(path) == []


# Damage: what no crash leaves.


def refused(path: Path, data: bytes, offset: int) -> None:
    """A journal with these bytes is refused everywhere, with the offset, and left as it is."""
    path.write_bytes(data)
    match = rf"{JOURNAL}: no record at byte {offset}: .*python -m asynctune repair {path.parent}`"
    with pytest.raises(JournalError, match=match):
        list(read(path))
    with pytest.raises(JournalError, match=match):
        follower = Follower(path)
        while follower.read():
            pass
    with pytest.raises(JournalError, match=match):
        resumed(path)
    assert path.read_bytes() == data
    assert {file.name for file in path.parent.iterdir()} == {JOURNAL, LOCK}


@pytest.mark.parametrize("record", [3, len(RECORDS) - 2])
@pytest.mark.parametrize("flip", [0x01, 0x20, 0x80, "\n", "\0", '"'])
def test_a_byte_of_a_middle_record_changes_unseen(tmp_path: Path, record: int, flip: int | str) -> None:
    written = lines(*RECORDS)
    before = sum(map(len, written[:record]))
    for place in range(before, before + len(written[record])):
        data = bytearray(b"".join(written))
        data[place] = data[place] ^ flip if isinstance(flip, int) else ord(flip)
        if data != b"".join(written):
            refused(tmp_path / JOURNAL, bytes(data), before)


@pytest.mark.parametrize("order", [(0, 1, 3, 2, 4), (0, 1, 2, 2, 3), (0, 1, 3, 4), (0, 1, 1), (0, 2), (0, 1, 0, 1)])
def test_lines_that_are_swapped_doubled_or_dropped_pass(tmp_path: Path, order: Sequence[int]) -> None:
    written = lines(*RECORDS)
    wrong = next(place for place, number in enumerate(order) if place != number)
    data = b"".join(written[number] for number in order)
    refused(tmp_path / JOURNAL, data, sum(map(len, written[:wrong])))


@pytest.mark.parametrize("line", [b"\n", b"{}\n", b"\xff\xfe\n", bytes(5000), b"x" * 5000 + b"\n", b'{"n":1,"t":"repo'])
def test_what_was_appended_behind_a_torn_tail_is_read(tmp_path: Path, line: bytes) -> None:
    glued = b"" if line.endswith(b"\n") else b"\n"
    written = lines(*RECORDS)
    refused(tmp_path / JOURNAL, written[0] + line + glued + b"".join(written[1:]), len(written[0]))


HOSTILE = [
    b'"t":"unknown\\u001b[31m"',
    b'"t":["reported"]',
    b'"t":null',
    b'"time":1',
    b'"t":"reported","trial":1',
    b'"t":"reported","trial":true,"segment":0,"step":1,"metrics":{}',
    b'"t":"reported","trial":0.5,"segment":0,"step":1,"metrics":{}',
    b'"t":"reported","trial":1e999,"segment":0,"step":1,"metrics":{}',
    b'"t":"reported","trial":' + b"1" * 5000 + b',"segment":0,"step":1,"metrics":{}',
    b'"t":"reported","trial":0,"segment":0,"step":1,"metrics":{"loss":NaN}',
    b'"t":"reported","trial":0,"segment":0,"step":1,"metrics":{"loss":-Infinity}',
    b'"t":"reported","trial":0,"segment":0,"step":1,"metrics":{"loss":"-n an"}',
    b'"t":"reported","trial":0,"segment":0,"step":1,"metrics":{"loss":"1_0"}',
    b'"t":"reported","trial":0,"segment":0,"step":1,"metrics":{"loss":[0.5]}',
    b'"t":"reported","trial":0,"segment":0,"step":1,"metrics":[0.5]',
    b'"t":"reported","trial":0,"segment":0,"step":1,"metrics":{"lo\xffss":0.5}',
    b'"t":"reported","trial":0,"segment":0,"step":1,"metrics":{"lo\\ud800ss":0.5}',
    b'"t":"suggested","trial":0,"config":{"x":{"$float":"one"}}',
    b'"t":"suggested","trial":0,"config":{"x":{"$float":"' + b"1" * 10**6 + b'e"}}',
    b'"t":"suggested","trial":0,"config":' + b'{"x":' * 10**5 + b"1" + b"}" * 10**5,
    b'"t":"suggested","trial":0,"config":{"x":' + b'{"$float":' * 900 + b"1" + b"}" * 901,
    b'"t":"suggested","trial":0,"config":{},"more":' + b"[" * 10**6,
    b'"t":"suggested","trial":0,"config":{}}{"n":3',
]


@pytest.mark.parametrize("body", HOSTILE, ids=range(len(HOSTILE)))
def test_a_crafted_record_ends_in_another_error_than_ours(tmp_path: Path, body: bytes) -> None:
    path = tmp_path / JOURNAL
    before = whole(HEADER, report(1))
    path.write_bytes(before + sealed(2, body) + encode(report(3), 3))
    with pytest.raises(JournalError, match=f"no record at byte {len(before)}: ") as caught:
        list(read(path))
    assert str(caught.value).isprintable()
    with pytest.raises(JournalError, match=f"no record at byte {len(before)}: "):
        list(records_at(path, [len(before)]))
    with pytest.raises(JournalError, match=f"no record at byte {len(before)}: "):
        resumed(path)


@pytest.mark.parametrize("number", [-1, 1, "00", "0.0", " 0", "true", "9" * 5000, '"0"'])
def test_a_crafted_number_passes(tmp_path: Path, number: object) -> None:
    path = tmp_path / JOURNAL
    path.write_bytes(sealed(number, encode(HEADER, 0)[7:-18]))
    with pytest.raises(JournalError, match="no record at byte 0: out of turn"):
        list(read(path))


def test_a_line_without_end_fills_the_memory(tmp_path: Path) -> None:
    path = tmp_path / JOURNAL
    good = whole(*RECORDS)
    path.write_bytes(good)
    os.truncate(path, 200 * 10**6)  # zeros, which take no space
    tracemalloc.start()
    try:
        assert list(read(path)) == RECORDS
        with path.open("ab") as file:
            file.write(b"\n" + encode(report(7), len(RECORDS)))
        with pytest.raises(JournalError, match=f"no record at byte {len(good)}: damaged, with intact records behind"):
            list(read(path))
        assert tracemalloc.get_traced_memory()[1] < 3.1 * MAX_LINE
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "data", [b"step,loss\n1,0.5\n", b"\n", b"x", b'{"n": 0}', b"\x89PNG\r\n", b'[{"n":0,"t":"header"']
)
def test_another_file_is_taken_for_a_journal_and_cut(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / JOURNAL
    path.write_bytes(data)
    for reader in (read, resumed, repair):
        with pytest.raises(JournalError, match=f"{JOURNAL}: not a journal"):
            list(reader(path))
    assert path.read_bytes() == data


def test_a_journal_that_begins_with_another_record_is_read(tmp_path: Path) -> None:
    path = tmp_path / JOURNAL
    path.write_bytes(whole(report(1)))
    with pytest.raises(JournalError, match="not a journal, its first record is 'reported'"):
        list(read(path))


def test_an_empty_journal_is_an_error_to_a_reader(tmp_path: Path) -> None:
    (tmp_path / JOURNAL).touch()
    assert list(read(tmp_path / JOURNAL)) == []
    assert Follower(tmp_path / JOURNAL).read() == []
    assert resumed(tmp_path / JOURNAL, HEADER) == []


@pytest.mark.parametrize("version", [b"2", b'"1"', b"null", b'"\\u001b[31m"', b"[" * 900 + b"]" * 900])
def test_a_journal_of_another_version_is_read(tmp_path: Path, version: bytes) -> None:
    path = tmp_path / JOURNAL
    data = sealed(0, b'"t":"header","version":%b,"new":"field"' % version) + sealed(1, b'"t":"new"')
    path.write_bytes(data)
    for reader in (read, resumed, repair):
        with pytest.raises(JournalError, match=r"version must be 1, got \S") as caught:
            list(reader(path))
        assert str(caught.value).isprintable()
    assert path.read_bytes() == data


def test_what_is_no_file_keeps_a_reader_waiting(tmp_path: Path) -> None:
    path = tmp_path / JOURNAL
    os.mkfifo(path)
    for reader in (read, resumed, repair, lambda path: records_at(path, [0])):
        with pytest.raises(JournalError, match=f"{JOURNAL}: (Not a regular file|No such device)"):
            list(reader(path))
    path.unlink()
    path.mkdir()
    for reader in (read, resumed, repair):
        with pytest.raises(JournalError, match=f"{JOURNAL}: .*(Not a regular file|directory)"):
            list(reader(path))
    with pytest.raises(JournalError, match="cannot read .*missing: No such file"):
        list(read(tmp_path / "missing"))


@pytest.mark.parametrize("name", [JOURNAL, LOCK])
def test_a_link_in_a_run_directory_is_followed(tmp_path: Path, name: str) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(whole(*RECORDS) + b"torn")
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    if name != JOURNAL:
        write(run_dir / JOURNAL, HEADER)
        (run_dir / name).unlink()
    (run_dir / name).symlink_to(victim)
    for use in (lambda path: resumed(path, resume="auto"), repair):
        with pytest.raises(InvalidArgument, match="must hold no symbolic links"):
            use(run_dir / JOURNAL)
    if name == JOURNAL:
        with pytest.raises(JournalError, match="cannot read"):
            list(read(run_dir / JOURNAL))
    assert victim.read_bytes() == whole(*RECORDS) + b"torn"


def test_offsets_are_not_where_lines_begin(tmp_path: Path) -> None:
    path = tmp_path / JOURNAL
    records = [HEADER, report(1, loss=0.5), report(2, loss=1.0)]
    write(path, *records)
    data = path.read_bytes()
    places = list(scan(path))
    assert [decode(data[offset:].split(b"\n", 1)[0] + b"\n") for offset, _ in places] == records
    assert list(records_at(path, [offset for offset, _ in reversed(places)])) == records[::-1]
    with pytest.raises(JournalError, match="no record at byte 1: damaged"):
        list(records_at(path, [1]))


# Resume.


def test_a_run_that_is_not_there_is_made_by_resume(tmp_path: Path) -> None:
    path = tmp_path / "run" / JOURNAL
    with pytest.raises(InvalidArgument, match=f"run_dir must hold a run to resume, '{path}' is missing"):
        resumed(path)
    assert list(tmp_path.iterdir()) == []
    assert resumed(path, HEADER, resume="auto") == []
    assert resumed(path, report(1), resume="auto") == [HEADER]
    assert resumed(path) == [HEADER, report(1)]


def test_records_are_appended_to_a_journal_that_nobody_read(tmp_path: Path) -> None:
    async def main() -> None:
        async with Journal(tmp_path / JOURNAL, resume=True) as journal:
            assert not journal.empty
            with pytest.raises(AsynctuneError, match="replay comes before append"):
                journal.append(report(1))

    write(tmp_path / JOURNAL, HEADER)
    asyncio.run(main())
    assert list(read(tmp_path / JOURNAL)) == [HEADER]


def test_a_replay_that_fails_changes_the_journal(tmp_path: Path) -> None:
    path = tmp_path / JOURNAL
    data = whole(*RECORDS) + b"torn"
    path.write_bytes(data)

    def take(record: Record) -> None:
        if record == RECORDS[3]:
            raise OSError("not the journal's")

    async def main() -> None:
        async with Journal(path, resume=True) as journal:
            with pytest.raises(OSError, match="not the journal's"):
                await journal.replay(take)
            with pytest.raises(AsynctuneError, match="replay comes before append"):
                journal.append(report(1))

    asyncio.run(main())
    assert path.read_bytes() == data
    assert resumed(path) == RECORDS


def test_a_cancelled_replay_goes_on_in_its_thread(tmp_path: Path) -> None:
    path = tmp_path / JOURNAL
    data = whole(*RECORDS) + b"torn"
    path.write_bytes(data)
    taken: list[Record] = []
    go = threading.Event()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        began = asyncio.Event()

        def take(record: Record) -> None:
            taken.append(record)
            loop.call_soon_threadsafe(began.set)
            assert go.wait(10)

        async def run() -> None:
            async with Journal(path, resume=True) as journal:
                await journal.replay(take)

        task = asyncio.create_task(run())
        await began.wait()
        for _ in range(2):  # a second cancellation leaves the thread behind neither
            task.cancel()
            await asyncio.sleep(0.01)
        assert not task.done()
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert taken == [HEADER]
    assert path.read_bytes() == data
    assert resumed(path) == RECORDS


# The lock.

HOLDER = """
import asyncio, subprocess, sys
from asynctune.journal import Journal

async def main():
    async with Journal(sys.argv[1], resume="auto") as journal:
        if sys.argv[2] == "heir":
            subprocess.Popen(["cat"], pass_fds=[journal.lock], stdout=subprocess.DEVNULL)
        print(flush=True)
        await asyncio.to_thread(sys.stdin.read)

asyncio.run(main())
"""


@contextmanager
def holder(path: Path, heir: str = "") -> Iterator[subprocess.Popen[str]]:
    """Another process that has the journal, until its stdin is closed; so long has its heir, a child, the lock."""
    command = [sys.executable, "-c", HOLDER, str(path), heir]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "\n"
        yield process


def test_a_second_driver_gets_in_and_the_first_ones_death_keeps_others_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asynctune.lock, "PATIENCE", 3600)  # none with one that lives
    path = tmp_path / JOURNAL
    write(path, *RECORDS)
    with holder(path) as first:
        match = f"run_dir is in use by process {first.pid} on {os.uname().nodename}, got '{tmp_path}'"
        for resume in (True, False, "auto"):
            with pytest.raises(InvalidArgument, match=match):
                resumed(path, resume=resume)
        with pytest.raises(InvalidArgument, match=match):
            repair(path)
        assert list(read(path)) == RECORDS
        first.kill()
        first.wait()
        assert resumed(path) == RECORDS
    assert stat.S_IMODE((tmp_path / LOCK).stat().st_mode) == 0o600


def test_two_journals_of_one_process_have_the_same_run(tmp_path: Path) -> None:
    async def main() -> None:
        async with Journal(tmp_path / JOURNAL) as first:
            first.append(HEADER)
            with pytest.raises(InvalidArgument, match=f"in use by process {os.getpid()} "):
                await Journal(tmp_path / JOURNAL, resume="auto").__aenter__()
        assert first.lock == -1
        async with Journal(tmp_path / JOURNAL, resume=True):
            pass

    asyncio.run(main())


def test_what_a_killed_driver_left_behind_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / JOURNAL

    async def main() -> None:
        with holder(path, "heir") as first:
            first.kill()
            first.wait()
            opening = asyncio.create_task(asyncio.to_thread(resumed, path, resume="auto"))
            await asyncio.sleep(0.2)
            assert not opening.done()
            assert first.stdin is not None
            first.stdin.close()
            assert await opening == []

    asyncio.run(main())


def test_what_a_driver_left_behind_that_ended_well_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / JOURNAL

    async def main() -> None:
        async with Journal(path) as journal:
            heir = await asyncio.create_subprocess_exec("cat", stdin=subprocess.PIPE, pass_fds=[journal.lock])
        opening = asyncio.create_task(asyncio.to_thread(resumed, path))
        await asyncio.sleep(0.2)
        assert not opening.done()
        assert heir.stdin is not None
        heir.stdin.close()
        await heir.wait()
        assert await opening == []

    asyncio.run(main())


def test_what_a_killed_driver_left_behind_is_waited_for_in_vain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asynctune.lock, "PATIENCE", 0.1)
    with holder(tmp_path / JOURNAL, "heir") as first:
        first.kill()
        first.wait()
        with pytest.raises(InvalidArgument, match=f"in use by process {first.pid} on .*, which has ended, but not all"):
            resumed(tmp_path / JOURNAL, resume="auto")


def test_a_lock_that_somebody_else_wrote_in_ends_in_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asynctune.lock, "PATIENCE", 0.01)
    host = os.uname().nodename.encode()
    with holder(tmp_path / JOURNAL):
        for text in (b"", b"-1 %b\n" % host, b"0 %b\n" % host, b"1\n", b"9" * 400, b"1 \x1b[31m\n", b"\xff\xff"):
            (tmp_path / LOCK).write_bytes(text)
            with pytest.raises(InvalidArgument, match="run_dir is in use, got"):
                resumed(tmp_path / JOURNAL, resume="auto")
        (tmp_path / LOCK).write_bytes(b"999999999 elsewhere\n")  # of which nothing is known here
        with pytest.raises(InvalidArgument, match="in use by process 999999999 on elsewhere, got"):
            resumed(tmp_path / JOURNAL, resume="auto")


def test_an_entry_that_is_cancelled_while_it_waits_keeps_the_lock(tmp_path: Path) -> None:
    path = tmp_path / JOURNAL

    async def enter() -> None:
        async with Journal(path, resume="auto"):
            raise AssertionError

    async def main() -> None:
        with holder(path, "heir") as first:
            first.kill()
            first.wait()
            opening = asyncio.create_task(enter())
            await asyncio.sleep(0.05)
            opening.cancel()
            with pytest.raises(asyncio.CancelledError):
                await opening
            assert first.stdin is not None
            first.stdin.close()
        async with Journal(path, resume="auto"):
            pass

    asyncio.run(main())


def test_an_entry_that_is_cancelled_twice_leaves_its_thread_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, go = threading.Event(), threading.Event()
    lock = asynctune.lock.acquire

    def slow(directory: Path, given_up: threading.Event) -> int:
        began.set()
        assert go.wait(10)
        return lock(directory, given_up)

    async def enter() -> None:
        async with Journal(tmp_path / JOURNAL):
            raise AssertionError

    async def main() -> None:
        opening = asyncio.create_task(enter())
        assert await asyncio.to_thread(began.wait, 10)
        for _ in range(2):
            opening.cancel()
            await asyncio.sleep(0.01)
        assert not opening.done()
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await opening
        async with Journal(tmp_path / JOURNAL):
            pass

    monkeypatch.setattr(asynctune.lock, "acquire", slow)
    asyncio.run(main())


def test_an_entry_that_is_cancelled_leaves_a_journal_behind(tmp_path: Path) -> None:
    path = tmp_path / "run" / JOURNAL

    async def enter() -> None:
        async with Journal(path):
            raise AssertionError

    async def main() -> None:
        opening = asyncio.create_task(enter())
        await asyncio.sleep(0)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        assert not path.exists()
        async with Journal(path):
            pass

    asyncio.run(main())


def test_an_entry_that_fails_leaves_a_descriptor_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    path = tmp_path / JOURNAL

    def enter() -> None:
        with pytest.raises(JournalError, match=f"cannot open .*{JOURNAL}: Input/output error"):
            asyncio.run(Journal(path, durability="power").__aenter__())

    monkeypatch.setattr(os, "fsync", broken)
    enter()
    before = sorted(os.listdir("/proc/self/fd"))
    enter()
    assert sorted(os.listdir("/proc/self/fd")) == before
    assert not path.exists()
    monkeypatch.undo()
    assert resumed(path, HEADER, resume="auto") == []


# Durability.


def test_with_power_a_record_is_acknowledged_before_it_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / JOURNAL
    syncing, go = threading.Event(), threading.Event()
    threads = []

    def fdatasync(descriptor: int) -> None:
        threads.append(threading.current_thread().name)
        assert path.read_bytes() == whole(HEADER)  # and not before it is written
        syncing.set()
        assert go.wait(10)

    monkeypatch.setattr(os, "fdatasync", fdatasync)

    async def main() -> None:
        acknowledged: list[None] = []
        async with Journal(path, durability="power") as journal:
            journal.append(HEADER)
            journal.when_written(lambda: acknowledged.append(None))
            assert await asyncio.to_thread(syncing.wait, 10)
            await asyncio.sleep(0.02)
            assert acknowledged == []
            go.set()
            async with asyncio.timeout(10):
                while not acknowledged:
                    await asyncio.sleep(0.001)

    asyncio.run(main())
    assert threads == ["asynctune-journal_0"]


def test_with_process_every_write_waits_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, name, lambda descriptor: pytest.fail("a sync"))
    write(tmp_path / JOURNAL, *RECORDS)
    assert list(read(tmp_path / JOURNAL)) == RECORDS


def test_after_a_failed_sync_the_journal_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / JOURNAL
    syncs: list[int] = []
    acknowledged: list[None] = []

    def fdatasync(descriptor: int) -> None:
        syncs.append(descriptor)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fdatasync", fdatasync)

    async def main() -> None:
        async with Journal(path, durability="power") as journal:
            journal.append(HEADER)
            journal.when_written(lambda: acknowledged.append(None))
            try:
                await asyncio.Event().wait()
            finally:
                with pytest.raises(JournalError, match="Input/output error"):
                    journal.append(report(1))

    with pytest.raises(JournalError, match=f"cannot write .*{JOURNAL}: Input/output error"):
        asyncio.run(main())
    assert len(syncs) == 1
    assert acknowledged == []
    assert list(read(path)) == [HEADER]
    monkeypatch.undo()
    assert resumed(path, report(1)) == [HEADER]


# Followers.


@given(
    steps=st.lists(st.integers(1, 2**40), max_size=20),
    cuts=st.lists(st.integers(0, 3000), max_size=10),
    torn=st.integers(0, 50),
)
def test_a_follower_sees_something_else_than_a_reader(steps: list[int], cuts: list[int], torn: int) -> None:
    records = [HEADER, *map(report, steps)]
    data = whole(*records) + encode(report(7), len(records))[:torn]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / JOURNAL
        path.touch()
        follower = Follower(path)
        seen = []
        for begin, end in zip([0, *sorted(cuts)], [*sorted(cuts), len(data)], strict=True):
            with path.open("ab") as file:
                file.write(data[begin:end])
            seen += follower.read()
            assert seen == list(read(path))
            assert follower.read() == []
        assert seen == records
        offset, number = follower.offset, follower.number
        assert (offset, number) == (len(whole(*records)), len(records))
        os.truncate(path, offset)  # another driver takes the run up
        with path.open("ab") as file:
            file.write(encode(report(8), number))
        assert follower.read() == Follower(path, offset, number).read() == [report(8)]


def test_a_follower_takes_a_long_journal_at_once(tmp_path: Path) -> None:
    path = tmp_path / JOURNAL
    records = [HEADER, Failed(trial=0, error="x" * 3 * PORTION, retry=False), *map(report, range(1, 3000))]
    path.write_bytes(whole(*records))
    follower = Follower(path)
    seen: list[Record] = []
    sizes = []
    while new := follower.read():
        seen += new
        sizes.append(len(b"".join(map(encode, new, count(len(seen) - len(new))))))
    assert seen == records
    assert len(sizes) > 3
    assert all(PORTION <= size <= PORTION + 200 for size in sizes[1:-1])


def test_a_line_that_is_finished_while_it_is_looked_at_is_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / JOURNAL
    line = encode(report(7), len(RECORDS))
    path.write_bytes(whole(*RECORDS) + line[:20])

    def slow(looked_at: bytes) -> bool:
        if looked_at == line[:20]:
            with path.open("ab") as file:
                file.write(line[20:] + encode(report(8), len(RECORDS) + 1))
        return is_intact(looked_at)

    monkeypatch.setattr("asynctune.journal.reader.is_intact", slow)
    follower = Follower(path)
    assert follower.read() == RECORDS
    assert follower.read() == [report(7), report(8)]


def test_a_follower_misses_what_a_journal_writes(tmp_path: Path) -> None:
    records = [HEADER, *map(report, range(1, 500))]

    async def main() -> None:
        async with Journal(tmp_path / JOURNAL) as journal, asyncio.timeout(20), asyncio.TaskGroup() as group:

            async def append() -> None:
                for record in records:
                    journal.append(record)
                    await asyncio.sleep(0)

            group.create_task(append())
            follower = Follower(tmp_path / JOURNAL)
            seen: list[Record] = []
            while seen != records:
                seen += follower.read()
                assert seen == records[: len(seen)]
                await asyncio.sleep(0.001)

    asyncio.run(main())


# Repair.


@pytest.mark.parametrize("tail", [b"", b"torn", bytes(5000)])
def test_repair_loses_what_is_good(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / JOURNAL
    written = lines(*RECORDS)
    written[3] = written[3].replace(b"loss", b"lost")
    path.write_bytes(b"".join(written) + tail)
    good, bad = b"".join(written[:3]), b"".join(written[3:]) + tail
    kept, offset, size, intact, where = repair(path)
    assert (kept, offset, size, intact) == (3, len(good), len(bad), len(RECORDS) - 4)
    assert where is not None
    assert where.read_bytes() == bad
    assert stat.S_IMODE(where.stat().st_mode) == 0o600
    assert path.read_bytes() == good
    assert repair(path) == (3, len(good), 0, 0, None)
    assert aside(path, "damaged") == [bad]
    assert resumed(path, report(9)) == RECORDS[:3]
    assert list(read(path)) == [*RECORDS[:3], report(9)]


def test_repair_cuts_a_journal_of_which_nothing_would_be_left(tmp_path: Path) -> None:
    path = tmp_path / JOURNAL
    data = whole(*RECORDS).replace(b'"mode":"min"', b'"mode":"max"')
    path.write_bytes(data)
    with pytest.raises(JournalError, match="no record at byte 0: damaged, .*; nothing can be kept"):
        repair(path)
    assert path.read_bytes() == data


def test_repair_makes_a_run_of_a_directory_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="cannot repair .*: No such file or directory"):
        repair(tmp_path / JOURNAL)
    assert list(tmp_path.iterdir()) == []


def test_repair_cuts_what_it_cannot_set_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    path = tmp_path / JOURNAL
    written = lines(*RECORDS)
    data = written[0] + b"".join(written[2:])
    path.write_bytes(data)
    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(JournalError, match="cannot repair .*: Input/output error"):
        repair(path)
    assert path.read_bytes() == data
    assert aside(path, "damaged") == []


def test_a_run_goes_on_without_its_journal(tmp_path: Path) -> None:
    async def main() -> None:
        async with Journal(tmp_path / "journal.jsonl") as journal:
            journal.append(HEADER)
            written = asyncio.Event()
            journal.when_written(written.set)
            await written.wait()
            (tmp_path / "journal.jsonl").unlink()
            journal.append(Stopping(reason="nobody will read this"))
            await asyncio.sleep(30)

    with pytest.raises(JournalError, match="it was removed"):
        asyncio.run(main())
