"""The core: streams, domains and explore, at the edges where others go wrong; and the orders under load."""

import math
import pickle
import re
import statistics
from collections import Counter
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asynctune._core import (
    BRACKET,
    CHOICE,
    DONOR,
    EXPLORE,
    LINEAR,
    LOG,
    NORMAL,
    ORDER,
    ORDINAL,
    SAMPLE,
    SEED,
    SUGGEST,
    Generations,
    Ladder,
    Stream,
    Table,
    best,
    draw_donors,
    worst,
)
from asynctune.errors import InvalidArgument
from tests import reference

Row = npt.NDArray[np.float64]


def one(kind: int, low: float, high: float, step: float = 0.0) -> Table:
    return Table([kind], [low], [high], [step], [-1], [0])


def explored(table: Table, start: float, n: int, p: float = 0.0, factor: float = 1.2) -> list[float]:
    """`n` values that explore makes of `start`, each with a stream of its own."""
    row = np.array([start], dtype=np.float64)
    return [table.explore(row, Stream(0, EXPLORE, trial), p, factor)[0] for trial in range(n)]


def walk(table: Table, start: float, n: int, p: float = 0.0, factor: float = 1.2) -> list[float]:
    """The `n` values that explore makes one of the other."""
    row = np.array([start], dtype=np.float64)
    values = []
    for step in range(n):
        row = table.explore(row, Stream(0, EXPLORE, 0, 0, step), p, factor)
        values.append(float(row[0]))
    return values


# Streams.


def test_stream_depends_on_what_was_drawn_before() -> None:
    first, second = Stream(1, SAMPLE, 2, 3, 4), Stream(1, SAMPLE, 2, 3, 4)
    drawn = [first.uniform() for _ in range(5)]
    Stream(1, SAMPLE, 2, 3, 4).uniform()
    assert [second.uniform() for _ in range(5)] == drawn
    assert len(set(drawn)) == 5


def test_two_keys_give_one_stream() -> None:
    purposes = [SAMPLE, BRACKET, ORDER, DONOR, EXPLORE, SEED, SUGGEST]
    assert len(set(purposes)) == len(purposes)
    keys = {
        (seed, purpose, trial, segment, step)
        for seed in (0, 1, -1, 2**63, 2**64 - 2)
        for purpose in purposes
        for trial in range(4)
        for segment in range(4)
        for step in range(4)
    }
    assert len({Stream(*key).uniform() for key in keys}) == len(keys)


@pytest.mark.parametrize("draws", ["within a stream", "over trials", "over steps", "over seeds"])
def test_stream_is_not_uniform(draws: str) -> None:
    n = 20_000
    stream = Stream(3, SAMPLE)
    draw: dict[str, Callable[[int], float]] = {
        "within a stream": lambda i: stream.uniform(),
        "over trials": lambda i: Stream(3, SAMPLE, i).uniform(),
        "over steps": lambda i: Stream(3, SAMPLE, 0, 0, i).uniform(),
        "over seeds": lambda i: Stream(i, SAMPLE).uniform(),
    }
    drawn = [draw[draws](i) for i in range(n)]
    assert all(0 <= value < 1 for value in drawn)
    # Chi-square with 99 degrees of freedom exceeds 160 once in ten thousand times.
    cells = Counter(int(100 * value) for value in drawn)
    assert sum((cells[cell] - n / 100) ** 2 / (n / 100) for cell in range(100)) < 160
    assert abs(statistics.correlation(drawn[:-1], drawn[1:])) < 4 / math.sqrt(n)


def test_below_leaves_its_range_or_favours_a_value() -> None:
    stream = Stream(1, DONOR)
    cells = Counter(stream.below(7) for _ in range(7000))
    assert sorted(cells) == list(range(7))
    assert all(abs(count - 1000) < 130 for count in cells.values())
    assert stream.below(1) == 0
    assert 0 <= stream.below(2**63 - 1) < 2**63 - 1
    with pytest.raises(InvalidArgument, match="n must be >= 1, got 0"):
        stream.below(0)


def test_stream_and_table_change_in_a_pickle() -> None:
    table = one(LOG, 1e-5, 1.0)
    stream = Stream(1, SAMPLE, 5)
    stream.uniform()
    table_again, stream_again = pickle.loads(pickle.dumps((table, stream)))
    assert table_again.sample(stream_again) == table.sample(stream)
    assert stream_again.uniform() == stream.uniform()


# Domains.


