"""TPE: the core's densities beside hyperopt's own and the readable ones, and what a study gets of them."""

import math
import pickle
import random
import warnings
from collections.abc import Callable, Sequence
from unittest import mock

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import asynctune as at
from asynctune._core import CHOICE, EXPLORE, LINEAR, LOG, SAMPLE, Parzen, Stream, Table
from asynctune.errors import InvalidArgument
from asynctune.searchers.hyperopt import _domain
from asynctune.space import Column, Domain
from tests import reference_tpe

Row = npt.NDArray[np.float64]

DOMAINS: list[Domain] = [
    at.uniform(0.0, 1.0),
    at.uniform(-3.0, 17.0),
    at.loguniform(1e-5, 1e-1),
    at.normal(5.0, 2.0),
    at.randint(1, 5),
    at.randint(3, 4),
    at.randint(-500, 500),
    at.lograndint(1, 500),
    at.quniform(0.25, 0.7, 0.1),
    at.qloguniform(0.15, 100.0, 0.1),
    at.ordinal([32, 64, 128]),
    at.choice(["relu", "gelu", "tanh"]),
]

NESTED = at.Space(
    {
        **{f"domain {i}": domain for i, domain in enumerate(DOMAINS)},
        "optimizer": at.choice(
            [
                {"name": "sgd", "momentum": at.uniform(0, 0.99), "nesterov": at.choice([True, False])},
                {"name": "adam", "schedule": at.choice([{"warmup": at.randint(1, 9)}, None])},
                "lbfgs",
            ]
        ),
    }
)

#: How many observations there are: something changes at 1, 2, 26, 27 and 98; and from there on most kernels are in sums.
SIZES = st.sampled_from([0, 1, 2, 3, 24, 25, 26, 27, 28, 96, 97, 98, 99, 150, 400])


def observations(table: Table, n: int, seed: int, crowded: float) -> Row:
    """Rows (n, d) of a space; the part `crowded` of them near one of the first three or equal to it, as a search ends up."""
    draw = random.Random(seed)
    rows: list[Row] = []
    for trial in range(n):
        if trial < 3 or draw.random() > crowded:
            rows.append(table.sample(Stream(seed, SAMPLE, trial)))
        else:
            factor = 1 + 10 ** draw.uniform(-6, -1)
            near = table.explore(rows[draw.randrange(3)], Stream(seed, EXPLORE, trial), 0.0, factor)
            rows.append(near if draw.random() < 0.7 else rows[draw.randrange(3)])
    return np.array(rows).reshape(n, len(table))


def far_off(found: Row, expected: Row) -> float:
    """How far densities are off, as a part of the largest."""
    return float(np.max(np.abs(found - expected)) / np.max(expected))


# Beside the library.


class Stable:
    """NumPy as hyperopt.tpe sees it, but equal values stay in their order: which comes first is left to the processor else."""

    def __getattr__(self, name: str) -> object:
        return getattr(np, name)

    def argsort(self, values: Row) -> npt.NDArray[np.intp]:
        return np.argsort(values, kind="stable")


