"""What a decision costs here and in other libraries, and 20 trivial trials as a whole process, in one run.

    make bench-peers
    python bench/peers.py [--repeat 3] [--quick] [--json FILE]

Ray Tune, Optuna, Rustuna, Syne Tune and hyperopt: each through its own public calls, in their usual form (peers_decisions.py,
peers_programs.py). All get the same values in the same order, and the libraries take turns. They are in the extra `bench`, with an
environment of its own; what is not installed is left out, and a line says so. The decisions are taken on one core, in this process,
with Python's garbage collector on, as it is in a run; what the imports left behind is out of its sight. Under 100 calls, p99 is the
maximum. All takes about five minutes.
"""

import gc
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from operator import eq
from time import perf_counter
from typing import Any, NamedTuple

from measure import Row, arguments, pinned, quantity, show, spread
from peers_decisions import ASHAS, PBTS, SUGGESTS, Prepare, Prepared
from peers_programs import PROGRAMS, ProgramFailed, seconds

PACKAGES = ("ray", "optuna", "rustuna", "syne-tune", "hyperopt")
NOTE = (
    "Not there: Rustuna has no pruner and no PBT, Optuna no PBT, hyperopt neither. Ray's PBT decides on stand-ins of its trials and "
    "its controller, without its log files. x: over asynctune's Study, which keeps all books of a trial."
)

#: A library gets ENOUGH calls or more in a turn; once a filled state has been timed for LIMIT seconds, and FEWEST calls, it is over.
ENOUGH, LIMIT, FEWEST = 200, 1.5, 5


class Section(NamedTuple):
    """One table: rows are libraries, columns are sizes. The others are divided by the library `ours`.

    yes: what a yes of a library means, "" where there is none. alike: all decide on the same reports, so that the share of answers
    that are those of the first library says something.
    """

    name: str
    title: str
    size: str
    sizes: tuple[int, ...]
    libraries: Mapping[str, tuple[str, Prepare]]
    ours: str
    yes: str = ""
    alike: bool = False


SECTIONS = (
    Section(
        name="ASHA",
        title="ASHA: one report with a decision due, by results at its rung (eta 3, 1 to 81); median / p99",
        size="results at the rung",
        sizes=(100, 1_000, 10_000, 100_000),
        libraries=ASHAS,
        ours="asynctune, Study.tell",
        yes="go on",
        alike=True,
    ),
    Section(
        name="PBT",
        title="PBT: one decision with 8 hyperparameters, by population; median / p99",
        size="members",
        sizes=(100, 1_000, 10_000, 100_000),
        libraries=PBTS,
        ours="asynctune, Study.ask + tell",
        yes="exploit",
    ),
    Section(
        name="TPE",
        title="TPE: one more trial with 8 hyperparameters, asked for and told, by trials so far; median / p99",
        size="trials so far",
        sizes=(20, 100, 1_000),
        libraries=SUGGESTS,
        ours="asynctune TPE, ask + tell + finish",
    ),
)


@dataclass
class Cell:
    """One library at one size: seconds a decision, the answers, and whether each was that of the first library."""

    seconds: list[float] = field(default_factory=list)
    answers: list[bool] = field(default_factory=list)
    agrees: list[bool] = field(default_factory=list)


Cells = dict[tuple[str, int], Cell]


def main() -> None:
    given = arguments(__doc__, repeat=3)
    for package in PACKAGES:
        print(package, _version(package) or "is not installed and left out: make bench-peers")
    rows: list[Row] = []
    figures: list[dict[str, Any]] = []
    if given.quick:
        given.repeat = 1
    with pinned():
        for section in SECTIONS:
            cells = measured(section, given.repeat, given.quick)
            print_section(section, cells)
            rows += section_rows(section, cells)
            figures += section_figures(section, cells)
    walls = whole_processes(given.repeat, given.quick)
    print_processes(walls, given.quick)
    rows += process_rows(walls)
    print()
    show(given, rows, note=NOTE, packages=PACKAGES, decisions=figures, processes=walls)


