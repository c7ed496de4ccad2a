"""Schedulers: the bound objects decide as the readable reference does, whatever happens to the trials."""

import math
import random
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate, permutations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asynctune._core import BRACKET, ORDER, Stream
from asynctune.errors import AsynctuneError, InvalidArgument
from asynctune.records import COMPLETED, FAILED, Action
from asynctune.schedulers import ASHA, FIFO, PBT, BoundPBT, BoundScheduler, Resumption, Scheduler
from asynctune.space import Space, uniform
from tests import reference

# Few values, so that ties are common.
SCORES = [0.0, 1.0, 2.0, 3.0, 2.0, 1.0, 4.0, math.nan, math.inf, -math.inf, -1.0, 5.0]
SPACE = Space({"x": uniform(0.0, 1.0)})

# A history is bytes: three for each thing that happens. Drawn from a seed, since hypothesis' own are mostly too short for a promotion.
histories = st.builds(lambda seed, n: random.Random(seed).randbytes(3 * n), st.integers(0), st.integers(20, 150))


def threes(history: bytes) -> Iterator[tuple[int, int, int]]:
    return zip(history[::3], history[1::3], history[2::3], strict=False)


def promote(bound: BoundScheduler, naive: reference.ASHA) -> None:
    """A free slot takes up whom the reference would promote, if anybody."""
    resumption = bound.resumable(None)
    expected = naive.promotable()
    assert (None if resumption is None else resumption.trial) == expected
    if resumption is not None and expected is not None:
        bound.resume(resumption)
        naive.promote(expected)
        assert resumption.until == naive.due(expected)


