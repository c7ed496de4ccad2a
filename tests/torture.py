"""Torture: everything that can happen to a run, made to happen, again and again, until the time is over.

    python -m tests.torture --seconds 600 --seed 0
    python -m tests.torture --every

Each kind of fault has an equal share of the time. A table says how often it was injected, how often the run came through with all that it
had to keep, and how often something was lost; the exit status is 1 if anything was. Not here, for what they need: a GPU's errors, another
clock, a control group's memory limit, a file system that reorders writes.

`--every` takes longer: the driver dies before, during and after every call of a run that changes the disk, and every such call fails with every
error, once and from there on.
"""

import argparse
import contextlib
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import asynctune as at
from asynctune import journal
from asynctune.errors import JournalError
from asynctune.records import Failed, Started
from asynctune.rundir import CHECKPOINTS, JOURNAL
from tests.faults import ERRORS, KILLS, ROOT, Drive, Driver, Outcome, Point, contents, wait_until
from tests.faults.crash import CLEAN, Crashes, Who
from tests.faults.oracle import Remains, replay
from tests.faults.scenarios import SCENARIOS
from tests.proctable import family, marked

__all__ = ["FAULTS", "Torture", "every", "main"]

OFTEN: dict[str, Any] = {"checkpoint_every": 1e-4}

#: Those that need no second process for their searcher.
QUICK = ("random", "asha", "promotion", "pbt", "barrier")


