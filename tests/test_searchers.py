"""Searchers: what all of them keep to; and TPE, the library's and ours, under concurrency and early stopping."""

import math
import pickle
import random
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import asynctune.searchers
from asynctune import space as at
from asynctune._core import SAMPLE, Stream
from asynctune.errors import InvalidArgument
from asynctune.records import COMPLETED, FAILED, STOPPED, TrialState
from asynctune.searchers import TPE, Grid, HyperOpt, Random, Searcher, Sobol
from asynctune.searchers import hyperopt as room
from asynctune.searchers.base import Row
from asynctune.searchers.random import draw as by_chance
from tests.methods import SEARCHERS, searchers

SQUARE = at.Space({"x": at.uniform(0, 1), "y": at.uniform(0, 1)})
RICH = at.Space(
    {
        "lr": at.loguniform(1e-5, 1e-1),
        "batch": at.ordinal([32, 64, 128]),
        "layers": at.randint(1, 5),
        "width": at.lograndint(1, 500),
        "bias": at.normal(5.0, 2.0),
        "dropout": at.quniform(0.25, 0.7, 0.1),
        "decay": at.qloguniform(0.15, 100, 0.1),
        "only": at.randint(3, 4),
        "act": at.choice(["relu"]),
        "constant": 0.1,
        "optimizer": at.choice(
            [
                {"name": "sgd", "momentum": at.uniform(0, 0.99), "nesterov": at.choice([True, False])},
                {
                    "name": "adam",
                    "beta": at.uniform(0.5, 0.99),
                    "schedule": at.choice([{"warmup": at.randint(1, 9)}, None]),
                },
                "lbfgs",
            ]
        ),
    }
)


def score(row: Row) -> float:
    return -float(np.nansum((row - 0.3) ** 2))


class Table(at.Rows):
    """The rows that a study keeps, but of trials with any numbers."""

    def __init__(self) -> None:
        self.rows: dict[int, Row] = {}

    def take(self, trials: Sequence[int]) -> Row:
        return np.array([self.rows[trial] for trial in trials])

    def __getitem__(self, trial: int) -> Row:
        return self.rows[trial]


class Bound:
    """A bound searcher and the rows that a study would keep for it."""

    def __init__(self, searcher: Searcher, space: at.Space, seed: int, num_trials: int | None) -> None:
        self.table = Table()
        self.searcher: Any = searcher.bind(space=space, seed=seed, num_trials=num_trials, rows=self.table)
        self.prepare, self.slow = self.searcher.prepare, self.searcher.slow
        self.observe, self.ended = self.searcher.observe, self.searcher.ended

    def started(self, trial: int, row: Row) -> None:
        self.table.rows[trial] = row
        self.searcher.started(trial)


def bind(searcher: Searcher, space: at.Space = SQUARE, seed: int = 0, num_trials: int | None = None) -> Bound:
    return Bound(searcher, space, seed, num_trials)


def model(bound: Bound) -> tuple[list[float], list[float]] | None:
    """Of the better trials and of the others the first hyperparameter, in the order of suggestion; None: there is no model."""
    call: Any = bound.prepare(10_000)
    if getattr(call, "func", None) is by_chance:
        return None
    if isinstance(bound.searcher, room.BoundHyperOpt):
        _, rows, better, _, _ = call.args
        return rows[better, 0].tolist(), rows[~better, 0].tolist()
    others, best = (
        [float(bound.table.rows[trial][0]) for trial, _ in side] for side in bound.searcher._parzen.state()[0]
    )
    return best, others


def split(bound: Bound) -> tuple[int, int]:
    """How many better and other trials the model is made of."""
    sides = model(bound)
    assert sides is not None
    return len(sides[0]), len(sides[1])


def suggest(bound: Bound, trial: int) -> Row:
    """Suggest a trial and start it."""
    row = bound.prepare(trial)()
    bound.started(trial, row)
    return row


def train(bound: Bound, trials: range, level: int = 0) -> list[Row]:
    """Suggest trials one after the other, and give each its score at a level."""
    rows = []
    for trial in trials:
        rows.append(suggest(bound, trial))
        bound.observe(trial, level, score(rows[-1]))
        bound.ended(trial, COMPLETED)
    return rows


