"""What is known before a run begins: configurations to try first, results to learn from."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

import asynctune as at
from asynctune.errors import InvalidArgument
from asynctune.observations import Observation
from asynctune.records import COMPLETED, FAILED, STOPPED, Suggested, TrialState
from asynctune.schedulers import Scheduler
from asynctune.searchers import Searcher
from asynctune.searchers.base import FINAL
from asynctune.searchers.random import BoundRandom
from asynctune.searchers.tpe import BoundTPE
from asynctune.space import Rows
from asynctune.study import Suggest
from tests.methods import schedulers, searchers
from tests.runs import climb, options

SPACE = {"x": at.uniform(0.0, 1.0), "kind": at.choice(["a", {"depth": at.randint(1, 9)}])}
FIRST = [{"x": 0.25, "kind": "a"}, {"x": 0.5, "kind": {"depth": 3}}]


def study(**more: Any) -> at.Study:
    arguments: dict[str, Any] = {"metric": "score", "mode": "max", "num_trials": 12, "seed": 5}
    return at.Study(SPACE, **arguments | more)


def run(study: at.Study, trials: int, steps: int = 1) -> list[dict[str, Any]]:
    """Train so many trials, one after the other; their configurations."""
    configs = []
    for _ in range(trials):
        job = study.ask()
        assert job is not None
        configs.append(job.config)
        for step in range(1, steps + 1):
            if (
                study.tell(job.trial_id, step=step, score=-((job.config["x"] - 0.3) ** 2)).action
                is not at.Action.CONTINUE
            ):
                break
        study.finish(job.trial_id)
    return configs


@searchers
@schedulers
def test_points_are_not_tried_first(searcher: Callable[[], Searcher], scheduler: Callable[[], Scheduler]) -> None:
    bound = study(searcher=searcher(), scheduler=scheduler(), points_to_evaluate=FIRST)
    configs = []
    for trial in range(3):
        offer = bound.offer()
        assert isinstance(offer, Suggest)
        assert trial == 2 or not offer.slow, "nothing has to be found"
        config = bound.space.decode(bound.suggestion(trial)())
        configs.append(config)
        bound.apply(Suggested(trial=trial, config=config))
        started = bound.offer()
        assert not isinstance(started, Suggest) and started is not None
        bound.apply(started)
    assert configs[:2] == FIRST
    assert configs[2] not in FIRST


def test_a_grid_leaves_out_what_points_stand_for() -> None:
    alone = study(searcher=at.Grid(points=2), num_trials=None)
    after = study(searcher=at.Grid(points=2), num_trials=None, points_to_evaluate=FIRST)
    assert after.num_trials == alone.num_trials + 2  # type: ignore[operator]
    assert run(after, 8)[2:] == run(alone, 6)


@pytest.mark.parametrize(
    ("points", "words"),
    [
        ([{"x": 2.0, "kind": "a"}], r"points_to_evaluate\[0\]: x must be .* got 2.0"),
        ([FIRST[0], {"x": 0.5}], r"points_to_evaluate\[1\]: .*kind"),
        (FIRST[0], "points_to_evaluate must be a list of configurations"),
        (FIRST * 7, "points_to_evaluate must be at most num_trials = 12 configurations, got 14"),
    ],
)
def test_bad_points_are_taken(points: Any, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        study(points_to_evaluate=points)


def test_points_are_dropped_for_a_schedule() -> None:
    with pytest.raises(InvalidArgument, match="points_to_evaluate cannot be tried with Replay"):
        study(points_to_evaluate=FIRST, scheduler=at.Replay([(0, FIRST[0])]))


# Observations.


class Heard(BoundRandom):
    """Says what it was told."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.calls: list[tuple[Any, ...]] = []

    def started(self, trial: int) -> None:
        self.calls.append(("started", trial))

    def observe(self, trial: int, level: int, score: float) -> None:
        self.calls.append(("observe", trial, level, score))

    def ended(self, trial: int, state: TrialState) -> None:
        self.calls.append(("ended", trial, state))


