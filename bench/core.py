"""Decisions: what one costs, by how much is recorded, beside floors in C that are compiled on the spot and NumPy's partition.

    python bench/core.py [--repeat 5] [--quick] [--json FILE] [--plot FILE]

ASHA: so many results are at the first rung (reduction_factor=3) when blocks of 1,000 reports come, of trials in random order with
uniform scores, to each program in turn; all must answer alike. With promotion a block's promotions belong to it. PBT: so many
members have reported once, and turns are taken. A sample is a block's time in this thread, so that what else the machine does
is not counted, over its decisions; the call from Python is in it. Each repetition begins with fresh states. The floors
(bench/floors.c) take `cc -O3`; where there is no compiler they are left out. All is on one core, but for the generation
with all threads, which is wall time.
"""

import argparse
import ctypes
import math
import shutil
import subprocess
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from time import thread_time_ns
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

import asynctune as at
from asynctune._core import SAMPLE, Generations, Ladder, Stream
from asynctune.schedulers.asha import BoundASHA
from asynctune.slots import usable_cores
from asynctune.space import Space
from load import SPACE
from measure import Row, arguments, calls, pinned, show, spread

BLOCK = 1000  # decisions in a sample
LEVELS = (1, 3, 9, 27, 81)
FLOOR, BATCH, PARTITION = "C two-heap", "BoundASHA.report_many", "numpy.partition"

#: Program -> nanoseconds, where the budget is not a multiple of the floor.
BUDGET = {"Ladder.report": 300, "BoundASHA.report": 300, "next, donor, advance": 1000}

# What missed budgets would take.
ONE_CALL = (
    "a third of the reports go down a heap of 5 MB and wait for memory at each of its last levels; it would take calls that decide on many, "
    "as report_many does"
)
GROWTH = (
    "a thousand results lie in the first caches, and of more each call waits for memory anew; it would take calls that decide on many, "
    "as report_many does"
)

GENERATION = (
    "three fifths of it is to explore, half of which waits for memory, a cache line read and one written for each value; a member's values "
    "side by side would halve that wait, but a hyperparameter's would not be contiguous then"
)


class Reports(NamedTuple):
    trials: npt.NDArray[np.int64]
    steps: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float64]


#: Decides on the reports from one to before another, and returns the answers.
Decide = Callable[[int, int], Any]
#: Records the reports before one, untimed, and returns what decides on the rest.
Program = Callable[[Reports, int], Decide]
#: Puts the value of a rank in its place, the lower before and the higher behind it.
Select = Callable[[npt.NDArray[np.float64], int], object]


def floors() -> ctypes.CDLL | None:
    """bench/floors.c, compiled."""
    compiler = shutil.which("cc")
    if compiler is None:
        print("no C compiler (cc): its floors are left out, and with them the budgets that are multiples of them")
        return None
    with tempfile.TemporaryDirectory() as folder:
        library = str(Path(folder, "floors.so"))
        source = str(Path(__file__).with_name("floors.c"))
        subprocess.run([compiler, "-O3", "-shared", "-fPIC", "-o", library, source], check=True)
        compiled = ctypes.CDLL(library)
    address, size = ctypes.c_void_p, ctypes.c_size_t
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "rung_new": (address, [ctypes.c_int32, ctypes.c_int, size]),
        "rung_free": (None, [address]),
        "report_many": (None, [address, address, address, address, size, ctypes.c_int64, address]),
        "promote_many": (size, [address, size, address]),
        "quickselect": (ctypes.c_double, [address, size, size]),
    }
    for name, (answer, given) in signatures.items():
        function = getattr(compiled, name)
        function.restype, function.argtypes = answer, given
    return compiled


# Programs.


def bound(promotion: bool = False) -> BoundASHA:
    return at.ASHA(max_resource=LEVELS[-1], type="promotion" if promotion else "stopping").bind()


def ladder(promotion: bool = False) -> Ladder:
    return Ladder(LEVELS, 3, promotion)


def in_blocks(decide: Decide, begin: int, end: int) -> None:
    for first in range(begin, end, BLOCK):
        decide(first, min(first + BLOCK, end))