class Torture:
    """Injects faults, one for each call; what they return are complaints, None if nothing was injected.

    Args:
        driver: where drivers come from.
        draw: decides on what is left open.
    """

    def __init__(self, driver: Driver, draw: random.Random) -> None:
        self.driver = driver
        self.draw = draw
        self._crashes: dict[str, Crashes] = {}

    # Drivers that die, and disks that fail.

    def killed_driver(self) -> list[str] | None:
        """The driver is killed at one of its writes, with trials in its own process."""
        crashes = self._of(self.draw.choice(list(SCENARIOS)), "inline", self.draw.choice([{}, OFTEN]))
        return self._at(crashes, self.draw.choice(KILLS))

    def killed_driver_with_workers(self) -> list[str] | None:
        """The same beside workers; who takes the run up may be killed too."""
        options = self.draw.choice([OFTEN, OFTEN | {"durability": "power"}, {}])
        crashes = self._of(self.draw.choice(QUICK), self.draw.choice([1, 1, 4]), options)
        return self._at(crashes, self.draw.choice(KILLS), again=self.draw if self.draw.random() < 0.5 else None)

    def full_disk(self) -> list[str] | None:
        """Calls fail, once or from there on, with ENOSPC, EDQUOT or EFBIG, or are short; then there is space again."""
        what = self.draw.choice(["ENOSPC", "EDQUOT", "EFBIG", "short"])
        return self._failing(what, self.draw.choice([OFTEN, {}]))

    def failing_disk(self) -> list[str] | None:
        """Calls fail with EIO."""
        return self._failing("EIO", self.draw.choice([OFTEN, OFTEN | {"durability": "power"}]))

    def _failing(self, what: str, options: dict[str, Any]) -> list[str] | None:
        who: Who = self.draw.choice(["driver", "driver", "worker"])
        inline = who == "driver" and "durability" not in options and self.draw.random() < 0.8
        crashes = self._of(self.draw.choice(QUICK), "inline" if inline else self.draw.choice([1, 4]), options)
        return self._at(crashes, what, who=who, lasting=what in ERRORS and self.draw.random() < 0.5)

    def lost_cache(self) -> list[str] | None:
        """The power fails: of the journal there is what was synced. What a trial has learned of is there all the same."""
        crashes = self._of(self.draw.choice(QUICK), self.draw.choice([1, 3]), OFTEN | {"durability": "power"})
        lost: list[str] = []

        def cut(drive: Drive) -> None:
            assert drive.fault is not None and drive.fault.fired is not None
            path = drive.run_dir / JOURNAL
            before: list[Point] = drive.fault.points[: drive.fault.fired.number - 1]
            synced = [point.size for point in before if point.call == "fdatasync" and point.path == path]
            if path.exists():
                os.truncate(path, synced[-1] if synced else 0)
            begun = {int(line.split()[0]) for line in contents(drive.notes).splitlines()}
            started = {r.trial for r in _records(drive.run_dir) if isinstance(r, Started)}
            lost.extend(f"trial {trial} had begun, and the disk knows nothing of it" for trial in begun - started)
            lost.extend(f"checkpoint {name} was removed too early" for name in Remains.of(drive).missing)

        wrong = self._at(crashes, self.draw.choice(KILLS), meanwhile=cut)
        return None if wrong is None else wrong + lost

    # Journals and checkpoints that are damaged.

    def torn_journal(self) -> list[str] | None:
        """The end of the journal is missing, half a record, zeros."""
        # What the disk has forgotten may have been the reason to remove a checkpoint: here, all are kept.
        crashes = self._of(self.draw.choice(["random", "asha"]), "inline", {"keep_checkpoints": 10**9})

        def tear(drive: Drive) -> None:
            path = drive.run_dir / JOURNAL
            data = contents(path)
            if not data:
                return
            lines = data.splitlines(keepends=True)
            match self.draw.randrange(4):
                case 0:  # anywhere in the last two records
                    data = data[: self.draw.randint(len(b"".join(lines[: max(1, len(lines) - 2)])), len(data))]
                case 1:  # a record that was being written
                    data += lines[-1][: self.draw.randrange(len(lines[-1]))]
                case 2:  # space that was reserved
                    data += bytes(self.draw.randint(1, 5000))
                case 3:  # at the end of a block
                    data = data[: max(len(lines[0]), len(data) // 512 * 512)]
            path.write_bytes(data)

        return self._at(crashes, self.draw.choice(KILLS), meanwhile=tear)

    def damaged_journal(self) -> list[str] | None:
        """A record in the middle is changed, moved, doubled or gone: refused with its place, and salvaged when asked for."""
        drive = self._broken_off("asha")
        path = drive.run_dir / JOURNAL
        lines = contents(path).splitlines(keepends=True)
        if len(lines) < 5:
            return None
        number = self.draw.randrange(1, len(lines) - 2)
        told = self.draw.choice(["flipped", "doubled", "dropped", "swapped", "not UTF-8"])
        match told:
            case "flipped":
                line = bytearray(lines[number])
                line[self.draw.randrange(len(line) - 1)] ^= 1 << self.draw.randrange(7)
                lines[number] = bytes(line)
            case "doubled":
                lines.insert(number, lines[number])
            case "dropped":
                del lines[number]
            case "swapped":
                lines[number : number + 2] = lines[number + 1], lines[number]
            case "not UTF-8":
                lines[number] = b"\xff\xfe" + lines[number]
        damaged = b"".join(lines)
        path.write_bytes(damaged)
        told = f"record {number} {told}"
        outcome = self.driver(Drive("asha", drive.run_dir, drive.notes, resume=True))
        wrong = []
        if outcome.error != "JournalError" or "byte" not in outcome.text:
            wrong.append(f"{told}: {outcome}")
        if contents(path) != damaged:
            wrong.append(f"{told}: the journal was changed")
        try:
            at.Result.load(drive.run_dir)
            wrong.append(f"{told}: it can be read")
        except JournalError:
            pass
        if not wrong:
            journal.repair(path)
            outcome = self.driver(Drive("asha", drive.run_dir, drive.notes, resume=True))
            if outcome.status != 0:
                wrong.append(f"{told}, and repaired: {outcome}")
        return wrong

    def damaged_checkpoint(self) -> list[str] | None:
        """What a trial is to start again from is gone, or not what it was."""

        def kill(pid: int, drive: Drive) -> None:
            wait_until(lambda: b'"saved"' in contents(drive.run_dir / JOURNAL))
            os.kill(pid, signal.SIGKILL)

        def damage(drive: Drive) -> None:
            study = replay(drive).study
            for trial in range(len(study)):
                name = study.checkpoint(trial)
                if name is not None and study.state(trial) is not at.TrialState.COMPLETED:
                    directory = drive.run_dir / CHECKPOINTS / name
                    files = [path for path in directory.rglob("*") if path.is_file()]
                    path = self.draw.choice(sorted(files))
                    match self.draw.randrange(3):
                        case 0:
                            shutil.rmtree(directory)
                        case 1:
                            path.unlink()
                        case 2:
                            data = bytearray(path.read_bytes())
                            data[self.draw.randrange(len(data))] ^= 1 << self.draw.randrange(8)
                            path.write_bytes(data)

        crashes = self._of(self.draw.choice(["random", "asha"]), 1, OFTEN, pace=0.01)
        return crashes.under("a checkpoint is damaged", kill, _was(-9), damage)

    # Workers and signals.

    def killed_worker(self) -> list[str] | None:
        """A worker gets a signal that ends it; its trial is tried again."""
        number = self.draw.choice([signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGTERM, signal.SIGBUS])
        crashes = self._of(self.draw.choice(QUICK), 1, OFTEN | {"max_failures": 3}, pace=0.01)
        return crashes.under(f"a worker gets {number.name}", self._signals(number, worker=True), _was(0))

    def worker_killed_saving(self) -> list[str] | None:
        """A worker dies at a write of a checkpoint."""
        crashes = self._of(self.draw.choice(["asha", "promotion", "pbt"]), 1, OFTEN | {"max_failures": 3})
        return crashes.at(self.draw.randint(1, 40), self.draw.choice(KILLS), who="worker")

    def stopped_worker(self) -> list[str] | None:
        """A worker hangs."""
        crashes = self._of(self.draw.choice(QUICK), 1, OFTEN | {"max_failures": 3, "report_timeout": 1.0}, pace=0.01)
        return crashes.under("a worker is stopped", self._signals(signal.SIGSTOP, worker=True), _was(0))

    def killed_supervisor(self) -> list[str] | None:
        """The supervisor is killed: nobody would end what is left, so the run ends."""
        crashes = self._of(self.draw.choice(QUICK), 2, OFTEN, pace=0.01)
        during = self._signals(signal.SIGKILL, worker=False)
        return crashes.under("the supervisor is killed", during, _fails)

    def suspended_driver(self) -> list[str] | None:
        """The driver stands still for longer than any timeout."""

        def suspend(pid: int, drive: Drive) -> None:
            self._wait_for_a_start(drive)
            os.kill(pid, signal.SIGSTOP)
            time.sleep(2.5)
            os.kill(pid, signal.SIGCONT)

        killed: list[str] = []

        def look(drive: Drive) -> None:
            failures = [r for r in _records(drive.run_dir) if isinstance(r, Failed) and "poison" not in r.error]
            killed.extend(f"the driver was suspended: {failure}" for failure in failures)

        crashes = self._of(self.draw.choice(QUICK), 2, {"report_timeout": 1.0, "max_failures": 1}, pace=0.02)
        return crashes.under("the driver is suspended", suspend, _was(0), afterwards=look) + killed

    def signalled_driver(self) -> list[str] | None:
        """Ctrl-C once or twice, SIGTERM, SIGHUP, SIGQUIT."""
        number, times = self.draw.choice(
            [(signal.SIGINT, 1), (signal.SIGINT, 2), (signal.SIGTERM, 1), (signal.SIGHUP, 1), (signal.SIGQUIT, 1)]
        )

        def press(pid: int, drive: Drive) -> None:
            self._wait_for_a_start(drive)
            for _ in range(times):
                time.sleep(self.draw.random() * 0.05)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)

        def fitting(outcome: Outcome) -> str | None:
            fits = outcome.status in (0, -number) or outcome.error == "KeyboardInterrupt"
            return None if fits else str(outcome)

        crashes = self._of(self.draw.choice(QUICK), self.draw.choice([1, 3]), OFTEN, pace=0.02)
        return crashes.under(f"{number.name} {times} times", press, fitting)

    def second_driver(self) -> list[str] | None:
        """Another driver wants the same run: it is refused, with the pid of the first."""
        wrong: list[str] = []

        def compete(pid: int, drive: Drive) -> None:
            self._wait_for_a_start(drive)
            said = self._program(PLAIN, drive.run_dir)
            if said.returncode != 1 or str(pid) not in said.stderr.splitlines()[-1]:
                wrong.append(f"a second driver while {pid} runs: {said.stderr[-500:]}")

        crashes = self._of("random", 1, {}, pace=0.2)
        return crashes.under("a second driver", compete, _was(0)) + wrong

    # Trainables that do what they like.

    def grandchildren(self) -> list[str] | None:
        """User code starts processes that leave their session, and dies."""
        return self._programmed(GRANDCHILDREN)

    def memory_limit(self) -> list[str] | None:
        """There is no memory for one trial."""
        return self._programmed(MEMORY)

    def bad_metrics(self) -> list[str] | None:
        """Values that are no numbers, or hardly any."""
        return self._programmed(METRICS)

    def floods(self) -> list[str] | None:
        """More reports and more print than anybody wants."""
        return self._programmed(FLOODS)

    def few_descriptors(self) -> list[str] | None:
        """The driver may open a few files only."""
        limit = self.draw.randint(6, 40)  # below, asyncio itself cannot begin

        def starve() -> None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))

        run_dir = self._directory() / "run"
        said = self._program(PLAIN, run_dir, preexec_fn=starve)
        if said.returncode == 1 and _last_error(said) in CLEAN:
            said = self._program(PLAIN, run_dir)
        return [] if said.returncode == 0 else [f"{limit} descriptors: {said.stderr[-500:]}"]

    def no_directory(self) -> list[str] | None:
        """The run's directory cannot be made."""
        said = self._program(PLAIN, Path("/proc/nowhere/run"))
        fits = said.returncode == 1 and _last_error(said) == "JournalError"
        return [] if fits else [f"no directory: {said.stderr[-500:]}"]

    def removed_directory(self) -> list[str] | None:
        """The run's directory is removed while it runs."""

        def remove(pid: int, drive: Drive) -> None:
            self._wait_for_a_start(drive)
            shutil.rmtree(drive.run_dir, ignore_errors=True)

        drive = self._of(self.draw.choice(QUICK), 2, OFTEN, pace=0.05)._drive(0.05)
        outcome = self.driver(drive, remove)
        return [] if outcome.error in CLEAN else [f"the directory is removed: {outcome}"]

    # What these need.

    def _of(self, scenario: str, slots: Any, options: dict[str, Any], pace: float = 0.0) -> Crashes:
        key = repr((scenario, slots, sorted(options.items()), pace))
        if key not in self._crashes:
            self._crashes[key] = Crashes(self.driver, scenario, slots, options, pace=pace)
        return self._crashes[key]

    def _at(self, crashes: Crashes, what: str, **more: Any) -> list[str] | None:
        worker = more.get("who") == "worker"  # which has points of its own
        return crashes.at(self.draw.randint(1, 40) if worker else crashes.some_point(self.draw), what, **more)

    def _broken_off(self, scenario: str) -> Drive:
        """A run whose driver was killed in its second half."""
        crashes = self._of(scenario, "inline", OFTEN)
        crashes.expected()
        drive = crashes._drive(0.0)
        at = self.draw.randint(crashes.points // 2, crashes.points - 5)
        drive.fault = crashes._fault(drive, at=at, what="kill-before")
        self.driver(drive)
        drive.fault.lift()
        return drive

    def _wait_for_a_start(self, drive: Drive) -> None:
        """Until user code has begun, and a little more."""
        wait_until(lambda: contents(drive.notes))
        time.sleep(self.draw.random() * 0.1)

    def _signals(self, number: signal.Signals, *, worker: bool) -> Callable[[int, Drive], None]:
        def send(pid: int, drive: Drive) -> None:
            self._wait_for_a_start(drive)
            children = family(pid) - {pid}
            children = {child for child in children if (b"supervisor.py" in _command(child)) != worker}
            if children:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.draw.choice(sorted(children)), number)

        return send

    def _directory(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self.driver.directory))

    def _program(self, code: str, run_dir: Path, **more: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", code, str(run_dir)],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            **more,
        )

    def _programmed(self, code: str) -> list[str]:
        """A program that checks itself, and leaves no process."""
        directory = self._directory()
        said = self._program(code, directory / "run")
        wrong = [] if said.returncode == 0 else [f"{said.stderr[-1500:]}"]
        try:
            wait_until(lambda: not marked(f"RUN={directory / 'run'}"), 5)
        except TimeoutError:
            wrong.append("processes are left")
        shutil.rmtree(directory)
        return wrong