def run_asha(history: bytes, promotion: bool, eta: int, low: int, high: int, brackets: int) -> None:
    levels = ASHA(high, low, eta).levels
    brackets = min(brackets, len(levels))
    bound = ASHA(high, low, eta, brackets, "promotion" if promotion else "stopping").bind(seed=5)
    weights = [-(-len(levels) * eta ** (len(levels) - 1 - j) // (len(levels) - j)) for j in range(brackets)]
    drawn = [Stream(5, BRACKET, trial).below(sum(weights)) for trial in range(17)]
    first = [sum(draw >= upto for upto in accumulate(weights)) for draw in drawn]
    naive = reference.ASHA(list(levels), eta, promotion, lambda trial: first[trial])
    steps: Counter[int] = Counter()
    for what, who, value in threes(history):
        trial = who % 17
        if what < 130:  # a report; now and then of a step that was reported before, or far beyond the next rung
            steps[trial] += [1, 1, 1, 2, 0, 5, high // 2][value % 7]
            step, score = max(1, steps[trial]), SCORES[value % len(SCORES)]
            verdict = bound.report(trial, step, score)
            assert list(verdict.recorded) == naive.report(trial, step, score)
            assert (verdict.action is Action.CONTINUE) == naive.goes_on(trial)
            if verdict.action is Action.CONTINUE:
                assert verdict.until == naive.due(trial)
            else:
                ended = trial in naive.ended or naive.behind(trial) == len(levels)
                assert verdict == (Action.PAUSE if promotion and not ended else Action.STOP, None, verdict.recorded)
        elif what < 180:
            bound.saved(trial, steps[trial], None)
            naive.offer(trial)
        elif what < 235:
            promote(bound, naive)
        elif what < 250:
            if trial not in naive.ended:
                steps[trial] = value % (steps[trial] + 1)
                assert bound.retried(trial, steps[trial]) == naive.due(trial)
        else:
            failed = bool(value % 2)
            assert list(bound.finish(trial, FAILED if failed else COMPLETED)) == naive.finish(trial, failed)


@settings(max_examples=1000, deadline=None)
@given(histories, st.integers(2, 4), st.integers(1, 3), st.integers(3, 30), st.sampled_from([1, 1, 2, 3]))
def test_asha_stopping_differs_from_the_reference(history: bytes, eta: int, low: int, high: int, brackets: int) -> None:
    run_asha(history, False, eta, low, high, brackets)


@settings(max_examples=1000, deadline=None)
@given(histories, st.integers(2, 4), st.integers(1, 3), st.integers(3, 30), st.sampled_from([1, 1, 2, 3]))
def test_asha_promotion_differs_from_the_reference(
    history: bytes, eta: int, low: int, high: int, brackets: int
) -> None:
    run_asha(history, True, eta, low, high, brackets)


@settings(max_examples=1000, deadline=None)
@given(
    histories,
    st.integers(1, 12),
    st.integers(1, 3),
    st.integers(4, 30),
    st.sampled_from([0.0, 0.2, 0.25, 0.5]),
    st.integers(0, 5),
    st.booleans(),
)
def test_pbt_differs_from_the_reference(
    history: bytes, population: int, interval: int, max_resource: int, quantile: float, burn_in: int, barrier: bool
) -> None:
    spec = PBT(interval, max_resource, quantile_fraction=quantile, burn_in=burn_in, synchronous=barrier)
    bound = spec.bind(seed=3, num_trials=population, space=SPACE)

    def draw(depth: int, decided: int, n: int) -> int:
        return Stream(3, ORDER, decided, 0, depth).below(n)

    naive = reference.PBT(population, interval, max_resource, quantile, burn_in, barrier, draw)
    step = [0] * population
    saved_at = [0] * population
    begun: set[int] = set()
    paused: set[int] = set()
    for number, (what, who, value) in enumerate(threes(history)):
        trial = who % population
        running = trial not in paused | naive.gone
        if running and trial not in begun:
            assert bound.begin(trial) == naive.due(trial)
            begun.add(trial)
        if what < 100:
            if running:
                jump = [1, 1, 2, interval, 2 * interval][value % 5]
                step[trial] += jump
                score = SCORES[value % len(SCORES)]
                verdict = bound.report(trial, step[trial], score)
                recorded = [level for level in verdict.recorded if level < max_resource]
                assert recorded == naive.report(trial, step[trial], score)
                if step[trial] >= max_resource:
                    assert verdict.action is Action.STOP
                elif naive.undecided(trial):
                    assert verdict.action is Action.PAUSE
                else:
                    assert (verdict.action, verdict.until) == (Action.CONTINUE, naive.due(trial))
        elif what < 180:
            if running and naive.undecided(trial):
                checkpoint = f"{number}" if value % 4 else None
                bound.saved(trial, step[trial], checkpoint)
                naive.saved(trial, step[trial], checkpoint)
                paused.add(trial)
                if checkpoint is not None:
                    saved_at[trial] = step[trial]
        elif what < 230:
            warm = trial if value % 2 else None
            expected = naive.resumable(warm)
            resumption = bound.resumable(warm)
            assert resumption == bound.resumable(warm)  # a query changes nothing
            assert (None if resumption is None else resumption.trial) == expected
            if resumption is None or expected is None:
                continue
            donors = naive.donors(expected)
            if resumption.donor is None:
                assert not donors
            else:
                triple = donors[resumption.donor]
                assert resumption[3:] == (triple.checkpoint, triple.step, triple.score)
                step[expected] = saved_at[expected] = triple.step
            bound.resume(resumption)
            naive.resume(expected)
            paused.remove(expected)
            assert resumption.until == naive.due(expected)
        elif what < 252:
            if running:
                step[trial] = saved_at[trial]
                assert bound.retried(trial, step[trial]) == naive.due(trial)
        else:
            assert not bound.finish(trial, FAILED if bool(value % 2) else COMPLETED)
            naive.finish(trial)
            paused.discard(trial)
        released = bound.released()
        assert len(set(released)) == len(released)
        assert set(released) == naive.released()


@settings(max_examples=200, deadline=None)
@given(histories, st.integers(1, 3), st.booleans())
def test_batch_differs_from_one_at_a_time(history: bytes, brackets: int, promotion: bool) -> None:
    spec = ASHA(9, reduction_factor=2, brackets=brackets, type="promotion" if promotion else "stopping")
    batch, single = spec.bind(mode="min", seed=5), spec.bind(mode="min", seed=5)
    reports = list(threes(history))
    half = len(reports) // 2
    for part in (reports[:half], reports[half:]):
        trials = np.array([who % 12 for _, who, _ in part], dtype=np.int64)
        steps = np.array([1 + what % 10 for what, _, _ in part], dtype=np.int64)
        values = np.array([SCORES[value % len(SCORES)] for _, _, value in part], dtype=np.float64)
        going = batch.report_many(trials, steps, values)
        expected = []
        for trial, step, value in zip(trials.tolist(), steps.tolist(), values.tolist(), strict=True):
            verdict = single.report(trial, step, value)
            expected.append(verdict.action is Action.CONTINUE)
            if verdict.action is Action.PAUSE:
                single.saved(trial, step, None)
        assert going.dtype == np.bool_
        assert going.tolist() == expected
        promoted: list[int] = []
        while len(promoted) < 3 and (resumption := single.resumable()) is not None:
            single.resume(resumption)
            promoted.append(resumption.trial)
        assert batch.promote_many(3).tolist() == promoted


@pytest.mark.parametrize(
    ("trials", "steps", "values", "message"),
    [
        ([[0, 1]], [1, 1], [0.0, 0.0], r"trial_ids must have one dimension, got the shape \(1, 2\)"),
        ([0, 1], [1], [0.0, 0.0], "lengths must be equal, got 2 trials, 1 steps, 2 scores"),
        ([0, [1]], [1, 1], [0.0, 0.0], "trial_ids must be an array"),
        ([0, -1], [1, 1], [0.0, 0.0], r"trial must be in 0\.\.2\^31 - 2, got -1"),
        ([0, 2**31 - 1], [1, 1], [0.0, 0.0], r"trial must be in 0\.\.2\^31 - 2, got 2147483647"),
        ([0.0, 1.0], [1, 1], [0.0, 0.0], "trial_ids must be integers, got an array of float64"),
        ([0, 1], [1, 0], [0.0, 0.0], "steps must be >= 1, got 0"),
        ([0, 1], [1, 1], ["a", "b"], "values must be numbers"),
        ([0, 1], [1, 1], [True, False], "values must be numbers, got an array of bool"),
        (None, None, None, r"trial_ids must have one dimension, got the shape \(\)"),
        ([0, 1], [1, 1], torch.zeros(2, requires_grad=True), "values must be an array: "),
        (np.empty(0, dtype=[("id", "i8")]), [], [], "trial_ids must be integers"),
    ],
)
def test_bad_arrays_change_something(trials: Any, steps: Any, values: Any, message: str) -> None:
    bound = ASHA(9).bind()
    with pytest.raises(ValueError, match=message):
        bound.report_many(trials, steps, values)
    assert bound.report(0, 1, 0.0).recorded == (1,)
    assert bound.report_many([1], [1], [-1.0]).tolist() == [False]


def test_arrays_that_are_strided_or_not_aligned_are_read_otherwise() -> None:
    records = np.zeros(40, dtype=[("odd", "u1"), ("trial", "<i8"), ("step", ">i4"), ("score", "<f4")])
    records["trial"], records["step"], records["score"] = np.arange(40) % 13, np.arange(40) % 9 + 1, np.arange(40) % 7
    columns = [np.array(records[name].tolist()) for name in ("trial", "step", "score")]
    apart = ASHA(9).bind().report_many(records["trial"][::-1], records["step"][::-1], records["score"][::-1])
    assert apart.tolist() == ASHA(9).bind().report_many(*(column[::-1].copy() for column in columns)).tolist()


def test_two_threads_are_at_work_on_one_ladder() -> None:
    n = 300_000
    halves = [(np.arange(first, first + n), np.ones(n, dtype=np.int64), np.arange(n) % 1009) for first in (0, n)]

    def alone(order: list[int]) -> list[list[bool]]:
        bound = ASHA(9).bind()
        answers = {half: bound.report_many(*halves[half]).tolist() for half in order}
        return [answers[half] for half in sorted(answers)]

    bound = ASHA(9).bind()
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(bound.report_many, *half) for half in halves]
    refused = [half for half, future in enumerate(futures) if future.exception() is not None]
    for half in refused:
        with pytest.raises(AsynctuneError, match="at work in another thread"):
            futures[half].result()
    answers = [future.result().tolist() for half, future in enumerate(futures) if half not in refused]
    assert answers in [alone(order) for order in ([[1 - refused[0]]] if refused else [[0, 1], [1, 0]])]


def test_rungs_lose_the_top_level_to_rounding() -> None:
    assert ASHA(1000, reduction_factor=10).levels == (1, 10, 100, 1000)
    assert ASHA(243).levels == (1, 3, 9, 27, 81, 243)
    assert ASHA(50, min_resource=2).levels == (2, 6, 18, 50)
    assert ASHA(1).levels == (1,)


def test_jump_that_fails_a_rung_is_recorded_beyond_it() -> None:
    bound = ASHA(9).bind()
    assert bound.report(0, 1, 1.0) == (Action.CONTINUE, 3, (1,))
    assert bound.report(1, 9, 0.0) == (Action.STOP, None, (1,))
    assert bound.report(0, 9, 1.0) == (Action.STOP, None, (3, 9))


def test_failed_trial_is_not_counted_where_it_was_going() -> None:
    bound = ASHA(9, reduction_factor=2, type="promotion").bind()
    assert bound.report(0, 1, 1.0) == (Action.PAUSE, None, (1,))
    assert not bound.saved(0, 1, "a") and bound.released() == ()
    assert bound.resumable() is None
    assert bound.finish(1, FAILED) == (1,)
    assert bound.resumable() == Resumption(0, until=2)


def test_brackets_are_not_drawn_with_hyperbands_weights() -> None:
    bound = ASHA(9, brackets=3).bind(seed=1)  # levels 1, 3, 9; weights 9, ceil(3 / 2 * 3) = 5, 3
    first = Counter(bound.begin(trial) for trial in range(20_000))
    for level, weight in zip((1, 3, 9), (9, 5, 3), strict=True):
        assert abs(first[level] / 20_000 - weight / 17) < 0.015


def test_bracket_depends_on_who_asks_first() -> None:
    one, other = ASHA(27, brackets=4).bind(seed=1), ASHA(27, brackets=4).bind(seed=1)
    assert [one.begin(trial) for trial in range(50)] == [other.begin(trial) for trial in reversed(range(50))][::-1]


def generation(bound: BoundPBT, scores: dict[int, float]) -> dict[int, int | None]:
    """Let one generation report, save and go on; return who takes over from whom."""
    for trial, score in scores.items():
        assert bound.report(trial, 10, score).action is Action.PAUSE
        assert bound.resumable() is None or not bound._generations.barrier
        bound.saved(trial, 10, f"c{trial}")
    donors = {}
    while (resumption := bound.resumable()) is not None:
        bound.resume(resumption)
        donors[resumption.trial] = resumption.donor
    return donors


def test_synchronous_pbt_depends_on_the_order_of_arrival() -> None:
    scores = {0: 1.0, 1: 1.0, 2: 2.0, 3: 2.0, 4: 0.0}
    spec = PBT(10, 100, quantile_fraction=0.4, synchronous=True)
    expected = generation(spec.bind(seed=7, num_trials=5, space=SPACE), scores)
    # The best 2 of 5 are 2 and 3, the worst 1 and 4: of equals the higher member is the worse.
    assert {trial for trial, donor in expected.items() if donor is not None} == {1, 4}
    assert {expected[1], expected[4]} <= {2, 3}
    for order in permutations(range(5)):
        bound = spec.bind(seed=7, num_trials=5, space=SPACE)
        assert generation(bound, {trial: scores[trial] for trial in order}) == expected


def test_donor_is_not_drawn_uniformly() -> None:
    drawn: Counter[int | None] = Counter()
    for seed in range(300):
        bound = PBT(10, 100, synchronous=bool(seed % 2)).bind(seed=seed, num_trials=12, space=SPACE)
        donors = generation(bound, {trial: float(trial) for trial in range(12)})
        drawn.update(donors[trial] for trial in (0, 1, 2))
    assert set(drawn) == {9, 10, 11}
    assert all(abs(count - 300) < 60 for count in drawn.values())


def test_lone_donor_among_many_is_not_found() -> None:
    bound = PBT(10, 100, synchronous=True).bind(num_trials=800, space=SPACE)
    for trial in range(800):
        bound.report(trial, 10, float(trial))
        bound.saved(trial, 10, "only" if trial == 650 else None)
    donors: Counter[int | None] = Counter()
    while (resumption := bound.resumable()) is not None:
        donors[resumption.donor] += 1
        bound.resume(resumption)
    assert donors == {650: 200, None: 600}
    assert bound.released() == ["only"]


def test_dead_member_holds_the_barrier() -> None:
    bound = PBT(10, 100, synchronous=True).bind(num_trials=3, space=SPACE)
    for trial in (0, 1):
        bound.report(trial, 10, float(trial))
        bound.saved(trial, 10, f"c{trial}")
    assert bound.resumable() is None  # member 2 has not even begun
    bound.finish(2, FAILED)
    first = bound.resumable()
    assert first is not None
    bound.resume(first)


def test_barrier_where_slots_are_fewer_than_members() -> None:
    spec = PBT(10, 100)
    assert spec.bind(num_trials=8, num_slots=8, space=SPACE)._generations.barrier
    assert not spec.bind(num_trials=8, num_slots=7, space=SPACE)._generations.barrier
    assert not spec.bind(num_trials=8, space=SPACE)._generations.barrier
    assert PBT(10, 100, synchronous=True).bind(num_trials=8, num_slots=1, space=SPACE)._generations.barrier


def test_pbt_explores_at_its_end_or_before_burn_in() -> None:
    bound = PBT(10, 35, burn_in=15).bind(num_trials=2, space=SPACE)
    assert bound.begin(0) == 20
    assert bound.report(0, 10, 1.0) == (Action.CONTINUE, 20, ())
    assert bound.report(0, 20, 1.0) == (Action.PAUSE, None, (20,))
    bound.saved(0, 20, "a")
    assert bound.resumable() == Resumption(0, until=30)
    bound.resume(Resumption(0, until=30))
    assert bound.report(0, 30, 1.0).action is Action.PAUSE
    bound.saved(0, 30, "b")
    assert bound.resumable() == Resumption(0, until=35)
    bound.resume(Resumption(0, until=35))
    assert bound.report(0, 35, 1.0) == (Action.STOP, None, (35,))
    assert bound.report(0, 35, 1.0) == (Action.STOP, None, ())


def test_explore_draws_the_same_for_two_segments() -> None:
    bound = PBT(10, 100).bind(seed=1, num_trials=2, space=SPACE)
    row = np.array([0.5])
    rows = [bound.explore(row, 0, segment, step).tolist() for segment in (1, 2) for step in (10, 20)]
    assert bound.explore(row, 0, 1, 10).tolist() == rows[0]
    assert len({tuple(row) for row in rows}) > 1
    assert row.tolist() == [0.5]


def test_fifo_stops_a_trial() -> None:
    bound: BoundScheduler = FIFO().bind(seed=0, num_trials=3)
    assert bound.max_resource is None and not bound.new_first
    assert bound.begin(0) is None and bound.retried(0, 3) is None
    assert bound.report(0, 1, math.nan) == (Action.CONTINUE, None, ())
    assert not bound.saved(0, 1, "a") and bound.released() == ()
    assert bound.finish(0, FAILED) == () and bound.resumable() is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ASHA(0), "max_resource must be an integer >= 1, got 0"),
        (lambda: ASHA(9.0), "max_resource must be an integer >= 1, got 9.0"),  # type: ignore[arg-type]
        (lambda: ASHA(2**63), "max_resource must be an integer <= 9223372036854775807, got 9223372036854775808"),
        (lambda: ASHA(9, reduction_factor=2**31), "reduction_factor must be an integer <= 2147483646, got 2147483648"),
        (lambda: PBT(1, 2**40), "max_resource must be < 2^31 - 2 intervals, got 1099511627776 / 1"),
        (lambda: PBT(1, 2, synchronous=1.0), "synchronous must be True, False or None, got 1.0"),  # type: ignore[arg-type]
        (lambda: PBT(1, 2, quantile_fraction=10**400), "quantile_fraction must be a number in [0, 0.5], got 1000"),
        (lambda: PBT(1, 2, perturbation_factor=0.5), "perturbation_factor must be > 1 and finite, got 0.5"),
        (lambda: ASHA(9, min_resource=10), "min_resource must be <= max_resource = 9, got 10"),
        (lambda: ASHA(9, reduction_factor=1), "reduction_factor must be an integer >= 2, got 1"),
        (lambda: ASHA(9, brackets=4), "brackets must be <= the 3 rungs, got 4"),
        (lambda: ASHA(9, type="both"), "type must be 'stopping' or 'promotion', got 'both'"),  # type: ignore[arg-type]
        (lambda: ASHA(9).bind(mode="up"), "mode must be 'min' or 'max', got 'up'"),  # type: ignore[arg-type]
        (lambda: PBT(0, 9), "perturbation_interval must be an integer >= 1, got 0"),
        (lambda: PBT(1, True), "max_resource must be an integer >= 1, got True"),
        (lambda: PBT(1, 9, quantile_fraction=0.6), "quantile_fraction must be a number in [0, 0.5], got 0.6"),
        (lambda: PBT(1, 9, resample_probability=math.nan), "resample_probability must be a number in [0, 1], got nan"),
        (lambda: PBT(1, 9, perturbation_factor=1), "perturbation_factor must be > 1 and finite, got 1"),
        (lambda: PBT(1, 9, burn_in=-1), "burn_in must be an integer >= 0, got -1"),
        (lambda: PBT(1, 9, synchronous="yes"), "synchronous must be"),  # type: ignore[arg-type]
        (lambda: PBT(1, 9).bind(space=SPACE), "PBT needs num_trials"),
        (lambda: PBT(1, 9).bind(num_trials=2), "PBT needs space"),
        (lambda: ASHA(9).bind().report(-1, 1, 0.0), "trial must be in 0..2^31 - 2, got -1"),
        (lambda: ASHA(9).bind().report_many([0, 1], [1], [0.0]), "lengths must be equal"),
    ],
)
def test_bad_argument_is_accepted(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(InvalidArgument) as caught:
        make()
    assert message in str(caught.value)


def test_a_specification_keeps_numbers_of_numpy() -> None:
    asha = ASHA(np.int64(243), reduction_factor=np.int8(3), brackets=np.uint8(6))  # type: ignore[arg-type]
    assert repr(asha) == repr(ASHA(243, reduction_factor=3, brackets=6))
    pbt = PBT(np.int64(2), np.int32(6), quantile_fraction=np.float32(0.25))  # type: ignore[arg-type]
    assert repr(pbt) == repr(PBT(2, 6, quantile_fraction=0.25))
    until = asha.bind().begin(0), pbt.bind(num_trials=4, space=SPACE).begin(0)
    assert [type(step) for step in until] == [int, int]


def test_more_promotions_are_asked_for_than_there_can_be_trials() -> None:
    bound = ASHA(9, type="promotion").bind()
    bound.report_many(range(9), [1] * 9, range(9))
    assert bound.promote_many(2**70).tolist() == [8, 7, 6]


def test_specifications_are_not_values() -> None:
    specs: list[Scheduler] = [FIFO(), ASHA(81, brackets=2), PBT(5, 50, burn_in=3)]
    for spec in specs:
        again = eval(repr(spec), {"FIFO": FIFO, "ASHA": ASHA, "PBT": PBT})
        assert again == spec and hash(again) == hash(spec)
    assert len(set(specs)) == 3
