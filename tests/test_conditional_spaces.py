"""Hyperparameters that exist in one branch of a choice only, with every searcher and every scheduler."""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import asynctune as at
from asynctune._core import CHOICE
from asynctune.schedulers import Scheduler
from asynctune.searchers import Searcher
from tests.methods import SCHEDULERS, SEARCHERS, schedulers, searchers

SPACE = at.Space(
    {
        "rate": at.loguniform(1e-4, 1e-1),
        "model": at.choice(
            [
                {
                    "kind": "net",
                    "layers": at.randint(1, 5),
                    "optimizer": at.choice(
                        [
                            {"name": "sgd", "momentum": at.uniform(0.0, 0.99)},
                            {"name": "adam", "decay": at.ordinal([0, 1])},
                        ]
                    ),
                },
                {"kind": "tree", "depth": at.lograndint(1, 33)},
                "mean",
            ]
        ),
    }
)


def shape(config: dict[str, Any]) -> str:
    """Which branches a configuration is of; it has all that belongs there, in bounds, and nothing else."""
    assert config.keys() == {"rate", "model"}
    assert 1e-4 <= config["rate"] <= 1e-1
    model = config["model"]
    if model == "mean":
        return "mean"
    if model["kind"] == "tree":
        assert model.keys() == {"kind", "depth"}
        assert model["depth"] in range(1, 33) and type(model["depth"]) is int
        return "tree"
    assert model.keys() == {"kind", "layers", "optimizer"}
    assert model["kind"] == "net" and model["layers"] in range(1, 5)
    optimizer = model["optimizer"]
    if optimizer["name"] == "sgd":
        assert optimizer.keys() == {"name", "momentum"} and 0.0 <= optimizer["momentum"] <= 0.99
        return "net sgd"
    assert optimizer.keys() == {"name", "decay"} and optimizer["name"] == "adam" and optimizer["decay"] in (0, 1)
    return "net adam"


SHAPES = {"mean": 0.5, "tree": 0.3, "net sgd": 0.0, "net adam": 0.2}


def drive(study: at.Study, at_a_time: int = 4) -> list[at.Assignment]:
    """Run a study to its end, some trials at a time in turn; what was handed out."""
    handed: list[at.Assignment] = []
    running: dict[int, tuple[int, dict[str, Any]]] = {}  # trial -> its last step and its configuration
    while not study.done:
        while len(running) < at_a_time and (job := study.ask()):
            handed.append(job)
            running[job.trial_id] = job.start_step, job.config
        trial = next(iter(running))
        step, config = running.pop(trial)
        loss = SHAPES[shape(config)] + abs(np.log10(config["rate"]) + 2.5) / (step + 1)
        decision = study.tell(trial, step=step + 1, loss=float(loss))
        if decision.action is at.Action.CONTINUE:
            if step + 1 == 9:
                study.finish(trial)
            else:
                running[trial] = step + 1, config
    return handed


@searchers
@schedulers
def test_a_configuration_mixes_branches(searcher: Callable[[], Searcher], scheduler: Callable[[], Scheduler]) -> None:
    spec: Any = scheduler()
    study = at.Study(
        SPACE, metric="loss", mode="min", num_trials=60, searcher=searcher(), scheduler=spec, seed=1, num_slots=4
    )
    handed = drive(study)
    configs = {(job.trial_id, job.segment): job.config for job in handed}
    assert {trial for trial, _ in configs} == set(range(60))
    assert {shape(config) for config in configs.values()} == SHAPES.keys()
    for config in configs.values():
        SPACE.check(config)
    exploits = [job for job in handed if job.donor is not None]
    assert bool(exploits) == hasattr(spec, "perturbation_interval")
    for job in exploits:
        assert job.restore_from is not None
        trial, segment, _ = map(int, job.restore_from.split("-"))
        assert spec.resample_probability or shape(job.config) == shape(configs[trial, segment]), (
            "explore left the branch"
        )


@pytest.mark.parametrize(("kind", "listed"), [(Searcher, SEARCHERS), (Scheduler, SCHEDULERS)])
def test_a_public_method_is_missing_here(kind: type, listed: dict[str, Callable[[], Any]]) -> None:
    public = {value for value in map(at.__getattr__, at.__all__) if inspect.isclass(value) and issubclass(value, kind)}
    named = {at.Optuna if name == "optuna" else type(make()) for name, make in listed.items()}
    assert named == public - {at.Replay}


@pytest.mark.parametrize("sampler", ["RandomSampler", "CmaEsSampler", "NSGAIISampler", "QMCSampler"])
def test_another_sampler_mixes_branches(sampler: str) -> None:
    study = at.Study(SPACE, metric="loss", mode="min", num_trials=30, searcher=at.Optuna(sampler), seed=1)
    shapes = {shape(job.config) for job in drive(study)}
    assert len(shapes) >= 3


def test_no_choice_lies_within_a_choice() -> None:
    choices = [column for column in SPACE.columns if column.kind == CHOICE]
    assert [column.parent for column in choices] == [-1, SPACE.names.index("model")]
