"""Trivial trials through two slots, as a whole process, beside the same through ProcessPoolExecutor(spawn).

    python bench/trials.py [--repeat 7] [--quick] [--json FILE]

What a tuner costs when the trials cost nothing: start-up with 20 trials, throughput with many. Both run in turn, a process
each; printed are medians and their ratio. The journal is on.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measure import Row, arguments, show

OURS = """
import asynctune as at

def train(trial):
    return trial.config["x"]

if __name__ == "__main__":
    at.run(train, {{"x": at.uniform(0.0, 1.0)}}, metric="score", mode="max", num_trials={count}, slots=2,
           run_dir={run_dir!r}, progress=False)
"""

POOL = """
import random
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

def train(x):
    return x

if __name__ == "__main__":
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        max(pool.map(train, [random.random() for _ in range({count})]))
"""


def seconds(template: str, count: int) -> float:
    """The wall time of a script in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "script.py"
        script.write_text(template.format(count=count, run_dir=folder + "/run"))
        began = time.perf_counter()
        subprocess.run([sys.executable, str(script)], check=True)
        return time.perf_counter() - began


def pairs(count: int, repeat: int) -> tuple[list[float], list[float]]:
    """Seconds of ours and of the pool's, run in turn."""
    ours, pool = [], []
    for _ in range(repeat):
        ours.append(seconds(OURS, count))
        pool.append(seconds(POOL, count))
    return ours, pool


def main() -> None:
    given = arguments(__doc__, repeat=7)
    few, many = 20, 200 if given.quick else 5000
    ours, pool = pairs(few, given.repeat)
    start, floor = statistics.median(ours), statistics.median(pool)
    beside = "ProcessPoolExecutor"
    rows = [
        Row(
            what=f"{few} trivial trials, whole process",
            unit="s",
            median=start,
            beside=beside,
            floor=floor,
            budget=0.5,
            rule="<= 0.5 s",
        ),
        Row(
            what="the same",
            unit="s",
            median=start,
            beside=beside,
            floor=floor,
            budget=2 * floor,
            rule="<= 2 x the pool",
        ),
    ]
    ours, pool = pairs(many, max(1, given.repeat // 2))
    start, floor = statistics.median(ours), statistics.median(pool)
    rows.append(
        Row(
            what=f"{many} trivial trials, whole process",
            unit="s",
            median=start,
            beside=beside,
            floor=floor,
            budget=floor,
            rule="<= the pool",
        )
    )
    show(given, rows)


if __name__ == "__main__":
    main()