def measured(section: Section, repeat: int, quick: bool) -> Cells:
    """All cells of a section; the libraries take turns. A small state is filled anew before a few calls have made it a larger one."""
    sizes, enough = (section.sizes[:2], 1) if quick else (section.sizes, ENOUGH)
    libraries = {name: prepare for name, (module, prepare) in section.libraries.items() if find_spec(module)}
    for prepare in libraries.values():  # what a library imports and does once
        timed(prepare([0.5] * 10, [0.5] * FEWEST))
    gc.collect()
    gc.freeze()
    cells: Cells = {(name, size): Cell() for size in sizes for name in libraries}
    for turn in range(repeat):
        for size in sizes:
            coming = min(max(size // 5, 20), 2_000)
            for lap in range(max(1, enough // coming)):
                draw = random.Random(f"{turn} {lap}").random
                there, arriving = [draw() for _ in range(size)], [draw() for _ in range(coming)]
                first: list[bool] = []
                for name, prepare in libraries.items():
                    took, answers = timed(prepare(there, arriving))
                    first = first or answers
                    cell = cells[name, size]
                    cell.seconds += took
                    cell.answers += answers
                    cell.agrees += map(eq, answers, first)
                    gc.collect()
    return cells


def timed(prepared: Prepared) -> tuple[list[float], list[bool]]:
    """Make the calls, until LIMIT; return the seconds of each, over the number of its answers, and the answers."""
    took, answers = [], []
    until = perf_counter() + LIMIT
    for call in prepared.calls:
        began = perf_counter()
        answer = call()
        ended = perf_counter()
        found = prepared.yes(answer)
        took.append((ended - began) / len(found))
        answers += found
        if ended > until and len(took) >= FEWEST:
            break
    return took, answers


def whole_processes(repeat: int, quick: bool) -> dict[str, list[float]]:
    """Seconds of every program, run in turn; those that take long run once, at the end, and not at all if it must be quick."""
    walls: dict[str, list[float]] = {}
    for turn in range(repeat):
        for name, program in PROGRAMS.items():
            if find_spec(program.module) is None or (program.long and (quick or turn < repeat - 1)):
                continue
            try:
                walls.setdefault(name, []).append(seconds(program))
            except ProgramFailed as error:
                print(f"{name} failed: {error}")
    return {name: took for name, took in walls.items() if took}


def section_rows(section: Section, cells: Cells) -> list[Row]:
    rows = []
    for (name, size), cell in cells.items():
        median, worst = spread(cell.seconds)
        floor = None if name.startswith("asynctune") else spread(cells[section.ours, size].seconds)[0] * 1e6
        what = f"{section.name}, {size:,} {section.size}: {name}"
        rows.append(Row(what=what, unit="us", median=median * 1e6, p99=worst * 1e6, beside="asynctune", floor=floor))
    return rows


def section_figures(section: Section, cells: Cells) -> list[dict[str, Any]]:
    figures = []
    for (name, size), cell in cells.items():
        median, worst = spread(cell.seconds)
        figure = {"section": section.name, "library": name, "size": size, "median_s": median, "p99_s": worst}
        figure["calls"] = len(cell.seconds)
        if section.yes:
            figure[section.yes] = _share(cell.answers)
        if section.alike:
            figure["as asynctune"] = _share(cell.agrees)
        figures.append(figure)
    return figures


def process_rows(walls: Mapping[str, Sequence[float]]) -> list[Row]:
    ours, *_ = PROGRAMS
    floor = spread(walls[ours])[0]
    return [
        Row(
            what=f"20 trivial trials: {name}",
            unit="s",
            median=spread(took)[0],
            beside="asynctune",
            floor=None if name == ours else floor,
        )
        for name, took in walls.items()
    ]


def print_section(section: Section, cells: Cells) -> None:
    sizes, names = sorted({size for _, size in cells}), list(dict.fromkeys(name for name, _ in cells))
    head = [section.size, *(f"{size:,}" for size in sizes)]
    head += [section.yes] if section.yes else []
    head += ["as asynctune"] if section.alike else []
    lines = [head]
    for name in names:
        mine = [cells[name, size] for size in sizes]
        line = [name, *(" / ".join(map(_time, spread(cell.seconds))) for cell in mine)]
        if section.yes:
            line.append(f"{_share([answer for cell in mine for answer in cell.answers]):.0%}")
        if section.alike:
            line.append(f"{_share([same for cell in mine for same in cell.agrees]):.1%}")
        lines.append(line)
    _print_table(section.title, lines)


def print_processes(walls: Mapping[str, Sequence[float]], quick: bool) -> None:
    lines = [["", "median", "least", "most", "runs"]]
    for name, took in walls.items():
        lines.append([name, *(f"{wall:.2f} s" for wall in (spread(took)[0], min(took), max(took))), f"{len(took)}"])
    _print_table("20 trivial trials, two workers, from the start of the process to its end", lines)
    if quick:
        print("(Ray Tune and Syne Tune take too long for --quick.)")


def _print_table(title: str, lines: Sequence[Sequence[str]]) -> None:
    print(f"\n{title}")
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for first, *others in lines:
        print("  ".join([first.ljust(widths[0]), *map(str.rjust, others, widths[1:])]))


def _time(seconds: float) -> str:
    for unit, scale in (("ns", 1e9), ("us", 1e6)):
        if seconds * scale < 1000:
            return quantity(seconds * scale, unit)
    return quantity(seconds * 1e3, "ms")


def _share(answers: Sequence[bool]) -> float:
    return sum(answers) / len(answers)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
