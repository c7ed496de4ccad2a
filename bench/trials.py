"""Trivial trials through two slots, as a whole process, beside the same through ProcessPoolExecutor(spawn).

    python bench/trials.py [--repeat 7] [--many 5000] [--json FILE]

What a tuner costs when the trials cost nothing: start-up with 20 trials, throughput with many. Both run in turn, a process
each; printed are medians and their ratio. The journal is on.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

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


def compare(count: int, repeat: int) -> dict[str, float]:
    pairs = [(seconds(OURS, count), seconds(POOL, count)) for _ in range(repeat)]
    return {
        "trials": count,
        "asynctune": statistics.median(ours for ours, _ in pairs),
        "pool": statistics.median(pool for _, pool in pairs),
        "ratio": statistics.median(ours / pool for ours, pool in pairs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=7, help="how often each is run (default 7)")
    parser.add_argument("--many", type=int, default=5000, help="trials in the second row (default 5000)")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    arguments = parser.parse_args()
    rows = [compare(20, arguments.repeat), compare(arguments.many, max(1, arguments.repeat // 2))]
    print(f"{'trials':>8} {'asynctune':>12} {'pool (spawn)':>14} {'ratio':>8}")
    for row in rows:
        print(f"{row['trials']:>8.0f} {row['asynctune']:>10.3f} s {row['pool']:>12.3f} s {row['ratio']:>8.2f}")
    if arguments.json:
        machine = {
            "python": platform.python_version(),
            "machine": platform.machine(),
            "asynctune": version("asynctune"),
        }
        arguments.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