PRELUDE = """
import math, os, resource, subprocess, sys, time
import asynctune as at
os.environ["RUN"] = sys.argv[1]
def run(train, **more):
    return at.run(train, {"x": at.uniform(0.0, 1.0)}, run_dir=sys.argv[1],
                  **{"metric": "score", "mode": "max", "num_trials": 6, "slots": 2, "progress": False} | more)
def states(result):
    return [trial.state.name for trial in result.trials]
"""

PLAIN = (
    PRELUDE
    + """
run(lambda trial: trial.config["x"], resume="auto")
"""
)

GRANDCHILDREN = (
    PRELUDE
    + """
def train(trial):
    if trial.id == 2:
        subprocess.Popen(["sleep", "60"])
        subprocess.Popen(["sleep", "60"], start_new_session=True)
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                time.sleep(60)
            os._exit(0)
        os.kill(os.getpid(), 9)
    return trial.config["x"]
assert states(run(train)) == ["COMPLETED"] * 2 + ["FAILED"] + ["COMPLETED"] * 3
"""
)

MEMORY = (
    PRELUDE
    + """
def train(trial):
    if trial.id == 2:
        resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
        bytearray(2**31)
    return trial.config["x"]
result = run(train)
assert states(result) == ["COMPLETED"] * 2 + ["FAILED"] + ["COMPLETED"] * 3
assert "MemoryError" in result.trials[2].error, result.trials[2].error
"""
)

