"""What a simulation costs: seconds of this machine for a million trials of virtual time.

    python bench/simulate.py [--repeat 3] [--quick] [--json FILE]

at.simulate in memory, on a thousand slots: ASHA of both types, 81 steps at most; the curves are there already and only looked up. All
that happens is kept, some nine records for a trial. Beside it, the same study driven by ask and tell, one trial after the other, with
no clock and no records. Then random search, and population-based training step by step, where a trial has 81 reports. Memory: what the process gains from the first trial
to its peak. Every figure is of a process of its own, and all repeats have to lead to the same records.
"""

import argparse
import json
import statistics
import time
from itertools import accumulate
from typing import Any, ClassVar

import asynctune as at
from asynctune.records import Action, Reported
from load import apart, peak, resident
from measure import Row, arguments, show

SLOTS = 1000
STEPS = 81
SECONDS = 60  # for a million trials of ASHA
MEGABYTES = 2000

#: What it would take, where a budget is missed.
PYTHON = "records are made, applied, kept and counted one by one in Python; for less, that would have to be C"

Figures = dict[str, float]


class Curves:
    """Learning curves that are there already."""

    space: ClassVar[dict[str, Any]] = {
        "lr": at.loguniform(1e-5, 1e-1),
        "batch_size": at.ordinal([32, 64, 128]),
        "momentum": at.uniform(0.0, 0.99),
        "height": at.uniform(0.0, 1.0),
    }
    metric = "score"
    mode = "max"
    max_resource = STEPS

    def __init__(self) -> None:
        rises = [1 - 0.9**step for step in range(1, STEPS + 1)]
        self._values = [[height * rise for rise in rises] for height in range(1000)]
        self._seconds = {size: [*accumulate([32 / size] * STEPS)] for size in (32, 64, 128)}

    def evaluate(self, config: dict[str, Any], seed: int) -> tuple[list[float], list[float]]:
        return self._values[int(config["height"] * 999)], self._seconds[config["batch_size"]]


class Walk:
    """A sum that grows by a hyperparameter at every step."""

    space: ClassVar[dict[str, Any]] = {"x": at.uniform(0.0, 1.0)}
    metric = "score"
    mode = "max"
    max_resource = STEPS

    def step(self, state: Any, config: dict[str, Any], seed: int) -> tuple[Any, float, float]:
        total = (state or 0.0) + config["x"]
        return total, total, 1.0


STOPPING = at.ASHA(max_resource=STEPS)

#: Case -> benchmark, scheduler.
CASES: dict[str, tuple[type, Any]] = {
    "ASHA, stopping": (Curves, STOPPING),
    "ASHA, promotion": (Curves, at.ASHA(max_resource=STEPS, type="promotion")),
    "random search": (Curves, at.FIFO()),
    "PBT": (Walk, at.PBT(perturbation_interval=9, max_resource=STEPS)),
}


def simulated(case: str, num_trials: int) -> Figures:
    """Seconds, bytes, reports, and a number that stands for all records."""
    benchmark, scheduler = CASES[case][0](), CASES[case][1]
    at.simulate(benchmark, scheduler=scheduler, num_trials=100, num_slots=10)  # imports, and warms up
    before = resident()
    began = time.perf_counter()
    result = at.simulate(benchmark, scheduler=scheduler, num_trials=num_trials, num_slots=SLOTS)
    seconds = time.perf_counter() - began
    gained = peak() - before
    reports = digest = 0
    for record in result.events():
        reports += isinstance(record, Reported)
        digest = hash(
            (digest, record.time, getattr(record, "trial", -1), getattr(record, "step", -1))
        )  # of numbers only
    return {"seconds": seconds, "bytes": gained, "reports": reports, "digest": digest}


def driven(num_trials: int) -> Figures:
    """Seconds for the same study without a simulation around it."""
    benchmark = Curves()
    study = at.Study(benchmark.space, metric="score", mode="max", num_trials=num_trials, scheduler=STOPPING)
    began = time.perf_counter()
    while (job := study.ask()) is not None:
        values, _ = benchmark.evaluate(job.config, 0)
        for step, value in enumerate(values, start=1):
            if study.tell(job.trial_id, step=step, score=value).action is not Action.CONTINUE:
                break
    return {"seconds": time.perf_counter() - began}


def measured(repeat: int, *words: object) -> Figures:
    """The medians of as many processes, whose records have to be the same."""
    runs = [apart(__file__, "--case", *words) for _ in range(repeat)]
    assert len({run.get("digest") for run in runs}) == 1, "the same seed leads to other records"
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def rows(num_trials: int, repeat: int) -> list[Row]:
    floor = measured(repeat, "driven", num_trials)["seconds"]
    asha, promotion = (measured(repeat, case, num_trials) for case in ("ASHA, stopping", "ASHA, promotion"))
    budget = SECONDS * num_trials / 1e6
    found = [
        Row(
            what=f"{num_trials:,} trials of {case} on {SLOTS:,} slots",
            unit="s",
            median=figures["seconds"],
            beside="ask and tell",
            floor=floor,
            budget=budget,
            rule=f"<= {budget:g} s",
            missed=PYTHON,
        )
        for case, figures in (("ASHA, stopping", asha), ("ASHA, promotion", promotion))
    ]
    found.append(
        Row(
            what=f"{num_trials:,} trials of ASHA, stopping: the process gains",
            unit="MB",
            median=asha["bytes"] / 1e6,
            budget=MEGABYTES,
            rule=f"<= {MEGABYTES:,} MB",
        )
    )
    for case in ("random search", "PBT"):
        figures = measured(repeat, case, num_trials // 100)
        found.append(
            Row(
                what=f"a report, {case} of {num_trials // 100:,} trials",
                unit="us",
                median=figures["seconds"] / figures["reports"] * 1e6,
            )
        )
    return found


def main() -> None:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--case", nargs=2, help=argparse.SUPPRESS)  # what a process of its own measures

    given = arguments(__doc__, repeat=3, add=add)
    if given.case:
        case, num_trials = given.case[0], int(given.case[1])
        print(json.dumps(driven(num_trials) if case == "driven" else simulated(case, num_trials)))
        return
    show(given, rows(2000 if given.quick else 1_000_000, given.repeat), packages=["msgspec"])


if __name__ == "__main__":
    main()
