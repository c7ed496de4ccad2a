"""Gate: nobody begins on a GPU before the memory of the last process is free again (NVML as in tests/nvml)."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.nvml import Box, libraries

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")

GIB = 2**30

#: The first trial is killed while it holds most of the memory, which the driver gives back when `linger` seconds have passed.
RUN = """
import json, os, pathlib, sys, threading
import asynctune as at
from asynctune import gate

folder, linger = pathlib.Path(sys.argv[1]), float(sys.argv[2])
in_use = folder / "in_use"
gate.PATIENCE = float(sys.argv[3])

def put(gib):
    (folder / "new").write_text(str(gib * 2**30))
    (folder / "new").rename(in_use)

def train(trial):
    if trial.id == 0:
        put(60)
        os.kill(os.getpid(), 9)
    return int(in_use.read_text()) / 2**30

def free(record):
    if record.kind == "failed":
        timer = threading.Timer(linger, put, [2])
        timer.daemon = True
        timer.start()

train.__module__ = "__main__"
result = at.run(train, {"x": at.uniform(0, 1)}, metric="score", mode="min", num_trials=3, slots=at.Slots(), callbacks=[free],
                run_dir=folder / "run", progress=False)
print(json.dumps([trial.value for trial in result.trials]))
"""


Run = Callable[[float, float], list[float | None]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    (tmp_path / "in_use").write_text(str(2 * GIB))
    text = (
        "driver 570.86.15\n"
        "gpu GPU-11111111-1111-1111-1111-111111111111\nname NVIDIA H100\n"
        f"memory {80 * GIB} 0\nin_use {tmp_path / 'in_use'}\npci 0 18 0\n"
    )
    box = Box(libraries(tmp_path), tmp_path, text)

    def call(linger: float, patience: float) -> list[float | None]:
        status, output, errors = box.run("-c", RUN, str(tmp_path), str(linger), str(patience))
        assert status == 0, errors
        values: list[float | None] = json.loads(output)
        return values

    return call


def test_a_trial_begins_before_the_memory_of_a_killed_one_is_free(run: Run, tmp_path: Path) -> None:
    assert run(1.0, 60.0) == [None, 2.0, 2.0]
    assert "in use" not in (tmp_path / "run" / "slot-0.log").read_text()


def test_memory_that_is_never_given_back_holds_up_the_run_for_ever(run: Run, tmp_path: Path) -> None:
    assert run(600.0, 0.5) == [None, 60.0, 60.0]
    assert "asynctune: 59392 MiB more are in use on GPU-1111" in (tmp_path / "run" / "slot-0.log").read_text()
