"""PASHA: rungs open when the readable reference says so, and below them it is ASHA."""

import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import asynctune as at
from asynctune.errors import InvalidArgument
from asynctune.records import COMPLETED, FAILED, Action
from asynctune.schedulers import ASHA, PASHA
from asynctune.schedulers.pasha import _noise
from tests import reference_schedulers as reference
from tests.test_schedulers import SCORES, histories, promote, threes


@settings(max_examples=300, deadline=None)
@given(histories, st.integers(2, 3), st.integers(1, 3), st.integers(3, 40), st.sampled_from([0, 1, 3]))
def test_pasha_differs_from_the_reference(history: bytes, eta: int, low: int, high: int, epsilon: float) -> None:
    bound = PASHA(high, low, eta).bind()
    levels = ASHA(high, low, eta).levels
    naive = reference.PASHA(list(levels), eta)
    bound._epsilon = naive.epsilon = epsilon  # as if curves had crossed before: in these short histories they seldom do
    steps: Counter[int] = Counter()
    for what, who, value in threes(history):
        trial = who % 13
        if what < 150:
            steps[trial] += [1, 1, 1, 2, 0, 3, high // 2][value % 7]
            step, score = max(1, steps[trial]), SCORES[value % len(SCORES)] + value % 3 / 4
            verdict = bound.report(trial, step, score)
            assert list(verdict.recorded) == naive.report(trial, step, score)
            assert (verdict.action is Action.CONTINUE) == naive.goes_on(trial)
            assert bound._open == naive.open
            assert bound._epsilon == pytest.approx(naive.epsilon)
        elif what < 200:
            if not naive.goes_on(trial) and (trial, naive.behind(trial) - 1) not in naive.offered:
                bound.saved(trial, steps[trial], None)
                naive.offer(trial)
        elif what < 240:
            promote(bound, naive)
        elif what < 248:
            if trial not in naive.ended:
                steps[trial] = value % (steps[trial] + 1)
                assert bound.retried(trial, steps[trial]) == naive.due(trial)
        else:
            failed = bool(value % 2)
            assert list(bound.finish(trial, FAILED if failed else COMPLETED)) == naive.finish(trial, failed)


def run(noise: float) -> at.Study:
    """60 trials whose order is known from the first step on, but for a noise that falls with the steps."""
    study = at.Study(
        {"x": at.uniform(0.0, 1.0)},
        metric="score",
        mode="max",
        num_trials=60,
        scheduler=at.PASHA(81, reduction_factor=3),
    )
    while (job := study.ask()) is not None:
        for step in range(job.start_step + 1, 82):
            wave = math.sin(37 * job.trial_id + 11 * step) * noise / step
            if study.tell(job.trial_id, step=step, score=job.config["x"] + wave).action is not Action.CONTINUE:
                break
    assert study.done
    return study


def test_rungs_open_though_the_ranking_is_stable() -> None:
    study = run(noise=0.0)
    assert max(study.step(trial) for trial in range(60)) == 3
    assert study.best is None  # nobody has come to the last rung


def test_rungs_stay_shut_though_the_ranking_changes() -> None:
    assert max(run(noise=3.0).step(trial) for trial in range(60)) > 3


@pytest.mark.parametrize(
    ("one", "other", "distance"),
    [
        ([1, 0, 3], [0, 1, 1], 2.0),
        ([0, 1, 1], [1, 0, 3], 2.0),
        ([0, 0, 3], [1, 1, 1], None),  # crossed once
        ([1, 0, 1, 3], [0, 1, 1, 1], 2.0),
        ([1, 1, 1], [1, 1, 1], None),
        ([1, 0, 1], [0, 1, 1], None),  # a tie at the end
        ([1, 0, math.inf], [0, 1, 1], None),
        ([], [], None),
    ],
)
def test_noise_is_measured_elsewhere(one: list[float], other: list[float], distance: float | None) -> None:
    assert _noise(dict(enumerate(one)), dict(enumerate(other))) == distance
    assert _noise(dict(enumerate(other)), dict(enumerate(one))) == distance


def test_two_rungs_are_not_asha() -> None:
    bound, asha = PASHA(3).bind(), ASHA(3, type="promotion").bind()
    for trial in range(9):
        for each in (bound, asha):
            each.report(trial, 1, float(trial))
            each.saved(trial, 1, None)
    for _ in range(3):
        resumption = bound.resumable()
        assert resumption is not None and resumption == asha.resumable()
        for each in (bound, asha):
            each.resume(resumption)
            assert each.report(resumption.trial, 3, 0.0).action is Action.STOP
    assert bound.resumable() is None


def test_bad_argument_is_accepted() -> None:
    with pytest.raises(InvalidArgument, match="min_resource must be <= max_resource = 9, got 10"):
        PASHA(9, 10)


def test_specification_is_not_a_value() -> None:
    assert eval(repr(PASHA(81, 3)), {"PASHA": PASHA}) == PASHA(81, 3) and len({PASHA(9), PASHA(9), PASHA(27)}) == 2