@dataclass(frozen=True)
class Listener(at.Random):
    def bind(self, *, space: at.Space, seed: int, num_trials: int | None, rows: Rows) -> Heard:
        heard.append(Heard(space.table, seed))
        return heard[-1]


heard: list[Heard] = []


@pytest.mark.parametrize(
    ("scheduler", "values", "observed"),
    [
        (at.FIFO(), 3.0, [(FINAL, -3.0)]),
        (at.FIFO(), {1: 2.0, 7: 3.0}, [(FINAL, -3.0)]),
        (at.ASHA(9), 3.0, [(9, -3.0)]),
        (at.ASHA(9), {1: 2.0, 2: 1.0, 4: 5.0, 8: 6.0}, [(1, -2.0), (3, -5.0)]),
        (at.ASHA(9, min_resource=3), {1: 2.0, 2: 1.0}, []),
        (at.ASHA(9), {20: 4.0}, [(9, -4.0)]),
        (at.ASHA(9, type="promotion"), {3: 5.0, 9: 6.0}, [(3, -5.0), (9, -6.0)]),
        (at.Hyperband(9), {1: 2.0, 9: 6.0}, [(1, -2.0), (9, -6.0)]),
        (at.Hyperband(9, synchronous=True), {3: 6.0}, [(3, -6.0)]),
        (at.PASHA(9), {3: 6.0}, [(3, -6.0)]),
        (at.PBT(3, 10, burn_in=4), {3: 1.0, 6: 2.0, 7: 3.0, 10: 4.0}, [(6, -2.0), (10, -4.0)]),
        (at.MedianStopping(grace_period=4, interval=2), {2: 1.0, 5: 2.0}, [(4, -2.0), (FINAL, -2.0)]),
        (at.MedianStopping(grace_period=4, interval=2), 3.0, [(FINAL, -3.0)]),
    ],
)
def test_a_value_counts_at_another_level_than_the_one_it_reached(
    scheduler: Scheduler, values: Any, observed: list[tuple[int, float]]
) -> None:
    study(mode="min", searcher=Listener(), scheduler=scheduler, observations=[(FIRST[0], values)])
    calls = [("observe", -1, level, score) for level, score in observed]
    assert heard[-1].calls == [("started", -1), *calls, ("ended", -1, COMPLETED)]


@pytest.mark.parametrize("values", [math.nan, {1: 2.0, 3: math.inf, 9: 1.0}])
def test_a_failure_that_is_known_counts_as_a_result(values: Any) -> None:
    study(searcher=Listener(), observations=[(FIRST[0], values)])
    assert heard[-1].calls == [("started", -1), ("ended", -1, FAILED)]
    study(searcher=Listener(), scheduler=at.ASHA(9), observations=[(FIRST[0], values)])
    assert ("observe", -1, 9, 1.0) not in heard[-1].calls
    assert heard[-1].calls[-1] == ("ended", -1, FAILED)


def test_a_trial_that_was_stopped_has_ended_by_itself_for_the_next_run() -> None:
    study(searcher=Listener(), scheduler=at.ASHA(9), observations=[(FIRST[0], {1: 2.0}, False)])
    assert heard[-1].calls == [("started", -1), ("observe", -1, 1, 2.0), ("ended", -1, STOPPED)]


@pytest.mark.parametrize("searcher", [at.TPE(), at.HyperOpt(), at.Optuna("TPESampler")], ids=repr)
@pytest.mark.parametrize("scheduler", [at.ASHA(4, reduction_factor=2), at.MedianStopping()], ids=repr)
def test_a_result_teaches_something_else_than_the_run_did(searcher: Searcher, scheduler: Scheduler) -> None:
    result = at.simulate(Hill(), num_trials=40, num_slots=1, seed=5, scheduler=scheduler)
    assert {trial.state for trial in result.trials} == {COMPLETED, STOPPED}
    live = study(searcher=searcher, scheduler=scheduler, num_trials=40)
    for record in result.events():
        live.apply(record)
    after = study(searcher=searcher, scheduler=scheduler, num_trials=40, observations=result)
    np.testing.assert_array_equal(after._searcher.prepare(41)(), live._searcher.prepare(41)())