def start_with(
    bound: Bound,
    scores: dict[tuple[float, float], float],
    level: int,
    first: int = 0,
    state: TrialState | None = COMPLETED,
) -> None:
    """Trials that ended (None: that have not) with given scores at a level."""
    for trial, (point, value) in enumerate(scores.items(), start=first):
        bound.started(trial, np.array(point))
        bound.observe(trial, level, value)
        if state is not None:
            bound.ended(trial, state)


#: The methods that are built of the same trials.
both = pytest.mark.parametrize("method", [HyperOpt, TPE])
Method = type[HyperOpt] | type[TPE]


def test_importing_the_searchers_does_not_import_hyperopt() -> None:
    code = "import asynctune.searchers, sys; print({'hyperopt', 'scipy', 'networkx', 'optuna', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize("method", [Random, Grid, Sobol])
def test_suggestions_that_learn_nothing_depend_on_slots_or_order(method: Callable[[], Searcher]) -> None:
    ahead, one_by_one = bind(method(), RICH, seed=3), bind(method(), RICH, seed=3)
    calls = {trial: ahead.prepare(trial) for trial in (7, 3, 2000, 0, 4, 1, 2, 5, 6)}
    for trial in range(8):
        row = suggest(one_by_one, trial)
        np.testing.assert_array_equal(calls[trial](), row)
        one_by_one.observe(trial, 0, 1.0)
    np.testing.assert_array_equal(calls[2000](), one_by_one.prepare(2000)())
    other = bind(method(), RICH, seed=4).prepare(0)()
    assert np.array_equal(other, calls[0](), equal_nan=True) == (method is Grid)


def test_random_suggestions_are_of_another_stream() -> None:
    bound = bind(Random(), RICH, seed=3)
    for trial in range(8):
        np.testing.assert_array_equal(bound.prepare(trial)(), RICH.table.sample(Stream(3, SAMPLE, trial)))
        assert not bound.slow(trial)


@both
def test_of_twenty_trials_only_five_are_random(method: Method) -> None:
    bound = bind(method(), num_trials=20)
    early = []
    for trial in range(20):
        early.append(model(bound) is None)
        assert bound.slow(trial) == (method is HyperOpt and not early[-1])
        train(bound, range(trial, trial + 1))
    assert early == [True] * 5 + [False] * 15
    rows, chance = train(bind(method(), num_trials=20), range(20)), train(bind(Random()), range(20))
    assert [np.array_equal(row, by_chance) for row, by_chance in zip(rows, chance, strict=True)] == [True] * 5 + [
        False
    ] * 15


@both
@pytest.mark.parametrize(("num_trials", "startup"), [(None, 20), (1, 5), (40, 10), (1000, 20)])
def test_the_start_up_follows_the_number_of_trials(method: Method, num_trials: int | None, startup: int) -> None:
    bound = bind(method(), num_trials=num_trials)
    train(bound, range(startup - 1))
    assert model(bound) is None
    train(bound, range(startup - 1, startup))
    assert model(bound) is not None


@both
def test_trials_without_a_finite_value_do_not_end_the_start_up(method: Method) -> None:
    bound = bind(method(startup=5))
    for trial in range(64):
        suggest(bound, trial)
    for trial, value in enumerate([math.nan, math.inf, -math.inf, 1.0, 2.0, 3.0, 4.0]):
        bound.observe(trial, 0, value)
    for trial in range(20, 30):
        bound.ended(trial, FAILED)
    assert model(bound) is None
    bound.observe(7, 0, 5.0)
    assert model(bound) is not None


@both
def test_suggestions_that_run_at_the_same_time_do_not_collapse(method: Method) -> None:
    def cells(starts: bool) -> int:
        bound = bind(method())
        train(bound, range(30))
        rows = []
        for trial in range(30, 94):
            rows.append(bound.prepare(trial)())
            if starts:
                bound.started(trial, rows[-1])
        return len({tuple((row * 5).astype(int)) for row in rows})

    # Of 25 cells: about 20 with the liar, about 5 without.
    assert cells(starts=True) >= 14
    assert cells(starts=False) <= 8, "this test would pass without a liar"


