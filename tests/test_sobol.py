"""Sobol search: point i of one sequence for trial i, at the quantiles of the space."""

import json
import subprocess
import sys
from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import asynctune as at
from asynctune._core import SUGGEST, Stream
from asynctune.searchers import sobol as room
from asynctune.space import Space

FLAT = Space({"x": at.uniform(0, 1), "y": at.loguniform(1, 16), "z": at.normal(0, 1)})
NESTED = Space(
    {
        "model": at.choice([{"name": "a", "x": at.uniform(0, 1)}, {"name": "b"}, "c", "d"]),
        "n": at.randint(0, 8),
        "size": at.ordinal([1, 2, 4, 8]),
    }
)


def points(space: Space, numbers: Any, seed: int = 0) -> Any:
    """The rows (n, d) of some points of the sequence."""
    bound = at.Sobol().bind(space=space, seed=seed, num_trials=None, rows=None)  # type: ignore[arg-type]
    return np.array([bound.prepare(number)() for number in numbers])


@pytest.mark.parametrize("space", [FLAT, NESTED])
def test_a_trial_gets_another_point_than_that_of_its_number(space: Space) -> None:
    numbers = [0, 1, 2, 1023, 1024, 1025, 5000]
    sequence = import_module("scipy.stats.qmc").Sobol(
        len(space.columns), rng=np.random.default_rng(Stream(7, SUGGEST).below(2**31))
    )
    expected = sequence.random(8192)[numbers] + 2.0**-31
    got = points(space, numbers, seed=7)
    for row, point in zip(got, expected.tolist(), strict=True):
        for j, column in enumerate(space.columns):
            active = column.parent < 0 or row[column.parent] == column.branch
            np.testing.assert_equal(row[j], column.quantile(point[j]) if active else np.nan)
    room._block.cache_clear()
    np.testing.assert_array_equal(
        points(space, numbers[::-1], seed=7)[::-1], got, "order or what was asked before counts"
    )


def test_a_part_of_a_domain_is_left_out() -> None:
    rows = points(FLAT, range(64))
    for j, cell in enumerate(
        (
            rows[:, 0] * 64,
            np.log2(rows[:, 1]) * 16,
            np.searchsorted([FLAT.columns[2].quantile(k / 64) for k in range(1, 64)], rows[:, 2]),
        )
    ):
        assert sorted(cell.astype(int)) == list(range(64)), FLAT.names[j]


def test_some_options_come_more_often_than_others() -> None:
    rows = points(NESTED, range(64))
    columns = dict(zip(NESTED.names, rows.T, strict=True))
    assert Counter(columns["model"]) == {0: 16, 1: 16, 2: 16, 3: 16}
    assert Counter(columns["n"]) == dict.fromkeys(range(8), 8)
    assert Counter(columns["size"]) == dict.fromkeys(range(4), 16)
    np.testing.assert_array_equal(np.isnan(columns["model.x"]), columns["model"] != 0)


def test_two_seeds_have_one_sequence() -> None:
    first, second = points(FLAT, range(16), seed=0), points(FLAT, range(16), seed=1)
    assert not np.isin(first, second).any()


def test_the_driver_loads_scipy_or_a_run_has_other_points(tmp_path: Path) -> None:
    code = f"""if True:
        import json, sys
        import asynctune as at
        def train(trial):
            return trial.config["x"]
        space = {{"x": at.uniform(0, 1), "y": at.loguniform(1, 16), "z": at.normal(0, 1)}}
        result = at.run(train, space, metric="x", mode="max", num_trials=4, slots=2, seed=5, searcher=at.Sobol(),
                        run_dir={str(tmp_path / "run")!r}, progress=False)
        print(json.dumps([trial.config for trial in result.trials]))
        print("scipy" in sys.modules)
    """
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    configs, loaded = done.stdout.splitlines()
    assert json.loads(configs) == [FLAT.decode(row) for row in points(FLAT, range(4), seed=5)]
    assert loaded == "False"
