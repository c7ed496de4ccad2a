"""Grid search: every combination, in a fixed order, none twice."""

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import asynctune as at
from asynctune.errors import InvalidArgument
from asynctune.space import Number, Options
from tests.runs import climb, options

NESTED = {
    "rate": at.loguniform(1e-4, 1e-2),
    "optimizer": at.choice(
        [
            {
                "name": "sgd",
                "momentum": at.ordinal([0.0, 0.9]),
                "schedule": at.choice([{"warmup": at.randint(1, 4)}, None]),
            },
            {"name": "adam"},
            "lbfgs",
        ]
    ),
    "layers": at.randint(1, 3),
}


def grid(space: dict[str, Any], points: int = 10) -> list[dict[str, Any]]:
    """All configurations in their order, as a study hands them out."""
    study = at.Study(space, metric="loss", mode="min", num_trials=None, searcher=at.Grid(points))
    configs = []
    while job := study.ask():
        configs.append(job.config)
    return configs


def expand(node: Any, values: dict[str, list[Any]]) -> list[Any]:
    """What a node of a space can be, written to be read; `values` of numbers are by their text."""
    if isinstance(node, dict):
        children = [expand(child, values) for child in node.values()]
        return [dict(zip(node, combination, strict=True)) for combination in itertools.product(*children)]
    if isinstance(node, Options):
        return [value for option in node.options for value in expand(option, values)]
    return values[repr(node)] if isinstance(node, Number) else [node]


NUMBERS: dict[str, list[Any]] = {
    "uniform(0.0, 1.0)": [0.0, 0.5, 1.0],
    "loguniform(0.0001, 0.01)": [1e-4, 1e-3, 1e-2],
    "randint(1, 3)": [1, 2],
    "randint(5, 8)": [5, 6, 7],
    "quniform(0.0, 1.0, 0.5)": [0.0, 0.5, 1.0],
}
DOMAINS = st.sampled_from(
    [
        at.uniform(0, 1),
        at.loguniform(1e-4, 1e-2),
        at.randint(1, 3),
        at.randint(5, 8),
        at.quniform(0, 1, 0.5),
        at.ordinal([1, 2, 4, 8]),
        at.choice(["a", "b"]),
        "a constant",
    ]
)


