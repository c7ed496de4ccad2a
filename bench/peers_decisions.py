"""Decisions of the libraries: each function fills a library's state, untimed, and returns the calls that are to be timed.

What each call does is what that library's own loop does when a report comes in, through its public methods. States that public
calls would take hours to fill (their cost per call grows with the state) are filled in their own data structures; the comments
say which. Written against ray 2.60, optuna 5.0, syne-tune 0.16, rustuna 0.2 and hyperopt 0.3, from their sources.
"""

import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from itertools import count
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

import asynctune as at

__all__ = ["ASHAS", "PBTS", "SUGGESTS", "Prepare", "Prepared"]

#: The eight hyperparameters of PBT and of the suggestions: bounds of the continuous ones, options of the others.
LOG = {"lr": (1e-5, 1e-1), "weight_decay": (1e-6, 1e-2), "epsilon": (1e-9, 1e-6)}
UNIFORM = {"momentum": (0.0, 1.0), "dropout": (0.0, 0.5), "beta": (0.5, 1.0)}
OPTIONS = {"activation": ["relu", "gelu", "tanh"], "optimizer": ["sgd", "adam"]}

SPACE = {
    **{name: at.loguniform(*bounds) for name, bounds in LOG.items()},
    **{name: at.uniform(*bounds) for name, bounds in UNIFORM.items()},
    **{name: at.choice(options) for name, options in OPTIONS.items()},
}


class Prepared(NamedTuple):
    """Calls to be timed, in this order, and what an answer says of each trial in it: it goes on (ASHA), it exploits (PBT)."""

    calls: Sequence[Callable[[], object]]
    yes: Callable[[Any], list[bool]]


#: Fills a library with the values of the first argument; returns the calls that bring those of the second.
Prepare = Callable[[Sequence[float], Sequence[float]], Prepared]


# ASHA: of a trial that reports at step 1, where `rung` is recorded already: does it go on? Smaller is better.


def asynctune_report(rung: Sequence[float], arriving: Sequence[float]) -> Prepared:
    asha = at.ASHA(max_resource=81).bind(mode="min", seed=0)
    asha.report_many(np.arange(len(rung)), np.ones(len(rung), dtype=np.int64), np.array(rung))
    calls = [partial(asha.report, trial, 1, loss) for trial, loss in enumerate(arriving, len(rung))]
    return Prepared(calls, lambda verdict: [verdict.action is at.Action.CONTINUE])


def asynctune_batch(rung: Sequence[float], arriving: Sequence[float]) -> Prepared:
    """All that arrive, in one call."""
    asha = at.ASHA(max_resource=81).bind(mode="min", seed=0)
    asha.report_many(np.arange(len(rung)), np.ones(len(rung), dtype=np.int64), np.array(rung))
    trials = np.arange(len(rung), len(rung) + len(arriving))
    return Prepared([partial(asha.report_many, trials, np.ones_like(trials), np.array(arriving))], list)


def asynctune_tell(rung: Sequence[float], arriving: Sequence[float]) -> Prepared:
    study = at.Study(
        {"x": at.uniform(0.0, 1.0)},
        metric="loss",
        mode="min",
        num_trials=None,
        scheduler=at.ASHA(max_resource=81),
        seed=0,
    )
    for loss in rung:
        study.tell(_asked(study), step=1, loss=loss)
    calls = [partial(study.tell, _asked(study), step=1, loss=loss) for loss in arriving]
    return Prepared(calls, lambda decision: [decision.action is at.Action.CONTINUE])


def _asked(study: at.Study) -> int:
    job = study.ask()
    assert job is not None
    return job.trial_id


def ray_asha(rung: Sequence[float], arriving: Sequence[float]) -> Prepared:
    from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler

    scheduler = AsyncHyperBandScheduler(metric="loss", mode="min", max_t=81, grace_period=1, reduction_factor=3)
    _, recorded = scheduler._brackets[0]._rungs[-1]  # trial -> score, larger is better
    recorded.update({f"t{trial}": -loss for trial, loss in enumerate(rung)})
    calls = []
    for number, loss in enumerate(arriving, len(rung)):
        trial = SimpleNamespace(trial_id=f"t{number}")
        scheduler.on_trial_add(None, trial)
        calls.append(partial(scheduler.on_trial_result, None, trial, {"training_iteration": 1, "loss": loss}))
    return Prepared(calls, lambda answer: [answer == TrialScheduler.CONTINUE])


