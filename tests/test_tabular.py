"""Recorded curves: which recorded configuration stands for another, and files as they are published."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import asynctune as at
from asynctune._core import SAMPLE, Stream
from asynctune.errors import InvalidArgument
from asynctune.tabular import DIGITS_FILE

CURVES = Path(__file__).parents[2] / "shared" / "data" / "lcbench"

SPACE = {
    "lr": at.loguniform(1e-4, 1.0),
    "noise": at.normal(1.0, 2.0),
    "units": at.ordinal([16, 32, 64]),
    "layers": at.randint(1, 5),
    "optimizer": at.choice(["adam", {"name": "sgd", "momentum": at.uniform(0.0, 1.0)}]),
    "same": at.randint(3, 4),
}


def drawn(space: at.Space, count: int, seed: int = 0) -> list[dict[str, Any]]:
    return [space.decode(space.table.sample(Stream(seed, SAMPLE, number))) for number in range(count)]


def table(count: int = 40, **more: Any) -> at.Tabular:
    """Curve k has the value k after every step, and takes a second for each."""
    space = at.Space(SPACE)
    values = np.repeat(np.arange(count), 3).reshape(count, 3)
    seconds = np.tile([1.0, 2.0, 3.0], (count, 1))
    return at.Tabular(space, drawn(space, count), values, seconds, metric="score", mode="max", **more)


def distance(one: dict[str, Any], other: dict[str, Any]) -> float:
    """As the documentation has it, term by term."""
    terms = [
        math.log(one["lr"] / other["lr"]) / math.log(1e4),
        (one["noise"] - other["noise"]) / 8,
        ([16, 32, 64].index(one["units"]) - [16, 32, 64].index(other["units"])) / 2,
        (one["layers"] - other["layers"]) / 3,
    ]
    momenta = [0.5 if c["optimizer"] == "adam" else c["optimizer"]["momentum"] for c in (one, other)]
    terms.append(momenta[0] - momenta[1])
    terms.append(float((one["optimizer"] == "adam") != (other["optimizer"] == "adam")))
    return math.fsum(term**2 for term in terms)


@settings(deadline=None)
@given(seed=st.integers(1, 1000))
def test_another_configuration_is_nearer(seed: int) -> None:
    curves = table()
    [config] = drawn(curves.space, 1, seed)
    distances = [distance(config, other) for other in curves.configs]
    assert distances[curves.nearest(config)] == pytest.approx(min(distances), abs=1e-12)


def test_a_recorded_configuration_is_not_found() -> None:
    for curves in (table(), table(exact=True)):
        assert [curves.nearest(config) for config in curves.configs] == [*range(40)]
        values, seconds = curves.evaluate(curves.configs[7], seed=0)
        assert (values, seconds) == ([7, 7, 7], [1, 2, 3])
    assert len(curves) == 40


def test_what_was_not_recorded_is_made_up() -> None:
    curves = table(exact=True)
    [config] = drawn(curves.space, 1, seed=1)
    with pytest.raises(InvalidArgument, match="one of the 40 recorded ones"):
        curves.nearest(config)
    grid = [{"a": a, "b": b} for a in (1, 2) for b in (3, 4)]
    whole = at.Tabular(
        {"a": at.ordinal([1, 2]), "b": at.ordinal([3, 4])},
        grid,
        [[c["a"] * c["b"]] for c in grid],
        [[1.0]] * 4,
        metric="score",
        mode="max",
        exact=True,
    )
    result = at.simulate(whole, num_trials=30)
    assert all(trial.value == trial.config["a"] * trial.config["b"] for trial in result.trials)


def test_a_grid_is_refused_for_its_roundings() -> None:
    space = {"lr": at.loguniform(1e-4, 1e-1), "share": at.uniform(0.0, 0.3)}
    configs = [{"lr": lr, "share": share} for lr in (1e-4, 1e-3, 1e-2, 1e-1) for share in (0.0, 0.1, 0.2, 0.3)]
    values = [[float(number)] for number in range(16)]
    whole = at.Tabular(space, configs, values, [[1.0]] * 16, metric="score", mode="max", exact=True)
    result = at.simulate(whole, searcher=at.Grid(points=4))
    assert result.trials[5].config not in configs
    assert [trial.value for trial in result.trials] == [*range(16)]


def test_a_recorded_configuration_comes_up_twice() -> None:
    curves = table()
    for scheduler in (at.FIFO(), at.ASHA(3, reduction_factor=2, type="promotion")):
        result = at.simulate(curves.once(), scheduler=scheduler, num_trials=40, num_slots=3)
        numbers = [trial.value for trial in result.trials]
        assert sorted(numbers) == [*range(40)]  # type: ignore[type-var]
    again = at.simulate(curves, num_trials=40, num_slots=3, seed=1)
    assert len({trial.value for trial in again.trials}) < 40
    with pytest.raises(
        InvalidArgument, match="num_trials must be <= the 40 configurations that have not come up, got 41"
    ):
        at.simulate(curves.once(), num_trials=41)
    once = curves.once()
    result = at.simulate(once, scheduler=at.ASHA(3, reduction_factor=2, type="promotion"), time_budget=1e6)
    assert len(result.trials) == 40 and result.stopping is None, "it ends as a grid does"
    with pytest.raises(InvalidArgument, match="all 40 recorded configurations have come up"):
        once.evaluate(curves.configs[0], seed=-1)
    with pytest.raises(InvalidArgument, match="<= the 0 configurations"):
        at.simulate(once, num_trials=1)
    with pytest.raises(InvalidArgument, match="<= the 0 configurations"):
        at.simulate(once, time_budget=1.0)
    with pytest.raises(InvalidArgument, match="<= the 40 configurations that have not come up, got"):
        at.simulate(curves.once(), searcher=at.Grid(points=9))
    with pytest.raises(InvalidArgument, match="searcher must be a searcher such as"):
        at.simulate(curves.once(), searcher="TPE")  # type: ignore[arg-type]


def test_the_nearest_that_is_left_does_not_come_up() -> None:
    curves = table()
    once = curves.once()
    [config] = drawn(curves.space, 1, seed=5)
    order = sorted(range(40), key=lambda number: distance(config, curves.configs[number]))
    assert [once.evaluate(config, seed)[0][0] for seed in range(40)] == order
    assert [once.evaluate(config, seed)[0][0] for seed in range(40)] == order, (
        "a trial that comes back has its own curve"
    )


@pytest.mark.parametrize(
    ("values", "seconds", "rule"),
    [
        ([[1.0, 2.0]], [[1.0, 2.0]], "for 2 configurations"),
        ([[1.0], [2.0]], [[1.0, 2.0], [1.0, 2.0]], r"got \(2, 1\) and \(2, 2\)"),
        ([1.0, 2.0], [1.0, 2.0], "must have shape"),
        ([[], []], [[], []], "must have shape"),
        ([[1.0, 2.0]] * 2, [[2.0, 1.0]] * 2, "never decrease"),
        ([[1.0, 2.0]] * 2, [[-1.0, 1.0]] * 2, "never decrease"),
        ([[1.0, 2.0]] * 2, [[1.0, math.nan]] * 2, "must be finite"),
        ([["a", "b"]] * 2, [[1.0, 2.0]] * 2, "values must be numbers, .*'a'"),
        ([[1.0, 2.0], [1.0]], [[1.0, 2.0]] * 2, "values must be numbers, a row of equal length"),
    ],
)
def test_a_bad_table_is_taken(values: Any, seconds: Any, rule: str) -> None:
    configs = [{"x": 0.0}, {"x": 1.0}]
    with pytest.raises(InvalidArgument, match=rule):
        at.Tabular({"x": at.uniform(0.0, 1.0)}, configs, values, seconds, metric="score", mode="max")
    with pytest.raises(InvalidArgument, match="mode must be"):
        at.Tabular({"x": at.uniform(0.0, 1.0)}, configs, [[1.0]] * 2, [[1.0]] * 2, metric="m", mode="up")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="metric must be the name .* got 3"):
        at.Tabular({"x": at.uniform(0.0, 1.0)}, configs, [[1.0]] * 2, [[1.0]] * 2, metric=3, mode="max")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match=r"configs\[1\]: x must be .* got 2.0"):
        at.Tabular(
            {"x": at.uniform(0.0, 1.0)}, [{"x": 1.0}, {"x": 2.0}], [[1.0]] * 2, [[1.0]] * 2, metric="m", mode="max"
        )


# Files.

CONFIGS = [
    {"batch_size": 71, "learning_rate": 0.002, "momentum": 0.2, "weight_decay": 0.02, "num_layers": 3}
    | {"max_units": 293, "max_dropout": 0.03},
    {"batch_size": 457, "learning_rate": 0.01, "momentum": 0.9, "weight_decay": 0.09, "num_layers": 4}
    | {"max_units": 950, "max_dropout": 0.5},
]


def test_a_published_file_is_read_wrongly(tmp_path: Path) -> None:
    run = [
        {
            "config": config | {"loss": "cross_entropy", "optimizer": "sgd"},
            "log": {
                "epoch": [*range(52)],
                "time": [epoch * (1.0 + number) for epoch in range(52)],
                "Train/val_accuracy": [epoch + number / 2 for epoch in range(52)],
                "Train/loss": [0.1] * 52,
            },
            "results": {"final_val_accuracy": 51.0},
        }
        for number, config in enumerate(CONFIGS)
    ]
    path = tmp_path / "data.json"
    path.write_text(json.dumps({"higgs": {str(n): each for n, each in enumerate(run)}, "adult": {}}))
    curves = at.Tabular.lcbench(path, "higgs")
    assert curves.configs == CONFIGS
    assert curves.max_resource == 50
    values, seconds = curves.evaluate(CONFIGS[1], 0)
    assert values[:2] == [1.5, 2.5] and values[-1] == 50.5
    assert seconds[:2] == [2, 4] and seconds[-1] == 100
    for task in ("volkert", None):
        with pytest.raises(InvalidArgument, match="task must be one of higgs, adult, got"):
            at.Tabular.lcbench(path, task)


def test_arrays_are_read_wrongly(tmp_path: Path) -> None:
    rows = np.array([[*config.values()] for config in CONFIGS], np.float32)
    accuracy = np.arange(100, dtype=np.uint16).reshape(2, 50)
    total = np.array([50.0, 100.0], np.float32)
    np.savez(tmp_path / "a.npz", config=rows, task_7_val_accuracy=accuracy, task_7_total_time=total)
    for task in (7, "7", None):
        curves = at.Tabular.lcbench(tmp_path / "a.npz", task)
        values, seconds = curves.curve(1)
        assert values == pytest.approx(np.arange(50, 100) / 100)
        assert seconds == pytest.approx(np.arange(1, 51) * 2)
    with pytest.raises(InvalidArgument, match="task must be one of 7, got 8"):
        at.Tabular.lcbench(tmp_path / "a.npz", 8)
    epochs = np.tile(np.arange(52.0), (2, 1))
    np.savez(tmp_path / "b.npz", config=rows, val_accuracy=epochs, time=epochs)
    assert at.Tabular.lcbench(tmp_path / "b.npz").curve(0) == ([*range(1, 51)], [*range(1, 51)])


@pytest.mark.skipif(not CURVES.is_dir(), reason=f"the LCBench curves are not at {CURVES}")
def test_real_curves_are_not_what_was_recorded() -> None:
    curves = at.Tabular.lcbench(CURVES / "curves17.npz", 189908)
    assert (len(curves), curves.max_resource) == (2000, 50)
    real = at.Tabular.lcbench(CURVES / "real_blood_transfusion.npz")
    result = at.simulate(real, scheduler=at.ASHA(50), num_trials=100, num_slots=4)
    best = result.best
    values, seconds = real.evaluate(best.config, 0)
    assert [report["val_accuracy"] for report in best.reports] == values[: best.step]
    assert best.busy == pytest.approx(seconds[best.step - 1])


def test_the_recorded_networks_are_not_at_hand() -> None:
    curves = at.Tabular.digits()
    assert (len(curves), curves.max_resource, curves.mode) == (600, 50, "max")
    assert DIGITS_FILE.stat().st_size < 2**20
    finals = [curves.curve(number)[0][-1] for number in range(600)]
    assert 5 < min(finals) < 15 and 95 < max(finals) < 100, "percent, of ten digits"
    assert all(curves.curve(number)[1][-1] > 0 for number in range(600))
    for scheduler in (at.FIFO(), at.ASHA(50)):
        result = at.simulate(curves.once(), scheduler=scheduler, num_trials=100)
        assert result.best.value in finals
