"""What the driver keeps of a trial, and what a run takes while its trials do nothing.

    python bench/memory.py [--trials 100000] [--repeat 1] [--quick] [--json FILE]

Bytes per trial: the resident memory that a process gains while it fills a Study (searcher and scheduler included) by ask, tell and
finish, over the number of trials; 8 hyperparameters. Peak: at its highest; kept: at the end, garbage collected. A loaded Result: what
a process gains by `Result.load` of as many trials with 4 reports each. A process for each.

Idle: at.run as a script with two CPU slots, journal on, while both trials sleep: its processes, and the sum of their proportional
set sizes (PSS: a page that n processes share counts as 1 / n in each), the same script's or not. Linux only.
"""

import argparse
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from pathlib import Path

import asynctune as at
from asynctune.journal import encode
from asynctune.records import Finished, Header, Left, Reported, Started, Suggested, TrialState
from asynctune.rundir import JOURNAL
from load import BUDGET, CASES, MISSED, SPACE, apart, drive, fill, peak, resident
from measure import Row, arguments, show

IDLE_PROCESSES, IDLE_MB = 4, 120

#: Searcher -> what its processes are, in the order in which they start.
ROLES = {
    "Random": ("driver", "supervisor", "worker", "worker"),
    "HyperOpt": ("driver", "supervisor", "advisor", "worker", "worker"),
}

#: What a process holds at least.
FLOORS = {"driver": ("numpy", "asyncio"), "supervisor": (), "advisor": ("hyperopt",), "worker": ()}

IDLE = """
import time
import asynctune as at

def train(trial):
    open({folder!r} + f"/{{trial.id}}", "w").close()
    time.sleep(600)

if __name__ == "__main__":
    at.run(train, {{"x": at.uniform(0.0, 1.0)}}, metric="score", mode="max", num_trials=2, slots=2, searcher=at.{searcher}(),
           run_dir={folder!r} + "/run", progress=False)
"""


def per_trial(case: str, num_trials: int) -> dict[str, float]:
    """Bytes per trial: peak and kept."""
    study = fill(case, num_trials)
    gc.collect()
    before = resident()
    drive(study.ask, study.tell, study.finish)
    most = peak() - before
    gc.collect()
    return {"peak": most / num_trials, "kept": (resident() - before) / num_trials}


def write(path: Path, num_trials: int) -> None:
    """A journal of trials that report four times each."""
    with path.open("wb") as file:
        header = Header(
            metric="loss", mode="min", num_trials=num_trials, seed=0, space={}, searcher="", scheduler="", slots=2
        )
        numbers = count()
        file.write(encode(header, next(numbers)))
        config = dict.fromkeys(SPACE, 0.1234567890123456)
        for trial in range(num_trials):
            records = [
                Suggested(trial=trial, config=config),
                Started(trial=trial, segment=0, step=0, until=None, slot=trial % 2),
                *(Reported(trial=trial, segment=0, step=step, metrics={"loss": 1 / step}) for step in range(1, 5)),
                Left(trial=trial, segment=0, slot=trial % 2, busy=1.0, log=(0, 0)),
                Finished(trial=trial, state=TrialState.COMPLETED),
            ]
            file.writelines(map(encode, records, numbers))


def loaded(run_dir: Path) -> dict[str, float]:
    """Bytes per trial of a Result."""
    gc.collect()
    before = resident()
    result = at.Result.load(run_dir)
    gc.collect()
    return {"kept": (resident() - before) / len(result.trials)}


def proportional(process: int) -> int:
    """A process's proportional set size in bytes."""
    rollup = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="ascii")
    return int(rollup.partition("\nPss:")[2].split()[0]) * 1024


def family(process: int) -> Iterator[int]:
    """A process and all that it started."""
    yield process
    for task in Path(f"/proc/{process}/task").iterdir():
        for child in (task / "children").read_text(encoding="ascii").split():
            yield from family(int(child))


def settled(size: Callable[[], int]) -> int:
    """A size once it no longer changes: a process may still import."""
    before = 0
    while abs((now := size()) - before) > 0.005 * now:
        before = now
        time.sleep(0.5)
    return now


