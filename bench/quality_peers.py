"""Peers: other libraries' searchers and schedulers under a clock with the rules of at.simulate, through their public objects.

A slot takes a configuration, trains it step by step and reports after each; the peer says whether the trial goes on. What a user may
leave at its default is left there, but for the number of steps and the seed, so Ray's ASHA and Optuna's successive halving keep a quarter and
all others a third. Where a peer's scheduler comes with random search, the draws are those of at.Random with the same seed. Written against ray
2.60, optuna 5.0, syne-tune 0.16 and hyperopt 0.3.
"""

import heapq
import math
from collections.abc import Callable
from datetime import datetime
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np

from asynctune._core import CHOICE, LINEAR, LOG, ORDINAL
from asynctune.searchers.base import Row
from asynctune.searchers.random import draw
from asynctune.searchers.silence import silence
from asynctune.space import Column, Space, assemble, nearest
from quality_methods import STEPS, Report, Run, Task

__all__ = ["PEERS", "Peer", "clocked", "driven", "installed"]


class Peer(Protocol):
    """A searcher and a scheduler at work."""

    def suggest(self, trial: int) -> Row:
        """A new trial starts. Return its row (d,)."""

    def report(self, trial: int, step: int, value: float) -> bool:
        """A trial's value after a step. Return whether it goes on, if that was not the last one."""

    def end(self, trial: int, value: float, stopped: bool) -> None:
        """A trial has ended with a last value: of itself, or since it was stopped."""


def clocked(peer: Peer, task: Task, run: Run) -> tuple[list[Report], int]:
    """What the trials of a peer report until the budget is used up, and how many there are."""
    benchmark, budget, num_trials = run.benchmark(task), run.budget(task), run.num_trials(task) or math.inf
    reports: list[Report] = []
    events: list[tuple[float, int, int]] = []  # when a step of a trial is over, the trial, the step
    running: dict[int, tuple[list[float], list[float], float]] = {}  # trial -> its curve, and when it began
    trials = 0

    def start(now: float) -> None:
        nonlocal trials
        if trials < num_trials:
            config = benchmark.space.decode(peer.suggest(trials))
            values, seconds = benchmark.evaluate(config, trials)
            running[trials] = values, seconds, now
            heapq.heappush(events, (now + seconds[0], trials, 1))
            trials += 1

    for _ in range(run.slots):
        start(0.0)
    while events and events[0][0] <= budget:
        now, trial, step = events[0]
        values, seconds, began = running[trial]
        value = values[step - 1]
        reports.append((now, value))
        goes_on = peer.report(trial, step, value)
        if goes_on and step < STEPS:
            heapq.heapreplace(events, (max(now, began + seconds[step]), trial, step + 1))
        else:
            heapq.heappop(events)
            del running[trial]
            peer.end(trial, value, not goes_on)
            start(now)
    return reports, trials


class _Random:
    def __init__(self, space: Space, seed: int) -> None:
        self._table = space.table
        self._seed = seed

    def suggest(self, trial: int) -> Row:
        return draw(self._table, self._seed, trial)

    def end(self, trial: int, value: float, stopped: bool) -> None:
        pass


class _HyperOpt:
    """hyperopt, asked as its fmin asks; of what runs it knows nothing."""

    def __init__(self, space: Space, seed: int) -> None:
        from hyperopt import Domain, Trials

        self._columns = space.columns
        self._space = _hyperopt_space(space.columns)
        self._domain = Domain(lambda config: 0.0, self._space)
        self._trials = Trials()
        self._random = np.random.default_rng(seed)
        self._running: dict[int, Any] = {}

    def suggest(self, trial: int) -> Row:
        from hyperopt import space_eval, tpe
        from hyperopt.base import JOB_STATE_RUNNING

        ids = self._trials.new_trial_ids(1)
        self._trials.refresh()
        [document] = tpe.suggest(ids, self._domain, self._trials, int(self._random.integers(2**31 - 1)), verbose=False)
        document["state"] = JOB_STATE_RUNNING
        self._trials.insert_trial_docs([document])
        self._trials.refresh()
        self._running[trial] = self._trials.trials[-1]
        chosen = {label: values[0] for label, values in document["misc"]["vals"].items() if values}
        return _row(self._columns, space_eval(self._space, chosen))

    def end(self, trial: int, value: float, stopped: bool) -> None:
        from hyperopt import STATUS_OK
        from hyperopt.base import JOB_STATE_DONE

        self._running.pop(trial).update(state=JOB_STATE_DONE, result={"loss": -value, "status": STATUS_OK})
        self._trials.refresh()


