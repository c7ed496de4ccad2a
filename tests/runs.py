"""Small runs, with real worker processes or written down as records, as several test files need them."""

from collections.abc import Iterable
from itertools import count
from pathlib import Path
from typing import Any

import asynctune as at
from asynctune.journal import encode
from asynctune.records import Record
from asynctune.rundir import JOURNAL

__all__ = ["climb", "local", "options", "write_journal"]


def options(tmp_path: Path, **more: Any) -> dict[str, Any]:
    return {
        "metric": "score",
        "mode": "max",
        "num_trials": 6,
        "slots": 2,
        "run_dir": tmp_path / "run",
        "progress": False,
    } | more


# Trainables go to the workers by value: test modules are not importable there.
def local(function: Any) -> Any:
    function.__module__ = "__main__"
    return function


@local
def climb(trial: at.Trial) -> None:
    """Adds x at every step; its whole state is the sum, which must survive pauses and exploits."""
    total = 0.0
    if trial.restored is not None:
        total = float((trial.restored / "total").read_text())
    trial.on_save(lambda directory: (directory / "total").write_text(repr(total)))
    for _ in trial.steps(9):
        total += trial.config["x"]
        trial.report(score=total)


def write_journal(run_dir: Path, records: Iterable[Record]) -> None:
    """A run as it would have been written down, `records` beginning with the `Header`."""
    (run_dir / JOURNAL).write_bytes(b"".join(map(encode, records, count())))