METRICS = (
    PRELUDE
    + """
import decimal, fractions
import numpy as np
good = [0.5, math.nan, math.inf, -math.inf, True, np.float32(1.5), np.int64(3), np.array(2.5), decimal.Decimal("0.1"), 10**300]
bad = [None, "1.5", 10**400, 1j, [1.0], {"a": 1.0}, np.array([1.0])]
def train(trial):
    trial.report(score=(good + bad)[trial.id])
result = run(train, num_trials=len(good) + len(bad))
assert states(result) == ["COMPLETED"] * len(good) + ["FAILED"] * len(bad), states(result)
assert all("score" in trial.error for trial in result.trials[len(good):])
assert result.best.value == 1e300, result.best
again = at.Result.load(sys.argv[1])
assert [str(trial.value) for trial in again.trials] == [str(trial.value) for trial in result.trials]
"""
)

FLOODS = (
    PRELUDE
    + """
def train(trial):
    if trial.id == 0:
        for _ in range(60_000):
            trial.report(score=1.0)
    elif trial.id == 1:
        for _ in range(60):
            sys.stdout.write("x" * 10**6)
    elif trial.id == 2:
        for _ in range(60):
            os.write(1, os.urandom(10**6))
    elif trial.id == 3:
        os.close(1)
        print("nobody hears this")
    else:
        for i in range(20_000):
            print(i, end="\\\\r")
    if trial.id != 0:
        trial.report(score=0.0)
result = run(train)
assert states(result)[:3] + states(result)[4:] == ["COMPLETED"] * 5, states(result)
assert result.trials[0].step == 60_000
used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert used < 300_000, f"the driver took {used} kB"
"""
)


