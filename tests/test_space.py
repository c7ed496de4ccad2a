"""Space: what a domain refuses, and rows and configurations as two views of one thing."""

import json
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asynctune import space as at
from asynctune._core import CHOICE, LINEAR, LOG, NORMAL, ORDINAL, SAMPLE, Stream
from asynctune.errors import InvalidArgument

FINITE = st.floats(-1e6, 1e6)
WIDTH = st.floats(1e-6, 1e6)
POSITIVE = st.floats(1e-6, 1e6)
KEYS = st.text("abcde", min_size=1, max_size=3)
PLAIN = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=3)
)


def numbers() -> st.SearchStrategy[at.Number]:
    return st.one_of(
        st.builds(lambda low, width: at.uniform(low, low + width), FINITE, WIDTH),
        st.builds(lambda low, factor: at.loguniform(low, low * (1 + factor)), POSITIVE, WIDTH),
        st.builds(
            lambda k, n, q: at.quniform(k * q, (k + n) * q, q), st.integers(-99, 99), st.integers(1, 99), POSITIVE
        ),
        st.builds(
            lambda k, n, q: at.qloguniform(k * q, (k + n) * q, q), st.integers(1, 99), st.integers(1, 99), POSITIVE
        ),
        st.builds(lambda low, n: at.randint(low, low + n), st.integers(-(10**9), 10**9), st.integers(1, 10**9)),
        st.builds(lambda low, n: at.lograndint(low, low + n), st.integers(1, 10**9), st.integers(1, 10**9)),
        st.builds(at.normal, FINITE, POSITIVE),
    )


def plain_options() -> st.SearchStrategy[at.Options]:
    option = PLAIN | st.tuples(st.integers(), st.text(max_size=2)) | st.lists(st.integers(), max_size=3)
    unique = st.lists(option, min_size=1, max_size=5, unique_by=lambda value: json.dumps(value).removesuffix(".0"))
    unique = unique.filter(lambda values: 0.0 not in values)  # 0.0 and -0.0 are equal, and their JSON is not
    return unique.map(at.choice) | unique.map(at.ordinal)


