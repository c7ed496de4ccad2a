"""Faults: drivers that are killed, or whose disk fails, at a call of somebody's choice; and what must hold afterwards.

`faults.c` does it, `zygote.py` is where drivers come from, `scenarios.py` is what they run, `oracle.py` judges.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

__all__ = ["ERRORS", "KILLS", "ROOT", "Drive", "Driver", "Fault", "Outcome", "library"]

ROOT = Path(__file__).parent.parent.parent  # where `tests` and, unless installed elsewhere, `asynctune` are
KILLS = ("kill-before", "kill-half", "kill-after")
ERRORS = ("ENOSPC", "EIO", "EDQUOT", "EFBIG")


def library(directory: Path) -> Path:
    """`faults.c`, compiled into `directory`."""
    path = directory / "faults.so"
    source = Path(__file__).with_name("faults.c")
    subprocess.run(["cc", "-O1", "-Wall", "-shared", "-fPIC", "-o", path, source, "-ldl"], check=True)
    return path


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
    def points(self) -> int:
        """How many points there were."""
        return len(self.log.read_text().splitlines()) if self.log.exists() else 0

    @property
    def fired(self) -> str | None:
        """The point at which it happened, `"17 write /run/journal.jsonl"`; None: it did not."""
        fired = self.log.with_name(f"{self.log.name}.fired")
        return fired.read_text().strip() if fired.exists() else None

    def lift(self) -> None:
        """Let points be counted anew, and the next process meet it again, or, if it is lasting, not."""
        for path in (self.log, self.log.with_name(f"{self.log.name}.fired")):
            path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Drive:
    """A run, or what is left of one, as a driver is to do it. `options`: further arguments of `at.run`, which JSON can hold."""

    scenario: str
    run_dir: Path
    notes: Path
    slots: int | Literal["inline"] = "inline"
    resume: bool | Literal["auto"] = "auto"
    fault: Fault | None = None
    seconds: int = 30  # after which it counts as hung, and is killed
    options: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """How a driver ended: its exit status (negative: the signal that killed it), and the error that came out of `at.run`."""

    status: int
    error: str = ""  # its class
    text: str = ""  # with its traceback

    @property
    def killed(self) -> bool:
        return self.status == -9

    @property
    def hung(self) -> bool:
        return self.status == -14  # SIGALRM


class Driver:
    """Where drivers come from: a process that has everything imported, and forks one for each call.

    Args:
        directory: for what lies outside of runs.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self._temporary = None if directory is not None else tempfile.TemporaryDirectory()
        self.directory = Path(self._temporary.name) if directory is None else directory  # type: ignore[union-attr]
        preload = str(library(self.directory))
        single = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.zygote"],
            cwd=ROOT,
            env=os.environ | single | {"LD_PRELOAD": preload, "PYTHONPATH": str(ROOT)},
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
        if self._temporary is not None:
            self._temporary.cleanup()

    def __call__(self, drive: Drive) -> Outcome:
        """Have it done, and wait for its end."""
        assert self._process.stdin is not None and self._process.stdout is not None
        job = asdict(drive) | {"environment": drive.fault.environment() if drive.fault else {}}
        self._process.stdin.write(json.dumps(job, default=str) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the zygote has died"
        return Outcome(**json.loads(answer))