def _was(status: int) -> Callable[[Outcome], str | None]:
    return lambda outcome: None if outcome.status == status else str(outcome)


def _fails(outcome: Outcome) -> str | None:
    """It may have been through before."""
    return None if outcome.status == 0 or outcome.error in CLEAN else str(outcome)


def _records(run_dir: Path) -> list[Any]:
    return list(journal.read(run_dir / JOURNAL)) if contents(run_dir / JOURNAL) else []


def _last_error(said: subprocess.CompletedProcess[str]) -> str:
    """The error that ended a program, without its module."""
    lines = [line for line in said.stderr.splitlines() if line[:1].isalpha() and ":" in line.split(" ")[0]]
    return lines[-1].partition(":")[0].rpartition(".")[2] if lines else ""


def _command(pid: int) -> bytes:
    return contents(Path(f"/proc/{pid}/cmdline"))


#: What people read -> what is done.
FAULTS: dict[str, Callable[[Torture], list[str] | None]] = {
    "driver killed at a write": Torture.killed_driver,
    "driver killed beside workers": Torture.killed_driver_with_workers,
    "disk full": Torture.full_disk,
    "disk fails": Torture.failing_disk,
    "power fails (durability)": Torture.lost_cache,
    "journal torn": Torture.torn_journal,
    "journal damaged": Torture.damaged_journal,
    "checkpoint damaged": Torture.damaged_checkpoint,
    "worker killed": Torture.killed_worker,
    "worker killed while it saves": Torture.worker_killed_saving,
    "worker stopped": Torture.stopped_worker,
    "supervisor killed": Torture.killed_supervisor,
    "driver suspended": Torture.suspended_driver,
    "driver signalled": Torture.signalled_driver,
    "second driver": Torture.second_driver,
    "grandchildren": Torture.grandchildren,
    "no memory": Torture.memory_limit,
    "bad metrics": Torture.bad_metrics,
    "floods": Torture.floods,
    "few descriptors": Torture.few_descriptors,
    "no directory": Torture.no_directory,
    "directory removed": Torture.removed_directory,
}


