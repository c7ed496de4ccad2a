"""What multiprocessing sends from a worker: classes and functions of the user's script, by real scripts with every start method."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent

RUN = """
if __name__ == "__main__":
    result = at.run(
        train, {"x": at.uniform(0.0, 1.0)}, metric="score", mode="max", num_trials=TRIALS, slots=1,
        run_dir=sys.argv[1], progress=False,
    )
    print(json.dumps([(trial.error, trial.reports[-1]["score"] if trial.reports else None) for trial in result.trials]))
"""


def trials(tmp_path: Path, script: str, number: int) -> list[Any]:
    """What the trials of a script came to: their errors and last scores."""
    path = tmp_path / "script.py"
    path.write_text(script + RUN.replace("TRIALS", str(number)))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    arguments = [sys.executable, str(path), str(tmp_path / "run")]
    run = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False, timeout=110)
    assert run.returncode == 0, run.stderr
    log = (tmp_path / "run" / "slot-0.log").read_text()
    assert log == "", log
    return list(json.loads(run.stdout))


PROCESSES = """
import json, multiprocessing, os, sys
from dataclasses import dataclass

import asynctune as at

factor = 1

@dataclass
class Item:
    value: int

    def doubled(self):
        return Item(2 * self.value * factor)  # a class of the script's on its way back

def begin():
    global factor
    factor = 10

def work(begin, item, answers, method, deeper):
    begin()
    if deeper:
        inner = multiprocessing.get_context(method).Process(target=work, args=(begin, item, answers, method, False))
        inner.start()
        inner.join()
    else:
        answers.put((item.doubled(), os.getpid()))

def train(trial):
    sum = 0
    for method in ("fork", "spawn", "forkserver"):
        context = multiprocessing.get_context(method)
        for deeper in (False, True):
            answers = context.Queue()
            process = context.Process(target=work, args=(begin, Item(3), answers, method, deeper))
            process.start()
            item, pid = answers.get(timeout=60)
            process.join()
            assert type(item) is Item
            assert pid != os.getpid()
            sum += item.value
            pipe, other = context.Pipe()
            process = context.Process(target=lambda pipe: pipe.send(lambda: 7), args=(other,))
            process.start()
            sum += pipe.recv()()
            process.join()
    return sum
"""


def test_what_a_script_defines_is_not_sent(tmp_path: Path) -> None:
    assert trials(tmp_path, PROCESSES, 2) == [[None, 6 * 67.0]] * 2


def test_a_function_that_uses_torch_distributed_and_a_config_is_not_sent() -> None:
    code = """
import torch.distributed, torch.distributed.config, pickle
from asynctune.worker.pickler import dumps

def train(trial):
    return torch.distributed.is_initialized(), trial.config

other = pickle.loads(dumps(train))
assert other is not train
assert other.__globals__["torch"] is torch
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=110)


LOADERS = """
import collections, json, os, sys

import torch
from torch.utils.data import DataLoader, Dataset

import asynctune as at
from tests.proctable import family

Batch = collections.namedtuple("Batch", "x offset")
offset = 0

class Squares(Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        return Batch(torch.tensor(float(index * index)), offset)

def begin(worker):
    global offset
    offset = 5

def command(pid):
    return open(f"/proc/{pid}/cmdline").read()

def train(trial):
    loader = DataLoader(
        Squares(), batch_size=4, num_workers=1, persistent_workers=True, worker_init_fn=begin,
        multiprocessing_context=("fork", "spawn", "forkserver")[trial.id // 2],
        collate_fn=lambda items: Batch(torch.stack([item.x for item in items]), [item.offset for item in items]),
    )
    helpers = {pid for pid in family(os.getpid()) if "resource_tracker" in command(pid) or "forkserver" in command(pid)}
    assert family(os.getpid()) == helpers | {os.getpid()}  # nothing is left of the last trial
    for epoch in trial.steps(2):
        total = 0.0
        for batch in loader:
            assert type(batch) is Batch
            assert batch.offset == [5] * 4
            total += batch.x.sum().item()
        trial.report(score=total)
"""


@pytest.mark.slow
def test_a_data_loader_does_not_work_in_a_worker(tmp_path: Path) -> None:
    assert trials(tmp_path, LOADERS, 6) == [[None, 140.0]] * 6
