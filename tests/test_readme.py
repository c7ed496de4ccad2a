"""What the README shows is run as it stands there."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

import asynctune
from tests.documents import ROOT, blocks, read

QUICK_START, _, RESUMED, ASK_AND_TELL, POPULATION, SIMULATION = blocks(read("README.md"))

IN_A_NOTEBOOK = f"""
import asyncio

async def cell():  # a notebook runs a cell's code in __main__, which has no file, inside a running loop
    exec(compile({QUICK_START!r}, "<cell>", "exec"), globals())

asyncio.run(cell())
"""

UNDER_ASYNCIO = f"""
import asyncio

async def main():
{textwrap.indent(QUICK_START, "    ")}

asyncio.run(main())
"""

AWAITED = UNDER_ASYNCIO.replace("at.run(", "await at.tune(")


@pytest.mark.parametrize("code", [QUICK_START, UNDER_ASYNCIO, AWAITED], ids=["script", "under_asyncio", "awaited"])
def test_the_quick_start_runs_as_pasted_in_a_script(code: str, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(code, encoding="utf-8")
    run([str(tmp_path / "script.py")], tmp_path)


def test_the_quick_start_runs_as_pasted_in_a_notebook(tmp_path: Path) -> None:
    run(["-c", IN_A_NOTEBOOK], tmp_path)


def test_a_run_is_resumed_as_pasted(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(RESUMED, encoding="utf-8")
    run_python([str(tmp_path / "script.py")], tmp_path)
    result = asynctune.Result.load(tmp_path / "runs" / "first")
    assert [trial.state for trial in result.trials] == [asynctune.TrialState.COMPLETED] * 10


def run(arguments: list[str], directory: Path) -> None:
    """Run an interpreter in an empty directory: it ends well, and leaves a page and a run of 20 trials."""
    out = run_python(arguments, directory)
    assert "report.html" in out
    assert (directory / "report.html").exists()
    [run_dir] = (directory / "runs").iterdir()
    assert len(asynctune.Result.load(run_dir).trials) == 20


def run_python(arguments: list[str], directory: Path) -> str:
    """What an interpreter prints that ends well."""
    done = subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        cwd=directory,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_ask_and_tell_runs_as_pasted() -> None:
    names: dict[str, object] = {}
    exec(ASK_AND_TELL, names)
    study = names["study"]
    assert isinstance(study, asynctune.Study)
    assert study.done
    assert study.best is not None


def test_a_population_runs_as_pasted_and_finds_its_minimum() -> None:
    names: dict[str, object] = {}
    exec(POPULATION, names)
    assert abs(np.asarray(names["x"]) - 3).mean() < 0.1


def test_a_simulation_runs_as_pasted() -> None:
    names: dict[str, object] = {}
    exec(SIMULATION, names)
    result = names["result"]
    assert isinstance(result, asynctune.Result)
    assert result.best.value is not None and result.best.value > 95