def test_sampled_value_is_never_drawn_at_an_end() -> None:
    tables = {
        one(LINEAR, -2, 3, 1): [-2, -1, 0, 1, 2, 3],
        one(LOG, 1, 4, 1): [1, 2, 3, 4],
        one(LINEAR, 0.1, 0.7, 0.1): [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7],
        one(LINEAR, 0.25, 1.1, 0.5): [0.5, 1.0],
        one(LOG, 3, 17, 5): [5, 10, 15],
        one(CHOICE, 0, 2): [0, 1, 2],
        one(ORDINAL, 0, 0): [0],
    }
    for table, expected in tables.items():
        drawn = {float(table.sample(Stream(0, SAMPLE, trial))[0]) for trial in range(500)}
        assert sorted(drawn) == pytest.approx(expected, abs=1e-12)


def test_integers_in_a_log_domain_are_not_log_uniform() -> None:
    n = 20_000
    drawn = Counter(one(LOG, 1, 4, 1).sample(Stream(0, SAMPLE, trial))[0] for trial in range(n))
    for value in range(1, 5):
        assert abs(drawn[value] / n - math.log((value + 1) / value) / math.log(5)) < 0.015


@pytest.mark.parametrize(
    ("table", "distribution"),
    [
        (one(LINEAR, -1, 3), lambda x: (x + 1) / 4),
        (one(LOG, 1e-4, 1e-1), lambda x: math.log(x / 1e-4) / math.log(1e3)),
        (one(NORMAL, 2, 3), statistics.NormalDist(2, 3).cdf),
    ],
)
def test_sample_has_another_distribution(table: Table, distribution: Callable[[float], float]) -> None:
    n = 10_000
    drawn = sorted(float(table.sample(Stream(0, SAMPLE, trial))[0]) for trial in range(n))
    distance = max(abs(distribution(value) - (i + 0.5) / n) for i, value in enumerate(drawn))
    assert distance < 1.95 / math.sqrt(n)  # Kolmogorov-Smirnov, once in a thousand times


def test_normal_on_a_grid_leaves_it() -> None:
    drawn = [one(NORMAL, 0, 2, 0.5).sample(Stream(0, SAMPLE, trial))[0] for trial in range(200)]
    assert all(value == round(value / 0.5) * 0.5 for value in drawn)
    assert min(drawn) < 0 < max(drawn)


def nested() -> Table:
    """A choice of two; the first switches on a choice, of which the second option switches on a number; then a number."""
    return Table(
        [CHOICE, CHOICE, LINEAR, LOG, LINEAR],
        [0, 0, 0, 1, 0],
        [1, 1, 1, 10, 1],
        [0] * 5,
        [-1, 0, 1, 0, -1],
        [0, 0, 1, 1, 0],
    )


def check_branches(row: Row) -> None:
    assert math.isnan(row[1]) == (row[0] != 0)
    assert math.isnan(row[2]) == (row[1] != 1)
    assert math.isnan(row[3]) == (row[0] != 1)
    assert not math.isnan(row[4])


def test_branch_is_active_without_its_parent() -> None:
    table = nested()
    seen = set()
    for trial in range(200):
        row = table.sample(Stream(0, SAMPLE, trial))
        check_branches(row)
        new = table.explore(row, Stream(0, EXPLORE, trial), 0.5, 1.2)
        check_branches(new)
        seen.add((row[0], new[0]))
    assert len(seen) == 4


def test_branch_shifts_the_draws_after_it() -> None:
    table = nested()
    flat = Table([LINEAR] * 5, [0] * 5, [1] * 5, [0] * 5, [-1] * 5, [0] * 5)
    for trial in range(50):
        row, plain = (t.sample(Stream(0, SAMPLE, trial)) for t in (table, flat))
        assert row[4] == plain[4]


def test_two_samples_of_one_stream_are_equal() -> None:
    stream = Stream(0, SAMPLE)
    assert one(LINEAR, 0, 1).sample(stream) != one(LINEAR, 0, 1).sample(stream)


