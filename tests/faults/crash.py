"""Crash: something happens to a driver, others take the run up until it is through, and all that must hold is looked at."""

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from asynctune.rundir import CHECKPOINTS, JOURNAL
from tests.faults import ERRORS, KILLS, Drive, Driver, Fault, Outcome
from tests.faults.oracle import Remains, complaints, table

__all__ = ["CLEAN", "Crashes"]

#: The errors with which a run may end that cannot go on, and can be resumed.
CLEAN = ("JournalError", "RunFailed")

Who = Literal["driver", "worker"]


@dataclass
class Crashes:
    """What happens to one run, each time anew.

    Args:
        driver: where drivers come from.
        scenario: what is run.
        slots: with one slot the end must be the same as without a crash; with more, what must hold holds.
        options: further arguments of `at.run`.
        calls: which calls count as points; none: all.
        pace: seconds that a step takes.
    """

    driver: Driver
    scenario: str
    slots: int | Literal["inline"] = "inline"
    options: dict[str, Any] = field(default_factory=dict)
    calls: tuple[str, ...] = ()
    pace: float = 0.0

    def __post_init__(self) -> None:
        self.survived = 0
        self.points = 0  # of an uninterrupted run
        self._writes: list[int] = []  # those at which the journal was written
        self._expected: dict[str, Any] | None = None
        self._number = 0

    def expected(self) -> dict[str, Any]:
        """The table of an uninterrupted run."""
        if self._expected is None:
            drive = self._drive(pace=0.0)
            fault = drive.fault = self._fault(drive)
            outcome = self.driver(drive)
            assert outcome.status == 0, outcome
            wrong = list(complaints(drive, [], outcome.digest))
            assert not wrong, wrong
            self.points, self._expected = len(fault.points), table(drive.run_dir)
            self._writes = [p.number for p in fault.points if p.call == "write" and p.path.name == JOURNAL]
            _forget(drive)
        return self._expected

    def some_point(self, draw: random.Random) -> int:
        """A point of the run; every other time one at which the journal is written, of which there are few."""
        self.expected()
        return draw.choice(self._writes) if draw.random() < 0.5 else draw.randint(1, self.points)

    def at(
        self,
        point: int,
        what: str,
        *,
        who: Who = "driver",
        lasting: bool = False,
        again: random.Random | None = None,
        meanwhile: Callable[[Drive], object] | None = None,
    ) -> list[str] | None:
        """What is wrong after a death, or a failing disk, at this point; None: the run has not so many."""
        drive = self._drive(self.pace)
        fault = drive.fault = self._fault(drive, at=point, what=what, lasting=lasting, who=who)

        def fitting(outcome: Outcome) -> str | None:
            if fault.fired is None:
                return None
            if what in KILLS:
                fits = outcome.killed if who == "driver" else outcome.status == 0
                return None if fits else str(outcome)
            # What nothing depends on, such as a removal, may fail; else the run ends and says why.
            if outcome.status != 0 and outcome.error not in CLEAN:
                return str(outcome)
            return _written_behind(fault) if what in ERRORS and who == "driver" else None

        wrong = self._live(drive, f"{what} at point {point}", fitting, again, meanwhile)
        return None if self._missed else wrong

    def under(
        self,
        told: str,
        during: Callable[[int, Drive], object] | None,
        fitting: Callable[[Outcome], str | None],
        meanwhile: Callable[[Drive], object] | None = None,
        afterwards: Callable[[Drive], object] | None = None,
    ) -> list[str]:
        """What is wrong after something happened to a driver while it ran.

        Args:
            told: what happened, in words.
            during: makes it happen, given the driver's pid.
            fitting: what is wrong with how the driver ended; None: nothing.
            meanwhile: what happens before the next driver.
            afterwards: is shown the run directory once more, when all is well.
        """
        return self._live(self._drive(self.pace), told, fitting, None, meanwhile, during, afterwards)

    def _live(
        self,
        drive: Drive,
        told: str,
        fitting: Callable[[Outcome], str | None],
        again: random.Random | None,
        meanwhile: Callable[[Drive], object] | None,
        during: Callable[[int, Drive], object] | None = None,
        afterwards: Callable[[Drive], object] | None = None,
    ) -> list[str]:
        expected = self.expected()
        outcome = self.driver(drive, during)
        self._missed = drive.fault is not None and drive.fault.fired is None
        if self._missed:
            _forget(drive)
            return []
        told = f"{self.scenario}, slots={self.slots!r}, {self.options}: {told}"
        if drive.fault is not None:
            told += f", {drive.fault.fired}"
        unfit = fitting(outcome)
        if unfit is not None:
            return [f"{told}: {unfit}"]
        remains = []
        for lives in range(10):
            left = Remains.of(drive)
            if meanwhile is not None and lives == 0:
                meanwhile(drive)
                left = replace(Remains.of(drive), missing=left.missing)
            remains.append(left)
            if drive.fault is not None:
                drive.fault.lift()
            following = replace(drive, fault=None, resume="auto", pace=0.0)
            if again is not None and lives < 3:
                following.fault = self._fault(drive, at=again.randint(1, 40), what=again.choice(KILLS))
            outcome = self.driver(following)
            if not outcome.killed:
                break
            assert following.fault is not None
            told += f", {following.fault.what} at {following.fault.fired}"
        if outcome.status != 0:
            return [f"{told}: then {outcome}"]
        wrong = list(complaints(drive, remains, outcome.digest))
        if drive.num_slots == 1 and not wrong:
            wrong += differences(expected, table(drive.run_dir))
        if not wrong:
            self.survived += 1
            if afterwards is not None:
                afterwards(drive)
            _forget(drive)
        return [f"{told}: {each}" for each in wrong]

    def _drive(self, pace: float) -> Drive:
        self._number += 1
        run_dir = self.driver.directory / f"{self.scenario}-{self.slots}-{id(self):x}-{self._number}"
        notes = run_dir.with_suffix(".notes")
        return Drive(self.scenario, run_dir, notes, slots=self.slots, options=self.options, pace=pace)

    def _fault(self, drive: Drive, **what: Any) -> Fault:
        under = drive.run_dir / CHECKPOINTS if what.get("who") == "worker" else drive.run_dir
        return Fault(under, drive.run_dir.with_suffix(".points"), calls=self.calls, **what)


def _forget(drive: Drive) -> None:
    shutil.rmtree(drive.run_dir, ignore_errors=True)  # a driver may have failed to make it
    drive.notes.unlink(missing_ok=True)
    if drive.fault is not None:
        drive.fault.lift()


def _written_behind(fault: Fault) -> str | None:
    """A complaint if a journal that could not be written was written to again, or one that could not be synced was synced."""
    writing = ("write", "fsync", "fdatasync")
    failed = fault.fired
    assert failed is not None
    if failed.path.name == JOURNAL and failed.call in writing:
        for point in fault.points[failed.number :]:
            if point.path == failed.path and point.call in writing:
                return f"and then {point}"
    return None


def differences(expected: Any, got: Any, where: str = "") -> list[str]:
    """Where two tables differ."""
    if isinstance(expected, dict) and isinstance(got, dict) and expected.keys() == got.keys():
        return [each for key in expected for each in differences(expected[key], got[key], f"{where}.{key}")]
    if isinstance(expected, list) and isinstance(got, list) and len(expected) == len(got):
        return [
            e for i, (a, b) in enumerate(zip(expected, got, strict=True)) for e in differences(a, b, f"{where}[{i}]")
        ]
    return [] if expected == got else [f"{where} is {got} and was {expected}"]
