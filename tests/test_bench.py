"""The benchmarks: that each runs to its end and says what it measured. How fast is their business, not a test's."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parent.parent / "bench"


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["core", "report", "trials", "memory", "journal", "checkpoint", "scale", "tpe", "simulate", "pbt"]
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
    document = {"quick": False, "note": "", "machine": machine, "rows": [row]}
    (tmp_path / "core.json").write_text(json.dumps(document), encoding="utf-8")
    page = tmp_path / "page.md"
    page.write_text("above\n<!-- core -->\nold\n<!-- /core -->\nbelow\n", encoding="utf-8")
    subprocess.run([sys.executable, str(BENCH / "page.py"), str(tmp_path), str(page)], check=True)
    text = page.read_text(encoding="utf-8")
    assert "| a thing | 400 ns |  | a floor, 100 ns | 4.00 | ≤ 3 x a floor | **1.33, missed** |" in text
    assert "- a thing: a faster machine" in text
    assert text.startswith("above\n")
    assert text.endswith("below\n")
    assert "old" not in text