class _RayHyperOpt:
    """Ray's HyperOptSearch, which is told the last value of a trial."""

    def __init__(self, space: Space, seed: int) -> None:
        from ray.tune.search.hyperopt import HyperOptSearch

        self._columns = space.columns
        self._search = HyperOptSearch(
            _hyperopt_space(space.columns), metric="value", mode="max", random_state_seed=seed
        )

    def suggest(self, trial: int) -> Row:
        return _row(self._columns, self._search.suggest(str(trial)))

    def end(self, trial: int, value: float, stopped: bool) -> None:
        self._search.on_trial_complete(str(trial), {"value": value})


class _Unstopped:
    def __init__(self, searcher: Any) -> None:
        self.suggest, self.end = searcher.suggest, searcher.end

    def report(self, trial: int, step: int, value: float) -> bool:
        return True


class _RayASHA:
    def __init__(self, searcher: Any) -> None:
        from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler

        self._scheduler = AsyncHyperBandScheduler(metric="value", mode="max", max_t=STEPS)
        self._continue = TrialScheduler.CONTINUE
        self._searcher = searcher
        self.end = searcher.end

    def suggest(self, trial: int) -> Row:
        row: Row = self._searcher.suggest(trial)
        self._scheduler.on_trial_add(None, SimpleNamespace(trial_id=str(trial)))
        return row

    def report(self, trial: int, step: int, value: float) -> bool:
        result = {"training_iteration": step, "value": value}
        answer = self._scheduler.on_trial_result(None, SimpleNamespace(trial_id=str(trial)), result)
        return bool(answer == self._continue)


class _SyneTuneASHA:
    def __init__(self, space: Space, seed: int) -> None:
        from syne_tune.config_space import uniform
        from syne_tune.optimizer.scheduler import SchedulerDecision
        from syne_tune.optimizer.schedulers.asha import AsynchronousSuccessiveHalving

        # Its space is of no account, since its searcher is not asked.
        self._scheduler = AsynchronousSuccessiveHalving(
            {"x": uniform(0.0, 1.0)}, metric="value", do_minimize=False, max_t=STEPS, random_seed=seed
        )
        self._continue = SchedulerDecision.CONTINUE
        self._searcher = _Random(space, seed)
        self._trials: dict[int, Any] = {}

    def suggest(self, trial: int) -> Row:
        from syne_tune.backend.trial_status import Trial

        self._trials[trial] = Trial(trial, {"x": 0.5}, datetime.min)
        self._scheduler.on_trial_add(self._trials[trial])
        return self._searcher.suggest(trial)

    def report(self, trial: int, step: int, value: float) -> bool:
        answer = self._scheduler.on_trial_result(self._trials[trial], {"training_iteration": step, "value": value})
        return bool(answer == self._continue)

    def end(self, trial: int, value: float, stopped: bool) -> None:
        del self._trials[trial]