def optuna_asha(rung: Sequence[float], arriving: Sequence[float]) -> Prepared:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3)
    study = optuna.create_study(direction="minimize", sampler=optuna.samplers.RandomSampler(seed=0), pruner=pruner)
    study.add_trials(
        optuna.create_trial(
            state=optuna.trial.TrialState.PRUNED,
            intermediate_values={1: loss},
            system_attrs={"completed_rung_0": loss},  # as the pruner records it
        )
        for loss in rung
    )

    def decide(trial: Any, loss: float) -> bool:
        trial.report(loss, 1)
        return bool(trial.should_prune())

    return Prepared([partial(decide, study.ask(), loss) for loss in arriving], lambda prune: [not prune])


def syne_tune_asha(rung: Sequence[float], arriving: Sequence[float]) -> Prepared:
    from syne_tune.backend.trial_status import Trial
    from syne_tune.config_space import uniform
    from syne_tune.optimizer.scheduler import SchedulerDecision
    from syne_tune.optimizer.schedulers.asha import AsynchronousSuccessiveHalving

    scheduler = AsynchronousSuccessiveHalving(
        {"x": uniform(0.0, 1.0)}, metric="loss", max_t=81, grace_period=1, reduction_factor=3, random_seed=0
    )
    _, recorded = scheduler.brackets[0].rungs[-1]
    recorded.update({trial: {"loss": loss} for trial, loss in enumerate(rung)})
    calls = []
    for number, loss in enumerate(arriving, len(rung)):
        trial = Trial(number, {"x": 0.5}, datetime.now())
        scheduler.on_trial_add(trial)
        calls.append(partial(scheduler.on_trial_result, trial, {"training_iteration": 1, "loss": loss}))
    return Prepared(calls, lambda answer: [answer == SchedulerDecision.CONTINUE])


# PBT: `population` members have reported after step 1 and one reports `arriving` after step 2: does it exploit, and with which
# configuration? An interval is one step, the quantile a quarter, the resample probability too. Larger is better.


def asynctune_study_pbt(population: Sequence[float], arriving: Sequence[float]) -> Prepared:
    """The study's whole path: `ask` decides on the member whose turn it is, `tell` records its next score."""
    study = at.Study(
        SPACE,
        metric="score",
        mode="max",
        num_trials=len(population),
        scheduler=at.PBT(perturbation_interval=1, max_resource=100),
        seed=0,
    )
    for score in population:
        study.tell(_asked(study), step=1, score=score)

    def decide(score: float) -> bool:
        job = study.ask()
        assert job is not None
        study.tell(job.trial_id, step=2, score=score)
        return job.donor is not None

    return Prepared([partial(decide, score) for score in arriving], lambda exploits: [exploits])


def asynctune_pbt(population: Sequence[float], arriving: Sequence[float]) -> Prepared:
    """The scheduler alone, as the study calls it: the next member, its donor, its configuration, its next score."""
    space = at.Space(SPACE)
    pbt = at.PBT(perturbation_interval=1, max_resource=100).bind(seed=0, num_trials=len(population), space=space)
    row = space.encode(
        {name: low for name, (low, _) in {**LOG, **UNIFORM}.items()} | {name: o[0] for name, o in OPTIONS.items()}
    )
    for member, score in enumerate(population):
        pbt.begin(member)
        pbt.report(member, 1, score)
        pbt.saved(member, 1, f"{member}-1")

    def decide(score: float) -> bool:
        turn = pbt.resumable()
        assert turn is not None
        pbt.resume(turn)
        if turn.donor is not None:
            pbt.explore(row, turn.trial, 1, turn.step)
        pbt.report(turn.trial, 2, score)
        pbt.saved(turn.trial, 2, f"{turn.trial}-2")
        pbt.released()
        return turn.donor is not None

    return Prepared([partial(decide, score) for score in arriving], lambda exploits: [exploits])


class _RayTrial:
    """What Ray's PBT uses of a trial, without the paths and placement groups of a real one (which cost it more)."""

    def __init__(self, number: int, config: dict[str, Any]) -> None:
        self.trial_id = f"t{number}"
        self.experiment_tag = ""
        self.status = "PAUSED"
        self.config = config
        self.evaluated_params: dict[str, Any] = {}
        manager = SimpleNamespace(checkpoint_config=SimpleNamespace(num_to_keep=None), _latest_checkpoint_result=None)
        self.run_metadata = SimpleNamespace(checkpoint_manager=manager)

    def __str__(self) -> str:
        return self.trial_id

    def is_finished(self) -> bool:
        return False

    def set_experiment_tag(self, tag: str) -> None:
        self.experiment_tag = tag

    def set_config(self, config: dict[str, Any]) -> None:
        self.config = config


