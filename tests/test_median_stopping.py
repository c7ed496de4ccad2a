"""Median stopping: trials stop when the readable reference says so."""

import math
import random
import statistics
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import asynctune as at
from asynctune.errors import InvalidArgument
from asynctune.records import COMPLETED, FAILED, STOPPED, Action, TrialState
from asynctune.schedulers import MedianStopping
from asynctune.schedulers.median import _Median
from tests import reference_schedulers as reference
from tests.test_schedulers import SCORES, histories, threes


@settings(max_examples=300, deadline=None)
@given(histories, st.integers(1, 6), st.integers(1, 3), st.integers(1, 3), st.sampled_from([None, 6, 9, 12]))
def test_median_stopping_differs_from_the_reference(
    history: bytes, grace: int, min_samples: int, interval: int, max_resource: int | None
) -> None:
    bound = MedianStopping(grace, min_samples, interval, max_resource).bind()
    naive = reference.Median(grace, min_samples, interval, max_resource)
    running: list[int] = []
    steps: Counter[int] = Counter()
    for what, who, value in threes(history):
        if what < 25 or not running:
            trial = len(naive.reports)
            naive.begin(trial)
            assert bound.begin(trial) == naive.due(trial)
            running.append(trial)
            continue
        trial = running[who % min(4, len(running))]
        if what < 220:
            steps[trial] += [1, 1, 1, 2, 4][value % 5]
            score = SCORES[value % len(SCORES)]
            verdict = bound.report(trial, steps[trial], score)
            assert list(verdict.recorded) == naive.report(trial, steps[trial], score)
            if trial in naive.stopped or max_resource is not None and steps[trial] >= max_resource:
                assert verdict[:2] == (Action.STOP, None)
                state = COMPLETED if max_resource is not None and steps[trial] >= max_resource else STOPPED
                assert bound.finish(trial, state) == ()
                naive.finish(trial, state)
                running.remove(trial)
            else:
                assert verdict[:2] == (Action.CONTINUE, naive.due(trial))
        elif what < 230:
            steps[trial] = value % (steps[trial] + 1)
            assert bound.retried(trial, steps[trial]) == naive.due(trial)
        else:
            state = (FAILED, STOPPED, COMPLETED)[value % 3]
            assert bound.finish(trial, state) == ()
            naive.finish(trial, state)
            running.remove(trial)


@given(st.lists(st.floats(-1e308, 1e308) | st.just(-math.inf), min_size=1))
def test_the_median_is_another_one(numbers: list[float]) -> None:
    median = _Median()
    for count, number in enumerate(numbers, 1):
        median.add(number)
        halves = [each / 2 for each in numbers[:count]]  # statistics.median adds the middle two before it divides
        assert len(median) == count and median.value() / 2 == statistics.median(halves)


def test_a_trial_as_good_as_the_median_is_stopped_or_a_worse_one_is_not() -> None:
    bound = MedianStopping(grace_period=2, min_samples=2).bind()
    for trial, scores in enumerate([(0.0, 2.0), (2.0, 4.0)]):  # averages up to step 2: 1 and 3
        assert bound.begin(trial) == 2
        assert bound.report(trial, 1, scores[0]) == (Action.CONTINUE, 2, ())
        assert bound.report(trial, 2, scores[1]) == (Action.CONTINUE, 3, (2,))
        bound.finish(trial, COMPLETED)
    # The median is 2. A trial's best counts, not its last.
    for trial, best, action in [(2, 2.0, Action.CONTINUE), (3, 1.9, Action.STOP), (4, math.nan, Action.STOP)]:
        bound.begin(trial)
        bound.report(trial, 1, best)
        assert bound.report(trial, 2, -5.0).action is action
        bound.finish(trial, FAILED)


def test_trials_that_were_stopped_or_failed_count() -> None:
    bound = MedianStopping(min_samples=1).bind()
    for trial, (score, state) in enumerate([(1.0, COMPLETED), (0.0, STOPPED), (9.0, FAILED), (8.0, STOPPED)]):
        bound.begin(trial)
        assert bound.report(trial, 1, score).action is (Action.STOP if score < 1 else Action.CONTINUE)
        bound.finish(trial, state)  # the last one by the user
    bound.begin(4)
    assert bound.report(4, 1, 1.0).action is Action.CONTINUE
    assert bound.report(4, 2, 0.0).action is Action.CONTINUE  # nobody has completed there


@pytest.mark.parametrize("max_resource", [None, 12])
def test_a_study_does_not_stop_the_worse_ones(max_resource: int | None) -> None:
    study = at.Study(
        {"x": at.uniform(0.0, 1.0)},
        metric="loss",
        mode="min",
        num_trials=40,
        scheduler=MedianStopping(max_resource=max_resource),
    )
    steps = {}
    while (job := study.ask()) is not None:
        for step in range(1, 13):
            steps[job.trial_id] = step
            if study.tell(job.trial_id, step=step, loss=job.config["x"] + 1 / step).action is Action.STOP:
                break
        study.finish(job.trial_id)
    assert study.done and study.count(TrialState.STOPPED) > 10
    assert study.count(TrialState.COMPLETED) >= 3
    stopped = [study.config(t)["x"] for t in range(40) if study.state(t) is TrialState.STOPPED]
    completed = [study.config(t)["x"] for t in range(40) if study.state(t) is TrialState.COMPLETED]
    assert statistics.mean(stopped) > statistics.mean(completed)
    assert all(steps[t] < 12 for t in range(40) if study.state(t) is TrialState.STOPPED)


def test_what_is_kept_grows_with_trials_that_ended() -> None:
    bound = MedianStopping().bind()
    draws = random.Random(0)
    for trial in range(200):
        bound.begin(trial)
        while bound.report(trial, 1, draws.random()).action is Action.CONTINUE and draws.random() < 0.5:
            pass
        bound.finish(trial, COMPLETED)
    assert not bound._curves and len(bound._medians) == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MedianStopping(0), "grace_period must be an integer >= 1, got 0"),
        (lambda: MedianStopping(min_samples=0), "min_samples must be an integer >= 1, got 0"),
        (lambda: MedianStopping(interval=1.5), "interval must be an integer >= 1, got 1.5"),  # type: ignore[arg-type]
        (lambda: MedianStopping(max_resource=0), "max_resource must be an integer >= 1, got 0"),
        (lambda: MedianStopping(10, max_resource=9), "grace_period must be <= max_resource = 9, got 10"),
    ],
)
def test_bad_argument_is_accepted(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(InvalidArgument) as caught:
        make()
    assert message in str(caught.value)


def test_specification_is_not_a_value() -> None:
    spec = MedianStopping(5, max_resource=9)
    again = eval(repr(spec), {"MedianStopping": MedianStopping})
    assert again == spec and len({spec, again, MedianStopping()}) == 2
