"""A study of a million trials: what ask, tell and finish cost as it grows, and what it keeps of each.

    python bench/scale.py [--trials 1000000] [--repeat 1] [--quick] [--json FILE] [--plot FILE]

ASHA of both types (max_resource=81, reduction_factor=3) with random configurations of 8 hyperparameters and a synthetic learning curve;
PBT with a tenth of the trials and 4 intervals. All through Study's ask, tell and finish: no process, no file. A process for each,
pinned to one core, and every call timed; of several runs the quickest. A call's row is its median with up to 10^k trials
in the study, beside that with up to 10^3; the budget is the ratio of the logarithms. What else the machine does is in p99 and
maximum. Memory is resident memory (Linux only).
"""

import argparse
import gc
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter, perf_counter_ns
from typing import Any

import numpy as np

from load import BUDGET, MISSED, apart, drive, fill, peak, resident
from measure import Row, arguments, pinned, show

KINDS = ("ask", "tell", "finish")
STUDIES = {"Random + ASHA stopping": 1, "Random + ASHA promotion": 1, "PBT": 10}  # case -> a part of the trials
BINS = 4  # per decade


def collection() -> float:
    """The seconds of one full garbage collection."""
    gc.collect()
    began = perf_counter()
    gc.collect()
    return perf_counter() - began


class Meter:
    """The time of every call and how many trials there were; room for them is made, and touched, ahead of the study."""

    def __init__(self, case: str, num_trials: int) -> None:
        self.study = fill(case, num_trials)
        self.next = 10.0
        self.memory: list[tuple[int, int]] = []  # trials, bytes
        self.seconds = {kind: np.full(5 * num_trials, -1.0) for kind in KINDS}
        self.trials = {kind: np.full(5 * num_trials, -1, dtype=np.int32) for kind in KINDS}
        self.calls = dict.fromkeys(KINDS, 0)
        self.collection = collection()
        self.before = resident()

    def timed(self, kind: str, call: Callable[..., Any]) -> Callable[..., Any]:
        seconds, trials, study = self.seconds[kind], self.trials[kind], self.study

        def timed(*given: Any, **more: Any) -> Any:
            began = perf_counter_ns()
            answer = call(*given, **more)
            took = perf_counter_ns() - began
            n = self.calls[kind]
            seconds[n], trials[n] = took * 1e-9, len(study)
            self.calls[kind] = n + 1
            if len(study) >= self.next:
                self.next *= 10 ** (1 / BINS)
                self.memory.append((len(study), resident() - self.before))
            return answer

        return timed

    def spreads(self, kind: str, per_decade: int) -> Iterator[dict[str, float]]:
        """Of the calls made with up to 10^(k / per_decade) trials and more than a step before: median, p99, maximum."""
        seconds, trials = self.seconds[kind][: self.calls[kind]], self.trials[kind][: self.calls[kind]]
        for k in range(2 * per_decade + 1, math.ceil(per_decade * math.log10(trials.max())) + 1):
            most = round(10 ** (k / per_decade))
            within = seconds[(trials > 10 ** ((k - 1) / per_decade)) & (trials <= most)]
            if len(within):
                median, p99 = np.quantile(within, [0.5, 0.99])
                yield {"trials": most, "median": float(median), "p99": float(p99), "max": float(within.max())}


def measure(case: str, num_trials: int) -> dict[str, Any]:
    meter = Meter(case, num_trials)
    began = perf_counter()
    with pinned():
        drive(*(meter.timed(kind, getattr(meter.study, kind)) for kind in KINDS))
    total, most, after = perf_counter() - began, peak() - meter.before, collection()
    kept = resident() - meter.before
    meter.calls["tell"] -= 1  # the last report ends the run, and everything that waits: a figure of its own
    return {
        "total": total,
        "calls": meter.calls,
        "end": float(meter.seconds["tell"][meter.calls["tell"]]),
        "decades": {kind: list(meter.spreads(kind, 1)) for kind in KINDS},
        "bins": {kind: list(meter.spreads(kind, BINS)) for kind in KINDS},
        "memory": {"trials": [n for n, _ in meter.memory], "bytes": [size for _, size in meter.memory]},
        "peak": most,
        "kept": kept,
        "collection": {"before": meter.collection, "after": after},
    }


