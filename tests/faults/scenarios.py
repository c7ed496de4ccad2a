"""Scenarios: runs that come out the same however often they are broken off, and know when they do not.

A trial's whole state is a chain: each step goes into it with its number and the configuration, in order. Scores depend on all of it, so
that a step lost or taken twice, a donor mistaken for another or a configuration changed on the way shows in every report that follows.
"""

import functools
import json
import os
import time
import zlib
from typing import Any

import numpy as np

import asynctune as at

__all__ = ["SCENARIOS", "Chain", "arguments", "train"]

SPACE = {
    "lr": at.loguniform(1e-3, 1.0),
    "momentum": at.uniform(0.0, 1.0),
    "units": at.ordinal([16, 32, 64]),
    "layer": at.choice(["plain", {"leak": at.uniform(0.0, 0.5)}]),
    "rounds": 3,
}

SCHEDULE = [
    (step, {"lr": lr, "momentum": 0.5, "units": 32, "layer": layer, "rounds": 3})
    for step, lr, layer in [(0, 0.5, "plain"), (2, 0.1, "plain"), (5, 0.1, {"leak": 0.25})]
]

#: By name, what is special about a run.
SCENARIOS: dict[str, dict[str, Any]] = {
    "random": {"num_trials": 5, "max_failures": 1},
    "hyperopt": {"num_trials": 7, "searcher": at.HyperOpt(startup=3)},
    "asha": {"num_trials": 9, "scheduler": at.ASHA(9)},
    "promotion": {"num_trials": 9, "scheduler": at.ASHA(9, type="promotion")},
    "halving": {"num_trials": 9, "scheduler": at.Hyperband(9, brackets=1, synchronous=True)},
    "pbt": {"num_trials": 4, "scheduler": at.PBT(2, 8, synchronous=False)},
    "barrier": {"num_trials": 4, "scheduler": at.PBT(2, 8, synchronous=True)},
    "schedule": {"num_trials": 3, "scheduler": at.Replay(SCHEDULE, max_resource=8)},
    "bohb": {"num_trials": 9, "searcher": at.TPE(startup=3), "scheduler": at.Hyperband(9)},
}

STEPS = 4  # of a trial, where no scheduler says
POISON = 2  # the trial that always fails at its second step, where failures are forgiven


def arguments(scenario: str) -> dict[str, Any]:
    """Of `at.run`, but for where and with what it runs."""
    special = SCENARIOS[scenario]
    bound = functools.partial(
        train, stop=None if "scheduler" in special else STEPS, poison=POISON if "max_failures" in special else None
    )
    return {"train": bound, "space": SPACE, "metric": "score", "mode": "max", "progress": False} | special


class Chain:
    """The state of a trial."""

    def __init__(self) -> None:
        self.step = 0
        self.link = 0
        self.weights = np.zeros(2)

    def advance(self, config: dict[str, Any]) -> None:
        """Take one step."""
        self.step += 1
        self.link = zlib.crc32(json.dumps([self.link, self.step, config], sort_keys=True).encode())
        self.weights = 0.9 * self.weights + config["lr"] * np.array([self.step, 1.0 / self.step])

    def metrics(self, config: dict[str, Any]) -> dict[str, float]:
        """What it reports now."""
        score = float(self.weights.sum()) - 2 * (config["momentum"] - 0.3) ** 2 + self.link / 2**40
        return {"score": score, "link": float(self.link)}

    # Lists, not arrays: where torch is loaded, by another test, it makes the checkpoints, and arrays are foreign to it.
    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "link": self.link, "weights": self.weights.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step, self.link, self.weights = state["step"], state["link"], np.array(state["weights"])


def train(trial: at.Trial, stop: int | None, poison: int | None) -> None:
    chain = Chain()
    trial.track(chain=chain)
    assert chain.step == trial.step, f"the state of step {chain.step} for step {trial.step}"
    note(f"{trial.id} {trial.step}")
    pace = float(os.environ.get("FAULTS_PACE", "0"))
    for step in trial.steps(stop):
        time.sleep(pace)
        if trial.id == poison and step == 2:
            raise ValueError("poison")
        chain.advance(trial.config)
        trial.report(chain.metrics(trial.config))


def note(line: str) -> None:
    """Write down that user code began, outside of the run."""
    path = os.environ.get("FAULTS_NOTES")
    if path is not None:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(descriptor, f"{line}\n".encode())
        os.close(descriptor)