@both
def test_many_running_trials_never_count_as_better(method: Method) -> None:
    bound = bind(method(startup=2, gamma=1.0))
    start_with(bound, {(0.2, 0.2): 1.0, (0.8, 0.8): 0.0}, level=0)
    alone = split(bound)
    for trial in range(2, 200):
        bound.started(trial, np.array([0.5, 0.5]))
    crowded = [bound.prepare(trial) for trial in range(1000, 1020)]
    assert (alone, split(bound)) == ((2, 0), (2, 198))
    assert not [row for row in (call() for call in crowded) if np.all(np.abs(row - 0.5) < 0.1)], "the liars attract"


@searchers
def test_suggestions_are_not_of_the_space_for_some_domains(searcher: Callable[[], Searcher]) -> None:
    bound = bind(searcher(), RICH, seed=1, num_trials=20)
    seen = set()
    for trial in range(40):
        row = suggest(bound, trial)
        config = RICH.decode(row)
        np.testing.assert_array_equal(RICH.encode(config), row)
        seen.add(str(config["optimizer"])[:12])
        # Ends of the domains are what is best, so that candidates crowd there.
        bound.observe(trial, 0, float(np.nansum(row[:8])))
        bound.ended(trial, COMPLETED)
    assert len(seen) == 3 or searcher is SEARCHERS["grid"]


@both
def test_a_single_nested_hyperparameter_without_observations_is_no_trouble(method: Method) -> None:
    space = at.Space({"model": at.choice(["linear", {"name": "tree", "depth": at.randint(1, 9)}])})
    bound = bind(method(startup=5), space)
    for trial in range(12):
        row = np.array([0.0, np.nan])
        bound.started(trial, row)
        bound.observe(trial, 0, float(trial))
    for trial in range(12, 40):
        space.check(space.decode(suggest(bound, trial)))


@both
def test_tpe_is_better_than_chance_on_a_quadratic(method: Method) -> None:
    def regret(searcher: Searcher, seed: int) -> float:
        return -max(map(score, train(bind(searcher, seed=seed, num_trials=40), range(40))))

    tpe, chance = ([regret(searcher, seed) for seed in range(10)] for searcher in (method(), Random()))
    assert np.exp(np.mean(np.log(tpe))) < 0.6 * np.exp(np.mean(np.log(chance)))
    assert sum(ours < theirs for ours, theirs in zip(tpe, chance, strict=True)) >= 7


@searchers
def test_the_same_history_gives_another_suggestion_in_a_thread_or_in_another_process(
    searcher: Callable[[], Searcher],
) -> None:
    bound = bind(searcher(), RICH, num_trials=20)
    train(bound, range(12))
    call = bound.prepare(12)
    here = call()
    np.testing.assert_array_equal(call(), here)
    with ThreadPoolExecutor(4) as threads:
        for row in threads.map(lambda _: call(), range(8)):
            np.testing.assert_array_equal(row, here)
    code = "import pickle, sys; sys.stdout.buffer.write(pickle.dumps(pickle.load(sys.stdin.buffer)()))"
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, input=pickle.dumps(call), check=True, capture_output=True)
    assert done.stderr == b"", "the library printed or logged"
    np.testing.assert_array_equal(pickle.loads(done.stdout), here)


@searchers
def test_a_suggestion_changes_after_it_was_prepared(searcher: Callable[[], Searcher]) -> None:
    bound = bind(searcher(), num_trials=20)
    train(bound, range(12))
    suggest(bound, 12)
    call = bound.prepare(13)
    then = pickle.loads(pickle.dumps(call))
    bound.observe(12, 0, 10.0)
    train(bound, range(13, 20))
    np.testing.assert_array_equal(call(), then())


@both
def test_seeds_and_trials_get_suggestions_of_their_own(method: Method) -> None:
    bounds = [bind(method(startup=5), seed=seed) for seed in (1, 2)]
    for bound in bounds:
        start_with(bound, {(i / 9, 1 - i / 9): float(i) for i in range(10)}, level=0)
    rows = [bounds[0].prepare(10)(), bounds[0].prepare(11)(), bounds[1].prepare(10)()]
    assert len({tuple(row) for row in rows}) == 3


GOOD_ON_THE_LEFT = {(0.1 + i / 100, 0.5): -float(i) for i in range(10)} | {
    (0.6 + i / 30, 0.5): -50.0 - i for i in range(10)
}
SHOTS_AT_THE_RIGHT = {(0.9 + i / 1000, 0.5): 1000.0 + i for i in range(15)}


