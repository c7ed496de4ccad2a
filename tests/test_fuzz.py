"""The fuzzer's first thousand cases; `make fuzz` runs more of them, under the sanitizers."""

import os
import subprocess
import sys
from pathlib import Path

CASES = """
import warnings
from tests import fuzz
warnings.simplefilter("error")
for seed in range(1000):
    print(seed, flush=True)
    fuzz.run(seed)
"""


def test_call_that_nobody_thought_of_crashes_or_changes_the_core() -> None:
    """In a process of its own, which may die: the last seed printed is the one to run again."""
    root = Path(__file__).parent.parent
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(root)]))
    run = subprocess.run(
        [sys.executable, "-P", "-c", CASES],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, f"seed {run.stdout.splitlines()[-1:]}\n{run.stderr}"
