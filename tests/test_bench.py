"""The benchmarks: that each runs to its end and says what it measured. How fast is their business, not a test's."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import asynctune as at
from asynctune.records import COMPLETED
from asynctune.searchers.base import Row
from asynctune.searchers.random import draw

BENCH = Path(__file__).parent.parent / "bench"


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["core", "report", "trials", "memory", "journal", "checkpoint", "scale", "tpe", "simulate", "pbt", "quality"],
)
def test_benchmark_does_not_run(name: str, tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    command = [sys.executable, str(BENCH / f"{name}.py"), "--quick", "--json", str(figures)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert run.returncode == 0, run.stderr
    document = json.loads(figures.read_text(encoding="utf-8"))
    assert document["quick"] is True
    assert document["rows"]
    for row in document["rows"]:
        assert row["median"] > 0, row
        assert row["what"] in run.stdout
    assert any(row["budget"] for row in document["rows"]), "no row has a budget"


class _ASHA:
    """Random search and ASHA as a peer has them."""

    def __init__(self, space: at.Space, seed: int) -> None:
        self._space = space
        self._seed = seed
        self._asha = at.ASHA(max_resource=50).bind(seed=seed)

    def suggest(self, trial: int) -> Row:
        self._asha.begin(trial)
        return draw(self._space.table, self._seed, trial)

    def report(self, trial: int, step: int, value: float) -> bool:
        return self._asha.report(trial, step, value).action is at.Action.CONTINUE

    def end(self, trial: int, value: float, stopped: bool) -> None:
        self._asha.finish(trial, COMPLETED)


@pytest.mark.parametrize(("slots", "draws"), [(4, "again"), (4, "once"), (64, "again")])
def test_peers_have_another_clock(slots: int, draws: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    from quality_methods import OURS, Run, load, simulated
    from quality_peers import clocked

    task = load("digits", None)
    run = Run("digits", "ASHA", slots, draws, 3)
    peers, trials = clocked(_ASHA(task.table.space, run.seed), task, run)
    ours, number = simulated(*OURS["ASHA"], task, run)
    assert peers == [report for report in ours if report[0] <= run.budget(task)]
    assert trials == number
    assert trials > 50


def test_regret_is_measured_from_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    from quality_methods import Task, regrets

    values = np.zeros((4, 50))
    values[0, 10], values[:, -1] = 90, [10, 20, 40, 50]  # the best is at step 11, the median of the last is 30
    seconds = np.tile(np.arange(1.0, 51), (4, 1))
    configs = [{"x": x / 4} for x in range(4)]
    task = Task(at.Tabular({"x": at.uniform(0.0, 1.0)}, configs, values, seconds, metric="score", mode="max"))
    regret = regrets(task, 100.0, [(10.0, 30.0), (20.0, 15.0), (50.5, 75.0), (100.0, 90.0)])
    assert regret[:9] == pytest.approx(90 / 60), "nothing is known yet"
    assert regret[9:50] == pytest.approx(1.0)
    assert regret[50:99] == pytest.approx(15 / 60)
    assert regret[99] == 0


def test_places_and_times_of_the_quality_benchmark_are_those_of_other_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tasks: the pair is the best on one, and as good as the peer on the other, where it never gets as far as random search."""
    monkeypatch.syspath_prepend(str(BENCH))
    from quality_figures import rows, tables
    from quality_methods import RECOMMENDED, Run

    ends = {"random": (0.5, 0.2), RECOMMENDED: (0.1, 0.4), "hyperopt": (0.3, 0.4), "Ray ASHA": (0.7, 0.9)}
    lines = {
        Run(task, method, 4, "again", seed): {
            "hours": 2.0,
            "regrets": np.linspace(1.0, end, 100).tolist(),
            "trials": seed,
        }
        for method, values in ends.items()
        for task, end in zip(("1", "2"), values, strict=True)
        for seed in range(3)
    }
    del lines[Run("2", "Ray ASHA", 4, "again", 2)]  # a benchmark that was stopped
    [table] = tables(lines, ["hyperopt", "Ray ASHA"])
    assert table.seeds["Ray ASHA"] == [0, 1]
    assert table.ranks(100, [RECOMMENDED, "hyperopt", "Ray ASHA"]) == {
        RECOMMENDED: 1.25,
        "hyperopt": 1.75,
        "Ray ASHA": 3,
    }
    assert table.reached(RECOMMENDED) == pytest.approx([56, np.inf])  # 1 - 0.9 (k - 1) / 99 <= 0.5
    assert table.regret(RECOMMENDED, 100) == pytest.approx((0.25, 0.25, 0.25))
    assert (table.trials["hyperopt"], table.trials["Ray ASHA"]) == (1, 0.5)
    assert [row.median for row in rows([table])] == [np.inf, 1.25, 1.25, 1.25]
    lines_of_text = table.text().splitlines()
    [first] = [line for line in lines_of_text if line.startswith("| 1 ")]
    assert [cell.strip() for cell in first.split("|")[1:-1]] == [
        *("1", "2.00 h", "0.500", "1.12 h, 56 %", "hyperopt, 1.44 h, 72 %", "1", "1", "1")
    ]
    [second] = [line for line in lines_of_text if line.startswith("| 2 ")]
    assert "| never " in second


