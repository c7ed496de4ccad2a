"""PB2: it decides as PBT does, learns what the reference learns, and chooses where the bound is highest."""

import math
import random
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import asynctune as at
from asynctune._core import Stream
from asynctune.errors import InvalidArgument
from asynctune.records import Action
from asynctune.schedulers import PB2, PBT
from asynctune.schedulers.gaussian import _GRID, Drifting, choose
from asynctune.schedulers.pb2 import BoundPB2, _unit, _value, _varies
from asynctune.space import Rows, Space
from tests import reference_schedulers as reference
from tests.test_schedulers import SCORES, histories, threes

SPACE = Space(
    {
        "lr": at.loguniform(1e-4, 1.0),
        "momentum": at.uniform(0.0, 1.0),
        "units": at.ordinal([16, 32, 64]),
        "layers": at.randint(1, 9),
        "scale": at.normal(1.0, 0.5),
        "size": at.quniform(0.0, 1.0, 0.25),
        "one": at.ordinal([3]),
        "kind": at.choice(["plain", {"name": "leaky", "leak": at.uniform(0.0, 0.5)}]),
    }
)


def rows_of(population: int) -> Rows:
    rows = Rows(len(SPACE.names))
    for trial in range(population):
        rows.append(SPACE.table.sample(Stream(5, 0, trial)))
    return rows


@settings(max_examples=60, deadline=None)
@given(histories, st.integers(2, 8), st.integers(1, 3), st.integers(6, 20), st.booleans())
def test_pb2_differs_from_pbt_in_more_than_explore(
    history: bytes, population: int, interval: int, max_resource: int, barrier: bool
) -> None:
    rows = rows_of(population)
    arguments: dict[str, Any] = {"seed": 3, "num_trials": population, "space": SPACE, "rows": rows}
    bound = PB2(interval, max_resource, quantile_fraction=0.5, synchronous=barrier).bind(**arguments)
    pbt = PBT(interval, max_resource, quantile_fraction=0.5, synchronous=barrier).bind(**arguments)
    naive = reference.Gains(interval)
    step = [0] * population
    paused: set[int] = set()
    segment = 0
    for number, (what, who, value) in enumerate(threes(history)):
        trial = who % population
        if what < 150 and trial not in paused and step[trial] < max_resource:
            step[trial] += [1, 1, 1, 2, interval][value % 5]
            score = SCORES[value % len(SCORES)]
            verdict = bound.report(trial, step[trial], score)
            assert verdict == pbt.report(trial, step[trial], score)
            naive.report(trial, step[trial], score, bool(verdict.recorded), rows[trial].tolist())
            if verdict.action is Action.PAUSE:
                for each in (bound, pbt):
                    each.saved(trial, step[trial], f"{number}")
                paused.add(trial)
        elif what < 250:
            resumption = bound.resumable(None)
            assert resumption == pbt.resumable(None)
            if resumption is None:
                continue
            if resumption.donor is not None:
                segment += 1
                donated = rows[resumption.donor]
                row = bound.explore(donated, resumption.trial, segment, resumption.step)
                again = bound.explore(donated, resumption.trial, segment, resumption.step)
                assert row.tobytes() == again.tobytes()  # a query changes nothing
                SPACE.check(SPACE.decode(row))
                assert [row[j] for j in (6, 7)] == [
                    pbt.explore(donated, resumption.trial, segment, resumption.step)[j] for j in (6, 7)
                ]
                rows[resumption.trial] = row
                step[resumption.trial] = resumption.step
                naive.since[resumption.trial] = resumption.step, resumption.score
            for each in (bound, pbt):
                each.resume(resumption)
            paused.remove(resumption.trial)
        elif trial not in paused:
            for each in (bound, pbt):
                assert each.retried(trial, step[trial]) == pbt.retried(trial, step[trial])
    assert bound._since == naive.since or str(bound._since) == str(naive.since)  # NaN is not itself
    learnt = [(gain.time, gain.before, gain.row.tolist(), gain.rate) for gain in bound._gains]
    assert str(learnt) == str(naive.gains[-64:])


