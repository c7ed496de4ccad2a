"""P4, a dead worker never takes the run down: however and whenever one dies, its trial has a named cause and the rest goes on."""

import functools
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import asynctune as at
from asynctune import journal
from asynctune.errors import RunFailed
from asynctune.records import Failed, Record, Started, TrialState
from asynctune.rundir import JOURNAL
from tests.faults import contents, wait_until
from tests.proctable import marked

SPACE = {"x": at.uniform(0.0, 1.0)}
COMPLETED, FAILED = TrialState.COMPLETED, TrialState.FAILED

#: How a process can end or hang -> what is said of it.
DEATHS = {
    "os.kill(os.getpid(), 9)": "SIGKILL",
    "faulthandler._sigsegv()": "SIGSEGV",
    "os.abort()": "SIGABRT",
    "os.kill(os.getpid(), signal.SIGSTOP)": "no report for",
    "os._exit(0)": "exited with code 0",
    "os._exit(7)": "exited with code 7",
    "sys.exit(0)": "SystemExit",
}
KILLING = [death for death in DEATHS if "SIGSTOP" not in death and "sys.exit" not in death]

#: Trials that live and trials that die take turns, those that live first: three that fail alike would end the run.
DYING = dict(enumerate(DEATHS, start=3))
NUM_TRIALS = 12


@pytest.fixture
def mark(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], set[int]]]:
    """Who lives of those that come from here; in the end there must be nobody."""
    token = str(uuid.uuid4())
    monkeypatch.setenv("MARK", token)
    yield lambda: marked(f"MARK={token}")
    wait_until(lambda: not marked(f"MARK={token}"), 5)


def die(death: str) -> None:
    exec("import faulthandler, os, signal, sys; " + death)


class State:
    """What is tracked; `death`: what becomes of who saves it."""

    def __init__(self, death: str | None = None) -> None:
        self.step, self.death = 0, death

    def state_dict(self) -> dict[str, int]:
        if self.death is not None:
            die(self.death)
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.step = state["step"]


def train(trial: at.Trial, where: str) -> None:
    death = DYING.get(trial.id)
    if death is not None and where == "at once":
        die(death)
    state = State(death if where == "saving" else None)
    trial.track(state=state)
    assert state.step == trial.step
    for step in trial.steps():
        state.step = step
        if death is not None and where == "before its report" and step == 2:
            die(death)
        trial.report(score=trial.config["x"] + step)
    if death is not None and where == "after its last report":
        die(death)


def options(tmp_path: Path, **more: Any) -> dict[str, Any]:
    return {
        "metric": "score",
        "mode": "max",
        "num_trials": NUM_TRIALS,
        "slots": 2,
        "run_dir": tmp_path / "run",
        "progress": False,
    } | more


def records(tmp_path: Path) -> list[Record]:
    return list(journal.read(tmp_path / "run" / JOURNAL))


@pytest.mark.parametrize("where", ["at once", "before its report", "after its last report", "saving"])
def test_a_death_has_no_name_or_harms_others(tmp_path: Path, mark: Callable[[], set[int]], where: str) -> None:
    result = at.run(
        functools.partial(train, where=where),
        SPACE,
        **options(tmp_path, report_timeout=1.5, checkpoint_every=1e-6 if where == "saving" else None),
        scheduler=at.ASHA(4, min_resource=4),
    )
    for trial in result.trials:
        if trial.id in DYING:
            assert trial.state is FAILED
            assert DEATHS[DYING[trial.id]] in (trial.error or ""), trial.error
        else:
            assert trial.state is COMPLETED, trial.error
            assert [report["step"] for report in trial.reports] == [1, 2, 3, 4]
    every = records(tmp_path)
    for number, record in enumerate(every):
        if isinstance(record, Failed):
            slot = next(r.slot for r in reversed(every[:number]) if isinstance(r, Started) and r.trial == record.trial)
            following = next((r for r in every[number:] if isinstance(r, Started) and r.slot == slot), None)
            assert following is None or following.time - record.time < 5, "the slot is blocked"


