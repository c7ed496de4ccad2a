"""Measure: what every benchmark does alike: time, print a table, write JSON.

A row is one figure: its median and p99, what ran beside it in the same run, and its budget (docs/benchmarks.md). `used` is the part
of the budget that the median takes: up to 1.00 it is kept, above it is missed, and then `missed` says what it would take.
"""

import argparse
import json
import os
import platform
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter_ns
from typing import Any, TypeVar

__all__ = ["Row", "arguments", "calls", "in_turn", "p99", "padded", "pinned", "quantity", "show", "spread"]

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure.

    what: what was measured, in words. median, p99: in `unit`. beside: what ran beside it; floor: its median, in `unit`.
    budget: the most `median` may be, in `unit`; with `at_least` the least. rule: the budget in words, as in "<= 1.5 x the C two-heap".
    missed: what it would take, where the budget is missed.
    """

    what: str
    unit: str
    median: float
    p99: float | None = None
    beside: str | None = None
    floor: float | None = None
    budget: float | None = None
    at_least: bool = False
    rule: str = ""
    missed: str = ""

    @property
    def ratio(self) -> float | None:
        """The median over that of what ran beside it."""
        return self.median / self.floor if self.floor else None

    @property
    def used(self) -> float | None:
        """The part of the budget that is used, <= 1 where it is kept."""
        if self.budget is None:
            return None
        return self.budget / self.median if self.at_least else self.median / self.budget


def p99(samples: Sequence[float]) -> float:
    """The 99th percentile (nearest rank); of under 100 samples the maximum."""
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, (99 * len(ordered) + 99) // 100 - 1)]


def calls(call: Callable[[], object], repeat: int, clock: Callable[[], int] = perf_counter_ns) -> list[float]:
    """The seconds that each of `repeat` calls took, by a clock that counts nanoseconds."""
    seconds = []
    for _ in range(repeat):
        began = clock()
        call()
        seconds.append((clock() - began) * 1e-9)
    return seconds


def in_turn(repeat: int, *measures: Callable[[], T]) -> list[tuple[T, ...]]:
    """What each measure returned in `repeat` calls, all of them called one after the other each time."""
    return list(zip(*([measure() for measure in measures] for _ in range(repeat)), strict=True))


@contextmanager
def pinned() -> Iterator[int | None]:
    """This process on one core while the block lasts, where the system can do that; yields the core."""
    if not hasattr(os, "sched_setaffinity"):
        yield None
        return
    before = os.sched_getaffinity(0)
    core = max(before)
    os.sched_setaffinity(0, {core})
    try:
        yield core
    finally:
        os.sched_setaffinity(0, before)


def arguments(doc: str | None, *, repeat: int, add: Callable[[argparse.ArgumentParser], object] | None = None) -> Any:
    """The command line that all benchmarks share: --repeat, --quick, --json; `add` adds more."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=repeat, help=f"runs of each measurement (default {repeat})")
    parser.add_argument(
        "--quick", action="store_true", help="small sizes: shows that the benchmark works, not how fast"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    if add is not None:
        add(parser)
    given = parser.parse_args()
    if given.quick:
        given.repeat = min(given.repeat, 2)
    return given


def show(given: Any, rows: Sequence[Row], *, note: str = "", packages: Sequence[str] = (), **more: Any) -> None:
    """Print the rows as a table and write them to `given.json`, with the machine, versions and `more` (series of a plot)."""
    lines = [("what", "median", "p99", "beside", "x", "budget", "used")]
    lines += [
        (
            row.what,
            quantity(row.median, row.unit),
            "" if row.p99 is None else quantity(row.p99, row.unit),
            "" if row.floor is None else f"{row.beside} {quantity(row.floor, row.unit)}",
            "" if row.ratio is None else f"{row.ratio:.2f}",
            row.rule,
            "" if row.used is None else f"{row.used:.2f}" + (" MISSED" if row.used > 1 else ""),
        )
        for row in rows
    ]
    for line in padded(lines):
        print("  ".join(line).rstrip())
    for row in rows:
        if row.used is not None and row.used > 1 and row.missed:
            print(f"missed: {row.what}: {row.missed}")
    if note:
        print(note)
    if given.json is not None:
        figures = [asdict(row) | {"ratio": row.ratio, "used": row.used} for row in rows]
        document = {
            "benchmark": Path(sys.argv[0]).stem,
            "quick": given.quick,
            "note": note,
            "machine": _machine(packages),
            "rows": figures,
            **more,
        }
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def padded(lines: Sequence[Sequence[str]]) -> list[list[str]]:
    """The cells of a table, all of a column equally wide."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]


def spread(samples: Sequence[float]) -> tuple[float, float]:
    """The median and the 99th percentile."""
    return statistics.median(samples), p99(samples)


def quantity(value: float, unit: str) -> str:
    """A figure with its unit, to three places."""
    return f"{value:,.0f} {unit}" if abs(value) >= 1000 else f"{value:.3g} {unit}"


def _machine(packages: Sequence[str]) -> dict[str, Any]:
    versions = {}
    for package in ("asynctune", "numpy", *packages):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "-"
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(),
        "versions": versions,
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()
