"""P5, a full disk stops cleanly: calls fail, once or from there on. The run ends and says why, the journal can be read, and with space
again the run comes to the end that it would have had.

A sample; `python -m tests.torture --every` does it at every call.
"""

import os
import random
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from asynctune import journal
from asynctune.rundir import JOURNAL
from tests.faults import ERRORS, ROOT, Driver
from tests.faults.crash import Crashes

OFTEN: dict[str, Any] = {"checkpoint_every": 1e-4}
POWER: dict[str, Any] = {"checkpoint_every": 1e-4, "durability": "power"}


@pytest.fixture(scope="module")
def driver() -> Iterator[Driver]:
    with Driver() as driver:
        yield driver


def failing(crashes: Crashes, count: int, who: Literal["driver", "worker"] = "driver", seed: int = 0) -> Iterator[str]:
    """Complaints about errors at `count` points, drawn from a seed."""
    draw = random.Random(f"{crashes.scenario} {crashes.slots} {who} {seed}")
    crashes.expected()
    for _ in range(count):
        point = crashes.some_point(draw) if who == "driver" else draw.randint(1, 15)
        what = draw.choice((*ERRORS, "short"))
        yield from crashes.at(point, what, who=who, lasting=what != "short" and draw.random() < 0.5) or []
    assert crashes.survived


@pytest.mark.parametrize("scenario", ["random", "promotion", "pbt"])
def test_a_failing_call_is_the_end_of_a_run(driver: Driver, scenario: str) -> None:
    assert list(failing(Crashes(driver, scenario, options=OFTEN), 12)) == []


def test_a_run_that_cannot_make_its_files_ends_in_another_way(driver: Driver) -> None:
    crashes = Crashes(driver, "random", slots=1, calls=("mkdir", "open"))
    crashes.expected()
    wrong: list[str] = []
    for point in range(1, crashes.points + 1):
        wrong += crashes.at(point, "ENOSPC", lasting=True) or []
    assert wrong == []
    assert crashes.survived >= 5  # directory, lock, journal, checkpoints, log


def test_a_failing_sync_is_tried_again(driver: Driver) -> None:
    crashes = Crashes(driver, "asha", slots=1, options=POWER, calls=("fdatasync", "fsync", "write"))
    assert list(failing(crashes, 4)) == []


def test_a_worker_with_a_full_disk_is_the_end_of_a_run(driver: Driver) -> None:
    assert list(failing(Crashes(driver, "pbt", slots=1, options=OFTEN), 4, "worker")) == []


LIMITED = """
import resource, sys
import asynctune as at
from tests.faults.scenarios import arguments
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
at.run(**arguments("promotion"), run_dir=sys.argv[1], slots="inline", resume="auto")
"""


@pytest.mark.parametrize("size", [1, 300, 2000, 5000])
def test_a_file_size_limit_tears_the_journal_for_good(tmp_path: Path, size: int) -> None:
    def run(limit: int) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", LIMITED, str(tmp_path / "run"), str(limit)],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    failed = run(size)
    assert failed.returncode == 1
    last = failed.stderr.strip().splitlines()[-1]
    assert "JournalError" in last or "RunFailed" in last, failed.stderr
    assert "File too large" in failed.stderr
    resumed = run(resource.RLIM_INFINITY)
    assert resumed.returncode == 0, resumed.stderr
    assert [record.kind for record in journal.read(tmp_path / "run" / JOURNAL)][-1] != "stopping"
