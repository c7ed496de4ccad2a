"""Hyperband: asynchronous it is ASHA, synchronous it halves as the readable reference does, whatever the number of slots."""

import random
from collections import Counter
from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import asynctune as at
from asynctune.errors import InvalidArgument
from asynctune.records import COMPLETED, FAILED, Action
from asynctune.schedulers import ASHA, Hyperband, Resumption
from asynctune.schedulers.asha import BoundASHA
from asynctune.schedulers.hyperband import BoundHyperband, apportion
from tests import reference_schedulers as reference
from tests.test_schedulers import SCORES, histories, threes


def synchronous(spec: Hyperband, num_trials: int) -> BoundHyperband:
    bound = spec.bind(num_trials=num_trials)
    assert isinstance(bound, BoundHyperband)
    return bound


@settings(max_examples=300, deadline=None)
@given(histories, st.integers(1, 14), st.integers(2, 3), st.integers(1, 3), st.integers(3, 30), st.integers(1, 4))
def test_synchronous_halving_differs_from_the_reference(
    history: bytes, num_trials: int, eta: int, low: int, high: int, brackets: int
) -> None:
    asha = ASHA(high, low, eta)
    levels = asha.levels
    brackets = min(brackets, len(levels))
    bound = synchronous(Hyperband(high, low, eta, brackets, synchronous=True), num_trials)
    sizes = reference.shares(num_trials, list(ASHA(high, low, eta, brackets).weights))
    ends = list(accumulate(sizes))
    naive = [
        reference.Halving(list(levels), eta, set(range(end - size, end)), first)
        for first, (size, end) in enumerate(zip(sizes, ends, strict=True))
    ]
    steps: Counter[int] = Counter()
    for what, who, value in threes(history):
        trial = who % num_trials
        mine = next(bracket for bracket in naive if trial in bracket.members)
        if what < 140:  # a report; now and then of a step that was reported before, or far beyond the next rung
            steps[trial] += [1, 1, 1, 2, 0, 5, high // 2][value % 7]
            step, score = max(1, steps[trial]), SCORES[value % len(SCORES)]
            verdict = bound.report(trial, step, score)
            assert list(verdict.recorded) == mine.report(trial, step, score)
            if step >= high or trial in mine.gone:
                assert verdict.action is Action.STOP
            elif mine.comes(trial):
                assert (verdict.action, verdict.until) == (Action.CONTINUE, mine.due(trial))
            else:
                assert verdict.action is Action.PAUSE
        elif what < 195:
            bound.saved(trial, steps[trial], None)
            mine.save(trial)
        elif what < 235:
            warm = trial if value % 2 else None
            resumption = bound.resumable(warm)
            assert resumption == bound.resumable(warm)  # a query changes nothing
            able = {(other, rung): bracket for bracket in naive for other, rung in bracket.resumable()}
            if resumption is None:
                assert not able
                continue
            top = max(rung for _, rung in able)
            assert resumption.until == levels[top] and (resumption.trial, top) in able
            if (warm, top) in able:
                assert resumption.trial == warm
            bound.resume(resumption)
            able[resumption.trial, top].resume(resumption.trial)
        elif what < 245:
            if trial not in mine.gone:
                steps[trial] = value % (steps[trial] + 1)
                assert bound.retried(trial, steps[trial]) == mine.due(trial)
        else:
            failed = bool(value % 2)
            assert list(bound.finish(trial, FAILED if failed else COMPLETED)) == mine.finish(trial, failed)


def test_asynchronous_hyperband_is_not_asha_with_all_brackets() -> None:
    bound, asha = Hyperband(50).bind(seed=3), ASHA(50, brackets=5).bind(seed=3)
    assert isinstance(bound, BoundASHA)
    draws = random.Random(0)
    for trial in range(300):
        assert bound.begin(trial) == asha.begin(trial)
        for step in range(1, draws.choice([2, 10, 51])):
            score = draws.random()
            assert bound.report(trial, step, score) == asha.report(trial, step, score)


def test_a_full_round_is_not_divided_as_in_the_paper() -> None:
    # R = 81, eta = 3 (Li et al., JMLR 2018, Table 1): n of each bracket.
    weights = ASHA(81, brackets=5).weights
    assert weights == (81, 34, 15, 8, 5)
    assert apportion(sum(weights), weights) == list(weights)


@given(st.integers(0, 10**6), st.lists(st.integers(1, 10**6), min_size=1, max_size=7))
def test_trials_are_lost_or_not_in_proportion(total: int, weights: list[int]) -> None:
    sizes = apportion(total, weights)
    assert sum(sizes) == total
    assert all(abs(size - total * weight / sum(weights)) < 1 for size, weight in zip(sizes, weights, strict=True))
    assert total > 10**4 or sizes == reference.shares(total, weights)


def play(num_slots: int, seed: int, brackets: int | None) -> dict[int, tuple[int, str]]:
    """A run of 30 trials on some slots, which take turns as `seed` says; some fail. Return where each trial ended, and how."""
    study = at.Study(
        {"x": at.uniform(0.0, 1.0)},
        metric="loss",
        mode="min",
        num_trials=30,
        scheduler=Hyperband(20, brackets=brackets, synchronous=True),
        num_slots=num_slots,
    )
    draws = random.Random(seed)
    running: dict[int, tuple[at.Assignment, int]] = {}
    while not study.done:
        job = study.ask() if len(running) < num_slots else None
        if job is not None:
            running[job.trial_id] = job, job.start_step
            continue
        trial = draws.choice(sorted(running))
        job, step = running[trial]
        if trial % 7 == 3 and step == 2:
            study.finish(trial, error="no")
            del running[trial]
            continue
        running[trial] = job, step + 1
        loss = round(abs(job.config["x"] - 0.3) + 1 / (step + 1) * (trial % 4), 1)  # rounded, so that there are ties
        if study.tell(trial, step=step + 1, loss=loss).action is not Action.CONTINUE:
            del running[trial]
    return {trial: (study.step(trial), study.state(trial).name) for trial in range(30)}


@pytest.mark.parametrize("brackets", [1, None])
def test_synchronous_halving_depends_on_the_number_of_slots(brackets: int | None) -> None:
    expected = play(1, 0, brackets)
    assert {state for _, state in expected.values()} == {"COMPLETED", "STOPPED", "FAILED"}
    for num_slots, seed in [(1, 1), (2, 2), (3, 3), (7, 4), (30, 5), (40, 6)]:
        assert play(num_slots, seed, brackets) == expected


def test_more_than_the_best_go_on_or_before_all_are_there() -> None:
    bound = synchronous(Hyperband(9, brackets=1, synchronous=True), 7)
    for trial in range(6):
        assert bound.report(trial, 1, float(trial)) == (Action.PAUSE, None, (1,))
        bound.saved(trial, 1, f"c{trial}")
        assert bound.resumable() is None
    assert bound.finish(6, FAILED) == (1,)  # a dead trial holds nobody up
    for trial in (5, 4):  # 7 // 3
        assert bound.resumable() == Resumption(trial, until=3)
        bound.resume(Resumption(trial, until=3))
    assert bound.resumable() is None
    bound.report(5, 3, 0.0)
    bound.report(4, 3, 0.0)
    assert bound.resumable() is None  # not saved yet
    bound.saved(5, 3, "d5")
    bound.saved(4, 3, "d4")
    assert (
        bound.resumable(4) == bound.resumable() == Resumption(4, until=9)
    )  # ties go to the lower trial; max(1, 2 // 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Hyperband(0), "max_resource must be an integer >= 1, got 0"),
        (lambda: Hyperband(9, 10), "min_resource must be <= max_resource = 9, got 10"),
        (lambda: Hyperband(9, brackets=4), "brackets must be <= the 3 rungs, got 4"),
        (lambda: Hyperband(9, synchronous=1), "synchronous must be True or False, got 1"),  # type: ignore[arg-type]
        (lambda: Hyperband(9, synchronous=True).bind(), "a synchronous Hyperband needs num_trials"),
    ],
)
def test_bad_argument_is_accepted(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(InvalidArgument) as caught:
        make()
    assert message in str(caught.value)


def test_specification_is_not_a_value() -> None:
    spec = Hyperband(81, min_resource=3, synchronous=True)
    assert eval(repr(spec), {"Hyperband": Hyperband}) == spec and len({spec, Hyperband(81, 3), Hyperband(81, 3)}) == 2
