"""How good a search is: regret over virtual time on recorded learning curves, ours and the peers'.

    python bench/quality.py [--data FILE] [--tasks test] [--slots 4] [--draw again,once] [--methods NAMES] [--repeat 30]
                            [--jobs 1] [--out FILE] [--summary] [--plot FILE] [--quick] [--json FILE]

--repeat is the number of seeds. The tasks are 17 of LCBench, where --data or ASYNCTUNE_LCBENCH names an .npz as at.Tabular.lcbench reads it,
and the one that comes with asynctune. Defaults have been chosen on eight (--tasks dev); on the other nine (test) is reported: every
second one in the order of their ids. --draw says whether a recorded configuration may come up again or only once.

A run lasts 25 mean full trainings of its task for each of 4 slots, 4 for each of 64. Its regret is the distance from the best value
reported so far, at whatever step, to the best of the whole table, where the median of all last values is 1 away. Every run is a line in --out;
what is there is not run again, so a benchmark that was stopped goes on, and seeds come one after the other, so that it may be
summarised at any time. Peers (quality_peers.py) are driven through their public objects on a clock of the same rules; what is not
installed is left out, and runs in its own time under .venv-peers.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from typing import Any

from measure import arguments, show
from quality_figures import plot, rows, tables
from quality_methods import BUDGETS, OURS, Run, load, names, regrets, simulated
from quality_peers import PEERS, driven, installed

QUICK = ("random", "ASHA", "TPE + ASHA", "recommended")


def measured(data: Path | None, run: Run) -> dict[str, Any]:
    """The line of a run."""
    task = load(run.task, data)
    began = perf_counter()
    if run.method in OURS:
        reports, trials = simulated(*OURS[run.method], task, run)
    else:
        reports, trials = driven(run.method, task, run)
    wall = perf_counter() - began
    budget = run.budget(task)
    regret = regrets(task, budget, reports)
    return {
        **run._asdict(),
        "hours": round(budget / 3600, 4),
        "regrets": regret.round(6).tolist(),
        "trials": trials,
        "wall": round(wall, 3),
    }


def read(path: Path) -> dict[Run, dict[str, Any]]:
    """The lines of a file by run."""
    if not path.exists():
        return {}
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {Run(*(line[name] for name in Run._fields)): line for line in lines}


def carried_out(runs: Sequence[Run], data: Path | None, jobs: int) -> Iterator[dict[str, Any]]:
    measure = partial(measured, data)
    if jobs == 1:
        yield from map(measure, runs)
        return
    with get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap_unordered(measure, runs)


def parsed() -> Any:
    def add(parser: argparse.ArgumentParser) -> None:
        data = os.environ.get("ASYNCTUNE_LCBENCH")
        parser.add_argument("--data", type=Path, default=None if data is None else Path(data), help="LCBench's curves")
        parser.add_argument(
            "--tasks", choices=["dev", "test", "digits", "all"], help="default: test; digits, to run without data"
        )
        parser.add_argument("--slots", default="4", help="4, 64 or 4,64")
        parser.add_argument("--draw", default="again,once")
        parser.add_argument("--methods", help="a comma list; default: all that are installed")
        parser.add_argument("--jobs", type=int, default=1, help="how many processes")
        parser.add_argument("--out", type=Path, default=Path("build/quality.jsonl"), help="the file of results")
        parser.add_argument("--summary", action="store_true", help="run nothing")
        parser.add_argument("--plot", type=Path, metavar="FILE", help="regret over time, with matplotlib")

    given = arguments(__doc__, repeat=30, add=add)
    if given.quick:
        given.data, given.methods = None, ",".join(QUICK)
        given.out = Path(os.devnull)
    given.tasks = given.tasks or ("test" if given.data or given.summary else "digits")
    if given.data is None and given.tasks != "digits" and not given.summary:
        sys.exit("--data or ASYNCTUNE_LCBENCH must name LCBench's curves, or --tasks be digits")
    possible = [*OURS, *(PEERS if given.summary else installed())]
    given.methods = given.methods.split(",") if given.methods else possible
    if not set(given.methods) <= set(possible):
        sys.exit(f"--methods must be of {', '.join([*OURS, *PEERS])}, and installed, got {', '.join(given.methods)}")
    given.slots = [int(slots) for slots in given.slots.split(",")]
    given.draw = given.draw.split(",")
    if not set(given.slots) <= set(BUDGETS) or not set(given.draw) <= {"again", "once"}:
        sys.exit("--slots must be of 4,64 and --draw of again,once")
    return given


def main() -> None:
    given = parsed()
    wanted = [
        Run(task, method, slots, draw, seed)
        for seed, slots, draw, task, method in product(
            range(given.repeat), given.slots, given.draw, names(given.tasks), given.methods
        )
    ]
    found = read(given.out)
    if not given.summary:
        missing = [run for run in wanted if run not in found]
        given.out.parent.mkdir(parents=True, exist_ok=True)
        with given.out.open("a", encoding="utf-8") as file:
            for done, line in enumerate(carried_out(missing, given.data, given.jobs), start=1):
                file.write(json.dumps(line) + "\n")
                file.flush()
                found[Run(*(line[name] for name in Run._fields))] = line
                if sys.stderr.isatty():
                    print(f"\r{done} of {len(missing)} runs", end="", file=sys.stderr)
    settings = tables({run: found[run] for run in wanted if run in found}, list(PEERS))
    for table in settings:
        print(table.text(), end="\n\n")
    if given.plot is not None:
        plot(settings, given.plot)
    show(
        given,
        rows(settings),
        text=[table.text() for table in settings],
        settings=[table.figures() for table in settings],
    )


if __name__ == "__main__":
    main()
