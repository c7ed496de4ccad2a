"""Small runs with real worker processes, as several test files need them."""

from pathlib import Path
from typing import Any

import asynctune as at

__all__ = ["climb", "local", "options"]


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