def branches(nested: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[at.Options]:
    def named(dicts: list[dict[str, Any]]) -> at.Options:
        return at.choice([*({"name": f"option {i}", **option} for i, option in enumerate(dicts)), "none of them"])

    return st.lists(nested, min_size=1, max_size=3).map(named)


def nodes(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    nested = st.dictionaries(KEYS, inner, max_size=3)
    return nested | branches(nested)


SPACES = st.dictionaries(
    KEYS, st.recursive(numbers() | plain_options() | PLAIN, nodes, max_leaves=12), min_size=1, max_size=4
).map(lambda rest: at.Space({"always": at.uniform(0, 1), **rest}))


def row_of(space: at.Space, trial: int) -> at.Row:
    return space.table.sample(Stream(1, SAMPLE, trial))


@settings(deadline=None)  # nothing here is timed, and machines are shared
@given(space=SPACES, trial=st.integers(0, 1000))
def test_a_row_and_its_configuration_are_one_thing(space: at.Space, trial: int) -> None:
    row = row_of(space, trial)
    config = space.decode(row)
    np.testing.assert_array_equal(space.encode(config), row)
    assert space.decode(space.encode(config)) == config
    np.testing.assert_array_equal(space.encode(json.loads(json.dumps(config))), row, err_msg="a journal loses it")


@settings(deadline=None)
@given(space=SPACES, trial=st.integers(0, 1000))
def test_a_hyperparameter_is_active_only_where_its_branch_is_chosen(space: at.Space, trial: int) -> None:
    row = row_of(space, trial)
    for j, column in enumerate(space.columns):
        assert column.parent < j
        assert math.isnan(row[j]) == (column.parent >= 0 and row[column.parent] != column.branch)
        if column.kind != NORMAL and not math.isnan(row[j]):
            assert column.low <= row[j] <= column.high
            assert row[j] == at.nearest(row[j], column.low, column.high, column.step)


@settings(deadline=None)
@given(space=SPACES)
def test_a_space_survives_pickling(space: at.Space) -> None:
    copy = pickle.loads(pickle.dumps(space))
    assert copy == space
    assert copy.columns == space.columns
    np.testing.assert_array_equal(row_of(copy, 3), row_of(space, 3))


@settings(deadline=None)
@given(domain=numbers() | plain_options())
def test_the_repr_of_a_domain_can_be_pasted(domain: at.Domain) -> None:
    assert eval(repr(domain), vars(at)) == domain


def test_columns_hold_the_domains_in_numbers() -> None:
    space = at.Space(
        {
            "lr": at.loguniform(1e-5, 0.1),
            "layers": at.randint(1, 5),
            "width": at.lograndint(16, 513),
            "dropout": at.quniform(0, 0.5, 0.1),
            "bias": at.normal(1, 2),
            "batch": at.ordinal([32, 64, 128]),
            "act": at.choice(["relu", "gelu"]),
        }
    )
    assert [(c.kind, c.low, c.high, c.step) for c in space.columns] == [
        (LOG, 1e-5, 0.1, 0.0),
        (LINEAR, 1.0, 4.0, 1.0),
        (LOG, 16.0, 512.0, 1.0),
        (LINEAR, 0.0, 0.5, 0.1),
        (NORMAL, 1.0, 2.0, 0.0),
        (ORDINAL, 0.0, 2.0, 1.0),
        (CHOICE, 0.0, 1.0, 1.0),
    ]


def test_names_are_paths_and_tell_branches_apart_where_they_must() -> None:
    space = at.Space(
        {
            "optimizer": at.choice(
                [
                    {"name": "sgd", "lr": at.uniform(0, 1), "momentum": at.uniform(0, 1)},
                    {"name": "adam", "lr": at.uniform(0, 1), "inner": {"beta": at.uniform(0, 1)}},
                ]
            ),
            "model": {"depth": at.randint(1, 4), "kind": "resnet"},
        }
    )
    assert space.names == (
        "optimizer",
        "optimizer.0.lr",
        "optimizer.momentum",
        "optimizer.1.lr",
        "optimizer.inner.beta",
        "model.depth",
    )
    assert [(c.parent, c.branch) for c in space.columns] == [(-1, -1), (0, 0), (0, 0), (0, 1), (0, 1), (-1, -1)]
    assert space.describe()["model.depth"] == "randint(1, 4)"


def test_one_configuration_does_not_share_its_containers_with_the_next() -> None:
    options = [[1, 2], [3]]
    space = at.Space({"sizes": at.choice(options), "model": {"betas": (0.9, [1]), "x": at.uniform(0, 1)}})
    row = np.array([0.0, 0.5])
    options[0].append(99)
    first = space.decode(row)
    first["sizes"].append(7)
    first["model"]["betas"][1].append(7)
    assert space.decode(row) == {"sizes": [1, 2], "model": {"betas": (0.9, [1]), "x": 0.5}}


@pytest.mark.parametrize("value", [object(), math.sin, int, np.zeros(2), {1, 2}])
def test_a_value_that_no_journal_can_hold_is_refused(value: object) -> None:
    with pytest.raises(InvalidArgument, match="x: the values of a space are|x is a "):
        at.Space({"x": at.choice([value, 1]), "y": at.uniform(0.0, 1.0)})
    with pytest.raises(InvalidArgument, match="x: the values of a space are|x is a "):
        at.Space({"x": value, "y": at.uniform(0.0, 1.0)})


INTEGERS: Any = (np.int64(1), np.int32(3))
FLOATS: Any = (np.float32(0), np.float64(1), np.float64(0.25))


def test_numpys_numbers_become_pythons() -> None:
    space = at.Space(
        {"a": at.choice(np.array([1, 2])), "b": at.ordinal(list(np.logspace(-2, 0, 3))), "c": np.float64(0.5)}
    )
    config = space.decode(np.array([1.0, 2.0]))
    assert [type(value) for value in config.values()] == [int, float, float]
    space = at.Space({"n": at.randint(*INTEGERS), "x": at.quniform(*FLOATS)})
    config = space.decode(np.array([2.0, 0.75]))
    assert [type(value) for value in config.values()] == [int, float]
    np.testing.assert_array_equal(space.encode({"n": np.int64(2), "x": np.float64(0.75)}), [2, 0.75])


def test_a_thousand_options_are_no_trouble() -> None:
    space = at.Space({"x": at.choice(range(10_000))})
    assert space.decode(np.array([9_999.0])) == {"x": 9_999}


def test_a_bound_that_is_a_multiple_but_for_rounding_is_one() -> None:
    domain = at.quniform(0.3, 0.7, 0.1)
    assert [value in domain for value in (0.3, 0.7, 0.55, 0.8)] == [True, True, False, False]
    assert at.nearest(0.31, 0.3, 0.7, 0.1) == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: at.uniform(1, 1), r"low must be < high, got low=1.0 and high=1.0"),
        (lambda: at.uniform(2, 1), "low must be < high"),
        (lambda: at.uniform(math.nan, 1), "low must be a finite number, got nan"),
        (lambda: at.uniform(0, math.inf), "high must be a finite number, got inf"),
        (lambda: at.uniform(0, 10**400), "high must be a finite number"),
        (lambda: at.uniform("0", 1), "low must be a finite number, got '0'"),  # type: ignore[arg-type]
        (lambda: at.uniform(False, 1), "low must be a finite number, got False"),
        (lambda: at.uniform(-1.7e308, 1.7e308), "high - low must be finite"),
        (lambda: at.loguniform(0, 1), "low must be > 0 in a logarithmic domain, got 0.0"),
        (lambda: at.loguniform(-1, 1), "low must be > 0"),
        (lambda: at.quniform(0, 1, 0), "q must be > 0, got 0.0"),
        (lambda: at.quniform(0, 1, math.nan), "q must be a finite number, got nan"),
        (lambda: at.quniform(1.1, 1.9, 1), "there must be a multiple of q in"),
        (lambda: at.quniform(0, 1e9, 1e-9), "q must not be below"),
        (lambda: at.qloguniform(0, 1, 0.1), "low must be > 0"),
        (lambda: at.randint(0, 1.5), "high must be an integer"),  # type: ignore[arg-type]
        (lambda: at.randint(0.0, 2), "low must be an integer"),  # type: ignore[arg-type]
        (lambda: at.randint(True, 2), "low must be an integer"),
        (lambda: at.randint(0, 2**60), "high must be an integer within"),
        (lambda: at.randint(3, 3), "the upper bound is excluded"),
        (lambda: at.lograndint(0, 3), "low must be >= 1"),
        (lambda: at.normal(0, 0), "sd must be > 0, got 0.0"),
        (lambda: at.normal(math.inf, 1), "mean must be a finite number"),
        (lambda: at.choice([]), "choice needs at least one option"),
        (lambda: at.ordinal(()), "ordinal needs at least one option"),
        (lambda: at.choice("abc"), "choice needs a list of options, got 'abc'"),
        (lambda: at.choice({1, 2}), "choice needs a list"),  # type: ignore[arg-type]
        (lambda: at.choice(3), "choice needs a list"),  # type: ignore[arg-type]
        (lambda: at.choice([1, 2, 1.0]), r"may have a value in common .* options 0 and 2: 1 and 1.0"),
        (lambda: at.choice([(1, 2), [1, 2]]), "may have a value in common"),
        (lambda: at.choice([{"x": at.uniform(0, 1)}, {"x": at.loguniform(0.5, 2)}]), "a constant in each"),
        (lambda: at.choice([{"x": at.randint(0, 9)}, {"x": 3}]), "a constant in each"),
        (lambda: at.choice([{"x": at.choice(["a", "b"])}, {"x": "b"}]), "a constant in each"),
        (lambda: at.choice([at.uniform(0, 1), 2]), r"needs a name: \{'name': uniform\(0.0, 1.0\)\}"),
        (lambda: at.choice([[at.uniform(0, 1)], 2]), "inside a list or tuple would not be sampled"),
        (lambda: at.ordinal([{"a": 1}]), "must not be dicts"),
    ],
)
def test_an_impossible_domain_is_refused(make: Callable[[], at.Domain], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        make()


def test_branches_that_a_value_tells_apart_need_no_name() -> None:
    space = at.Space(
        {"x": at.choice([{"a": at.uniform(0, 1)}, {"a": at.uniform(2, 3)}, {"b": at.uniform(0, 1)}, None])}
    )
    for trial in range(20):
        row = row_of(space, trial)
        np.testing.assert_array_equal(space.encode(space.decode(row)), row)


def stranger(library: str) -> object:
    return type("Float", (), {"__module__": f"{library}.inner"})()


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ([at.uniform(0, 1)], "a space must be a dict"),
        ({}, "at least one hyperparameter"),
        ({"lr": 0.1, "model": {"depth": 3}}, "got only constants"),
        ({1: at.uniform(0, 1)}, "keys of a space must be strings, got 1"),
        ({"a": {None: at.uniform(0, 1)}}, "keys of a space must be strings, got None in a"),
        ({"a": {"lr": [0.1, 0.2]}}, r"a.lr is a list: write at.choice\(\[...\]\)"),
        ({"lr": {0.1, 0.2}}, "lr is a set"),
        ({"lr": np.ones(3)}, "lr is a ndarray"),
        ({"lr": range(3)}, "lr is a range"),
        ({"lr": lambda config: 0.1}, "lr is a lambda"),
        ({"lr": (at.uniform(0, 1), 2)}, "inside a list or tuple would not be sampled"),
        ({"lr": {"grid_search": [1, 2]}}, "grid_search is Ray Tune's"),
        ({"lr": stranger("ray")}, "lr is an object of ray"),
        ({"lr": stranger("hyperopt")}, "lr is an object of hyperopt"),
        ({"a.b": at.uniform(0, 1), "a": {"b": at.uniform(0, 1)}}, "must not have one name, got 'a.b'"),
    ],
)
def test_a_space_that_is_most_likely_a_mistake_is_refused(mapping: Any, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        at.Space(mapping)


def test_a_space_that_contains_itself_is_refused() -> None:
    mapping: dict[str, Any] = {"lr": at.uniform(0, 1)}
    mapping["inner"] = {"again": mapping}
    with pytest.raises(InvalidArgument, match="the space must not contain itself"):
        at.Space(mapping)


CHECKED = at.Space(
    {
        "lr": at.loguniform(1e-5, 0.1),
        "layers": at.randint(1, 5),
        "dropout": at.quniform(0, 0.5, 0.1),
        "bias": at.normal(0, 1),
        "batch": at.ordinal([32, 64]),
        "seed": 7,
        "optimizer": at.choice(
            [{"name": "sgd", "momentum": at.uniform(0, 0.99)}, {"name": "adam", "beta": at.uniform(0.5, 0.99)}]
        ),
    }
)
CONFIG: dict[str, Any] = {
    "lr": 0.01,
    "layers": 2,
    "dropout": 0.3,
    "bias": -2,
    "batch": 64,
    "seed": 7,
    "optimizer": {"name": "sgd", "momentum": 0.9},
}


def test_a_handwritten_configuration_is_accepted() -> None:
    CHECKED.check(CONFIG)
    assert CHECKED.decode(CHECKED.encode(CONFIG)) == {**CONFIG, "dropout": pytest.approx(0.3)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 1}, r"lr must be a number in \[1e-05, 0.1\], got 1"),
        ({"lr": math.nan}, "lr must be a number in .*, got nan"),
        ({"lr": "fast"}, "lr must be a number in .*, got 'fast'"),
        ({"lr": None}, "lr must be a number in .*, got None"),
        ({"layers": 2.5}, r"layers must be an integer in \[1, 4\], got 2.5"),
        ({"layers": 5}, r"layers must be an integer in \[1, 4\], got 5"),
        ({"layers": True}, "layers must be an integer"),
        ({"dropout": 0.25}, r"dropout must be a multiple of 0.1 in \[0.0, 0.5\], got 0.25"),
        ({"bias": math.inf}, "bias must be a finite number, got inf"),
        ({"batch": 48}, r"batch must be one of \[32, 64\], got 48"),
        ({"seed": 8}, "seed is the constant 7 in this space, got 8"),
        ({"extra": 1}, "extra is not in the space, got 1"),
        ({"optimizer": "sgd"}, "optimizer must be one of .*, got 'sgd'"),
        ({"optimizer": {"name": "sgd", "momentum": 2}}, r"optimizer.momentum must be a number in \[0.0, 0.99\], got 2"),
        ({"optimizer": {"name": "sgd"}}, "optimizer.momentum is missing"),
        ({"optimizer": {"name": "lion", "momentum": 0.5}}, "optimizer must be one of"),
    ],
)
def test_a_wrong_configuration_is_refused_by_name_rule_and_value(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        CHECKED.check(CONFIG | change)


def test_a_missing_hyperparameter_is_named() -> None:
    with pytest.raises(InvalidArgument, match="layers is missing"):
        CHECKED.check({key: value for key, value in CONFIG.items() if key != "layers"})
    with pytest.raises(InvalidArgument, match="the configuration must be a dict, got 3"):
        CHECKED.check(3)  # type: ignore[arg-type]


def test_a_row_of_another_space_is_refused() -> None:
    with pytest.raises(InvalidArgument, match=r"a row must have shape \(8,\), got \(2,\)"):
        CHECKED.decode(np.zeros(2))


@pytest.mark.parametrize(
    ("options", "value", "branch"), [([1, 2], 2.0, 1), ([1.0, 2.0], 2, 1), ([1, True], True, 1), ([True, "1"], "1", 1)]
)
def test_an_option_is_found_in_another_type_that_is_equal(options: list[Any], value: Any, branch: int) -> None:
    assert at.Space({"x": at.choice(options)}).encode({"x": value}).tolist() == [branch]


@pytest.mark.parametrize(("options", "value"), [([0, 1], True), (["1"], 1), ([1], "1"), ([True], 1), ([1], math.nan)])
def test_an_option_is_not_found_in_a_type_that_is_not_equal(options: list[Any], value: Any) -> None:
    with pytest.raises(InvalidArgument, match="x must be one of"):
        at.Space({"x": at.choice(options)}).encode({"x": value})


@settings(deadline=None)
@given(domain=numbers(), trial=st.integers(0, 100))
def test_a_grid_is_the_same_for_what_was_decoded_and_for_what_people_write(domain: at.Number, trial: int) -> None:
    space = at.Space({"x": domain})
    value = space.decode(row_of(space, trial))["x"]
    for near in (value, np.float64(value), value * (1 + 1e-12)):
        if near in domain:
            assert space.encode({"x": near}).tolist() == [domain.encode(near)]
        else:
            with pytest.raises(InvalidArgument, match="x must be"):
                space.encode({"x": near})


def test_rows_lose_nothing_as_they_grow() -> None:
    rows, kept = at.Rows(3), []
    for trial in range(2000):
        kept.append(np.array([trial, -trial, math.nan]))
        rows.append(kept[-1])
        if trial % 7 == 0:
            kept[trial // 2] = np.array([0.5, trial, 1.0])
            rows[trial // 2] = kept[trial // 2]
    np.testing.assert_array_equal(rows.take(range(2000)), kept)
    np.testing.assert_array_equal(rows[1999], kept[1999])
    taken = rows.take([5, 3])
    rows.append(taken[0])
    np.testing.assert_array_equal(taken, [kept[5], kept[3]])


def test_a_space_of_nothing_but_options_has_rows_of_integers() -> None:
    space = at.Space({"x": at.ordinal([1.0, 2.0]), "y": at.choice(["a", "b"])})
    row = space.encode({"x": 2.0, "y": "b"})
    assert row.dtype == np.float64
    rows = at.Rows(2)
    rows.append(row)
    assert space.decode(rows[0]) == {"x": 2.0, "y": "b"}


@settings(deadline=None)
@given(st.one_of(numbers(), plain_options()))
def test_a_quantile_follows_another_law_than_a_draw(domain: at.Domain) -> None:
    space = at.Space({"x": domain})
    [column] = space.columns
    n = 400
    quantiles = [column.quantile((k + 0.5) / n) for k in range(n)]
    assert quantiles == sorted(quantiles)
    for value in quantiles:
        space.check(space.decode(np.array([value])))
    drawn = sorted(float(row_of(space, trial)[0]) for trial in range(n))
    places = [*quantiles, *drawn]
    apart = np.searchsorted(quantiles, places, side="right") - np.searchsorted(drawn, places, side="right")
    # Kolmogorov and Smirnov: by chance beyond this but once in 1e13 times.
    assert abs(apart).max() / n < 3.9 / math.sqrt(n)
