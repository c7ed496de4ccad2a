"""Programs: 20 trivial trials with two workers, one script per library, each run as a whole process.

Every script is a complete program in the library's usual form; what was set apart from its defaults is commented. `seconds` runs one
and takes the time from its start to its end. Nothing that it started outlives the measurement.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

__all__ = ["PROGRAMS", "Program", "ProgramFailed", "seconds"]

TIMEOUT = 180.0  # seconds

ASYNCTUNE = """
import asynctune as at

def train(trial):
    return trial.config["x"]

if __name__ == "__main__":
    at.run(train, {"x": at.uniform(0.0, 1.0)}, metric="score", mode="max", num_trials=20, slots=2, run_dir="run",
           progress=False)
"""

POOL = """
import random
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

def train(x):
    return x

if __name__ == "__main__":
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        max(pool.map(train, [random.random() for _ in range(20)]))
"""

OPTUNA_JOURNAL = """
from multiprocessing import Process

import optuna
from optuna.storages.journal import JournalFileBackend

def train(trial):
    return trial.suggest_float("x", 0.0, 1.0)

def storage():
    return optuna.storages.JournalStorage(JournalFileBackend("journal.log"))

def work():
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.load_study(study_name="s", storage=storage(), sampler=optuna.samplers.RandomSampler())
    study.optimize(train, n_trials=10)

if __name__ == "__main__":
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(study_name="s", storage=storage(), direction="maximize")
    workers = [Process(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(study.trials) == 20
"""

OPTUNA_THREADS = """
import optuna

def train(trial):
    return trial.suggest_float("x", 0.0, 1.0)

optuna.logging.set_verbosity(optuna.logging.WARNING)
study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler())
study.optimize(train, n_trials=20, n_jobs=2)
assert len(study.trials) == 20
"""

RUSTUNA_JOURNAL = """
from multiprocessing import Process

import rustuna

def train(trial):
    return trial.suggest_float("x", 0.0, 1.0)

def work():
    storage = rustuna.storages.JournalFileStorage("journal.log")
    study = rustuna.load_study(study_name="s", storage=storage, sampler=rustuna.samplers.RandomSampler())
    study.optimize(train, n_trials=10)

if __name__ == "__main__":
    storage = rustuna.storages.JournalFileStorage("journal.log")
    study = rustuna.create_study(study_name="s", storage=storage, direction="maximize")
    workers = [Process(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(study.trials) == 20
"""

# One after the other: fmin runs trials at a time only with Spark or MongoDB.
HYPEROPT = """
from hyperopt import fmin, hp, rand

fmin(lambda x: -x, hp.uniform("x", 0.0, 1.0), algo=rand.suggest, max_evals=20, show_progressbar=False)
"""

# sleep_time: 0.1 s between two looks at the trials, where the default is 5 s (then it takes a minute).
SYNE_TUNE = """
import sys

if len(sys.argv) > 1:  # a trial
    from argparse import ArgumentParser

    from syne_tune import Reporter

    parser = ArgumentParser()
    parser.add_argument("--x", type=float)
    Reporter()(score=parser.parse_known_args()[0].x)
else:
    import logging

    from syne_tune import StoppingCriterion, Tuner
    from syne_tune.backend import LocalBackend
    from syne_tune.config_space import uniform
    from syne_tune.optimizer.baselines import RandomSearch

    logging.getLogger().setLevel(logging.WARNING)
    scheduler = RandomSearch({"x": uniform(0.0, 1.0)}, metrics=["score"], do_minimize=False)
    stop = StoppingCriterion(max_num_trials_completed=20)
    tuner = Tuner(LocalBackend(__file__), scheduler, stop, n_workers=2, sleep_time=0.1)
    tuner.run()
    assert tuner.tuning_status.num_trials_finished >= 20
"""

RAY = """
import os

import ray
from ray import tune

def train(config):
    return {"score": config["x"]}

if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, _temp_dir=os.getcwd() + "/ray")
    tuner = tune.Tuner(
        train,
        param_space={"x": tune.uniform(0.0, 1.0)},
        tune_config=tune.TuneConfig(num_samples=20, metric="score", mode="max", reuse_actors=REUSE),
        run_config=tune.RunConfig(storage_path=os.getcwd() + "/results", verbose=0),
    )
    results = tuner.fit()
    assert len(results) == 20 and not results.errors
"""

#: The libraries write into the run's own folder, and nobody is told of it.
ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "SYNETUNE_FOLDER": "syne-tune"}


class Program(NamedTuple):
    """A script, the module that it needs, and whether it takes so long that one run is enough."""

    module: str
    script: str
    long: bool = False


PROGRAMS = {
    "asynctune, journal on": Program("asynctune", ASYNCTUNE),
    "ProcessPoolExecutor(spawn), results only": Program("concurrent.futures", POOL),
    "Optuna, journal file, 2 processes": Program("optuna", OPTUNA_JOURNAL),
    "Optuna, in memory, n_jobs=2 (threads)": Program("optuna", OPTUNA_THREADS),
    "Rustuna, journal file, 2 processes": Program("rustuna", RUSTUNA_JOURNAL),
    "hyperopt fmin, one after the other": Program("hyperopt", HYPEROPT),
    "Syne Tune LocalBackend, sleep_time 0.1 s": Program("syne_tune", SYNE_TUNE, long=True),
    "Ray Tune": Program("ray", RAY.replace("REUSE", "False"), long=True),
    "Ray Tune, reuse_actors": Program("ray", RAY.replace("REUSE", "True"), long=True),
}


class ProgramFailed(Exception):
    """A script did not end as it should; the message ends with the last line that it wrote."""


def seconds(program: Program) -> float:
    """The wall time of a script in a process, a session and a folder of its own.

    Raises:
        ProgramFailed: its exit status is not 0; after TIMEOUT it is ended.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        script, output = Path(folder, "script.py"), Path(folder, "output")
        script.write_text(program.script, encoding="utf-8")
        with output.open("wb") as file:
            began = time.perf_counter()
            process = subprocess.Popen(
                [sys.executable, str(script)],
                cwd=folder,
                env=os.environ | ENVIRONMENT,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            # wait(TIMEOUT) would look at the process every 50 ms only.
            alarm = threading.Timer(TIMEOUT, _end, [process])
            alarm.start()
            try:
                status = process.wait()
                took = time.perf_counter() - began
            finally:
                alarm.cancel()
                _end(process)
        if status != 0:
            lines = output.read_text(encoding="utf-8", errors="replace").split("\n")
            last = next((line for line in reversed(lines) if line.strip()), "no output")
            raise ProgramFailed(f"status {status} after {took:.1f} s: {last}")
    return took


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End the script, if it still runs, and whatever is left of its session."""
    if process.poll() is None:
        process.terminate()  # Ray ends its own processes then
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
