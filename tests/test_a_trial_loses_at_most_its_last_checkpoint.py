"""P2, a trial loses at most what it did since its last checkpoint: one that is being made is never seen, one that is damaged costs
its trial the progress, and the run nothing."""

import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from asynctune import journal
from asynctune.records import Lost, Started, TrialState
from asynctune.rundir import CHECKPOINTS, JOURNAL
from tests.faults import KILLS, Drive, Driver, Outcome, contents, wait_until
from tests.faults.crash import Crashes
from tests.faults.oracle import replay

OFTEN: dict[str, Any] = {"checkpoint_every": 1e-4}


@pytest.fixture(scope="module")
def driver() -> Iterator[Driver]:
    with Driver() as driver:
        yield driver


@pytest.mark.parametrize("scenario", ["asha", "pbt"])
def test_a_worker_killed_while_it_saves_leaves_half_a_checkpoint(driver: Driver, scenario: str) -> None:
    crashes = Crashes(driver, scenario, slots=1, options=OFTEN | {"max_failures": 2}, pace=0.01)
    draw = random.Random(scenario)
    wrong: list[str] = []
    for point in draw.sample(range(1, 60), 4):
        wrong += crashes.at(point, draw.choice(KILLS), who="worker") or []
    assert wrong == []
    assert crashes.survived


def files(checkpoint: Path) -> list[Path]:
    return sorted(path for path in checkpoint.rglob("*") if path.is_file())


def flip(checkpoint: Path) -> None:
    largest = max(files(checkpoint), key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)


def truncate(checkpoint: Path) -> None:
    for path in files(checkpoint):
        path.write_bytes(path.read_bytes()[:-1])


def empty(checkpoint: Path) -> None:
    for path in files(checkpoint):
        path.unlink()


def lose_one(checkpoint: Path) -> None:
    files(checkpoint)[0].unlink()


def garble(checkpoint: Path) -> None:
    for path in files(checkpoint):
        path.write_bytes(b"\x93" * 100)


def kill_once_saved(pid: int, drive: Drive) -> None:
    """Kill the driver when a trial that goes on has a checkpoint to start again from."""
    wait_until(lambda: b'"saved"' in contents(drive.run_dir / JOURNAL))
    os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("damage", [shutil.rmtree, flip, truncate, empty, lose_one, garble])
def test_a_damaged_checkpoint_is_restored_or_ends_the_run(driver: Driver, damage: Callable[[Path], object]) -> None:
    losses: list[Lost] = []

    def spoil(drive: Drive) -> None:
        """Of a trial that is to go on, the checkpoint."""
        study = replay(drive).study
        [running] = [trial for trial in range(len(study)) if study.state(trial) is TrialState.RUNNING]
        damage(drive.run_dir / CHECKPOINTS / str(study.checkpoint(running)))

    def fitting(outcome: Outcome) -> str | None:
        return None if outcome.killed else str(outcome)

    def look(drive: Drive) -> None:
        records = list(journal.read(drive.run_dir / JOURNAL))
        for number, record in enumerate(records):
            if isinstance(record, Lost):
                losses.append(record)
                again = next(r for r in records[number:] if isinstance(r, Started) and r.trial == record.trial)
                assert (again.step, again.checkpoint) == (0, None)

    crashes = Crashes(driver, "random", slots=1, options=OFTEN, pace=0.02)
    assert crashes.under(damage.__name__, kill_once_saved, fitting, spoil, look) == []
    assert len(losses) == 1 and losses[0].error
