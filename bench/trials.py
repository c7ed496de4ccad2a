"""What a tuner costs when its trials cost nothing: start-up and throughput of trivial trials, beside pools of processes.

    python bench/trials.py [--repeat 7] [--quick] [--json FILE]

Whole process: at.run as a script, two slots, journal on, beside the same work as a script for ProcessPoolExecutor (start method
spawn). Warm: how many trials a second end in such a run after its first tenth, beside how many tasks a second the pool does after as
many, and loky where it is installed; pools report nothing, decide nothing and write nothing. Hand-over: from the last line of user code in
one trial to the first line of the next in the same slot, in a warm worker and in fresh processes; with torch each trial trains and
tracks a small network with optimizer and learning-rate scheduler. A worker: from its spawn to its first frame, beside a Python that sends
one byte. Imports: in a fresh interpreter each. What is compared runs in turn; printed are medians.
"""

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from time import perf_counter

from asynctune.journal import read
from asynctune.processes import Worker
from asynctune.records import Finished
from asynctune.rundir import JOURNAL
from measure import Row, arguments, in_turn, p99, show

OURS = """
import asynctune as at

def train(trial):
    return trial.config["x"]

if __name__ == "__main__":
    at.run(train, {{"x": at.uniform(0.0, 1.0)}}, metric="score", mode="max", num_trials={count}, slots=2,
           run_dir={folder!r} + "/run", progress=False)
"""

POOL = """
import random
from time import perf_counter
{pool}

def train(x):
    return x

if __name__ == "__main__":
    with Pool() as pool:
        configs = [random.random() for _ in range({count})]
        max(pool.map(train, configs[:{count} // 10]))
        began = perf_counter()
        max(pool.map(train, configs[{count} // 10:]))
        print(perf_counter() - began)
"""

#: Pool -> what makes it.
POOLS = {
    "ProcessPoolExecutor": """
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
Pool = partial(ProcessPoolExecutor, 2, get_context("spawn"))
""",
    "loky": """
from functools import partial
from loky import ProcessPoolExecutor
Pool = partial(ProcessPoolExecutor, 2)
""",
}

#: As metrics, since those are read back: when user code began and when it ended.
HAND_OVER = """
from time import perf_counter
import asynctune as at
{imports}

def train(trial):
    began = perf_counter()
    {body}
    return {{"score": 1.0, "began": began, "ended": perf_counter()}}

if __name__ == "__main__":
    slots = at.Slots(gpus_per_trial=0, count=1, fresh={fresh})
    result = at.run(train, {{"x": at.uniform(0.0, 1.0)}}, metric="score", mode="max", num_trials={count}, slots=slots,
                    run_dir={folder!r} + "/run", progress=False)
    times = sorted((trial.reports[0]["began"], trial.reports[0]["ended"]) for trial in result.trials)
    print(*(after[0] - before[1] for before, after in zip(times, times[1:])))
"""

TORCH = """net = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    optimizer = torch.optim.Adam(net.parameters())
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    trial.track(net=net, optimizer=optimizer, scheduler=scheduler)
    net(torch.zeros(8, 64)).sum().backward()
    optimizer.step()
    scheduler.step()"""

IMPORT = """
from time import perf_counter
began = perf_counter()
{statement}
print(perf_counter() - began)
"""

# What missed budgets would take.
AHEAD = (
    "a pool hands each worker its next task before the last is done; here the driver is asked first, since a report may change what comes "
    "next: it would take trials sent ahead"
)
START = "a machine that starts bare interpreters sooner: three of them, two with msgspec and one with NumPy and asyncio, are most of it"

BYTE = "import os, sys; os.write(int(sys.argv[1]), b'x')"


def script(text: str, folder: str) -> str:
    """What a script prints in a process of its own."""
    path = Path(folder, "script.py")
    path.write_text(text, encoding="utf-8")
    return subprocess.run([sys.executable, str(path)], check=True, stdout=subprocess.PIPE, text=True).stdout


def whole(template: str, **words: object) -> float:
    """The seconds that a script takes as a whole process."""
    with tempfile.TemporaryDirectory() as folder:
        text = template.format(folder=folder, **words)
        began = perf_counter()
        script(text, folder)
        return perf_counter() - began