def idle(searcher: str) -> list[float]:
    """The PSS in MB of each process of a run whose two trials sleep, in the order in which they started."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "script.py"
        script.write_text(IDLE.format(folder=folder, searcher=searcher), encoding="utf-8")
        run = subprocess.Popen([sys.executable, str(script)])
        try:
            while not all((Path(folder) / str(trial)).exists() for trial in range(2)):
                time.sleep(0.05)
            settled(lambda: sum(map(proportional, family(run.pid))))
            return [proportional(process) / 1e6 for process in sorted(family(run.pid))]
        finally:
            run.terminate()
            run.wait()


def bare(*modules: str) -> float:
    """The PSS in MB of an interpreter that has imported some modules."""
    code = f"import {', '.join(('sys', *modules))}; print(flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdout.readline()
        size = proportional(process.pid) / 1e6
        process.stdin.close()
    return size


def trial_rows(num_trials: int, repeat: int) -> Iterator[Row]:
    for case in CASES:
        runs = [apart(__file__, "--case", case, "--trials", num_trials) for _ in range(repeat)]
        for what in ("peak", "kept"):
            yield Row(
                what=f"{case}: {what}, per trial",
                unit="B",
                median=statistics.median(run[what] for run in runs),
                budget=BUDGET,
                rule=f"<= {BUDGET} B",
                missed=MISSED.get(case, ""),
            )


def loaded_row(num_trials: int, repeat: int) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / JOURNAL, num_trials)
        runs = [apart(__file__, "--load", folder) for _ in range(repeat)]
    return Row(
        what="a loaded Result, per trial",
        unit="B",
        median=statistics.median(run["kept"] for run in runs),
        budget=BUDGET,
        rule=f"<= {BUDGET} B",
    )


def idle_rows(searchers: Iterable[str], repeat: int) -> Iterator[Row]:
    for searcher in searchers:
        roles = ROLES[searcher]
        runs = [idle(searcher) for _ in range(repeat)]
        yield Row(
            what=f"idle, two slots, {searcher}: processes",
            unit="",
            median=max(map(len, runs)),
            budget=IDLE_PROCESSES,
            rule=f"<= {IDLE_PROCESSES}",
            missed="hyperopt in the driver, where its import and its work would stop the loop"
            if searcher == "HyperOpt"
            else "",
        )
        yield Row(
            what=f"idle, two slots, {searcher}: memory",
            unit="MB",
            median=statistics.median(map(sum, runs)),
            budget=IDLE_MB,
            rule=f"<= {IDLE_MB} MB",
            missed="hyperopt imports scipy.stats, 47 MB that its TPE does not use; at.TPE is the same method without"
            if searcher == "HyperOpt"
            else "",
        )
        for role in dict.fromkeys(roles):
            modules = FLOORS[role]
            yield Row(
                what=f"of it, {'each' if roles.count(role) > 1 else 'the'} {role}",
                unit="MB",
                median=statistics.median(run[roles.index(role)] for run in runs),
                beside=" + ".join(("bare Python", *modules)),
                floor=statistics.median(bare(*modules) for _ in range(repeat)),
            )


def main() -> None:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--trials", type=int, default=100_000, help="default 100,000")
        parser.add_argument("--case", help=argparse.SUPPRESS)  # what a process of its own measures
        parser.add_argument("--load", type=Path, help=argparse.SUPPRESS)

    given = arguments(__doc__, repeat=1, add=add)
    if given.case:
        print(json.dumps(per_trial(given.case, given.trials)))
        return
    if given.load:
        print(json.dumps(loaded(given.load)))
        return
    num_trials = min(given.trials, 3000) if given.quick else given.trials
    searchers = ["Random"] if given.quick else ROLES
    rows = [
        *trial_rows(num_trials, given.repeat),
        loaded_row(num_trials, given.repeat),
        *idle_rows(searchers, given.repeat),
    ]
    show(given, rows, packages=["msgspec", "hyperopt"], note=f"per trial: of {num_trials:,} trials")


if __name__ == "__main__":
    main()