def test_empty_space_has_no_row() -> None:
    table = Table([], [], [], [], [], [])
    row = table.sample(Stream(0, SAMPLE))
    assert len(table) == 0 and row.shape == (0,)
    assert table.explore(row, Stream(0, EXPLORE), 0.25, 1.2).shape == (0,)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (([LINEAR], [1.0], [0.0], [0.0], [-1], [0]), "column 0: low must be <= high, got 1.0 and 0.0"),
        (([LOG], [0.0], [1.0], [0.0], [-1], [0]), "column 0: low must be > 0 in a LOG domain, got 0.0"),
        (([NORMAL], [0.0], [0.0], [0.0], [-1], [0]), "column 0: the standard deviation must be > 0, got 0.0"),
        (([LINEAR], [0.6], [0.9], [1.0], [-1], [0]), "column 0: no multiple of 1.0 is in [0.6, 0.9]"),
        (([LINEAR], [0.0], [math.inf], [0.0], [-1], [0]), "must be finite"),
        (([9], [0.0], [1.0], [0.0], [-1], [0]), "column 0: kind must be one of"),
        (([LINEAR], [0.0], [1.0], [0.0], [0], [0]), "column 0: parent must be -1 or an earlier column, got 0"),
        (([LINEAR], [0.0, 1.0], [1.0], [0.0], [-1], [0]), "columns must have one length"),
    ],
)
def test_bad_column_is_accepted(columns: tuple[list[float], ...], message: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        Table(*columns)
    assert message in str(caught.value)


# Explore.

bounds = st.floats(-1e6, 1e6).map(lambda x: round(x, 6))


@st.composite
def tables(draw: st.DrawFn) -> tuple[Table, float, float, float, int]:
    kind = draw(st.sampled_from([LINEAR, LOG, ORDINAL, CHOICE]))
    if kind in (ORDINAL, CHOICE):
        low, high, step = 0.0, float(draw(st.integers(0, 5))), 0.0
    else:
        low, high = sorted((draw(bounds), draw(bounds)))
        if kind == LOG:
            low, high = sorted((abs(low) + 1e-6, abs(high) + 1e-6))
        step = draw(st.sampled_from([0.0, 0.0, 1.0, 0.25, 0.1]))
        if step == 1.0:
            low, high = math.ceil(low), math.ceil(high)
        elif step and math.floor(high / step) - math.ceil(low / step) < 1:
            high = low + 3 * step
    return one(kind, low, high, step), low, high, step, kind


@settings(max_examples=300, deadline=None)
@given(tables(), st.integers(0, 2**64 - 1), st.sampled_from([0.0, 0.25, 1.0]), st.floats(1.0001, 10))
def test_explore_leaves_the_domain_or_stands_still(
    made: tuple[Table, float, float, float, int], seed: int, p: float, factor: float
) -> None:
    table, low, high, step, kind = made
    row = table.sample(Stream(seed, SAMPLE))
    moves = p == 0 and kind != CHOICE
    for trial in range(15):
        assert low <= row[0] <= high
        new = table.explore(row, Stream(seed, EXPLORE, trial), p, factor)
        if kind in (ORDINAL, CHOICE):
            assert new[0] == round(new[0])
            assert not moves or abs(new[0] - row[0]) == (high > 0)
        elif step:
            assert abs(new[0] / step - round(new[0] / step)) < 1e-6
            single = math.floor(high / step + 1e-9) == math.ceil(low / step - 1e-9)
            assert not moves or single or abs(new[0] - row[0]) > 0.999 * step
        row = new


def test_explore_drifts_in_log_space() -> None:
    n = 4000
    values = [1.0, *walk(one(LOG, 1e-200, 1e200), 1.0, n)]
    moves = [math.log(after / before) for before, after in pairwise(values)]
    assert all(abs(abs(move) - math.log(1.2)) < 1e-9 for move in moves)
    assert abs(sum(moves)) < 3.3 * math.log(1.2) * math.sqrt(n)


def test_integer_cannot_leave_one() -> None:
    assert set(explored(one(LOG, 1, 100, 1), 1, 50)) == {2}
    assert set(explored(one(LOG, 1, 100, 1), 2, 50)) == {1, 3}
    assert set(explored(one(LINEAR, 1, 4, 1), 4, 50)) == {3}
    assert set(explored(one(LINEAR, 5, 5, 1), 5, 50)) == {5}
    assert set(explored(one(LINEAR, 1, 1000, 1), 100, 50)) == {83, 120}
    assert set(explored(one(LINEAR, 0.0, 1.0, 0.25), 1.0, 50)) == {0.75}


def test_zero_or_a_sign_is_absorbing() -> None:
    assert sorted(set(explored(one(LINEAR, 0, 1), 0.0, 50))) == pytest.approx([0.0, 0.02])
    assert set(explored(one(LINEAR, 0, 10, 1), 0, 50)) == {1}
    assert sorted(set(explored(one(NORMAL, 0, 1), 0.0, 50))) == pytest.approx([-0.2, 0.2])
    for table, start in ((one(LINEAR, -1, 1), -1.0), (one(NORMAL, 0, 1), -3.0), (one(LINEAR, -20, 20, 1), -20.0)):
        values = walk(table, start, 3000)
        assert min(values) < 0 < max(values)


def test_ordinal_jumps_over_a_neighbour() -> None:
    assert set(explored(one(ORDINAL, 0, 4), 2, 50)) == {1, 3}
    assert set(explored(one(ORDINAL, 0, 4), 0, 50)) == {1}
    assert set(explored(one(ORDINAL, 0, 4), 4, 50)) == {3}


def test_choice_moves_without_being_drawn_anew() -> None:
    assert set(explored(one(CHOICE, 0, 3), 1, 100)) == {1}
    assert set(explored(one(CHOICE, 0, 3), 1, 100, p=1.0)) == {0, 1, 2, 3}


def test_resampling_is_rarer_than_asked_for() -> None:
    values = explored(one(LINEAR, 1, 2), 1.5, 4000, p=0.25)
    kept = sum(value in (1.5 * 1.2, 1.5 / 1.2) for value in values)
    assert abs(kept / 4000 - 0.75) < 0.025


def test_direction_depends_on_the_resample_test() -> None:
    n = 20_000
    for p in (0.1, 0.5, 0.9):
        values = np.array(explored(one(LOG, 1e-6, 1e6), 1.0, n, p))
        up, down = (np.isclose(values, value) for value in (1.2, 1 / 1.2))
        kept = np.count_nonzero(up | down)
        assert abs(kept - (1 - p) * n) < 4 * math.sqrt(p * (1 - p) * n)
        assert abs(np.count_nonzero(up) - kept / 2) < 2 * math.sqrt(kept)


def test_columns_move_together() -> None:
    d, n = 4, 5000
    table = Table([LINEAR] * d, [1] * d, [2] * d, [0] * d, [-1] * d, [0] * d)
    rows = np.array([table.explore(np.full(d, 1.5), Stream(0, EXPLORE, trial), 0.5, 1.2) for trial in range(n)])
    for what in (rows > 1.5, np.isin(rows, (1.5 * 1.2, 1.5 / 1.2)), rows):
        correlation = np.corrcoef(what.astype(float), rowvar=False)
        assert np.abs(correlation - np.eye(d)).max() < 4.5 / math.sqrt(n)


def test_explore_changes_the_donors_row() -> None:
    row = np.array([0.5])
    table = one(LINEAR, 0, 1)
    table.explore(row, Stream(0, EXPLORE), 0.5, 1.2)
    assert row[0] == 0.5
    row.setflags(write=False)
    table.explore(row, Stream(0, EXPLORE), 0.5, 1.2)
    with pytest.raises(InvalidArgument, match="row must have length 1, got 2"):
        table.explore(np.zeros(2), Stream(0, EXPLORE), 0.5, 1.2)
    with pytest.raises(InvalidArgument, match="perturbation_factor must be > 1"):
        table.explore(row, Stream(0, EXPLORE), 0.5, 1.0)


# Whole populations.

ALL_KINDS = Table(
    [CHOICE, CHOICE, LINEAR, LOG, LINEAR, NORMAL, ORDINAL, LOG, LINEAR],
    [0, 0, 0, 1e-3, -1, 0, 0, 1, -3],
    [2, 1, 1, 10, 1, 2, 4, 100, 9],
    [0, 0, 0, 0, 0.25, 0, 0, 1, 1],
    [-1, 0, 1, 0, -1, -1, 0, -1, -1],
    [0, 0, 1, 1, 0, 0, 1, 0, 0],
)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 700), st.integers(0, 2**64 - 1), st.integers(0, 9), st.sampled_from([0.0, 0.25, 1.0]), st.data())
def test_many_are_not_sampled_and_explored_as_one_is(
    n: int, seed: int, step: int, p: float, data: st.DataObject
) -> None:
    values = np.full((len(ALL_KINDS), n), math.inf)
    for first, last in pairwise([0, n // 3, n]):
        ALL_KINDS.sample_many(values, seed, first, last)
    rows = values.T.copy()
    some = data.draw(st.lists(st.integers(0, n - 1), max_size=5))
    for i in some:
        assert np.array_equal(rows[i], ALL_KINDS.sample(Stream(seed, SAMPLE, i)), equal_nan=True)
    giving, taking = np.split(np.random.default_rng(seed).permutation(n), [max(1, n // 3)])
    donor = np.arange(n)
    donor[taking] = giving[taking % len(giving)]
    ALL_KINDS.explore_many(values, donor, taking, seed, step, p, 1.3)
    for i in range(n):
        stream = Stream(seed, EXPLORE, i, 0, step)
        new = rows[i] if donor[i] == i else ALL_KINDS.explore(rows[donor[i]], stream, p, 1.3)
        assert np.array_equal(values[:, i], new, equal_nan=True)


SCORES = st.one_of(st.sampled_from([0.0, -0.0, 1.0, 2.0, math.nan, math.inf, -math.inf]), st.floats())


@settings(max_examples=400, deadline=None)
@given(st.lists(SCORES, min_size=2, max_size=40), st.sampled_from(["max", "min"]), st.floats(0, 0.5))
def test_ends_of_the_order_are_not_those_of_the_reference(scores: list[float], mode: str, q: float) -> None:
    giving, taking = reference.truncation(scores, mode, q)
    sign, scratch = 1.0 if mode == "max" else -1.0, np.empty(len(scores))
    assert best(np.array(scores), sign, len(taking), scratch).tolist() == giving
    assert worst(np.array(scores), sign, len(taking), scratch).tolist() == taking


def test_donor_is_drawn_more_often_than_another() -> None:
    n = 20_000
    giving, taking, donor = np.arange(0, 100, 2), np.arange(100, n), np.arange(n)
    draw_donors(donor, giving, taking, 3, 1)
    assert np.array_equal(donor[:100], np.arange(100))
    count = np.bincount(donor[100:], minlength=100)
    assert not count[1:100:2].any()
    # Chi-square with 49 degrees of freedom exceeds 95 once in ten thousand times.
    expected = len(taking) / len(giving)
    assert np.sum((count[:100:2] - expected) ** 2 / expected) < 95
    assert [giving[Stream(3, DONOR, i, 0, 1).below(50)] for i in taking[:20]] == donor[100:120].tolist()


def test_array_of_another_shape_reaches_the_core() -> None:
    table, members, donor = one(LINEAR, 0, 1), np.array([0, 1]), np.arange(3)
    values = np.full((1, 3), 0.5)
    scores, scratch = np.zeros(3), np.empty(3)
    refused: list[tuple[Callable[[], object], str]] = [
        (lambda: table.sample_many(np.zeros((2, 3)), 0, 0, 3), "values must have 1 rows, got 2"),
        (lambda: table.sample_many(values, 0, 1, 4), "members must be in 0..2, got 1..3"),
        (lambda: table.sample_many(values, 0, -1, 2), "members must be in 0..2, got -1..1"),
        (lambda: table.explore_many(np.zeros((2, 3)), donor, members, 0, 1, 0.5, 1.2), "values must have 1 rows"),
        (lambda: table.explore_many(values, donor[:2], members, 0, 1, 0.5, 1.2), "donor must have length 3, got 2"),
        (lambda: table.explore_many(values, donor, members + 2, 0, 1, 0.5, 1.2), "members must be in 0..2, got 3"),
        (lambda: table.explore_many(values, donor, members - 1, 0, 1, 0.5, 1.2), "members must be in 0..2, got -1"),
        (lambda: table.explore_many(values, donor + 3, members, 0, 1, 0.5, 1.2), "donors must be in 0..2, got 4"),
        (lambda: table.explore_many(values, donor, members, 0, 1, 0.5, 1.0), "perturbation_factor must be > 1"),
        (lambda: best(scores, 1.0, 0, scratch), "k must be in 1..3, got 0"),
        (lambda: worst(scores, 1.0, 4, scratch), "k must be in 1..3, got 4"),
        (lambda: worst(scores, 1.0, 1, np.empty(2)), "scratch must have length 3, got 2"),
        (lambda: draw_donors(donor, members[:0], members, 0, 1), "best must have at least one member, got none"),
        (lambda: draw_donors(donor, members, members + 2, 0, 1), "members must be in 0..2, got 3"),
        (lambda: table.sample_many(np.zeros((1, 3), dtype=np.float32), 0, 0, 3), "dtype mismatch"),
        (lambda: table.sample_many(np.zeros((3, 1)).T[:, ::-1], 0, 0, 3), "not C-contiguous"),
    ]
    for call, message in refused:
        with pytest.raises(ValueError, match=re.escape(message)):
            call()
    assert values.tolist() == [[0.5] * 3] and donor.tolist() == [0, 1, 2]
    table.explore_many(values, donor, members[:0], 0, 1, 0.5, 1.2)
    Table([], [], [], [], [], []).explore_many(np.empty((0, 3)), donor, members, 0, 1, 0.5, 1.2)


# Orders.


@pytest.mark.parametrize("promotion", [False, True])
def test_rung_loses_its_order_as_it_grows(promotion: bool) -> None:
    """Many results, against a sorted list: what the short histories of test_schedulers cannot show."""
    n, eta = 30_000, 3
    scores = np.round(np.random.default_rng(0).normal(size=n), 2)
    scores[::97] = math.nan
    ladder = Ladder([1, 2], eta, promotion)
    keep = ladder.report_many(np.arange(n), np.ones(n, dtype=np.int64), scores)
    finite = np.where(np.isfinite(scores), scores, -math.inf)
    if promotion:
        best = np.lexsort((np.arange(n), -finite))[: n // eta]
        assert not keep.any()
        assert np.array_equal(ladder.promote_many(n), best)
        assert len(ladder.promote_many(1)) == 0
        assert ladder.report_many(best, np.full(len(best), 2), scores[best]).any() is np.False_
    else:
        for i in (*range(50), *range(50, n, 301)):
            ahead = np.count_nonzero(finite[:i] >= finite[i])
            assert keep[i] == (ahead < max(1, (i + 1) // eta) and math.isfinite(scores[i]))


def test_generation_loses_its_order_as_it_grows() -> None:
    n = 5000
    scores = np.random.default_rng(0).permutation(n).astype(float)
    generations = Generations(n, 1, 0.2, 0, barrier=False)
    for trial in range(n):
        assert generations.record(trial, 1, scores[trial])
        assert not generations.record(trial, 1, scores[trial])
        generations.save(trial, 1, f"{trial}")
    donors: Counter[int] = Counter()
    while (turn := generations.next()) is not None:
        trial = turn
        donor = generations.donor(trial)
        assert (donor is not None) == (scores[trial] < n // 5)
        if donor is not None:
            assert donor[1:] == (f"{donor[0]}", 1, scores[donor[0]])
            assert scores[donor[0]] >= n - n // 5
            donors[donor[0]] += 1
        assert generations.released() == []
        generations.advance(trial)
    assert max(donors.values()) < 10
    assert len(generations.released()) == n


def test_core_reaches_outside_its_arrays() -> None:
    generations = Generations(3, 2, 0.25, 0, barrier=False)
    for member in (3, -1):
        with pytest.raises(InvalidArgument, match=f"member must be in 0..2, got {member}"):
            generations.record(member, 1, 0.0)
    with pytest.raises(InvalidArgument, match="depth must be in 1..2, got 3"):
        generations.record(0, 3, 0.0)
    with pytest.raises(InvalidArgument, match="member 0 must wait for its turn"):
        generations.advance(0)
    ladder = Ladder([1, 3], 3, promotion=True)
    with pytest.raises(InvalidArgument, match="trial must be in 0..2\\^31 - 2, got -1"):
        ladder.report_many(np.array([0, -1]), np.array([1, 1]), np.array([0.0, 0.0]))
    with pytest.raises(InvalidArgument, match="trial 0 must wait at a rung below the last"):
        ladder.promote(0)
    with pytest.raises(InvalidArgument, match="levels must be 1 to 64 increasing steps"):
        Ladder([3, 3], 3)
    empty = np.array([], dtype=np.int64)
    assert ladder.report_many(empty, empty, empty.astype(np.float64)).shape == (0,)


@pytest.mark.parametrize("made", [Ladder, Table, Generations])
def test_an_object_that_was_not_made_can_be_called(made: type[object]) -> None:
    with pytest.raises(TypeError, match="__cinit__"):
        made.__new__(made)


def test_a_grid_of_more_values_than_can_be_counted() -> None:
    with pytest.raises(InvalidArgument, match=r"fewer than 2\^63 multiples"):
        one(LINEAR, 0.0, 1e300, 1.0)


@pytest.mark.parametrize("probability", [math.nan, -0.1, 1.1])
def test_a_bad_resample_probability_is_explored_with(probability: float) -> None:
    with pytest.raises(InvalidArgument, match=r"resample_probability must be in \[0, 1\]"):
        one(LINEAR, 0.0, 1.0).explore(np.zeros(1), Stream(0, 0), probability, 1.2)
