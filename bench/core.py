"""Decisions: what one costs, by how much is recorded, beside floors in C that are compiled on the spot and NumPy's partition.

    python bench/core.py [--repeat 5] [--quick] [--json FILE]

ASHA: so many results are at the first rung (reduction_factor=3) when blocks of 1,000 reports come, of trials in random order with
uniform scores, to each program in turn; all must answer alike. With promotion a block's promotions belong to it. PBT: so many
members have reported once, and turns are taken. A sample is a block's time in this thread, so that what else the machine does
is not counted, over its decisions; the call from Python is in it. Each repetition begins with fresh states. The floors
(bench/floors.c) take `cc -O3`; where there is no compiler they are left out. All is on one core, but for the generation
with all threads.
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
FLOOR, DECISION, BATCH = "C two-heap", "next, donor, advance", "BoundASHA.report_many"
ONE_CALL = {"Ladder.report": 300, "BoundASHA.report": 300, DECISION: 1000}  # program -> nanoseconds


class Reports(NamedTuple):
    trials: npt.NDArray[np.int64]
    steps: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float64]


#: Decides on the reports from one to before another, and returns the answers.
Decide = Callable[[int, int], Any]
#: Records the reports before one, untimed, and returns what decides on the rest.
Program = Callable[[Reports, int], Decide]


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


def one_by_one(new: Callable[[bool], Any], promotion: bool, reports: Reports, recorded: int) -> Decide:
    """A call for each report; with promotion all four of a study."""
    state = new(promotion)
    in_batches(state, promotion, reports, recorded)
    trials, scores = reports.trials[recorded:].tolist(), reports.scores[recorded:].tolist()

    def decide(begin: int, end: int) -> None:
        report, part = state.report, slice(begin - recorded, end - recorded)
        for trial, score in zip(trials[part], scores[part], strict=True):
            report(trial, 1, score)

    def decide_and_promote(begin: int, end: int) -> None:
        part = slice(begin - recorded, end - recorded)
        for trial, score in zip(trials[part], scores[part], strict=True):
            state.report(trial, 1, score)
            state.saved(trial, 1, "checkpoint")
            resumption = state.resumable()
            if resumption is not None:
                state.resume(resumption)

    return decide_and_promote if promotion else decide


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
    table = Space(SPACE).table
    pbt = at.PBT(perturbation_interval=1, max_resource=100).bind(num_trials=len(reports.trials), table=table)
    for trial, score in zip(reports.trials.tolist(), reports.scores.tolist(), strict=True):
        pbt.report(trial, 1, score)
        pbt.saved(trial, 1, f"checkpoint/{trial}-1")
    row = table.sample(Stream(0, SAMPLE))
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
    """Nanoseconds a decision, by program, with n results, 5 % more or less: block after block, each to all programs in turn.

    At least so many samples, and as many fresh states.
    """
    blocks = max(1, min(100, n // (10 * BLOCK)))
    taken: dict[str, list[float]] = {name: [] for name in programs}
    for seed in range(max(states, samples // blocks)):
        random = np.random.default_rng(seed)
        total = n + blocks * BLOCK // 2
        recorded = total - blocks * BLOCK
        reports = Reports(random.permutation(total), np.ones(total, dtype=np.int64), random.random(total))
        turns = [(taken[name], program(reports, recorded)) for name, program in programs.items()]
        for begin in range(recorded, total, BLOCK):
            answers = []
            for nanoseconds, decide in turns:
                began = thread_time_ns()
                answer = decide(begin, begin + BLOCK)
                nanoseconds.append((thread_time_ns() - began) / BLOCK)
                answers.append(answer)
            assert all(np.array_equal(answer, answers[0]) for answer in answers), "programs decide differently"
            turns = turns[1:] + turns[:1]  # nobody always comes after the same
    return taken


Curve = dict[int, dict[str, list[float]]]  # n -> costs


def curves(library: ctypes.CDLL | None, sizes: list[int], samples: int, states: int) -> dict[str, Curve]:
    """What decides -> its curve."""

    def batches(promotion: bool) -> dict[str, Program]:
        programs: dict[str, Program] = {} if library is None else {FLOOR: partial(two_heaps, library, promotion)}
        programs[BATCH] = lambda *given: in_batches(bound(promotion), promotion, *given)
        programs["Ladder.report_many"] = lambda *given: in_batches(ladder(promotion), promotion, *given)
        return programs

    single: dict[str, Program] = {
        "Ladder.report": partial(one_by_one, ladder, False),
        "BoundASHA.report": partial(one_by_one, bound, False),
    }
    four: dict[str, Program] = {"BoundASHA.report, saved, resumable, resume": partial(one_by_one, bound, True)}
    pbt: dict[str, Program] = {DECISION: pbt_decisions, "a whole turn": pbt_turns}
    return {
        what: {n: costs(programs, n, samples, states) for n in sizes if n <= most}
        for what, programs, most in (
            ("ASHA stopping, in batches", batches(False), 10**7),
            ("ASHA promotion, in batches", batches(True), 10**7),
            ("ASHA stopping, a call each", single, 10**7),
            ("ASHA promotion, four calls each", four, 10**7),
            ("PBT", pbt, 10**6),
        )
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
        name, limit = f"{what}: {program}, {n:,} results", ONE_CALL.get(program)
        if FLOOR in curve[n]:
            floor, floor_p99 = spread(curve[n][FLOOR])
            row = partial(Row, unit="ns", beside=FLOOR, rule=f"<= 1.5 x the {FLOOR}")
            yield row(what=name, median=median, p99=p99, floor=floor, budget=1.5 * floor)
            yield row(what=f"{name}, p99", median=p99, floor=floor_p99, budget=1.5 * floor_p99)
        else:
            yield Row(what=name, unit="ns", median=median, p99=p99, budget=limit, rule=limit and f"<= {limit} ns" or "")
        least, most = (spread(curve[end][program])[0] for end in (first, last))
        yield Row(
            what=f"{what}: {program}, {last:,} results",
            unit="ns",
            median=most,
            beside=f"{first:,} results",
            floor=least,
            budget=growth * least,
            rule=f"<= {growth:.3g} x, the logarithm",
        )


def quantile_rows(library: ctypes.CDLL | None, curve: Curve, n: int, repeat: int) -> Iterator[Row]:
    """A block of reports, beside programs that look for the quantile of all the results anew."""
    median, p99 = (BLOCK * cost * 1e-3 for cost in spread(curve[n][BATCH]))
    scores = np.random.default_rng(0).random(n)
    for beside, select in selections(library).items():
        floor = 1e6 * spread(calls(partial(select, scores, [n - n // 3]), 10 * repeat))[0]
        what = f"ASHA stopping: {BATCH}, {BLOCK:,} reports, {n:,} results"
        yield Row(what=what, unit="us", median=median, p99=p99, beside=f"{beside} of all", floor=floor)


def selections(library: ctypes.CDLL | None) -> dict[str, Callable[[npt.NDArray[np.float64], list[int]], object]]:
    """What puts the values of given ranks in their places, in a copy."""
    if library is None:
        return {"numpy.partition": np.partition}

    def quickselect(values: npt.NDArray[np.float64], ranks: list[int]) -> None:
        copy = values.copy()
        for rank in ranks:
            library.quickselect(copy.ctypes.data, len(copy), rank)

    return {"numpy.partition": np.partition, "C quickselect": quickselect}


def generation_rows(library: ctypes.CDLL | None, size: int, repeat: int) -> Iterator[Row]:
    """at.Population's step beside the choice of its two quantiles alone."""
    scores = np.random.default_rng(0).random((4 * repeat, size))
    ranks = [size // 4, size - size // 4]
    one, every = at.Population(SPACE, size=size, num_threads=1), at.Population(SPACE, size=size)
    taken: dict[str, list[float]] = {"one": [], "every": []}
    for row in scores:
        with pinned():
            taken["one"] += calls(partial(one.step, row), 1)
            for name, select in selections(library).items():
                taken.setdefault(name, []).extend(calls(partial(select, row, ranks), 1))
        taken["every"] += calls(partial(every.step, row), 1)
    shown = {name: [1e3 * figure for figure in spread(seconds)] for name, seconds in taken.items()}
    floor = shown["numpy.partition"][0]
    for name, what in (("one", "1 thread"), ("every", f"{usable_cores()} threads")):
        median, p99 = shown[name]
        what = f"Population.step, {size:,} members, {len(SPACE)} hyperparameters, {what}"
        yield Row(
            what=what,
            unit="ms",
            median=median,
            p99=p99,
            beside="numpy.partition",
            floor=floor,
            budget=20,
            rule="<= 20 ms",
        )
    if "C quickselect" in shown:
        median, p99 = shown["C quickselect"]
        yield Row(
            what=f"C quickselect of both quantiles of {size:,} scores",
            unit="ms",
            median=median,
            p99=p99,
            beside="numpy.partition",
            floor=floor,
        )


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
    with pinned():
        measured = curves(library, sizes, 20 if given.quick else 100 * given.repeat, given.repeat)
        rows = [row for what, curve in measured.items() for row in curve_rows(what, curve, n)]
        rows += quantile_rows(library, measured["ASHA stopping, in batches"], n, given.repeat)
    rows += generation_rows(library, n, given.repeat)
    points = {
        what: {program: {at_n: spread(curve[at_n][program]) for at_n in curve} for program in curve[n]}
        for what, curve in measured.items()
    }
    if given.plot is not None:
        plot(given.plot, points)
    show(given, rows, series=points)


if __name__ == "__main__":
    main()