def main(seconds: float, seed: int, words: Sequence[str] = ()) -> int:
    """Inject faults for about so long, those only whose names hold one of the words. Return how often something was lost."""
    names = [name for name in FAULTS if not words or any(word in name for word in words)]
    random.Random(seed).shuffle(names)  # where time is short, other seeds come to other faults
    began = time.monotonic()
    total = 0
    print(f"{'fault':<32}{'injected':>9}{'survived':>9}{'lost':>6}")
    with Driver() as driver:
        for number, name in enumerate(names):
            torture = Torture(driver, random.Random(f"{seed} {name}"))
            left = began + seconds - time.monotonic()
            until = time.monotonic() + left / (len(names) - number)
            injected = lost = 0
            while time.monotonic() < until:
                complaints = FAULTS[name](torture)
                if complaints is not None:
                    injected += 1
                    lost += bool(complaints)
                    for complaint in complaints[:5]:
                        print(f"LOST {name}: {complaint}")
            total += lost
            print(f"{name:<32}{injected:>9}{injected - lost:>9}{lost:>6}", flush=True)
    print(f"{time.monotonic() - began:.0f} s, seed {seed}: {total or 'nothing'} lost")
    return total


def every(words: Sequence[str] = ()) -> int:
    """Inject a death and an error at every point of every scenario. Return how often something was lost."""
    print(f"{'scenario':<10}{'slots':<8}{'fault':<12}{'points':>8}{'injected':>9}{'survived':>9}{'lost':>6}")
    errors = [(what, lasting) for what in ERRORS for lasting in (False, True)] + [("short", False)]
    total = 0
    with Driver() as driver:
        for slots in ("inline", 1, 4):
            deaths = [(what, False) for what in KILLS]
            for scenario in SCENARIOS:
                for fault, kinds in (("death", deaths), ("error", errors)):
                    if words and not {scenario, str(slots), fault}.issuperset(words):
                        continue
                    # Beside workers, checkpoints are made as trials go on; and a run takes seconds, so each point has its turn with one kind.
                    crashes = Crashes(driver, scenario, slots=slots, options={} if slots == "inline" else OFTEN)
                    crashes.expected()
                    injected = lost = 0
                    for point in range(1, crashes.points + 1):
                        for what, lasting in kinds if slots == "inline" else [kinds[point % len(kinds)]]:
                            complaints = crashes.at(point, what, lasting=lasting)
                            if complaints is not None:
                                injected += 1
                                lost += bool(complaints)
                                for complaint in complaints[:5]:
                                    print(f"LOST {complaint}")
                    total += lost
                    print(
                        f"{scenario:<10}{slots!s:<8}{fault:<12}{crashes.points:>8}{injected:>9}{injected - lost:>9}{lost:>6}",
                        flush=True,
                    )
    return total


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Everything that can happen to a run, made to happen.")
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=(), help="words in the names of faults")
    parser.add_argument(
        "--every", action="store_true", help="every point of every run; --only names scenario, slots and fault"
    )
    given = parser.parse_args()
    sys.exit(1 if (every(given.only) if given.every else main(given.seconds, given.seed, given.only)) else 0)