class _Optuna:
    """Optuna's TPESampler and a pruner, as in the loop of an objective that reports and prunes after each step."""

    def __init__(self, space: Space, seed: int, pruner: str, **arguments: Any) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._columns = space.columns
        self._pruned = optuna.trial.TrialState.PRUNED
        self._study = optuna.create_study(
            direction="maximize",
            sampler=optuna.samplers.TPESampler(seed=seed),
            pruner=getattr(optuna.pruners, pruner)(**arguments),
            study_name=f"seed {seed}",  # HyperbandPruner draws brackets by it
        )
        self._running: dict[int, Any] = {}

    def suggest(self, trial: int) -> Row:
        asked = self._running[trial] = self._study.ask()

        def value(_: int, column: Column) -> float:
            if column.kind in (CHOICE, ORDINAL):
                return float(asked.suggest_categorical(column.name, range(int(column.high) + 1)))
            if column.step:
                return float(asked.suggest_int(column.name, int(column.low), int(column.high), log=column.kind == LOG))
            return float(asked.suggest_float(column.name, column.low, column.high, log=column.kind == LOG))

        return assemble(self._columns, value)

    def report(self, trial: int, step: int, value: float) -> bool:
        self._running[trial].report(value, step)
        return not self._running[trial].should_prune()

    def end(self, trial: int, value: float, stopped: bool) -> None:
        asked = self._running.pop(trial)
        if stopped:
            self._study.tell(asked, state=self._pruned)
        else:
            self._study.tell(asked, value)


#: Method -> the module that it needs, and how it is made of a space and a seed.
PEERS: dict[str, tuple[str, Callable[[Space, int], Peer]]] = {
    "hyperopt": ("hyperopt", lambda space, seed: _Unstopped(_HyperOpt(space, seed))),
    "Ray ASHA": ("ray", lambda space, seed: _RayASHA(_Random(space, seed))),
    "Ray ASHA + HyperOptSearch": ("ray", lambda space, seed: _RayASHA(_RayHyperOpt(space, seed))),
    "Optuna TPE + SuccessiveHalving": (
        "optuna",
        lambda space, seed: _Optuna(space, seed, "SuccessiveHalvingPruner"),
    ),
    "Optuna TPE + Hyperband": (
        "optuna",
        lambda space, seed: _Optuna(space, seed, "HyperbandPruner", max_resource=STEPS),
    ),
    "Syne Tune ASHA": ("syne_tune", _SyneTuneASHA),
}


def installed() -> list[str]:
    return [name for name, (module, _) in PEERS.items() if find_spec(module) is not None]


def driven(method: str, task: Task, run: Run) -> tuple[list[Report], int]:
    """What the trials of a peer report, and how many there are."""
    with silence(), np.errstate(all="ignore"):  # hyperopt 0.3 divides by zero, and does what NumPy 2.5 deprecates
        return clocked(PEERS[method][1](task.table.space, run.seed), task, run)


def _hyperopt_space(columns: tuple[Column, ...]) -> dict[str, Any]:
    """A space as hyperopt has it, a column's label being its index; an option is a dict, with its own index as "" and what it switches on."""
    from hyperopt import hp
    from hyperopt.pyll import scope

    def branch(parent: int, value: int) -> dict[str, Any]:
        return {
            str(j): hyperparameter(j, column)
            for j, column in enumerate(columns)
            if (column.parent, column.branch) == (parent, value)
        }

    def hyperparameter(j: int, column: Column) -> Any:
        label, low, high = str(j), column.low, column.high
        if column.kind in (CHOICE, ORDINAL):
            return hp.choice(label, [{"": value, **branch(j, value)} for value in range(int(high) + 1)])
        if column.kind == LINEAR:
            return hp.uniformint(label, low, high) if column.step else hp.uniform(label, low, high)
        low, high = math.log(low), math.log(high)
        if column.step:  # as Ray translates a lograndint
            return scope.int(hp.qloguniform(label, low, high, 1.0))
        return hp.loguniform(label, low, high)

    return branch(-1, -1)


def _row(columns: tuple[Column, ...], config: dict[str, Any]) -> Row:
    """The row (d,) of a configuration of such a space."""
    found: dict[int, float] = {}

    def walk(node: dict[str, Any]) -> None:
        for label, value in node.items():
            if isinstance(value, dict):
                found[int(label)] = value[""]
                walk(value)
            elif label:
                found[int(label)] = value

    walk(config)
    # The exponential of a logarithm may be out of bounds by a rounding.
    return assemble(columns, lambda j, column: nearest(found[j], column.low, column.high, column.step))