points = st.lists(
    st.tuples(st.integers(0, 9), st.lists(st.floats(0, 1), min_size=2, max_size=2), st.floats(-2, 2)),
    min_size=4,
    max_size=12,
)


@settings(max_examples=100, deadline=None)
@given(points, st.lists(st.floats(0, 1), min_size=2, max_size=2), st.integers(0, 12))
def test_the_process_differs_from_the_reference(
    known: list[tuple[int, list[float], float]], point: list[float], time: int
) -> None:
    values = np.array([value for *_, value in known])
    if np.ptp(values) < 1e-3:
        return
    values -= values.mean()
    model = Drifting(np.array([float(t) for t, *_ in known]), np.array([p for _, p, _ in known]), values)
    same = [(float(t), p, float(value)) for (t, p, _), value in zip(known, values, strict=True)]
    mean, deviation, likelihood = reference.posterior(same, time, point, model.length, model.drift, model.noise)
    nothing = np.zeros(0), np.zeros((0, 2))
    assert model.mean(time, np.array([point]))[0] == pytest.approx(mean, abs=1e-6)
    assert model.deviation(time, np.array([point]), *nothing)[0] == pytest.approx(deviation, abs=1e-4)
    assert likelihood >= max(reference.posterior(same, time, point, *each)[2] for each in product(*_GRID)) - 1e-6


def model() -> Drifting:
    """Of a hill at (0.7, 0.2), seen at 40 places."""
    draws = np.random.default_rng(1)
    places = draws.random((40, 2))
    values = -((places - (0.7, 0.2)) ** 2).sum(1)
    values = (values - values.mean()) / values.std()
    return Drifting(np.arange(40) / 10, places, values)