def in_batches(state: Any, promotion: bool, reports: Reports, recorded: int) -> Decide:
    def decide(begin: int, end: int) -> Any:
        going = state.report_many(*(column[begin:end] for column in reports))
        return state.promote_many(end - begin) if promotion else going

    in_blocks(decide, 0, recorded)
    return decide


def two_heaps(library: ctypes.CDLL, promotion: bool, reports: Reports, recorded: int) -> Decide:
    total = len(reports.trials)
    rung = library.rung_new(3, promotion, total)
    going, promoted = np.empty(total, dtype=np.bool_), np.empty(total, dtype=np.int64)
    trials, steps, scores, answers, ids = (column.ctypes.data for column in (*reports, going, promoted))

    def decide(begin: int, end: int) -> Any:
        m, at_byte = end - begin, 8 * begin
        library.report_many(rung, trials + at_byte, steps + at_byte, scores + at_byte, m, LEVELS[0], answers + begin)
        return promoted[: library.promote_many(rung, m, ids)].copy() if promotion else going[begin:end]

    weakref.finalize(decide, library.rung_free, rung)
    in_blocks(decide, 0, recorded)
    return decide


def one_by_one(new: Callable[[], Any], reports: Reports, recorded: int) -> Decide:
    state = new()
    in_batches(state, False, reports, recorded)
    trials, scores = reports.trials[recorded:].tolist(), reports.scores[recorded:].tolist()

    def decide(begin: int, end: int) -> None:
        report, part = state.report, slice(begin - recorded, end - recorded)
        for trial, score in zip(trials[part], scores[part], strict=True):
            report(trial, 1, score)

    return decide


def four_calls(reports: Reports, recorded: int) -> Decide:
    """A report of a trial that saves and pauses, and what a study does then: it lets the best go on that may."""
    asha = bound(promotion=True)
    trials, scores = reports.trials.tolist(), reports.scores.tolist()

    def decide(begin: int, end: int) -> None:
        for trial, score in zip(trials[begin:end], scores[begin:end], strict=True):
            asha.report(trial, 1, score)
            asha.saved(trial, 1, "checkpoint")
            resumption = asha.resumable()
            if resumption is not None:
                asha.resume(resumption)

    decide(0, recorded)
    return decide


def pbt_decisions(reports: Reports, recorded: int) -> Decide:
    """next, donor, advance: the decision alone."""
    generations = Generations(len(reports.trials), 100, 0.25, 0, False)
    for trial, score in zip(reports.trials.tolist(), reports.scores.tolist(), strict=True):
        generations.record(trial, 1, score)
        generations.save(trial, 1, f"checkpoint/{trial}-1")

    def decide(begin: int, end: int) -> None:
        for _ in range(begin, end):
            trial = generations.next()
            assert trial is not None
            generations.donor(trial)
            generations.advance(trial)

    return decide


def pbt_turns(reports: Reports, recorded: int) -> Decide:
    """A member's whole turn, as a study takes it: the decision, its exploration if it exploits, its next report and checkpoint."""
    space = Space(SPACE)
    pbt = at.PBT(perturbation_interval=1, max_resource=100).bind(num_trials=len(reports.trials), space=space)
    for trial, score in zip(reports.trials.tolist(), reports.scores.tolist(), strict=True):
        pbt.report(trial, 1, score)
        pbt.saved(trial, 1, f"checkpoint/{trial}-1")
    row = space.table.sample(Stream(0, SAMPLE))
    names = [f"checkpoint/{number}-2" for number in range(len(reports.trials) - recorded)]
    scores = reports.scores[recorded:].tolist()

    def decide(begin: int, end: int) -> None:
        part = slice(begin - recorded, end - recorded)
        for score, name in zip(scores[part], names[part], strict=True):
            resumption = pbt.resumable()
            assert resumption is not None
            trial = resumption.trial
            if resumption.donor is not None:
                pbt.explore(row, trial, 1, resumption.step)
            pbt.resume(resumption)
            pbt.report(trial, 2, score)
            pbt.saved(trial, 2, name)
            pbt.released()

    return decide


# What they cost.