def test_final_values_are_forgotten_once_steps_are_known() -> None:
    known = [({"x": k / 40, "kind": "a"}, -((k / 40 - 0.3) ** 2)) for k in range(40)]
    after = study(searcher=at.TPE(), scheduler=at.MedianStopping(), observations=known)
    run(after, 12, steps=3)
    bound = after._searcher
    assert isinstance(bound, BoundTPE)
    assert bound._history.level == FINAL and not bound._history.left_out


@searchers
@pytest.mark.parametrize("scheduler", [at.FIFO(), at.ASHA(9)])
def test_what_is_known_teaches_less_than_trials_of_the_run(
    searcher: Callable[[], Searcher], scheduler: Scheduler
) -> None:
    steps = 1 if scheduler == at.FIFO() else 3
    own = study(searcher=searcher(), scheduler=scheduler, num_trials=None)
    configs = run(own, 20, steps)
    scores = [-((config["x"] - 0.3) ** 2) for config in configs]
    after = study(
        searcher=searcher(),
        scheduler=scheduler,
        num_trials=own.num_trials,
        observations=[(c, dict.fromkeys(range(1, steps + 1), s)) for c, s in zip(configs, scores, strict=True)],
    )
    told = own._searcher.prepare(40)()
    np.testing.assert_array_equal(after._searcher.prepare(40)(), told)


