"""Load: the studies that scale.py and memory.py fill with trials, how they are driven, and the memory that takes (Linux only)."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import asynctune as at
from asynctune.records import Action
from asynctune.searchers.base import Suggestion
from asynctune.searchers.hyperopt import BoundHyperOpt
from asynctune.searchers.random import draw
from asynctune.space import Rows, Space

__all__ = ["BUDGET", "CASES", "MISSED", "SPACE", "apart", "drive", "fill", "peak", "resident"]

SPACE = {
    "lr": at.loguniform(1e-5, 1e-1),
    "momentum": at.uniform(0.0, 0.99),
    "weight_decay": at.loguniform(1e-6, 1e-2),
    "dropout": at.quniform(0.0, 0.5, 0.05),
    "batch_size": at.ordinal([32, 64, 128, 256]),
    "layers": at.randint(1, 9),
    "width": at.lograndint(16, 1025),
    "activation": at.choice(["relu", "gelu", "silu"]),
}

BUDGET = 256 + 8 * len(SPACE)  # bytes per trial

#: Case -> what it would take to keep within the budget.
MISSED = {
    "PBT": "two generations are alive at a time: 175 B in the core, two names of checkpoints and their counts, 180 B; it would take "
    "(trial, segment, step) as integers in the core, and names made when they are asked for"
}


class Unasked(at.HyperOpt):
    """HyperOpt that keeps its books and makes every hundredth question, but draws the answers: the library takes 100 ms for one."""

    def bind(self, *, space: Space, seed: int, num_trials: int | None, rows: Rows) -> "_BoundUnasked":
        return _BoundUnasked(self, space, seed, 20, rows)


class _BoundUnasked(BoundHyperOpt):
    def prepare(self, trial: int) -> Suggestion:
        if trial % 100 == 0:
            super().prepare(trial)
        return partial(draw, self._space.table, self._seed, trial)


#: Name -> searcher and scheduler.
CASES: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "Random + FIFO": (at.Random, at.FIFO),
    "Random + ASHA stopping": (at.Random, lambda: at.ASHA(max_resource=81, reduction_factor=3)),
    "Random + ASHA promotion": (at.Random, lambda: at.ASHA(max_resource=81, reduction_factor=3, type="promotion")),
    "HyperOpt + ASHA stopping": (Unasked, lambda: at.ASHA(max_resource=81, reduction_factor=3)),
    "PBT": (at.Random, lambda: at.PBT(perturbation_interval=1, max_resource=4)),
}


def fill(case: str, num_trials: int) -> at.Study:
    """The empty study of a case."""
    searcher, scheduler = CASES[case]
    return at.Study(
        SPACE, metric="loss", mode="min", num_trials=num_trials, searcher=searcher(), scheduler=scheduler(), seed=0
    )


def drive(
    ask: Callable[[], at.Assignment | None], tell: Callable[..., at.Decision], finish: Callable[[int], None]
) -> None:
    """One trial after the other, each up to its next decisions, until `ask` has no more; losses fall as 1 / step."""
    while (job := ask()) is not None:
        floor = abs(math.log10(job.config["lr"]) + 3) + job.config["dropout"]
        step = job.until or 1
        decision = tell(job.trial_id, step=step, loss=floor + 1 / step)
        while decision.action is Action.CONTINUE and decision.until is not None:
            step = decision.until
            decision = tell(job.trial_id, step=step, loss=floor + 1 / step)
        finish(job.trial_id)


def apart(script: str, *words: object) -> Any:
    """What a script prints as JSON, run in a process of its own."""
    run = subprocess.run([sys.executable, script, *map(str, words)], check=True, stdout=subprocess.PIPE)
    return json.loads(run.stdout)


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096


def peak() -> int:
    """The most bytes that this process has had in memory."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024
