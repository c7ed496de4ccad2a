"""Limits: what the core holds when it is large, and what it gives back."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

import asynctune
from asynctune.schedulers import ASHA

# Every array that the core allocates, each of 4 kB or more.
LAPS = """
import ctypes, gc, pickle
import numpy as np
from asynctune._core import CHOICE, LINEAR, SAMPLE, Generations, Ladder, Parzen, Stream, Table
from asynctune.errors import InvalidArgument
from asynctune.records import COMPLETED, FAILED
from asynctune.schedulers import ASHA, PBT
from asynctune.space import Space, uniform

SPACE = Space({"x": uniform(0.0, 1.0)})

class Held(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "arena a b c mapped d e used f g".split()]

def held():
    gc.collect()
    counted = mallinfo2()
    return counted.used + counted.mapped

def refused(call, *arguments):
    try:
        call(*arguments)
    except (InvalidArgument, TypeError):
        return
    raise AssertionError(arguments)

def halving(kind, brackets):
    bound = ASHA(27, brackets=brackets, type=kind).bind(seed=1)
    trials, ones = np.arange(10_000), np.ones(10_000, dtype=np.int64)
    bound.report_many(trials, ones, trials / 7)
    bound.promote_many(10)
    for trial in range(9_990, 10_010):
        bound.report(trial, 3, 1.0)
        bound.saved(trial, 3, None)
    bound.resumable()
    bound.finish(5, FAILED)
    refused(bound.report_many, trials - 1, ones, trials / 7)
    refused(bound.report_many, trials[:-1], ones, trials / 7)
    refused(bound.promote_many, -1)
    refused(bound.report, -1, 1, 0.0)

def truncation(synchronous):
    bound = PBT(1, 2000, synchronous=synchronous).bind(num_trials=600, space=SPACE)
    for member in range(600):
        depth = 1 + member % 300
        bound.report(member, depth, float(member))
        bound.saved(member, depth, f"{member}")
    while (resumption := bound.resumable()) is not None:
        bound.resume(resumption)
    bound.released()
    for member in range(599):
        bound.finish(member, COMPLETED)
    refused(bound.saved, 600, 1, "nobody")

def windows(table):
    parzen = Parzen(table)
    for trial in range(300):
        parzen.put(trial, table.sample(Stream(1, SAMPLE, trial)), trial < 20)
    for trial in range(0, 300, 3):
        parzen.drop(trial)
    parzen.suggest(1, 300, 2)
    refused(Parzen, table, -1.0)
    refused(parzen.put, 1, np.zeros(3), False)

def lap():
    columns = [CHOICE, LINEAR] * 100, [0] * 200, [3] * 200, [0] * 200, [-1] * 200, [0] * 200
    table = pickle.loads(pickle.dumps(Table(*columns)))
    row = table.sample(Stream(1, SAMPLE))
    table.explore(row, Stream(1, SAMPLE), 0.5, 1.2)
    refused(table.explore, row[1:], Stream(1, SAMPLE), 0.5, 1.2)
    refused(Table, columns[0], [9] * 200, *columns[2:])
    refused(Ladder, [3, 1], 3)
    refused(Generations, 1000, 2000, 0.7, 1, False)
    for kind in ("stopping", "promotion"):
        halving(kind, 1)
        halving(kind, 3)
    truncation(False)
    truncation(True)
    windows(table)

mallinfo2 = ctypes.CDLL(None).mallinfo2
mallinfo2.restype = Held
for _ in range(10):
    lap()
before = held()
for _ in range(50):
    lap()
print((held() - before) / 50)
"""


def test_core_keeps_memory() -> None:
    environment = {
        "PYTHONPATH": str(Path(asynctune.__file__).parent.parent),
        "PYTHONMALLOC": "malloc",  # counted with the rest
        "GLIBC_TUNABLES": "glibc.malloc.tcache_count=0",  # what that keeps would count as held
    }
    run = subprocess.run(
        [sys.executable, "-P", "-c", LAPS], env=os.environ | environment, capture_output=True, text=True, check=False
    )
    if "mallinfo2" in run.stderr:
        pytest.skip("needs glibc, which counts what it has given")
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) < 2000  # bytes per lap; some, since a freed block may be given again to who needs less


# realloc and calloc that fail once, when their turn comes: SHIM is loaded ahead of the C library.
SHIM = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
long left = -1;
void *realloc(void *old, size_t size) {
    static void *(*real)(void *, size_t);
    if (!real) real = dlsym(RTLD_NEXT, "realloc");
    return left >= 0 && left-- == 0 ? NULL : real(old, size);
}
"""