def test_the_highest_bound_is_missed() -> None:
    hill = model()
    nothing = np.zeros(0), np.zeros((0, 2))
    grid = np.array(list(product(np.linspace(0, 1, 60), repeat=2)))
    root_beta = math.sqrt(0.2 + math.log(0.4 * 40))

    def bound(places: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return hill.mean(5.0, places) + root_beta * hill.deviation(5.0, places, *nothing)

    for free in ([True, True], [True, False], [False, True]):
        context = np.array([0.5, 0.5])
        found = choose(hill, 5.0, context, np.array(free), *nothing, Stream(0, 1))
        among = grid[np.all(free | (np.abs(grid - 0.5) < 0.01), axis=1)]
        among = np.where(free, among, 0.5)
        assert bound(found[None])[0] > bound(among).max() - 0.02
        assert (found[~np.array(free)] == 0.5).all()
    assert np.abs(choose(hill, 5.0, context, np.array([True, True]), *nothing, Stream(0, 1)) - (0.7, 0.2)).max() < 0.2


def test_two_members_get_the_same_hyperparameters() -> None:
    hill = model()
    place, free = np.array([0.5, 0.5]), np.array([True, True])
    nothing = np.zeros(0), np.zeros((0, 2))
    first = choose(hill, 40.0, place, free, *nothing, Stream(0, 1))  # long after: little is known by now
    second = choose(hill, 40.0, place, free, np.array([40.0]), first[None], Stream(0, 1))
    assert np.abs(first - second).max() > 0.1
    alone = hill.deviation(40.0, first[None], *nothing)
    beside = hill.deviation(40.0, first[None], np.array([40.0]), first[None])
    assert beside < alone / 3


def test_a_choice_ignores_what_others_have_just_begun() -> None:
    rows = rows_of(8)
    bound = PB2(1, 20, synchronous=True).bind(num_trials=8, space=SPACE, rows=rows)
    for step in (1, 2):
        for trial in range(8):
            bound.report(trial, step, float(trial * step))
            bound.saved(trial, step, f"{trial}-{step}")
        while step == 1 and (resumption := bound.resumable()) is not None:
            bound.resume(resumption)
    before = bound.explore(rows[7], 0, 1, 2)
    resumption = bound.resumable(1)
    assert resumption is not None and resumption.donor is not None
    rows[1] = before  # as if it had been given the same
    bound.resume(resumption)
    assert np.abs(bound.explore(rows[7], 0, 1, 2)[:4] - before[:4]).max() > 0.01


def test_a_place_in_a_domain_is_another_value() -> None:
    for column, value in zip(SPACE.columns, SPACE.table.sample(Stream(1, 0)).tolist(), strict=True):
        if not math.isnan(value) and column.high != column.low:
            assert _value(column, _unit(column, value)) == pytest.approx(value)
        assert _unit(column, math.nan) == 0.5
    lr, units = SPACE.columns[0], SPACE.columns[2]
    assert _value(lr, 0.0) == 1e-4 and _value(lr, 0.5) == pytest.approx(1e-2) and _value(lr, 1.0) == pytest.approx(1.0)
    assert [_value(units, unit) for unit in (0.0, 0.2, 0.3, 0.9)] == [0, 0, 1, 2]


def test_a_normal_hyperparameter_passes_for_a_constant() -> None:
    space = Space(
        {"even": at.normal(1.0, 1.0), "one": at.ordinal([3]), "kind": at.choice([1, 2]), "x": at.uniform(0, 1)}
    )
    assert [_varies(column) for column in space.columns] == [True, False, False, True]


def final(spec: PBT, seed: int) -> float:
    """The best of eight members whose score rises the faster the nearer their rate and momentum are to a place that moves."""
    study = at.Study(
        {"lr": at.loguniform(1e-4, 1.0), "momentum": at.uniform(0.0, 1.0)},
        metric="score",
        mode="max",
        num_trials=8,
        scheduler=spec,
        seed=seed,
    )
    scores: dict[str | None, float] = {None: 0.0}
    while (job := study.ask()) is not None:
        score = scores[job.restore_from]
        for step in range(job.start_step + 1, 61):
            place = 1 + math.log10(job.config["lr"]) / 4, job.config["momentum"]
            score += 1 - math.dist(place, (0.9 - 0.7 * step / 60, 0.3))
            if study.tell(job.trial_id, step=step, score=score).action is not Action.CONTINUE:
                scores[f"{job.trial_id}-{job.segment}-{step}"] = score
                break
    return max(score for name, score in scores.items() if name is not None and name.endswith("-60"))


def test_a_population_of_eight_gains_no_more_than_with_pbt() -> None:
    pb2 = [final(PB2(4, 60, synchronous=True), seed) for seed in range(5)]
    pbt = [final(PBT(4, 60, synchronous=True), seed) for seed in range(5)]
    assert sum(pb2) > sum(pbt) + 5


def test_what_is_equal_or_huge_stops_the_choice() -> None:
    for scores in (
        [1.0] * 40,
        [1e308, -1e308] * 20,
        [random.Random(0).choice([1e300, 1.0, -1e300]) for _ in range(40)],
    ):
        bound = PB2(1, 20, quantile_fraction=0.5).bind(num_trials=4, space=SPACE, rows=rows_of(4))
        values = iter(scores)
        for step in range(1, 9):
            for trial in range(4):
                bound.report(trial, step, next(values))
                bound.saved(trial, step, f"{trial}-{step}")
            while (resumption := bound.resumable()) is not None:
                if resumption.donor is not None:
                    row = bound.explore(bound._rows[0], resumption.trial, 1, step)
                    SPACE.check(SPACE.decode(row))
                bound.resume(resumption)


def test_bad_argument_is_accepted() -> None:
    with pytest.raises(InvalidArgument, match="PB2 needs rows"):
        PB2(1, 9).bind(num_trials=2, space=SPACE)
    with pytest.raises(InvalidArgument, match="PB2 needs num_trials"):
        PB2(1, 9).bind(space=SPACE, rows=rows_of(1))
    with pytest.raises(InvalidArgument, match="perturbation_interval must be < max_resource"):
        PB2(9, 9)


def test_specification_is_not_a_value() -> None:
    spec = PB2(2, 9, synchronous=True)
    assert eval(repr(spec), {"PB2": PB2}) == spec and spec != PBT(2, 9, synchronous=True)
    assert isinstance(spec.bind(num_trials=2, space=SPACE, rows=rows_of(2)), BoundPB2)