def inside(nodes: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """A dict of nodes, or a choice among such dicts and a word."""
    dicts = st.dictionaries(st.sampled_from("abc"), nodes, max_size=2)
    branches = st.lists(dicts, min_size=1, max_size=3)
    return dicts | branches.map(lambda some: at.choice([*({"is": i, **one} for i, one in enumerate(some)), "none"]))


SPACES = st.dictionaries(st.sampled_from("vwx"), st.recursive(DOMAINS, inside, max_leaves=6), max_size=3)


@settings(deadline=None, max_examples=60)
@given(SPACES)
def test_a_combination_is_left_out_or_comes_twice_or_out_of_turn(space: dict[str, Any]) -> None:
    space = {"first": at.choice(["on", "off"]), **space}
    expected = expand(space, NUMBERS)
    study = at.Study(space, metric="loss", mode="min", num_trials=None, searcher=at.Grid(points=3))
    assert study.num_trials == len(expected)
    searcher: Any = study._searcher
    some = sorted({*range(0, len(expected), 1 + len(expected) // 200), len(expected) - 1})
    got = [study.space.decode(searcher.prepare(index)()) for index in some]
    assert [str(config) for config in got] == [
        str(study.space.decode(study.space.encode(expected[index]))) for index in some
    ]
    if len(some) == len(expected):
        assert len({str(config) for config in got}) == len(expected)


def test_branches_multiply_or_share_a_combination() -> None:
    configs = grid(NESTED, points=3)
    assert len(configs) == 3 * (2 * (3 + 1) + 1 + 1) * 2
    assert configs[:3] == [
        {"rate": 1e-4, "optimizer": {"name": "sgd", "momentum": 0.0, "schedule": {"warmup": 1}}, "layers": 1},
        {"rate": 1e-4, "optimizer": {"name": "sgd", "momentum": 0.0, "schedule": {"warmup": 1}}, "layers": 2},
        {"rate": 1e-4, "optimizer": {"name": "sgd", "momentum": 0.0, "schedule": {"warmup": 2}}, "layers": 1},
    ]
    assert configs[-1] == {"rate": 1e-2, "optimizer": "lbfgs", "layers": 2}
    assert len({str(config) for config in configs}) == len(configs)


@pytest.mark.parametrize(
    ("domain", "points", "values"),
    [
        (at.uniform(-1, 3), 5, [-1, 0, 1, 2, 3]),
        (at.uniform(-1, 3), 2, [-1, 3]),
        (at.uniform(-1, 3), 1, [1]),
        (at.loguniform(1e-4, 1e-1), 4, [1e-4, 1e-3, 1e-2, 1e-1]),
        (at.randint(3, 8), 5, [3, 4, 5, 6, 7]),
        (at.randint(0, 101), 5, [0, 25, 50, 75, 100]),
        (at.randint(3, 4), 5, [3]),
        (at.lograndint(1, 1001), 4, [1, 10, 100, 1000]),
        (at.lograndint(1, 1001), 30, sorted({round(10 ** (k / 29 * 3)) for k in range(30)})),
        (at.quniform(0.25, 0.7, 0.1), 10, [0.3, 0.4, 0.5, 0.6, 0.7]),
        (at.quniform(0.25, 0.7, 0.1), 3, [0.3, 0.5, 0.7]),
        (at.normal(5.0, 2.0), 1, [5.0]),
        (at.normal(5.0, 2.0), 2, [5 - 2 * 0.6744897501960817, 5 + 2 * 0.6744897501960817]),
        (at.ordinal(list("abcdefghijkl")), 2, list("abcdefghijkl")),
        (at.choice(list("abcdefghijkl")), 2, list("abcdefghijkl")),
    ],
)
def test_a_domain_is_tried_elsewhere(domain: Any, points: int, values: list[Any]) -> None:
    got = [config["x"] for config in grid({"x": domain}, points)]
    if isinstance(domain, Options) or domain.integer:
        assert got == values
    else:
        np.testing.assert_allclose(got, values, rtol=1e-12)
    if isinstance(domain, Number) and domain.kind != at.normal(0, 1).kind and not domain.step and points > 1:
        assert (got[0], got[-1]) == domain.bounds, "the ends are not exactly those of the domain"


def test_more_trials_than_points_are_asked_for() -> None:
    with pytest.raises(
        InvalidArgument, match=r"num_trials must be <= the 60 configurations of Grid\(points=3\), got 61"
    ):
        at.Study(NESTED, metric="loss", mode="min", num_trials=61, searcher=at.Grid(points=3))
    study = at.Study(NESTED, metric="loss", mode="min", num_trials=7, searcher=at.Grid(points=3))
    assert study.num_trials == 7
    assert at.Study(NESTED, metric="loss", mode="min", num_trials=None, searcher=at.Random()).num_trials is None


def test_a_grid_that_nobody_can_finish_is_begun() -> None:
    space = {f"x{i}": at.uniform(0, 1) for i in range(19)}
    with pytest.raises(
        InvalidArgument, match=f"a grid must have fewer than 2.*63 combinations, got {10**19}: points=10"
    ):
        at.Study(space, metric="loss", mode="min", num_trials=5, searcher=at.Grid())


@pytest.mark.parametrize("points", [0, -1, 2.0, True, None, "3"])
def test_an_impossible_number_of_points_is_taken(points: Any) -> None:
    with pytest.raises(InvalidArgument, match="points must be an integer >= 1, got "):
        at.Grid(points=points)


def test_a_run_without_num_trials_is_not_the_whole_grid(tmp_path: Path) -> None:
    space = {"x": at.ordinal([1.0, 2.0, 3.0]), "y": at.choice(["a", "b"])}
    result = at.run(climb, space, **options(tmp_path, num_trials=None, searcher=at.Grid(), slots="inline"))
    expected = [{"x": x, "y": y} for x in (1.0, 2.0, 3.0) for y in ("a", "b")]
    assert [trial.config for trial in result.trials] == expected
    assert result.best.value == 27.0


def test_a_simulation_without_num_trials_is_not_the_whole_grid() -> None:
    result = at.simulate(at.Tabular.digits(), searcher=at.Grid(points=2), num_slots=10_000)
    assert result.header.slots == len(result.trials) == 2 * 5 * (2 + 2) * 2 * 2 * 2 * 2 * 2


def test_a_grid_depends_on_the_slots(tmp_path: Path) -> None:
    space = {"x": at.ordinal([1.0, 2.0, 3.0])}
    one, many = (
        at.run(
            climb,
            space,
            **options(tmp_path, num_trials=None, searcher=at.Grid(), slots=slots, run_dir=tmp_path / str(slots)),
        )
        for slots in (1, 5)
    )
    assert [trial.config for trial in one.trials] == [trial.config for trial in many.trials]
    header = (tmp_path / "5" / "journal.jsonl").read_text().splitlines()[0]
    assert '"slots":3' in header, "slots without a trial would start workers"


def test_the_rest_of_a_grid_is_not_added_by_resuming(tmp_path: Path) -> None:
    given: dict[str, Any] = {"searcher": at.Grid(points=4), "slots": "inline"}
    space = {"x": at.uniform(0, 3)}
    at.run(climb, space, **options(tmp_path, num_trials=2, **given))
    result = at.run(climb, space, **options(tmp_path, num_trials=None, resume=True, **given))
    assert [trial.config["x"] for trial in result.trials] == [0.0, 1.0, 2.0, 3.0]
    with pytest.raises(InvalidArgument, match="num_trials must be <= the 4 configurations"):
        at.run(climb, space, **options(tmp_path, num_trials=5, resume=True, **given))


def test_a_population_does_not_take_the_whole_grid() -> None:
    study = at.Study(
        {"x": at.uniform(0, 1)},
        metric="loss",
        mode="min",
        num_trials=None,
        searcher=at.Grid(points=4),
        scheduler=at.PBT(perturbation_interval=1, max_resource=2),
    )
    assert [job.config["x"] for job in iter(study.ask, None)] == [0.0, 1 / 3, 2 / 3, 1.0]
    assert math.isclose(study.space.columns[0].quantile(0.25), 0.25)