SHORTAGES = """
import ctypes, os, sys
import numpy as np
from asynctune.schedulers import ASHA, PBT
from asynctune._core import Parzen
from asynctune.space import Space, uniform

left = ctypes.c_long.in_dll(ctypes.CDLL(os.environ["LD_PRELOAD"]), "left")
space = Space({"x": uniform(0.0, 1.0)})
rng = np.random.default_rng(0)
trials, steps, values = rng.permutation(600), rng.choice([1, 1, 3], 600), rng.integers(0, 50, 600).astype(float)

def persistently(call, *arguments):
    global turn, shortages
    while True:
        try:
            left.value = turn
            return call(*arguments)
        except MemoryError:
            shortages += 1
        finally:
            turn, left.value = left.value, -1

def halving(kind, together):
    bound = ASHA(27, brackets=2, type=kind).bind(seed=1)
    if together:
        persistently(bound.report_many, trials, steps, values)
    else:
        for trial, step, value in zip(trials.tolist(), steps.tolist(), values.tolist()):
            persistently(bound.report, trial, step, value)
            persistently(bound.saved, trial, step, None)
            if trial % 50 == 0:
                persistently(bound.finish, trial, True)
    return bound.promote_many(600).tolist(), [bound.begin(trial) for trial in range(600)]

def truncation(synchronous):
    bound = PBT(1, 20, synchronous=synchronous).bind(num_trials=200, space=space)
    for depth in (1, 2):
        for member in range(200):
            persistently(bound.report, member, depth, values[member])
            persistently(bound.saved, member, depth, f"{member}-{depth}")
        turns = []
        while (resumption := bound.resumable()) is not None:
            turns.append(resumption)
            bound.resume(resumption)
    return turns, bound.released()

def windows():
    parzen = Parzen(space.table)
    for trial in trials.tolist():
        persistently(parzen.put, trial, values[trial : trial + 1] / 50, trial % 30 == 0)
    return persistently(parzen.suggest, 1, 600, 5).tolist(), parzen.state()

for case in [(halving, "stopping", True), (halving, "promotion", True), (halving, "stopping", False),
             (halving, "promotion", False), (truncation, True), (truncation, False), (windows,)]:
    seen = {}
    for chosen in (-1, *range(200)):
        shortages, turn = 0, chosen
        seen[chosen] = case[0](*case[1:])
        assert seen[chosen] == seen[-1], (case, chosen)
        if chosen >= 0 and not shortages:
            break
    assert len(seen) > 5, case
"""


def test_a_decision_is_another_once_memory_was_short(tmp_path: Path) -> None:
    (tmp_path / "shim.c").write_text(SHIM, encoding="utf-8")
    shim = tmp_path / "shim.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", shim, tmp_path / "shim.c", "-ldl"], check=True)
    environment = os.environ | {"LD_PRELOAD": str(shim)}
    run = subprocess.run(
        [sys.executable, "-c", SHORTAGES], env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["stopping", "promotion"])
def test_ten_million_results_at_one_rung_are_too_many(kind: Literal["stopping", "promotion"]) -> None:
    n, part = 10_000_000, 1_000_000
    bound = ASHA(9, type=kind).bind(mode="min", seed=0)
    drawn = np.random.default_rng(0)
    trials, values = drawn.permutation(n), drawn.permutation(n) / n
    ones = np.ones(part, dtype=np.int64)
    going = np.concatenate(
        [bound.report_many(trials[i : i + part], ones, values[i : i + part]) for i in range(0, n, part)]
    )
    if kind == "promotion":
        assert not going.any()
        promoted = bound.promote_many(n)
        assert len(promoted) == n // 3
        assert np.array_equal(promoted, trials[np.argsort(values)[: n // 3]])
    else:
        # The value that is drawn last goes on iff it is among the best third of all.
        assert np.array_equal(going[-1000:], values[-1000:] < 1 / 3)
        assert abs(going.mean() - 1 / 3) < 0.01
