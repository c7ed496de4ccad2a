"""Outcome: what one arm came to with one seed. A JSON file, so that a long experiment can be summarised later."""

import dataclasses
import heapq
import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import asynctune as at

__all__ = ["Outcome", "Run", "Setting", "makespan"]

Config = dict[str, float]


@dataclass(frozen=True)
class Setting:
    """What all outcomes of one experiment share."""

    data: str
    lr_scale: str
    runs: int
    steps: int
    slots: int
    untrained: float  # inception score of a generator before training
    real: float  # and of real images


@dataclass(frozen=True)
class Run:
    """One of an arm's runs."""

    steps: list[int]  # (n,) iterations at which it was scored
    scores: list[float]  # (n,)
    lineage: list[tuple[int, Config]]  # from which iteration on it had which hyperparameters
    trained: int  # iterations that it trained itself, not those of donors
    outside: int  # of the configurations in `lineage`, how many are not of the search space
    busy: float  # seconds in the training function, without waiting and saving
    error: str | None

    @classmethod
    def of(cls, trial: at.TrialResult, space: at.Space) -> Self:
        reports = trial.reports
        reached = {segment.segment: segment.step for segment in trial.lineage}
        reached |= {int(report["segment"]): int(report["step"]) for report in reports}
        return cls(
            steps=[int(report["step"]) for report in reports],
            scores=[report["score"] for report in reports],
            lineage=[(segment.step, segment.config) for segment in trial.lineage],
            trained=sum(reached[segment.segment] - segment.step for segment in trial.lineage),
            outside=sum(not _inside(space, segment.config) for segment in trial.lineage),
            busy=trial.busy,
            error=trial.error,
        )

    @property
    def final(self) -> float:
        """Its last score; 1, the lowest there is, if it failed or its images were not finite."""
        return self.scores[-1] if self.scores and math.isfinite(self.scores[-1]) else 1.0


def _inside(space: at.Space, config: Config) -> bool:
    try:
        space.check(config)
    except at.InvalidArgument:
        return False
    return True


@dataclass(frozen=True)
class Outcome:
    """One arm's runs with one seed, and what they cost."""

    setting: Setting
    arm: str
    seed: int
    wall: float  # seconds from the first run's first line to the last run's end
    runs: list[Run]  # in the order in which they started
    bare: float | None = None  # seconds that the same runs take without a tuner, if measured

    @property
    def flat(self) -> int:
        """How many runs ended within a tenth of the way from an untrained generator to real images."""
        u, r = self.setting.untrained, self.setting.real
        return sum(run.final < u + 0.1 * (r - u) for run in self.runs)

    @property
    def complete(self) -> int:
        """How many runs went the full length."""
        return sum(run.steps[-1:] == [self.setting.steps] for run in self.runs)

    @property
    def trained(self) -> int:
        """Iterations in all."""
        return sum(run.trained for run in self.runs)

    @property
    def ideal(self) -> float:
        """Seconds that the runs' own training takes at best, on as many slots (see `makespan`)."""
        return makespan((run.busy for run in self.runs), self.setting.slots)

    def with_bare(self, seconds: float) -> Self:
        return dataclasses.replace(self, bare=seconds)

    def save(self, file: Path) -> None:
        temporary = file.with_suffix(".tmp")
        temporary.write_text(json.dumps(dataclasses.asdict(self)))
        os.replace(temporary, file)

    @classmethod
    def load(cls, file: Path) -> Self:
        fields: dict[str, Any] = json.loads(file.read_text())
        fields["setting"] = Setting(**fields["setting"])
        fields["runs"] = [Run(**run) for run in fields["runs"]]
        return cls(**fields)


def makespan(durations: Iterable[float], slots: int) -> float:
    """Seconds until all is done if every slot, when free, takes the next in the given order (greedy list scheduling)."""
    free = [0.0] * slots
    for duration in durations:
        heapq.heapreplace(free, free[0] + duration)
    return max(free)