def rows(case: str, num_trials: int, figures: dict[str, Any]) -> Iterator[Row]:
    for kind in KINDS:
        first, last = figures["decades"][kind][0], figures["decades"][kind][-1]
        ratio = math.log(last["trials"]) / math.log(first["trials"])
        yield Row(
            what=f"{case}: {kind}, up to {last['trials']:,} trials",
            unit="us",
            median=last["median"] * 1e6,
            p99=last["p99"] * 1e6,
            beside=f"up to {first['trials']:,}",
            floor=first["median"] * 1e6,
            budget=first["median"] * 1e6 * ratio,
            rule=f"<= {ratio:.3g} x",
            missed="a thousand trials lie in the caches, and of more each call waits for memory: less of it for each trial",
        )
    worst = {kind: max(decade["max"] for decade in figures["decades"][kind]) * 1e3 for kind in KINDS}
    yield Row(what=f"{case}: the longest call", unit="ms", median=max(worst.values()))
    yield Row(what=f"{case}: the last call, which ends all that waits", unit="ms", median=figures["end"] * 1e3)
    yield Row(what=f"{case}: all of it, {figures['calls']['tell'] + 1:,} reports", unit="s", median=figures["total"])
    for what in ("peak", "kept"):
        yield Row(
            what=f"{case}: memory per trial, {what}",
            unit="B",
            median=figures[what] / num_trials,
            budget=BUDGET,
            rule=f"<= {BUDGET} B",
            missed=MISSED.get(case, ""),
        )
    pauses = {moment: seconds * 1e3 for moment, seconds in figures["collection"].items()}
    yield Row(
        what=f"{case}: a full garbage collection",
        unit="ms",
        median=pauses["after"],
        beside="before",
        floor=pauses["before"],
    )


def plot(file: Path, series: dict[str, Any]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    latency, memory = figure.subplots(1, 2)
    for color, (case, figures) in enumerate(series.items()):
        for kind, marker in (("ask", "o"), ("tell", "s")):
            bins = figures["bins"][kind]
            trials = [at["trials"] for at in bins]
            for quantile, line in (("median", "-"), ("p99", ":")):
                latency.plot(
                    trials,
                    [at[quantile] * 1e6 for at in bins],
                    line,
                    color=f"C{color}",
                    marker=marker,
                    markersize=3,
                    label=f"{case}: {kind}" if quantile == "median" else None,
                )
        memory.plot(*figures["memory"].values(), color=f"C{color}", label=case)
    latency.set(xscale="log", yscale="log", xlabel="trials", ylabel="us per call (dotted: p99)")
    memory.set(xscale="log", yscale="log", xlabel="trials", ylabel="bytes")
    trials = [n for figures in series.values() for n in figures["memory"]["trials"]]
    memory.plot(
        [min(trials), max(trials)], [BUDGET * min(trials), BUDGET * max(trials)], "k--", label=f"{BUDGET} B per trial"
    )
    for axes in (latency, memory):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    figure.savefig(file)


def main() -> None:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--trials", type=int, default=1_000_000, help="default 1,000,000")
        parser.add_argument("--plot", type=Path, metavar="FILE", help="draw latency and memory there")
        parser.add_argument("--case", help=argparse.SUPPRESS)  # what a process of its own measures

    given = arguments(__doc__, repeat=1, add=add)
    if given.case:
        print(json.dumps(measure(given.case, given.trials)))
        return
    given.trials = min(given.trials, 10_000) if given.quick else given.trials
    series: dict[str, Any] = {}
    shown: list[Row] = []
    for case, part in STUDIES.items():
        n = max(1000, given.trials // part)
        runs = [apart(__file__, "--case", case, "--trials", n) for _ in range(given.repeat)]
        series[case] = min(runs, key=lambda figures: figures["total"])
        shown += rows(case, n, series[case])
    if given.plot is not None:
        given.plot.parent.mkdir(parents=True, exist_ok=True)
        plot(given.plot, series)
    show(given, shown, packages=["msgspec"], series=series)


if __name__ == "__main__":
    main()