@both
def test_a_trial_that_ended_early_is_compared_with_one_that_went_far(method: Method) -> None:
    early, absent = bind(method()), bind(method())
    for bound in (early, absent):
        start_with(bound, GOOD_ON_THE_LEFT, level=27)
    start_with(early, SHOTS_AT_THE_RIGHT, level=3, first=100)
    for trial in range(200, 220):
        np.testing.assert_array_equal(early.prepare(trial)(), absent.prepare(trial)())
    assert np.mean([early.prepare(trial)()[0] for trial in range(200, 220)]) < 0.5


@both
def test_a_trial_that_was_stopped_says_nothing(method: Method) -> None:
    bound = bind(method())
    start_with(bound, GOOD_ON_THE_LEFT, level=27)
    better, others = split(bound)
    start_with(bound, SHOTS_AT_THE_RIGHT, level=3, first=100, state=STOPPED)
    assert split(bound) == (better, others + len(SHOTS_AT_THE_RIGHT))
    assert np.mean([bound.prepare(trial)()[0] for trial in range(200, 220)]) < 0.5


@both
def test_a_trial_that_runs_or_pauses_further_down_attracts(method: Method) -> None:
    bound = bind(method())
    start_with(bound, GOOD_ON_THE_LEFT, level=27)
    better, others = split(bound)
    for trial in range(100, 200):
        bound.started(trial, np.array([0.5, 0.5]))
        bound.observe(trial, 3, 1000.0)
    assert split(bound) == (better, others + 100)
    assert not [row for row in (bound.prepare(trial)() for trial in range(200, 220)) if np.all(np.abs(row - 0.5) < 0.1)]


@both
def test_the_model_moves_up_only_when_enough_trials_are_there(method: Method) -> None:
    bound = bind(method())
    start_with(bound, SHOTS_AT_THE_RIGHT | GOOD_ON_THE_LEFT, level=1, state=None)
    assert bound.prepare(100)()[0] > 0.8
    for trial in range(15, 34):  # of those on the left, now further up
        bound.observe(trial, 9, float(-trial))
    assert bound.prepare(100)()[0] > 0.8
    bound.observe(34, 9, -99.0)
    assert np.median([bound.prepare(trial)()[0] for trial in range(100, 110)]) < 0.5


@both
def test_a_failed_trial_counts_as_worst_however_it_failed(method: Method) -> None:
    rows = []
    for how in ("failed", "nan", "both"):
        bound = bind(method())
        start_with(bound, GOOD_ON_THE_LEFT, level=0)
        for trial in range(20, 40):
            bound.started(trial, np.array([0.15, 0.5]))
            if how != "failed":
                bound.observe(trial, 0, math.nan)
            bound.ended(trial, COMPLETED if how == "nan" else FAILED)
        assert split(bound)[1] == 38
        rows.append([bound.prepare(trial)() for trial in range(40, 45)])
    np.testing.assert_array_equal(rows[0], rows[1])
    np.testing.assert_array_equal(rows[0], rows[2])