def library(column: Column, values: Sequence[float], prior_weight: float, xs: Row) -> Row:
    """hyperopt's density at xs (m,) after values, the oldest first: what its suggest would evaluate (tpe.build_posterior)."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        from hyperopt import pyll, tpe

        prior = _domain((column,)).params["0"]
        dtype = int if column.kind == CHOICE else float
        observed, points = (pyll.as_apply(np.array(numbers, dtype=dtype)) for numbers in (values, xs))
        posterior = tpe.adaptive_parzen_samplers[prior.name](
            observed, prior_weight, *prior.pos_args, **dict(prior.named_args)
        )
        named = {name: value for name, value in posterior.named_args if name not in ("rng", "size")}
        logarithm = getattr(pyll.scope, posterior.name + "_lpdf")(points, *posterior.pos_args, **named)
        with mock.patch.object(tpe, "np", Stable()):
            return np.exp(np.asarray(pyll.rec_eval(logarithm), dtype=np.float64))


@settings(deadline=None, max_examples=150)
@given(
    domain=st.sampled_from(DOMAINS),
    better=st.integers(0, 25),
    others=SIZES,
    crowded=st.sampled_from([0.0, 0.5, 0.95]),
    prior_weight=st.sampled_from([1.0, 0.2, 3.0]),
    seed=st.integers(0, 2**32),
)
def test_a_density_is_not_hyperopts(
    domain: Domain, better: int, others: int, crowded: float, prior_weight: float, seed: int
) -> None:
    space = at.Space({"x": domain})
    rows = observations(space.table, better + others, seed, crowded)
    parzen = Parzen(space.table, prior_weight)
    draw = random.Random(seed)
    for trial in draw.sample(range(len(rows)), len(rows)):
        parzen.put(trial, rows[trial], trial % 2 == 0 and trial // 2 < better)
    chosen = np.array([trial % 2 == 0 and trial // 2 < better for trial in range(len(rows))], dtype=bool)
    xs = np.concatenate([observations(space.table, 40, seed + 1, 0.0), rows[-20:]])[:, 0]
    for side in (True, False):
        expected = library(space.columns[0], rows[chosen == side, 0].tolist(), prior_weight, xs)
        assert far_off(parzen.density(0, xs, side), expected) < 1e-9


# Beside the readable form.


def fill(
    space: at.Space, n: int, seed: int, crowded: float, prior_weight: float
) -> tuple[Parzen, reference_tpe.Parzen]:
    """Both forms after a history in which trials come in any order, change sides and go; n of them are there in the end."""
    draw = random.Random(seed)
    rows = observations(space.table, n + 10, seed, crowded)
    parzen = Parzen(space.table, prior_weight)
    naive = reference_tpe.Parzen(space.columns, prior_weight)
    for trial in [*draw.sample(range(len(rows)), len(rows)), *draw.choices(range(len(rows)), k=n // 2)]:
        side = draw.random() < 0.3 and len(naive.better - {trial}) < 25
        parzen.put(trial, rows[trial], side)
        naive.rows[trial] = rows[trial]
        (naive.better.add if side else naive.better.discard)(trial)
    for trial in draw.sample(sorted(naive.rows), 10):
        parzen.drop(trial)
        parzen.drop(trial)
        del naive.rows[trial]
        naive.better.discard(trial)
    return parzen, naive


@settings(deadline=None, max_examples=60)
@given(n=SIZES, crowded=st.sampled_from([0.0, 0.5, 0.95]), seed=st.integers(0, 2**32))
def test_a_density_depends_on_more_than_the_trials_that_count(n: int, crowded: float, seed: int) -> None:
    parzen, naive = fill(NESTED, n, seed, crowded, prior_weight=1.5)
    xs = observations(NESTED.table, 30, seed + 1, 0.0)
    for j in range(len(NESTED.columns)):
        points = xs[:, j][~np.isnan(xs[:, j])]
        for side in (True, False):
            expected = np.array([*map(naive.density(j, side), points.tolist())])
            assert not len(points) or far_off(parzen.density(j, points, side), expected) < 1e-9


@settings(deadline=None, max_examples=40)
@given(n=SIZES, crowded=st.sampled_from([0.0, 0.95]), seed=st.integers(0, 2**32))
def test_a_suggestion_is_not_the_best_of_the_draws(n: int, crowded: float, seed: int) -> None:
    parzen, naive = fill(NESTED, n, seed, crowded, prior_weight=0.5)
    row = parzen.suggest(seed, 1000, 8)
    NESTED.check(NESTED.decode(row))
    np.testing.assert_array_equal(parzen.suggest(seed, 1000, 8), row)
    for j, value in enumerate(row.tolist()):
        if not math.isnan(value):
            drawn = naive.candidates(j, seed, 1000, 8)
            ratio = next(ratio for x, ratio in drawn if math.isclose(x, value, rel_tol=1e-9, abs_tol=1e-12))
            assert ratio >= max(ratio for _, ratio in drawn) * (1 - 1e-6)


@settings(deadline=None, max_examples=30)
@given(n=st.sampled_from([0, 1, 30, 300, 1200]), crowded=st.sampled_from([0.0, 0.95]), seed=st.integers(0, 2**32))
def test_a_joint_suggestion_is_not_the_best_of_the_draws(n: int, crowded: float, seed: int) -> None:
    parzen, naive = fill(NESTED, n, seed, crowded, prior_weight=0.5)
    row = parzen.suggest(seed, 5000, 4, joint=True)
    NESTED.check(NESTED.decode(row))
    for group in {tuple(naive.group(j)) for j in range(len(row)) if not math.isnan(row[j])}:
        drawn = naive.joint_candidates(list(group), seed, 5000, 4)
        chosen = [ratio for point, ratio in drawn if np.allclose(point, row[list(group)], rtol=1e-9, atol=1e-12)]
        assert max(chosen) >= max(ratio for _, ratio in drawn) * (1 - 1e-6)


def test_rounding_piles_up_in_a_long_history() -> None:
    space = at.Space({"x": at.uniform(0.0, 1.0)})
    draw = random.Random(0)
    parzen = Parzen(space.table)
    rows = observations(space.table, 200, 0, 0.5)
    for _ in range(100_000):
        trial = draw.randrange(200)
        parzen.put(trial, rows[trial], False) if draw.random() < 0.7 else parzen.drop(trial)
    for trial in range(200):
        parzen.put(trial, rows[trial], False)
    fresh = Parzen(space.table)
    for trial in range(200):
        fresh.put(trial, rows[trial], False)
    xs = np.linspace(0, 1, 500)
    assert far_off(parzen.density(0, xs, False), fresh.density(0, xs, False)) < 1e-11


def test_a_number_too_far_away_for_a_cell_of_its_own_is_trouble() -> None:
    space = at.Space({"x": at.normal(0.0, 1.0)})
    parzen = Parzen(space.table)
    for trial in range(120):
        parzen.put(trial, np.array([1e300 * (trial % 3 - 1) + trial]), trial < 5)
    row = parzen.suggest(0, 120, 24)
    assert np.isfinite(row).all()
    assert np.isfinite(parzen.density(0, np.array([0.0, 1e300, 5e299]), False)).all()


def test_two_numbers_with_one_logarithm_are_trouble() -> None:
    low = 1e10
    space = at.Space({"x": at.loguniform(low, math.nextafter(low, math.inf)), "y": at.uniform(0, 1)})
    parzen = Parzen(space.table)
    for trial in range(30):
        parzen.put(trial, np.array([low, trial / 30]), trial < 5)
    assert parzen.suggest(0, 30, 24)[0] == low


# What it refuses.

ONE = Table([LINEAR], [0.0], [1.0], [0.0], [-1], [0])
TWO = Table([CHOICE, LOG], [0.0, 1.0], [2.0, 9.0], [1.0, 0.0], [-1, 0], [-1, 1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Parzen(Table(*[[]] * 6)), "table must have at least one column, got none"),
        (lambda: Parzen(ONE, 0.0), "prior_weight must be > 0 and finite, got 0.0"),
        (lambda: Parzen(ONE, math.nan), "prior_weight must be > 0 and finite, got nan"),
        (
            lambda: Parzen(Table([LINEAR], [-1.5e308], [1.5e308], [0.0], [-1], [0])),
            r"column 0: high - low must be finite, got -1.5e\+308 and 1.5e\+308",
        ),
        (lambda: Parzen(ONE).put(0, np.zeros(2), False), "row must have length 1, got 2"),
        (lambda: Parzen(ONE).put(0, np.array([math.nan]), False), "column 0: a value must be of its domain, got nan"),
        (lambda: Parzen(TWO).put(0, np.array([0.5, 1.0]), False), "column 0: a value must be of its domain, got 0.5"),
        (lambda: Parzen(TWO).put(0, np.array([3.0, 1.0]), False), "column 0: a value must be of its domain, got 3.0"),
        (lambda: Parzen(TWO).put(0, np.array([1.0, 0.0]), False), "column 1: a value must be of its domain, got 0.0"),
        (lambda: Parzen(ONE).suggest(0, 0, 0), "candidates must be in 1..10000, got 0"),
        (lambda: Parzen(ONE).suggest(0, 0, 2**31), "candidates must be in 1..10000, got 2147483648"),
        (lambda: at.TPE(candidates=10_001), "candidates must be an integer <= 10000, got 10001"),
        (lambda: at.TPE(multivariate=1), "multivariate must be True or False, got 1"),  # type: ignore[arg-type]
        (lambda: Parzen(ONE).density(1, np.zeros(1), False), "column must be in 0..0, got 1"),
    ],
)
def test_impossible_arguments_are_taken(call: Callable[[], object], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        call()


def test_what_is_refused_changes_something() -> None:
    parzen = Parzen(TWO)
    for trial in range(25):
        parzen.put(trial, np.array([1.0, 2.0]), True)
    before = parzen.state()
    for row, better in [([1.0, -2.0], True), ([2.5, 2.0], False), ([1.0, math.inf], False)]:
        with pytest.raises(InvalidArgument):
            parzen.put(3, np.array(row), better)
    with pytest.raises(InvalidArgument, match="at most 25 trials may be the better ones, got one more: 25"):
        parzen.put(25, np.array([0.0, math.nan]), True)
    parzen.put(3, np.array([1.0, 2.0]), True)
    assert parzen.state() == before


# In a study.


def optimize(searcher: at.TPE, trials: int, seed: int = 0) -> list[float]:
    """The losses of a study in two dimensions."""
    study = at.Study(
        {"x": at.uniform(0.0, 1.0), "y": at.uniform(0.0, 1.0)},
        metric="loss",
        mode="min",
        num_trials=trials,
        searcher=searcher,
        seed=seed,
    )
    losses = []
    while (job := study.ask()) is not None:
        losses.append((job.config["x"] - 0.3) ** 2 + (job.config["y"] - 0.7) ** 2)
        study.tell(job.trial_id, step=1, loss=losses[-1])
        study.finish(job.trial_id)
    return losses


def test_a_candidate_or_a_prior_of_another_weight_makes_no_difference() -> None:
    runs = [
        optimize(at.TPE(**given), 60)
        for given in ({}, {"candidates": 2}, {"prior_weight": 9.0}, {"gamma": 0.9}, {"multivariate": True})
    ]
    assert len({tuple(run[:15]) for run in runs}) == 1
    assert len({tuple(run) for run in runs}) == len(runs)


def test_a_specification_cannot_be_sent_or_its_suggestion_not_pickled() -> None:
    assert pickle.loads(pickle.dumps(at.TPE(candidates=3))) == at.TPE(candidates=3) != at.TPE()
    study = at.Study({"x": at.uniform(0.0, 1.0)}, metric="m", mode="max", num_trials=9, searcher=at.TPE(startup=1))
    job = study.ask()
    assert job is not None
    study.tell(job.trial_id, step=1, m=1.0)
    study.finish(job.trial_id)
    call = study.suggestion(1)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(call))(), call())