def warm_trials(count: int) -> float:
    """Trials per second once the workers are warm."""
    with tempfile.TemporaryDirectory() as folder:
        script(OURS.format(count=count, folder=folder), folder)
        ends = [record.time for record in read(Path(folder, "run", JOURNAL)) if isinstance(record, Finished)]
        return (count - count // 10) / (ends[-1] - ends[count // 10 - 1])


def warm_tasks(pool: str, count: int) -> float:
    """Tasks per second once the pool is warm."""
    with tempfile.TemporaryDirectory() as folder:
        return (count - count // 10) / float(script(POOL.format(pool=POOLS[pool], count=count), folder))


def spawn() -> float:
    """The seconds from a worker's spawn to its first frame."""

    async def spawned(folder: str) -> float:
        ready = asyncio.Event()
        began = perf_counter()
        worker = await Worker.spawn({}, Path(folder, "log"), lambda frames: ready.set(), lambda cause: None)
        await ready.wait()
        seconds = perf_counter() - began
        await worker.close(1.0)
        return seconds

    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(spawned(folder))


def bare() -> float:
    """The seconds from the start of a Python to the byte that it sends."""
    reader, writer = os.pipe()
    began = perf_counter()
    with subprocess.Popen([sys.executable, "-c", BYTE, str(writer)], pass_fds=[writer]):
        os.read(reader, 1)
        seconds = perf_counter() - began
    os.close(reader)
    os.close(writer)
    return seconds


def imported(statement: str) -> float:
    """The seconds that an import takes in a fresh interpreter."""
    code = IMPORT.format(statement=statement)
    return float(subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE).stdout)


def medians(repeat: int, *measures: Callable[[], float]) -> list[float]:
    return [statistics.median(samples) for samples in in_turn(repeat, *measures)]


def few_rows(count: int, repeat: int) -> list[Row]:
    start, floor = medians(
        repeat,
        lambda: whole(OURS, count=count),
        lambda: whole(POOL, count=count, pool=POOLS["ProcessPoolExecutor"]),
    )
    what = f"{count} trivial trials, whole process"
    beside = "ProcessPoolExecutor"
    return [
        Row(what=what, unit="s", median=start, budget=0.5, rule="<= 0.5 s", missed=START),
        Row(what=what, unit="s", median=start, beside=beside, floor=floor, budget=2 * floor, rule="<= 2 x the pool"),
    ]


def many_rows(count: int, repeat: int) -> list[Row]:
    pools = [pool for pool in POOLS if pool != "loky" or find_spec("loky")]
    rate, *floors = medians(repeat, lambda: warm_trials(count), *(partial(warm_tasks, pool, count) for pool in pools))
    what = f"{count:,} trivial trials through two warm workers"
    rows = [
        Row(what=what, unit="/s", median=rate, beside=pool, floor=floor)
        for pool, floor in zip(pools, floors, strict=True)
    ]
    rows[0] = replace(rows[0], budget=floors[0], at_least=True, rule=">= the pool", missed=AHEAD)
    return rows


def hand_overs(imports: str, body: str, *, count: int, fresh: bool = False) -> list[float]:
    """The seconds between trials of one slot, without the first two: by then all is imported."""
    with tempfile.TemporaryDirectory() as folder:
        text = HAND_OVER.format(imports=imports, body=body, count=count, fresh=fresh, folder=folder)
        return [float(seconds) for seconds in script(text, folder).split()[2:]]


def hand_over_rows(count: int, repeat: int) -> list[Row]:
    rows = []
    for what, imports, body, budget in (
        ("", "", "pass", 2.0),
        (", with torch", "import torch", TORCH, 10.0),
    ):
        warm, fresh = in_turn(
            repeat,
            partial(hand_overs, imports, body, count=count),
            partial(hand_overs, imports, body, count=min(10, count // 4), fresh=True),
        )
        rows.append(
            Row(
                what=f"from one trial to the next in a warm worker{what}",
                unit="ms",
                median=statistics.median(chain(*warm)) * 1e3,
                p99=p99(list(chain(*warm))) * 1e3,
                beside="a fresh process each",
                floor=statistics.median(chain(*fresh)) * 1e3,
                budget=budget,
                rule=f"<= {budget:g} ms",
            )
        )
    return rows


def start_rows(repeat: int) -> list[Row]:
    ready, python, package, numpy, everything, both = medians(
        repeat,
        spawn,
        bare,
        lambda: imported("import asynctune"),
        lambda: imported("import numpy"),
        lambda: imported("import asynctune; asynctune.run"),
        lambda: imported("import asyncio, numpy"),
    )
    return [
        Row(
            what="a worker, from its spawn to Ready",
            unit="ms",
            median=ready * 1e3,
            beside="bare Python",
            floor=python * 1e3,
        ),
        Row(
            what="import asynctune",
            unit="ms",
            median=package * 1e3,
            beside="import numpy",
            floor=numpy * 1e3,
            budget=numpy * 1e3 + 30,
            rule="<= NumPy's + 30 ms",
        ),
        Row(
            what="the same, with all that run needs",
            unit="ms",
            median=everything * 1e3,
            beside="import asyncio, numpy",
            floor=both * 1e3,
        ),
    ]


def main() -> None:
    given = arguments(__doc__, repeat=7)
    shown = [
        *few_rows(20, given.repeat),
        *many_rows(200 if given.quick else 5000, given.repeat),
        *hand_over_rows(20 if given.quick else 300, 1 if given.quick else 3),
        *start_rows(given.repeat),
    ]
    show(given, shown, packages=["msgspec", "loky"])


if __name__ == "__main__":
    main()