def test_a_long_history_keeps_its_best(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_WINDOW", 30)
    bound = bind(HyperOpt())
    start_with(bound, GOOD_ON_THE_LEFT, level=0)
    start_with(bound, {(0.9, i / 200): -1000.0 - i for i in range(100)}, level=0, first=20)
    assert split(bound) == (3, 30)
    assert np.median([bound.prepare(trial)()[0] for trial in range(120, 130)]) < 0.5


class Readable:
    """Which trials a model is made of, as searchers/history.py has it: everything kept, all of it sorted each time."""

    def __init__(self, startup: int, gamma: float) -> None:
        self.startup, self.gamma = startup, gamma
        self.trials: list[int] = []
        self.scores: dict[int, dict[int, float]] = {}  # level -> trial -> score, in the order of the reports
        self.completed: list[int] = []

    def started(self, trial: int) -> None:
        self.trials.append(trial)

    def observe(self, trial: int, level: int, score: float) -> None:
        self.scores.setdefault(level, {})[trial] = score if math.isfinite(score) else -math.inf

    def ended(self, trial: int, state: TrialState) -> None:
        self.completed += [trial] * (state is COMPLETED)

    def model(self, window: int) -> tuple[list[int], list[int]] | None:
        """The better trials and the others, of the latest so many, in the order of suggestion; None: it is too early for a model."""
        finite = {level: sum(map(math.isfinite, scores.values())) for level, scores in self.scores.items()}
        level = max((level for level, count in finite.items() if count >= self.startup), default=None)
        if level is None:
            return None
        scores = self.scores[level]
        count = min(math.ceil(self.gamma * math.sqrt(finite[level])), 25)
        better = sorted(scores, key=lambda trial: -scores[trial])[:count]  # stable: ties go to the earlier report
        got_there = {trial for higher, scores in self.scores.items() if higher >= level for trial in scores}
        others = {*self.trials[-window:]} - ({*self.completed} - got_there)
        return sorted(better), sorted(others - {*better})


@both
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), startup=st.integers(1, 8), gamma=st.sampled_from([0.25, 1.0]))
def test_a_model_is_made_of_the_trials_that_the_readable_form_names(
    monkeypatch: pytest.MonkeyPatch, method: Method, seed: int, startup: int, gamma: float
) -> None:
    monkeypatch.setattr(room, "_WINDOW", 20)
    bound, readable = bind(method(startup=startup, gamma=gamma)), Readable(startup, gamma)
    draw = random.Random(seed)
    alive: dict[int, int] = {}  # trial -> how many levels it has a score at
    for trial in range(draw.choice([10, 100, 300])):
        bound.started(trial, np.array([float(trial), 0.0]))
        readable.started(trial)
        alive[trial] = 0
        for _ in range(draw.randrange(4)):
            if not alive:
                break
            other = draw.choice(sorted(alive))
            if draw.random() < 0.6:
                level = (1, 3, 9)[alive[other]]
                value = draw.choice([0.0, 1.0, 2.0, draw.random(), math.nan, -math.inf])
                bound.observe(other, level, value)
                readable.observe(other, level, value)
                alive[other] += 1
            if draw.random() < 0.3 or alive[other] == 3:
                state = draw.choice([COMPLETED, STOPPED, FAILED])
                bound.ended(other, state)
                readable.ended(other, state)
                del alive[other]
        window = room._WINDOW if method is HyperOpt else 10**6
        assert model(bound) == readable.model(window)


@searchers
def test_a_suggestion_leaves_other_filters_and_floating_point_settings_behind(searcher: Callable[[], Searcher]) -> None:
    bound = bind(searcher(), RICH, num_trials=20)
    train(bound, range(8))
    before = list(warnings.filters), np.geterr()
    bound.prepare(8)()
    assert (list(warnings.filters), np.geterr()) == before


@both
@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"startup": 0}, "startup must be an integer >= 1, got 0"),
        ({"startup": 2.5}, "startup must be an integer >= 1, got 2.5"),
        ({"candidates": 0}, "candidates must be an integer >= 1, got 0"),
        ({"candidates": None}, "candidates must be an integer >= 1, got None"),
        ({"gamma": 0}, r"gamma must be in \(0, 1\], got 0"),
        ({"gamma": math.nan}, r"gamma must be in \(0, 1\], got nan"),
        ({"gamma": "0.25"}, r"gamma must be in \(0, 1\], got '0.25'"),
    ],
)
def test_impossible_parameters_are_refused(method: Method, parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        method(**parameters)


@pytest.mark.parametrize("weight", [0, -1.0, math.inf, math.nan, "1", None])
def test_impossible_prior_weights_are_refused(weight: Any) -> None:
    with pytest.raises(InvalidArgument, match="prior_weight must be > 0 and finite, got "):
        TPE(prior_weight=weight)


@searchers
def test_a_specification_is_unlike_itself_or_cannot_be_pasted(searcher: Callable[[], Searcher]) -> None:
    spec = searcher()
    assert spec == searcher() and hash(spec) == hash(searcher())
    assert eval(repr(spec), vars(asynctune.searchers)) == spec
    assert pickle.loads(pickle.dumps(spec)) == spec
    with pytest.raises(AttributeError):
        spec.startup = 3  # type: ignore[attr-defined]
    others = [make() for make in SEARCHERS.values() if make is not SEARCHERS["optuna"] and make is not searcher]
    assert spec not in [*others, HyperOpt(startup=3), TPE(prior_weight=2.0), Grid(points=3)]