def costs(programs: Mapping[str, Program], n: int, samples: int, states: int) -> dict[str, list[float]]:
    """Nanoseconds a decision, by program, around n results: block after block, each to all programs in turn.

    At least so many samples, and as many fresh states.
    """
    blocks = max(1, min(100, n // (10 * BLOCK)))
    taken: dict[str, list[float]] = {name: [] for name in programs}
    for seed in range(max(states, samples // blocks)):
        random = np.random.default_rng(seed)
        total = n + blocks * BLOCK // 2
        recorded = total - blocks * BLOCK
        reports = Reports(random.permutation(total), np.ones(total, dtype=np.int64), random.random(total))
        # In any order, both times: what was filled last, or comes after a small program, finds more of itself in the caches.
        turns = {name: programs[name](reports, recorded) for name in random.permutation(list(programs))}
        for begin in range(recorded, total, BLOCK):
            answers = []
            for name in random.permutation(list(programs)):
                began = thread_time_ns()
                answer = turns[name](begin, begin + BLOCK)
                taken[name].append((thread_time_ns() - began) / BLOCK)
                answers.append(answer)
            assert all(np.array_equal(answer, answers[0]) for answer in answers), "programs decide differently"
    return taken


Curve = dict[int, dict[str, list[float]]]  # n -> costs


def curves(library: ctypes.CDLL | None, sizes: list[int], samples: int, states: int) -> dict[str, Curve]:
    """What is decided -> its curve. What has no floor is measured alone, so that it has the caches for itself."""

    def batches(promotion: bool) -> dict[str, Program]:
        programs: dict[str, Program] = {} if library is None else {FLOOR: partial(two_heaps, library, promotion)}
        programs[BATCH] = lambda *given: in_batches(bound(promotion), promotion, *given)
        programs["Ladder.report_many"] = lambda *given: in_batches(ladder(promotion), promotion, *given)
        return programs

    decided: list[tuple[str, int, dict[str, Program]]] = [
        ("ASHA stopping, in batches", 10**7, batches(False)),
        ("ASHA promotion, in batches", 10**7, batches(True)),
        ("ASHA stopping, a call of the core", 10**7, {"Ladder.report": partial(one_by_one, ladder)}),
        ("ASHA stopping, a call", 10**7, {"BoundASHA.report": partial(one_by_one, bound)}),
        ("ASHA promotion, four calls", 10**6, {"report, saved, resumable, resume": four_calls}),
        ("PBT, a decision", 10**6, {"next, donor, advance": pbt_decisions}),
        ("PBT, a whole turn", 10**6, {"resumable, explore, resume, report, saved": pbt_turns}),
    ]
    return {
        what: {n: costs(programs, n, samples, states) for n in sizes if n <= most} for what, most, programs in decided
    }


# Rows.


def curve_rows(what: str, curve: Curve, n: int) -> Iterator[Row]:
    """What each program of a curve costs at n results, and how that grows along the curve."""
    first, *_, last = curve
    growth = math.log(last) / math.log(first)
    for program, taken in curve[n].items():
        if program == FLOOR:
            continue
        median, p99 = spread(taken)
        name, limit = f"{what}: {program}, {n:,} results", BUDGET.get(program)
        if FLOOR in curve[n]:
            floor, floor_p99 = spread(curve[n][FLOOR])
            row = partial(Row, unit="ns", beside=FLOOR, rule=f"<= 1.5 x the {FLOOR}")
            yield row(what=name, median=median, p99=p99, floor=floor, budget=1.5 * floor)
            yield row(what=f"{name}, p99", median=p99, floor=floor_p99, budget=1.5 * floor_p99)
        else:
            rule = f"<= {limit} ns" if limit else ""
            yield Row(what=name, unit="ns", median=median, p99=p99, budget=limit, rule=rule, missed=ONE_CALL)
        least, most = (spread(curve[end][program])[0] for end in (first, last))
        yield Row(
            what=f"{what}: {program}, from {first:,} to {last:,} results",
            unit="ns",
            median=most,
            beside=f"{first:,}",
            floor=least,
            budget=growth * least,
            rule=f"<= {growth:.3g} x, the logarithm",
            missed=GROWTH,
        )


def selections(library: ctypes.CDLL | None) -> dict[str, Select]:
    selects: dict[str, Select] = {PARTITION: np.ndarray.partition}
    if library is not None:
        quickselect = library.quickselect
        selects["C quickselect"] = lambda values, rank: quickselect(values.ctypes.data, len(values), rank)
    return selects


def in_a_copy(select: Select, values: npt.NDArray[np.float64], *ranks: int) -> None:
    copy = values.copy()
    for rank in ranks:  # one after the other: for several at once NumPy has no vectorised code
        select(copy, rank)


def quantile_rows(selects: Mapping[str, Select], curve: Curve, n: int, repeat: int) -> Iterator[Row]:
    """A block of reports, beside programs that look for the quantile of all the results anew."""
    median, p99 = (BLOCK * cost * 1e-6 for cost in spread(curve[n][BATCH]))
    scores = np.random.default_rng(0).random(n)
    what = f"ASHA stopping: {BATCH}, {BLOCK:,} reports at once, {n:,} results"
    for name, select in selects.items():
        seconds = calls(partial(in_a_copy, select, scores, n - n // 3), 10 * repeat, thread_time_ns)
        yield Row(what=what, unit="ms", median=median, p99=p99, beside=f"{name} of all", floor=1e3 * spread(seconds)[0])


def generation_rows(selects: Mapping[str, Select], size: int, repeat: int) -> Iterator[Row]:
    """at.Population's step, with one thread and with all, beside the choice of its two quantiles alone."""
    threads = usable_cores()
    one, every = (at.Population(SPACE, size=size, num_threads=number) for number in (1, threads))
    what = f"Population.step, {size:,} members, {len(SPACE)} hyperparameters"
    alone, together = f"{what}, 1 thread", f"{what}, all {threads} threads"
    seconds: dict[str, list[float]] = {name: [] for name in (alone, together, *selects)}
    for scores in np.random.default_rng(0).random((4 * repeat, size)):
        with pinned():
            seconds[alone] += calls(partial(one.step, scores), 1, thread_time_ns)
            for name, select in selects.items():
                choice = partial(in_a_copy, select, scores, size // 4, size - size // 4)
                seconds[name] += calls(choice, 1, thread_time_ns)
        seconds[together] += calls(partial(every.step, scores), 1)
    shown = {name: [1e3 * figure for figure in spread(taken)] for name, taken in seconds.items()}
    floor, _ = shown.pop(PARTITION)
    row = partial(Row, unit="ms", beside=f"{PARTITION} twice", floor=floor)
    for name, (median, p99) in shown.items():
        if name in selects:
            yield row(what=f"{name} twice, {size:,} scores", median=median, p99=p99)
        else:
            yield row(what=name, median=median, p99=p99, budget=20, rule="<= 20 ms", missed=GENERATION)


def plot(file: Path, points: Mapping[str, Mapping[str, Mapping[int, tuple[float, float]]]]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    batches, single = figure.subplots(1, 2, sharey=True)
    for what, programs in points.items():
        axes = batches if FLOOR in programs else single
        for program, by_n in programs.items():
            medians = [median for median, _ in by_n.values()]
            line = "--" if program == FLOOR else "-"
            axes.plot(list(by_n), medians, line, marker="o", markersize=3, label=f"{what}: {program}")
    for axes in (batches, single):
        axes.set(xscale="log", yscale="log", xlabel="results", ylabel="ns per decision")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    figure.savefig(file)


def main() -> None:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the cost by the number of results there")

    given = arguments(__doc__, repeat=5, add=add)
    sizes = [10**3, 10**4] if given.quick else [10**k for k in range(3, 8)]
    n = min(10**6, sizes[-1])
    library = floors()
    selects = selections(library)
    with pinned():
        measured = curves(library, sizes, 20 if given.quick else 100 * given.repeat, given.repeat)
        rows = [row for what, curve in measured.items() for row in curve_rows(what, curve, n)]
        rows += quantile_rows(selects, measured["ASHA stopping, in batches"], n, given.repeat)
    rows += generation_rows(selects, n, given.repeat)
    points = {
        what: {program: {at_n: spread(curve[at_n][program]) for at_n in curve} for program in curve[n]}
        for what, curve in measured.items()
    }
    if given.plot is not None:
        given.plot.parent.mkdir(parents=True, exist_ok=True)
        plot(given.plot, points)
    show(given, rows, series=points)


if __name__ == "__main__":
    main()
