"""Faults: drivers that are killed, or whose disk fails, at a call of somebody's choice; and what must hold afterwards.

`faults.c` does it, `zygote.py` is where drivers come from, `scenarios.py` is what they run, `oracle.py` judges, `crash.py` puts it together.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self

__all__ = [
    "ERRORS",
    "KILLS",
    "ROOT",
    "Drive",
    "Driver",
    "Fault",
    "Outcome",
    "Point",
    "contents",
    "library",
    "wait_until",
]

ROOT = Path(__file__).parent.parent.parent  # where `tests` and, unless installed elsewhere, `asynctune` are
KILLS = ("kill-before", "kill-half", "kill-after")
ERRORS = ("ENOSPC", "EIO", "EDQUOT", "EFBIG")


def library(directory: Path) -> Path:
    """`faults.c`, compiled into `directory`."""
    path = directory / "faults.so"
    source = Path(__file__).with_name("faults.c")
    subprocess.run(["cc", "-O1", "-Wall", "-shared", "-fPIC", "-o", path, source, "-ldl"], check=True)
    return path


def contents(path: Path) -> bytes:
    """What is in a file; nothing where there is none."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def wait_until(condition: Callable[[], object], seconds: float = 30.0) -> None:
    """Raise `TimeoutError` if the condition does not come true."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.005)


class Point(NamedTuple):
    """A call that changes what is on disk."""

    number: int
    call: str
    size: int  # of the file, in bytes, before it
    path: Path

    def __str__(self) -> str:
        return f"point {self.number}, {self.call} {'/'.join(self.path.parts[-2:])}"

    @classmethod
    def of(cls, line: str) -> "Point":
        number, call, size, path = line.split(" ", 3)
        return cls(int(number), call, int(size), Path(path))


@dataclass(frozen=True)
class Fault:
    """What is to happen at a point; see `faults.c`.

    `who`: the driver, or whichever worker comes to its `at`-th point first.
    """

    under: Path
    log: Path
    at: int = 0  # 0: nothing, points are only counted
    what: str = ""
    calls: tuple[str, ...] = ()
    lasting: bool = False
    who: Literal["driver", "worker"] = "driver"

    def environment(self) -> dict[str, str]:
        settings = {"UNDER": str(self.under), "LOG": str(self.log), "CALLS": ",".join(self.calls)}
        if self.at:
            settings |= {"AT": str(self.at), "DO": self.what}
        if self.lasting:
            settings["LASTING"] = "1"
        return {f"FAULTS_{name}": value for name, value in settings.items()}

    @property
    def points(self) -> list[Point]:
        """Those that there were, in order."""
        return [Point.of(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []

    @property
    def fired(self) -> Point | None:
        """The point at which it happened; None: it did not."""
        return Point.of(self._mark.read_text().strip()) if self._mark.exists() else None

    def lift(self) -> None:
        """Let it be over, and points be counted anew."""
        for path in (self.log, self._mark):
            path.unlink(missing_ok=True)

    @property
    def _mark(self) -> Path:
        return self.log.with_name(f"{self.log.name}.fired")


@dataclass
class Drive:
    """A run, or what is left of one, as a driver is to do it."""

    scenario: str
    run_dir: Path
    notes: Path  # a file that gets a line when user code begins: the trial, and after which step
    slots: int | Literal["inline"] = "inline"
    resume: bool | Literal["auto"] = False
    fault: Fault | None = None
    options: dict[str, Any] = field(default_factory=dict)  # further arguments of `at.run`, which JSON can hold
    pace: float = 0.0  # seconds that a step takes
    seconds: int = 30  # after which it counts as hung, and is ended

    @property
    def num_slots(self) -> int:
        return 1 if self.slots == "inline" else self.slots


@dataclass(frozen=True)
class Outcome:
    """How a driver ended: its exit status (negative: the signal that killed it), and what came out of `at.run`."""

    status: int
    error: str = ""  # its class
    text: str = ""  # with its traceback
    digest: str | None = None  # of the study, at the run's end

    def __str__(self) -> str:
        if self.status == -14:  # SIGALRM
            return "the driver hung"
        lines = [f"the driver ended with status {self.status}", *self.text.splitlines()[-8:]]
        return "\n  ".join(lines)

    @property
    def killed(self) -> bool:
        return self.status == -9


class Driver:
    """Where drivers come from: a process that has everything imported, and forks one for each call.

    `directory` is a temporary one, in which all of them work.
    """

    def __init__(self) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="asynctune-faults-")
        self.directory = Path(self._temporary.name)
        # A thread of BLAS would be lost in a fork.
        single = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        preload = {"LD_PRELOAD": str(library(self.directory)), "PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.zygote"],
            cwd=ROOT,
            env=os.environ | single | preload,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.communicate()
        self._temporary.cleanup()

    def __call__(self, drive: Drive, during: Callable[[int, Drive], object] | None = None) -> Outcome:
        """Have it done, and wait for its end. `during` is called with the driver's pid while it runs."""
        assert self._process.stdin is not None
        job = asdict(drive) | {"environment": drive.fault.environment() if drive.fault else {}}
        self._process.stdin.write(json.dumps(job, default=str) + "\n")
        self._process.stdin.flush()
        pid = self._answer()
        if during is not None:
            during(pid, drive)
        return Outcome(**self._answer())

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the zygote has died"
        return json.loads(line)