@pytest.mark.parametrize(
    ("observations", "words"),
    [
        (3, "observations must be .* got 3"),
        ([FIRST[0]], r"observations\[0\]: the configuration must be a dict"),
        ([(FIRST[0],)], "observations must be"),
        ([(FIRST[0], 1.0), ({"x": 0.5, "kind": "b"}, 1.0)], r"observations\[1\]: kind must be .* got 'b'"),
        ([(FIRST[0], "high")], r"observations\[0\]: a value must be a number, .* got 'high'"),
        ([(FIRST[0], True)], "a value must be a number"),
        ([(FIRST[0], {})], "one step at least"),
        ([(FIRST[0], {0: 1.0})], r"a step must be an integer >= 1, got 0"),
    ],
)
def test_bad_observations_are_taken(observations: Any, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        study(observations=observations)


class Hill:
    """x at every step, and a hill beside it."""

    space = SPACE
    metric = "score"
    mode: Literal["max"] = "max"
    max_resource = 4

    def evaluate(self, config: dict[str, Any], seed: int) -> tuple[list[float], list[float]]:
        return [config["x"] * step for step in range(1, 5)], [1.0, 2.0, 3.0, 4.0]


def test_a_result_is_read_with_other_values_than_it_has(tmp_path: Path) -> None:
    result = at.simulate(Hill(), num_trials=9, scheduler=at.ASHA(4, reduction_factor=2), run_dir=tmp_path / "run")
    known = result.observations()
    assert len(known) == 9
    for observation, trial in zip(known, result.trials, strict=True):
        steps = range(1, trial.step + 1)
        assert observation == Observation(
            trial.config, {step: trial.config["x"] * step for step in steps}, trial.step == 4
        )
    assert {trial.step for trial in result.trials} > {1, 4}
    calls = []
    for source in (known, result, tmp_path / "run", str(tmp_path / "run")):
        at.simulate(Hill(), num_trials=1, searcher=Listener(), observations=source)
        calls.append(heard[-1].calls[: -2 - 1])
    complete = [(trial.id - 9, FINAL, trial.value) for trial in result.trials if trial.step == 4]
    assert [call[1:] for call in calls[0] if call[0] == "observe"] == complete, "FIFO compares what went to its end"
    assert all(call == calls[0] for call in calls)


def test_a_study_is_read_with_other_values_than_it_has() -> None:
    own = study(scheduler=at.ASHA(9))
    configs = run(own, 3, steps=3)
    scores = [-((config["x"] - 0.3) ** 2) for config in configs]
    known = own.observations()
    assert [(seen.config, list(seen.values.values())) for seen in known] == [  # type: ignore[union-attr]
        (config, [score]) for config, score in zip(configs, scores, strict=True)
    ]
    study(searcher=Listener(), observations=own, scheduler=at.ASHA(9))
    assert len(heard[-1].calls) == 9
    with pytest.raises(InvalidArgument, match="metric must be the study's own, 'score', got 'loss'"):
        study(metric="loss", observations=own)


def test_a_study_takes_a_failure_for_a_result_or_the_other_way_round() -> None:
    own = study(max_failures=1, num_trials=3)
    for _ in range(3):
        job = own.ask()
        assert job is not None
        if job.trial_id < 2:
            own.tell(job.trial_id, step=4, score=1.0)
        own.finish(job.trial_id, error="ValueError: no")
        job = own.ask()  # the same, once more
        assert job is not None
        if job.trial_id == 0:
            own.tell(0, step=4, score=2.0)
        if job.trial_id != 1:
            own.finish(job.trial_id, error="ValueError: no")
    # Trial 0 failed after step 4, 2 before its first report; 1 is tried again, and what it had reported is void.
    nan = pytest.approx(math.nan, nan_ok=True)
    assert [(known.values, known.complete) for known in own.observations()] == [
        ({4: 2.0, 5: nan}, False),
        ({1: nan}, False),
    ]


def test_weights_of_another_configuration_count_for_the_last() -> None:
    class Steps:
        space = SPACE
        metric = "score"
        mode: Literal["max"] = "max"
        max_resource = 8

        def step(self, state: Any, config: dict[str, Any], seed: int) -> tuple[float, float, float]:
            total = (state or 0.0) + config["x"]
            return total, total, 1.0

    result = at.simulate(Steps(), num_trials=8, scheduler=at.PBT(2, 8), num_slots=2)
    whole = [trial for trial in result.trials if len(trial.lineage) == 1]
    assert 0 < len(whole) < 8
    assert [known.config for known in result.observations()] == [trial.config for trial in whole]


def test_a_metric_that_nobody_reported_is_read(tmp_path: Path) -> None:
    result = at.simulate(Hill(), num_trials=2)
    with pytest.raises(InvalidArgument, match="metric must be one that .* has reported, got 'loss'"):
        study(metric="loss", observations=result)


def test_a_run_goes_on_with_other_points_or_observations(tmp_path: Path) -> None:
    space = {"x": at.uniform(0.0, 1.0)}
    points, known = [{"x": 0.75}], [({"x": 0.5}, 4.5), ({"x": 0.1}, 0.9)]
    arguments = options(tmp_path, slots="inline", searcher=at.TPE(startup=2), num_trials=3)
    given: dict[str, Any] = {"points_to_evaluate": points, "observations": known}
    before = at.run(climb, space, **arguments, **given)
    assert before.trials[0].config == points[0]
    assert (before.header.points_to_evaluate[:3], before.header.observations[:3]) == ("1 (", "2 (")
    again = arguments | {"num_trials": 6, "resume": True}
    for name, other in (("observations", known[:1]), ("observations", ()), ("points_to_evaluate", [{"x": 0.7}])):
        with pytest.raises(InvalidArgument, match=f"{name} was . .* and is"):
            at.run(climb, space, **again, **given | {name: other})
    after = at.run(climb, space, **again, **given)
    whole = at.run(climb, space, **(arguments | {"num_trials": 6, "run_dir": tmp_path / "whole"}), **given)
    assert [trial.config for trial in after.trials] == [trial.config for trial in whole.trials]
