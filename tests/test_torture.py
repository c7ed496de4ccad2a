"""The torture in its short form; and its judge, which must see what is wrong when something is."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from asynctune import journal
from asynctune.records import Finished, Record, Reported
from asynctune.rundir import CHECKPOINTS, JOURNAL
from tests.faults import ROOT, Drive, Driver, Fault
from tests.faults.oracle import Remains, complaints, table
from tests.faults.scenarios import SCENARIOS
from tests.runs import write_journal


def test_something_is_lost() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "tests.torture", "--seconds", "15", "--seed", "3"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "nothing lost" in run.stdout


@pytest.fixture(scope="module")
def driver() -> Iterator[Driver]:
    with Driver() as driver:
        yield driver


@pytest.fixture
def finished(driver: Driver, tmp_path: Path) -> tuple[Drive, str]:
    """A run that has come to its end, and the digest of its study then."""
    drive = Drive("pbt", tmp_path / "run", tmp_path / "notes")
    outcome = driver(drive)
    assert outcome.digest is not None, outcome
    return drive, outcome.digest


def rewrite(drive: Drive, change: Callable[[list[Record]], object]) -> None:
    """Change the records of a journal, whose lines are intact afterwards."""
    records = list(journal.read(drive.run_dir / JOURNAL))
    change(records)
    write_journal(drive.run_dir, records)


def reports(records: list[Record]) -> list[int]:
    return [number for number, record in enumerate(records) if isinstance(record, Reported)]


def drop(records: list[Record]) -> None:
    del records[reports(records)[4]]


def shift(records: list[Record]) -> None:
    number = reports(records)[4]
    report = records[number]
    assert isinstance(report, Reported)
    metrics = {name: value + 2.0**-40 for name, value in report.metrics.items()}
    records[number] = msgspec.structs.replace(report, metrics=metrics)


def forget_the_end(records: list[Record]) -> None:
    del records[max(number for number, record in enumerate(records) if isinstance(record, Finished)) :]


def test_the_judge_finds_fault_with_a_sound_run(finished: tuple[Drive, str]) -> None:
    drive, digest = finished
    assert list(complaints(drive, [Remains.of(drive)], digest)) == []


@pytest.mark.parametrize("change", [drop, shift, forget_the_end])
def test_the_judge_misses_what_became_of_a_report(
    finished: tuple[Drive, str], change: Callable[[list[Record]], object]
) -> None:
    drive, digest = finished
    remains = Remains.of(drive)
    rewrite(drive, change)
    assert list(complaints(drive, [remains], digest))


def test_the_judge_misses_what_became_of_a_run(finished: tuple[Drive, str]) -> None:
    drive, digest = finished
    before = Remains.of(drive)
    assert list(complaints(drive, [], digest[::-1])), "another state"
    assert list(complaints(drive, [replace(before, missing={"0-0-2"})], digest)), "a checkpoint removed too early"
    (drive.run_dir / CHECKPOINTS / "9-9-9").mkdir()
    assert list(complaints(drive, [], digest)), "a checkpoint left behind"
    (drive.run_dir / CHECKPOINTS / "9-9-9").rmdir()
    with drive.notes.open("a") as notes:
        notes.write("0 0\n")
    assert list(complaints(drive, [before], digest)), "a finished trial that ran again"


def test_two_runs_of_a_scenario_differ(driver: Driver, tmp_path: Path) -> None:
    """Or a comparison would say nothing."""
    for scenario in SCENARIOS:
        tables: list[Any] = []
        for number in range(2):
            drive = Drive(scenario, tmp_path / f"{scenario}-{number}", tmp_path / "notes")
            drive.options = {"checkpoint_every": 1e-4} if number else {}
            assert driver(drive).status == 0
            tables.append(table(drive.run_dir))
        assert tables[0] == tables[1]


def test_a_point_goes_uncounted_or_a_fault_does_not_strike(driver: Driver, tmp_path: Path) -> None:
    drive = Drive("random", tmp_path / "run", tmp_path / "notes")
    drive.fault = Fault(drive.run_dir, tmp_path / "points")
    assert driver(drive).status == 0
    calls = [point.call for point in drive.fault.points]
    assert {"mkdir", "open", "write", "fsync", "rename", "unlink", "rmdir"} <= set(calls)
    # What is written to the journal, it takes: its size grows by it.
    sizes = [point.size for point in drive.fault.points if point.call == "write" and point.path.name == JOURNAL]
    assert sizes[0] == 0 and sizes == sorted(sizes)
    assert drive.fault.fired is None
    for at in (1, len(calls) // 2):
        another = replace(drive, run_dir=tmp_path / f"run-{at}")
        another.fault = Fault(another.run_dir, tmp_path / f"points-{at}", at=at, what="kill-before")
        assert driver(another).killed
        assert another.fault.fired is not None and another.fault.fired.number == at
        assert len(another.fault.points) == at