class _RayController:
    """What Ray's PBT uses of its controller."""

    search_alg = None

    def __init__(self) -> None:
        self.trials: list[_RayTrial] = []

    def get_trials(self) -> list[_RayTrial]:
        return self.trials

    def pause_trial(self, trial: _RayTrial, should_checkpoint: bool) -> None:
        trial.status = "PAUSED"

    def _schedule_trial_save(self, trial: _RayTrial, result: object) -> object:
        return SimpleNamespace(path=trial.trial_id)


def ray_pbt(population: Sequence[float], arriving: Sequence[float]) -> Prepared:
    from ray import tune
    from ray.tune.schedulers import PopulationBasedTraining

    logging.getLogger("ray").setLevel(logging.WARNING)  # it logs every exploit
    space = {
        **{name: tune.loguniform(*bounds) for name, bounds in LOG.items()},
        **{name: tune.uniform(*bounds) for name, bounds in UNIFORM.items()},
        **OPTIONS,  # as lists: it multiplies what tune.choice has drawn
    }
    scheduler = PopulationBasedTraining(
        time_attr="training_iteration",
        metric="score",
        mode="max",
        perturbation_interval=1,
        hyperparam_mutations=space,
        log_config=False,  # it appends each exploit to two files
    )
    controller = _RayController()
    for number, score in enumerate(population):
        trial = _RayTrial(number, {})
        controller.trials.append(trial)
        scheduler.on_trial_add(controller, trial)
        state = scheduler._trial_state[trial]
        state.last_score = score
        state.last_train_time = state.last_perturbation_time = 1
        state.last_result = {"training_iteration": 1, "score": score}
        state.last_checkpoint = SimpleNamespace(path=trial.trial_id)

    def decide(trial: _RayTrial, score: float) -> bool:
        before, trial.status = scheduler._num_perturbations, "RUNNING"
        scheduler.on_trial_result(controller, trial, {"training_iteration": 2, "score": score})
        trial.status = "PAUSED"
        return bool(scheduler._num_perturbations > before)

    turns = random.Random(0).sample(controller.trials, len(arriving))
    return Prepared(
        [partial(decide, trial, score) for trial, score in zip(turns, arriving, strict=True)],
        lambda exploits: [exploits],
    )


def syne_tune_pbt(population: Sequence[float], arriving: Sequence[float]) -> Prepared:
    from syne_tune.backend.trial_status import Trial
    from syne_tune.config_space import choice, loguniform, uniform
    from syne_tune.optimizer.scheduler import SchedulerDecision
    from syne_tune.optimizer.schedulers.pbt import PopulationBasedTraining

    space = {
        **{name: loguniform(*bounds) for name, bounds in LOG.items()},
        **{name: uniform(*bounds) for name, bounds in UNIFORM.items()},
        **{name: choice(options) for name, options in OPTIONS.items()},
    }
    scheduler = PopulationBasedTraining(
        space,
        metric="score",
        time_attr="training_iteration",
        max_t=100,
        do_minimize=False,
        random_seed=0,
        population_size=len(population),
        perturbation_interval=1,
    )
    trials = []
    for number, score in enumerate(population):
        trial = Trial(number, scheduler.suggest().config, datetime.now())
        trials.append(trial)
        scheduler.on_trial_add(trial)
        state = scheduler.trial_state[number]
        state.last_score, state.last_perturbation_time = score, 1
    numbers = count(len(population))

    def decide(trial: Trial, score: float) -> bool:
        answer = scheduler.on_trial_result(trial, {"training_iteration": 2, "score": score})
        if answer != SchedulerDecision.STOP:
            return False
        scheduler.on_trial_add(Trial(next(numbers), scheduler.suggest().config, trial.creation_time))
        return True

    turns = random.Random(0).sample(trials, len(arriving))
    return Prepared(
        [partial(decide, trial, score) for trial, score in zip(turns, arriving, strict=True)],
        lambda exploits: [exploits],
    )


# Suggestions: one more trial, asked for and told, where `losses` have been observed at random configurations.


def asynctune_suggest(searcher: Any, losses: Sequence[float], arriving: Sequence[float]) -> Prepared:
    searcher = replace(searcher, startup=len(losses))
    study = at.Study(SPACE, metric="loss", mode="min", num_trials=None, searcher=searcher, seed=0)

    def trial(loss: float) -> bool:
        number = _asked(study)
        study.tell(number, step=1, loss=loss)
        study.finish(number)
        return True

    for loss in losses:
        trial(loss)
    return Prepared([partial(trial, loss) for loss in arriving], lambda told: [told])