def test_a_poison_trial_is_tried_for_ever_or_costs_others(tmp_path: Path, mark: Callable[[], set[int]]) -> None:
    def train(trial: at.Trial) -> None:
        for step in trial.steps(3):
            if trial.id == 2 and step == 2:
                os.kill(os.getpid(), 9)
            trial.report(score=trial.config["x"])

    train.__module__ = "__main__"
    result = at.run(train, SPACE, **options(tmp_path, num_trials=6, max_failures=2))
    assert [trial.state for trial in result.trials] == [COMPLETED] * 2 + [FAILED] + [COMPLETED] * 3
    starts = [record.trial for record in records(tmp_path) if isinstance(record, Started)]
    assert [starts.count(trial) for trial in range(6)] == [1, 1, 3, 1, 1, 1]


class Deadly:
    """Who unpickles it dies."""

    def __init__(self, death: str) -> None:
        self.death = death

    def __call__(self, trial: at.Trial) -> float:
        return 1.0

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("import faulthandler, os, signal, sys; " + self.death,)


@pytest.mark.parametrize("death", KILLING)
def test_a_worker_that_dies_while_it_loads_is_replaced_for_ever(
    tmp_path: Path, mark: Callable[[], set[int]], death: str
) -> None:
    with pytest.raises(RunFailed, match=DEATHS[death]):
        at.run(Deadly(death), SPACE, **options(tmp_path))
    assert not [record for record in records(tmp_path) if isinstance(record, Started)]


BOOT = """
import os, sys
if sys.argv[:1] == ["-c"]:
    import faulthandler, signal
    {death}
"""


@pytest.mark.parametrize("death", KILLING)
def test_a_worker_that_dies_at_its_birth_is_replaced_for_ever(
    tmp_path: Path, mark: Callable[[], set[int]], monkeypatch: pytest.MonkeyPatch, death: str
) -> None:
    (tmp_path / "sitecustomize.py").write_text(BOOT.format(death=death))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    with pytest.raises(RunFailed, match=f"did not start: .*{DEATHS[death]}"):
        at.run(functools.partial(train, where="nowhere"), SPACE, **options(tmp_path))


def test_a_grandchild_outlives_its_dead_worker(tmp_path: Path, mark: Callable[[], set[int]]) -> None:
    def train(trial: at.Trial) -> float:
        if trial.id == 2:
            subprocess.Popen(["sleep", "100"], start_new_session=True)
            os.kill(os.getpid(), 9)
        return 1.0

    train.__module__ = "__main__"
    result = at.run(train, SPACE, **options(tmp_path, num_trials=5))
    assert [trial.state for trial in result.trials] == [COMPLETED] * 2 + [FAILED] + [COMPLETED] * 2
    assert not [pid for pid in mark() if b"sleep" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def test_a_suspended_driver_takes_its_workers_for_dead(tmp_path: Path, mark: Callable[[], set[int]]) -> None:
    code = """
import sys, time
import asynctune as at
def train(trial):
    for step in trial.steps(30):
        time.sleep(0.1)
        trial.report(score=1.0)
at.run(train, {"x": at.uniform(0.0, 1.0)}, metric="score", mode="max", num_trials=2, slots=2, run_dir=sys.argv[1],
       report_timeout=1.5, progress=False)
"""
    driver = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "run")],
        env=os.environ | {"PYTHONPATH": str(Path(at.__file__).parent.parent)},
    )
    path = tmp_path / "run" / JOURNAL
    wait_until(lambda: b'"reported"' in contents(path) or driver.poll() is not None)
    os.kill(driver.pid, 19)
    time.sleep(4)
    os.kill(driver.pid, 18)
    assert driver.wait(60) == 0
    assert at.Result.load(tmp_path / "run").trials.states.tolist() == [COMPLETED] * 2