def test_an_interval_over_few_seeds_is_narrower_than_it_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    from quality_figures import tables
    from quality_methods import RECOMMENDED, Run

    samples = np.random.default_rng(0).normal(size=(2000, 3))
    covered = 0
    for row in samples.tolist():
        lines = {
            Run("1", RECOMMENDED, 4, "again", seed): {"hours": 1.0, "regrets": [value] * 100, "trials": 1}
            for seed, value in enumerate(row)
        }
        [table] = tables(lines, [])
        _, low, high = table.regret(RECOMMENDED, 100)
        covered += low < 0 < high
    assert covered / len(samples) == pytest.approx(0.95, abs=0.02)
    alone = {run: line for run, line in lines.items() if run.seed == 0}
    [table] = tables(alone, [])
    assert table.regret(RECOMMENDED, 100)[1:] == (-np.inf, np.inf)


def test_page_takes_figures_of_a_quick_run(tmp_path: Path) -> None:
    (tmp_path / "core.json").write_text(json.dumps({"quick": True}), encoding="utf-8")
    page = tmp_path / "page.md"
    page.write_text("<!-- core -->\n<!-- /core -->\n", encoding="utf-8")
    command = [sys.executable, str(BENCH / "page.py"), str(tmp_path), str(page)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert "--quick" in run.stderr


def test_a_missed_budget_looks_like_one_that_is_kept(tmp_path: Path) -> None:
    row = {"what": "a thing", "unit": "ns", "median": 400.0, "p99": None, "beside": "a floor", "floor": 100.0}
    row |= {"ratio": 4.0, "rule": "<= 3 x a floor", "used": 4 / 3, "missed": "a faster machine"}
    machine = {"processor": "P", "cores": 2, "python": "3", "versions": {"asynctune": "0"}}
    document = {"quick": False, "note": "", "machine": machine, "rows": [row], "text": ["a paragraph"]}
    (tmp_path / "core.json").write_text(json.dumps(document), encoding="utf-8")
    page = tmp_path / "page.md"
    page.write_text("above\n<!-- core -->\nold\n<!-- /core -->\nbelow\n", encoding="utf-8")
    subprocess.run([sys.executable, str(BENCH / "page.py"), str(tmp_path), str(page)], check=True)
    text = page.read_text(encoding="utf-8")
    assert "| a thing | 400 ns |  | a floor, 100 ns | 4.00 | ≤ 3 x a floor | **1.33, missed** |" in text
    assert "- a thing: a faster machine" in text
    assert "<!-- core -->\na paragraph\n\n| what |" in text
    assert text.startswith("above\n")
    assert text.endswith("below\n")
    assert "old" not in text