def optuna_suggest(losses: Sequence[float], arriving: Sequence[float]) -> Prepared:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="minimize", sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(lambda trial: _optuna_objective(trial, losses[trial.number]), n_trials=len(losses))
    study.sampler = optuna.samplers.TPESampler(seed=0)
    return _optuna_suggest(study, arriving)


def rustuna_suggest(losses: Sequence[float], arriving: Sequence[float]) -> Prepared:
    import rustuna

    storage = rustuna.storages.InMemoryStorage()
    study = rustuna.create_study(
        study_name="s", storage=storage, direction="minimize", sampler=rustuna.samplers.RandomSampler(seed=0)
    )
    study.optimize(lambda trial: _optuna_objective(trial, losses[trial.number]), n_trials=len(losses))
    sampler = rustuna.samplers.TPESampler(seed=0)
    return _optuna_suggest(rustuna.load_study(study_name="s", storage=storage, sampler=sampler), arriving)


def _optuna_objective(trial: Any, loss: float) -> float:
    """Optuna's face, which Rustuna shares."""
    for name, (low, high) in LOG.items():
        trial.suggest_float(name, low, high, log=True)
    for name, (low, high) in UNIFORM.items():
        trial.suggest_float(name, low, high)
    for name, options in OPTIONS.items():
        trial.suggest_categorical(name, options)
    return loss


def _optuna_suggest(study: Any, arriving: Sequence[float]) -> Prepared:
    def trial(loss: float) -> bool:
        asked = study.ask()
        study.tell(asked.number, _optuna_objective(asked, loss))
        return True

    return Prepared([partial(trial, loss) for loss in arriving], lambda told: [told])


def hyperopt_suggest(losses: Sequence[float], arriving: Sequence[float]) -> Prepared:
    from hyperopt import STATUS_OK, Trials, hp, rand, tpe
    from hyperopt.base import JOB_STATE_DONE, Domain

    space = {
        **{name: hp.loguniform(name, *np.log(bounds)) for name, bounds in LOG.items()},
        **{name: hp.uniform(name, *bounds) for name, bounds in UNIFORM.items()},
        **{name: hp.choice(name, options) for name, options in OPTIONS.items()},
    }
    domain, trials, seeds = Domain(lambda config: 0.0, space), Trials(), count()

    def trial(loss: float) -> bool:
        documents = tpe.suggest(trials.new_trial_ids(1), domain, trials, next(seeds))
        documents[0].update(state=JOB_STATE_DONE, result={"status": STATUS_OK, "loss": loss})
        trials.insert_trial_docs(documents)
        trials.refresh()
        return True

    documents = rand.suggest(trials.new_trial_ids(len(losses)), domain, trials, next(seeds))
    for document, loss in zip(documents, losses, strict=True):
        document.update(state=JOB_STATE_DONE, result={"status": STATUS_OK, "loss": loss})
    trials.insert_trial_docs(documents)
    trials.refresh()
    return Prepared([partial(trial, loss) for loss in arriving], lambda told: [told])


#: What a row of a table is called: the module that it needs, and how it is prepared.
ASHAS = {
    "asynctune, report": ("asynctune", asynctune_report),
    "asynctune, report_many": ("asynctune", asynctune_batch),
    "asynctune, Study.tell": ("asynctune", asynctune_tell),
    "Ray AsyncHyperBandScheduler.on_trial_result": ("ray", ray_asha),
    "Optuna SuccessiveHalvingPruner, report + should_prune": ("optuna", optuna_asha),
    "Syne Tune AsynchronousSuccessiveHalving.on_trial_result": ("syne_tune", syne_tune_asha),
}
PBTS = {
    "asynctune, scheduler alone": ("asynctune", asynctune_pbt),
    "asynctune, Study.ask + tell": ("asynctune", asynctune_study_pbt),
    "Ray PopulationBasedTraining.on_trial_result": ("ray", ray_pbt),
    "Syne Tune PopulationBasedTraining, on_trial_result + suggest": ("syne_tune", syne_tune_pbt),
}
SUGGESTS: dict[str, tuple[str, Prepare]] = {
    "asynctune TPE, ask + tell + finish": ("asynctune", partial(asynctune_suggest, at.TPE())),
    "asynctune TPE(multivariate=True)": ("asynctune", partial(asynctune_suggest, at.TPE(multivariate=True))),
    "asynctune HyperOpt, ask + tell + finish": ("asynctune", partial(asynctune_suggest, at.HyperOpt())),
    "hyperopt tpe.suggest": ("hyperopt", hyperopt_suggest),
    "Optuna TPESampler, ask + tell": ("optuna", optuna_suggest),
    "Rustuna TPESampler, ask + tell": ("rustuna", rustuna_suggest),
}
