"""The virtual clock: the same study as in a real run, with times that can be checked by hand."""

import builtins
import itertools
import math
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import asynctune as at
from asynctune import journal
from asynctune.errors import InvalidArgument, RunFailed
from asynctune.records import (
    ENDED,
    Decided,
    Failed,
    Finished,
    Left,
    Record,
    Reported,
    Saved,
    Started,
    Stopping,
    Suggested,
    TrialState,
)
from asynctune.results import Result
from asynctune.rundir import JOURNAL
from asynctune.schedulers import Scheduler
from asynctune.searchers import Searcher
from asynctune.searchers.random import BoundRandom
from asynctune.simulation import CurveBenchmark, Shell, StepBenchmark, _Simulation
from tests.runs import climb, options

SPACE = {"x": at.uniform(0.0, 1.0), "cost": at.ordinal([1.0, 2.0, 3.0])}


@dataclass
class Line:
    """Grows by x at every step, each of which takes `cost` seconds."""

    max_resource: int = 9
    space: dict[str, Any] = field(default_factory=lambda: SPACE)
    metric: str = "score"
    mode: Literal["min", "max"] = "max"

    def evaluate(self, config: dict[str, Any], seed: int) -> tuple[list[float], list[float]]:
        steps = range(1, self.max_resource + 1)
        return [config["x"] * step for step in steps], [config["cost"] * step for step in steps]


@dataclass
class Walk:
    """The same, step by step. The state is all that was added so far."""

    max_resource: int = 9
    space: dict[str, Any] = field(default_factory=lambda: SPACE)
    metric: str = "score"
    mode: Literal["min", "max"] = "max"

    def step(self, state: Any, config: dict[str, Any], seed: int) -> tuple[Any, float, float]:
        added = (*(state or ()), config["x"])
        return added, math.fsum(added), config["cost"]


PBT = at.PBT(perturbation_interval=2, max_resource=9)
BARRIER = at.PBT(perturbation_interval=2, max_resource=9, synchronous=True)
SCHEDULERS = [at.FIFO(), at.ASHA(9), at.ASHA(9, brackets=2), at.ASHA(9, type="promotion"), PBT, BARRIER]


def of_kind(result: Result, kind: type[Record], trial: int | None = None) -> list[Any]:
    return [r for r in result.events() if type(r) is kind and trial in (None, getattr(r, "trial", None))]


def outcome(result: Result) -> list[tuple[Any, ...]]:
    """What came of every trial, without times."""
    return [(t.config, t.state, t.value, t.step, t.reports, t.lineage) for t in result.trials]


@pytest.mark.parametrize("benchmark", [Line(), Walk()], ids=["curves", "steps"])
@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=repr)
def test_equal_arguments_lead_to_different_runs(benchmark: Any, scheduler: Scheduler) -> None:
    if isinstance(benchmark, Line) and isinstance(scheduler, at.PBT):
        pytest.skip("a curve has one configuration")
    runs = [
        at.simulate(benchmark, scheduler=scheduler, num_trials=20, num_slots=3, seed=seed, startup=0.25)
        for seed in (4, 4, 5)
    ]
    first, same, other = ([*run.events()] for run in runs)
    assert first == same != other
    assert all(TrialState(state) in ENDED for state in runs[0].trials.states)


@pytest.mark.parametrize(
    ("scheduler", "benchmark"), [(at.FIFO(), Line()), (at.FIFO(), Walk()), (BARRIER, Walk())], ids=repr
)
def test_what_does_not_depend_on_the_order_of_events_depends_on_the_number_of_slots(
    scheduler: Scheduler, benchmark: Any
) -> None:
    runs = [
        at.simulate(benchmark, scheduler=scheduler, num_trials=12, num_slots=slots, seed=3) for slots in (1, 2, 5, 12)
    ]
    assert outcome(runs[0]) == outcome(runs[1]) == outcome(runs[2]) == outcome(runs[3])
    assert runs[0].wall > runs[1].wall > runs[2].wall > runs[3].wall


def in_time(record: Record) -> Record:
    return msgspec.structs.replace(record, time=0.0)


@pytest.mark.parametrize(
    ("scheduler", "happens"),
    [
        (at.FIFO(), Finished),
        (at.ASHA(9), Decided),
        (at.ASHA(9, type="promotion"), Saved),
        (at.PBT(perturbation_interval=2, max_resource=9), Saved),
    ],
    ids=repr,
)
def test_a_simulation_decides_otherwise_than_the_real_run(
    tmp_path: Path, scheduler: Scheduler, happens: type[Record]
) -> None:
    """What the workers of a real run did, in their order, fed to the shell that simulations use: all else follows as it did."""
    space = {"x": at.uniform(0.0, 1.0)}
    result = at.run(climb, space, **options(tmp_path, num_trials=8, scheduler=scheduler, seed=7))
    real = [*result.events()]
    study = at.Study(space, metric="score", mode="max", num_trials=8, scheduler=scheduler, seed=7, num_slots=2)
    shell = Shell(study)
    followed = 0
    for number, record in enumerate(real):
        if number < len(shell.records):  # it followed from others, as it did then
            followed += 1
        elif isinstance(record, Suggested | Started):
            slot = next(r.slot for r in real[number:] if isinstance(r, Started))
            shell.ask(slot, record.time)
        else:
            shell.happen(record)
        assert in_time(shell.records[number]) == in_time(record)
    assert len(shell.records) == len(real)
    assert followed >= 8
    assert study.done
    assert any(isinstance(record, happens) for record in real)


# Times.


@dataclass
class Given(Line):
    """Each configuration's cost per step is its number; values are what `curves` says."""

    curves: dict[int, list[float]] = field(default_factory=dict)
    space: dict[str, Any] = field(default_factory=lambda: {"n": at.choice([*range(100)])})

    def evaluate(self, config: dict[str, Any], seed: int) -> tuple[list[float], list[float]]:
        n = config["n"]
        elapsed = [(n + 1.0) * step for step in range(1, self.max_resource + 1)]
        return self.curves.get(n, [float(n)] * self.max_resource), elapsed


@dataclass(frozen=True)
class InTurn(Searcher):
    """Trial k has n = k."""

    def bind(self, **_: Any) -> Any:
        return _InTurn()


class _InTurn(BoundRandom):
    def __init__(self) -> None:
        pass

    def prepare(self, trial: int) -> Any:
        return lambda: np.array([float(trial)])


def test_the_clock_is_wrong() -> None:
    result = at.simulate(Given(2), searcher=InTurn(), num_trials=4, num_slots=2, startup=0.5)
    # Slot 0: trial 0 (steps of 1 s) until 2.5, then trial 2 (3 s) until 9; slot 1: trial 1 (2 s) until 4.5, then trial 3 (4 s).
    assert [(r.trial, r.step, r.time) for r in of_kind(result, Reported)] == [
        *[(0, 1, 1.5), (0, 2, 2.5), (1, 1, 2.5), (1, 2, 4.5), (2, 1, 6.0), (2, 2, 9.0), (3, 1, 9.0), (3, 2, 13.0)]
    ]
    assert [(r.trial, r.slot, r.time) for r in of_kind(result, Started)] == [
        (0, 0, 0),
        (1, 1, 0),
        (2, 0, 2.5),
        (3, 1, 4.5),
    ]
    assert [r.busy for r in of_kind(result, Left)] == [2, 4, 6, 8]
    assert result.wall == 13
    assert result.startup == 0
    assert [t.busy for t in result.trials] == [2, 4, 6, 8]


def test_a_trial_that_goes_on_in_its_slot_pays_for_its_start_again() -> None:
    promotion = at.ASHA(3, reduction_factor=3, type="promotion")
    result = at.simulate(Given(3), searcher=InTurn(), scheduler=promotion, num_trials=3, num_slots=1, startup=10.0)
    starts = [(r.trial, r.how, r.time) for r in of_kind(result, Started)]
    # Trial 2 is the best, and still in the slot when it is promoted.
    assert starts == [(0, "started", 0), (1, "started", 11), (2, "started", 23), (2, "resumed", 36)]
    assert [r.time for r in of_kind(result, Reported, 2)] == [36, 39, 42]
    curves = {0: [9.0, 9.0, 9.0]}  # now trial 0 is, which left the slot
    result = at.simulate(
        Given(3, curves=curves), searcher=InTurn(), scheduler=promotion, num_trials=3, num_slots=1, startup=10.0
    )
    assert [r.time for r in of_kind(result, Reported, 0)] == [11, 36 + 10 + 1, 36 + 10 + 2]
    assert [t.busy for t in result.trials] == [3, 2, 3]


def test_a_trial_goes_on_warm_in_a_slot_that_it_has_left_since() -> None:
    space = {"x": at.uniform(0.0, 1.0), "cost": at.choice([1.0, 2.0, 5.0, 9.0])}
    cold = 0
    for seed in range(25, 33):
        halving = at.Hyperband(16, 1, 2, brackets=1, synchronous=True)
        result = at.simulate(Line(16, space), scheduler=halving, startup=10.0, num_trials=8, num_slots=8, seed=seed)
        inside: dict[int, int] = {}  # slot -> the trial that ran there last
        where: dict[int, int] = {}  # trial -> the slot where it ran last
        due: dict[int, float] = {}  # trial -> its first step may not be over before
        for record in result.events():
            if isinstance(record, Started):
                there, last = inside.get(record.slot) == record.trial, where.get(record.trial)
                cold += there and last != record.slot
                due[record.trial] = record.time + (0.0 if there and last == record.slot else 10.0)
                inside[record.slot], where[record.trial] = record.trial, record.slot
            elif isinstance(record, Reported) and record.trial in due:
                assert record.time > due.pop(record.trial)
    assert cold, "nobody came back to a slot after having been elsewhere"


def test_a_trial_that_resumes_at_its_end_never_ends() -> None:
    pausing = at.ASHA(9, min_resource=3, type="promotion")  # its first rung is where the curves end
    result = at.simulate(Line(3), scheduler=pausing, num_trials=9, num_slots=2)
    assert Counter(t.state for t in result.trials) == {TrialState.COMPLETED: 3, TrialState.STOPPED: 6}
    assert all(t.step == 3 for t in result.trials)


def test_a_time_budget_is_passed_by() -> None:
    result = at.simulate(Line(), num_trials=None, time_budget=50.0, num_slots=3)
    [stopping] = of_kind(result, Stopping)
    assert stopping.time == 50
    assert result.stopping == "the time budget of 50 s is used up"
    assert all(r.time <= 50 for r in of_kind(result, Started))
    late = [r for r in of_kind(result, Reported) if r.time > 50]
    assert len({r.trial for r in late}) == len(late) == 3, "what runs reports once more, and pauses"
    assert result.trials.states.count(TrialState.PAUSED) + [r.step for r in late].count(9) == 3
    assert result.wall == max(r.time for r in late)


# Checkpoints.


@pytest.mark.parametrize("scheduler", [PBT, BARRIER, at.ASHA(9, type="promotion")], ids=repr)
@pytest.mark.parametrize("slots", [1, 3, 12])
def test_a_trial_goes_on_from_another_state_than_its_checkpoints(scheduler: Scheduler, slots: int) -> None:
    result = at.simulate(Walk(), scheduler=scheduler, num_trials=12, num_slots=slots, seed=2)
    added: dict[tuple[int, int, int], tuple[float, ...]] = {}  # (trial, segment, step) -> all that was added up to then
    for record in result.events():
        if isinstance(record, Started):
            begun: tuple[float, ...] = ()
            if record.checkpoint is not None:
                trial, segment, step = map(int, record.checkpoint.split("-"))
                begun = added[trial, segment, step]
            added[record.trial, record.segment, record.step] = begun
        if isinstance(record, Reported):
            x = result.trials[record.trial].lineage[record.segment].config["x"]
            before = added[record.trial, record.segment, record.step - 1]
            now = added[record.trial, record.segment, record.step] = (*before, x)
            assert record.metrics["score"] == math.fsum(now)
    if isinstance(scheduler, at.PBT):
        assert any(t.lineage[1:] for t in result.trials)
        assert [t.step for t in result.trials] == [9] * 12


def test_states_pile_up_that_nobody_needs() -> None:
    study = at.Study(SPACE, metric="score", mode="max", num_trials=12, scheduler=PBT, num_slots=3)
    simulation = _Simulation(study, Walk(), 3, 0.0, None)
    most = 0
    for _ in simulation.run():
        most = max(most, len(simulation._states))
    best = study.best
    assert best is not None
    assert list(simulation._states) == [f"{best}-{study.segment(best)}-9"]
    assert most <= 3 * 12


# Failures.


@dataclass
class Failing(Line):
    """Fails, the first time it is asked, where `x` is below a half."""

    seen: set[float] = field(default_factory=set)

    def evaluate(self, config: dict[str, Any], seed: int) -> tuple[list[float], list[float]]:
        if config["x"] < 0.5 and config["x"] not in self.seen:
            self.seen.add(config["x"])
            raise ValueError("too\n small")
        return super().evaluate(config, seed)


def test_a_failed_attempt_is_not_tried_again() -> None:
    result = at.simulate(Failing(), num_trials=10, num_slots=2, max_failures=1, startup=1.0, seed=1)
    failed = of_kind(result, Failed)
    assert failed
    assert {(r.error, r.retry) for r in failed} == {("ValueError: too small", True)}
    assert "in evaluate" in failed[0].traceback
    assert [r.how for r in of_kind(result, Started)].count("retried") == len(failed)
    assert {t.state for t in result.trials} == {TrialState.COMPLETED}
    result = at.simulate(Failing(), num_trials=10, num_slots=2, seed=1)
    lost = [t for t in result.trials if t.state is TrialState.FAILED]
    assert [t.error for t in lost] == ["ValueError: too small"] * len(failed)


def test_a_value_that_is_nan_is_reported() -> None:
    curves = {1: [1.0, math.nan, 3.0], 2: [-math.inf] * 3}
    result = at.simulate(Given(3, curves=curves), searcher=InTurn(), num_trials=4, num_slots=4)
    assert [t.state.name for t in result.trials] == ["COMPLETED", "FAILED", "COMPLETED", "COMPLETED"]
    assert result.trials[1].error == "ArithmeticError: the value of step 2 is NaN"
    assert [r.time for r in of_kind(result, Failed)] == [4]
    assert len(result.trials[1].reports) == 1
    assert result.best.id == 3


def test_a_step_that_fails_restarts_from_scratch() -> None:
    failed: list[Any] = []

    class Stumbling(Walk):
        def step(self, state: Any, config: dict[str, Any], seed: int) -> tuple[Any, float, float]:
            if state is not None and len(state) == 6 and not failed:
                failed.append(state)
                raise RuntimeError
            return super().step(state, config, seed)

    result = at.simulate(Stumbling(), scheduler=PBT, num_trials=4, num_slots=2, max_failures=1)
    [retried] = [r for r in of_kind(result, Started) if r.how == "retried"]
    assert retried.step in (4, 6)
    assert [t.step for t in result.trials] == [9] * 4


def test_bad_luck_repeats_itself() -> None:
    class Flaky(Walk):
        def step(self, state: Any, config: dict[str, Any], seed: int) -> tuple[Any, float, float]:
            if seed % 10 == 0:
                raise OSError("flaky")
            return super().step(state, config, seed)

    result = at.simulate(Flaky(), num_trials=40, num_slots=4, max_failures=20)
    assert len(of_kind(result, Failed)) > 20
    assert {trial.state for trial in result.trials} == {TrialState.COMPLETED}


def test_a_program_that_is_wrong_looks_like_bad_luck() -> None:
    class Wrong(Line):
        def evaluate(self, config: dict[str, Any], seed: int) -> Any:
            raise KeyError("lr")

    with pytest.raises(RunFailed, match="the first 3 trials failed in the same way: KeyError: 'lr'") as caught:
        at.simulate(Wrong(), num_trials=10)
    assert "in evaluate" in "".join(caught.value.__notes__)
    with pytest.raises(RunFailed, match="every trial failed"):
        at.simulate(Wrong(), num_trials=2)


@pytest.mark.parametrize(
    ("curve", "rule"),
    [
        (([1.0, 2.0], [1.0, 2.0, 3.0]), "max_resource = 3 steps, got 2 values and 3 times"),
        (([1.0, 2.0, 3.0], [1.0, 3.0, 2.0]), "never decrease, got 2.0 after 3.0"),
        (([1.0, 2.0, 3.0], [-1.0, 3.0, 4.0]), "never decrease, got -1.0 after 0.0"),
        (([1.0, 2.0, 3.0], [1.0, 3.0, math.inf]), "finite"),
        (([1.0, 2.0, 3.0], [math.nan, 3.0, 4.0]), "finite"),
    ],
)
def test_an_impossible_curve_fails_trials(curve: Any, rule: str) -> None:
    class Impossible(Line):
        def evaluate(self, config: dict[str, Any], seed: int) -> Any:
            return curve

    with pytest.raises(InvalidArgument, match=rule):
        at.simulate(Impossible(3), num_trials=1)


@pytest.mark.parametrize(
    "scheduler",
    [
        PBT,
        at.PB2(2, 9),
        at.MFPBT(2, 9, frequencies=(1, 2)),
        at.Replay([(0, {"x": 0.5, "cost": 1.0}), (3, {"x": 0.1, "cost": 1.0})]),
    ],
    ids=lambda scheduler: type(scheduler).__name__,
)
def test_a_curve_is_trained_with_other_hyperparameters(scheduler: Scheduler, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"(?s)\(.*changes configurations, which takes a benchmark with step"):
        at.simulate(Line(), scheduler=scheduler, num_trials=8, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists(), "what is refused leaves nothing behind"


def test_a_schedule_that_stays_the_same_is_refused() -> None:
    [only] = at.simulate(Line(), scheduler=at.Replay([(0, {"x": 0.5, "cost": 1.0})]), num_trials=1).trials
    assert only.value == 4.5


def test_time_that_stands_still_never_ends() -> None:
    free = Line(9, {"x": at.uniform(0.0, 1.0), "cost": 0.0})
    with pytest.raises(InvalidArgument, match="without num_trials, steps must take time, got 10,004 ends"):
        at.simulate(free, time_budget=5.0, num_slots=3)
    assert len(at.simulate(free, num_trials=20_000).trials) == 20_000


@pytest.mark.parametrize("returned", [1.0, None, [1.0] * 3, ([1.0] * 3, 3.0)], ids=repr)
def test_a_benchmark_that_is_wrong_looks_like_bad_luck(returned: Any) -> None:
    class Curves(Line):
        def evaluate(self, config: dict[str, Any], seed: int) -> Any:
            return returned

    class Steps(Walk):
        def step(self, state: Any, config: dict[str, Any], seed: int) -> Any:
            return returned if not isinstance(returned, list) else returned[:2]

    with pytest.raises(InvalidArgument, match="evaluate must return values and seconds, got"):
        at.simulate(Curves(3), num_trials=4)
    with pytest.raises(InvalidArgument, match="step must return a state, a value and seconds, got"):
        at.simulate(Steps(3), num_trials=4)


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"num_trials": None}, "num_trials must be given, or else a time_budget"),
        ({"num_trials": 0}, "num_trials must be an integer >= 1"),
        ({"num_slots": 0}, "num_slots must be an integer >= 1"),
        ({"time_budget": 0}, "time_budget must be a positive number of seconds, got 0"),
        ({"time_budget": math.inf}, "time_budget must be a positive number of seconds"),
        ({"startup": -1.0}, "startup must be a number in"),
        ({"startup": math.inf}, "startup must be a number in"),
        ({"benchmark": None}, "a benchmark must be an object with space, metric"),
        ({"benchmark": Line}, "a benchmark must be an object .* got <class"),
        ({"benchmark": Line(0)}, "max_resource of a benchmark must be an integer >= 1"),
        ({"max_failures": -1}, "max_failures must be an integer >= 0"),
    ],
    ids=str,
)
def test_a_bad_argument_is_taken(changes: dict[str, Any], rule: str) -> None:
    arguments: dict[str, Any] = {"benchmark": Line(), "num_trials": 4} | changes
    with pytest.raises(InvalidArgument, match=rule):
        at.simulate(arguments.pop("benchmark"), **arguments)


# Results.


@pytest.mark.parametrize("scheduler", [at.ASHA(9), PBT], ids=repr)
def test_a_result_from_memory_differs_from_one_of_a_journal(tmp_path: Path, scheduler: Scheduler) -> None:
    arguments: dict[str, Any] = {"scheduler": scheduler, "num_trials": 12, "num_slots": 3, "seed": 1}
    written = at.simulate(Walk(), run_dir=tmp_path / "run", **arguments)
    kept = at.simulate(Walk(), **arguments)
    assert written.run_dir == tmp_path / "run"
    assert kept.run_dir is None
    assert outcome(written) == outcome(kept)
    assert [*written.events()] == [*kept.events()]
    assert [*journal.read(tmp_path / "run" / JOURNAL)][1:] == [*kept.events()]
    assert kept.summary() == written.summary() == str(kept).splitlines()[0]
    assert kept.header == written.header
    assert [t.busy for t in kept.trials] == [t.busy for t in written.trials]
    assert (kept.best.checkpoint, kept.best.log()) == (written.best.checkpoint, written.best.log()) == (None, "")
    pages = [run.report(tmp_path / name).read_text() for run, name in ((written, "a.html"), (kept, "b.html"))]
    assert pages[0].replace(str(tmp_path / "run"), "none, it was simulated") == pages[1]
    assert "simulation" in repr(kept) and "simulation" in repr(kept.trials)
    with pytest.raises(InvalidArgument, match="run_dir must not hold a run already"):
        at.simulate(Walk(), run_dir=tmp_path / "run", **arguments)


def test_a_simulation_touches_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    at.simulate(Line(), num_trials=2)  # all is imported now

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("the disk")

    for module, name in ((builtins, "open"), (os, "open"), (os, "mkdir"), (os, "stat")):
        monkeypatch.setattr(module, name, refuse)
    result = at.simulate(Walk(), scheduler=PBT, num_trials=8)
    configs = [(t.config, t.reports, t.checkpoint, t.log()) for t in result.trials]
    monkeypatch.undo()
    assert len(configs) == 8


def test_a_record_in_memory_is_large() -> None:
    result = at.simulate(Line(), scheduler=at.ASHA(9), num_trials=2000, num_slots=100)
    count = sum(1 for _ in result.events())
    tape = result.trials._source
    assert len(tape._data) / count < 100  # type: ignore[attr-defined]


# Any run.


@settings(max_examples=60, deadline=None)
@given(
    scheduler=st.sampled_from(SCHEDULERS),
    slots=st.integers(1, 5),
    startup=st.sampled_from([0.0, 1.5]),
    budget=st.sampled_from([None, 0.5, 20.0]),
    seed=st.integers(0, 2**32),
    fail=st.sampled_from([0.0, 0.1]),
)
def test_a_slot_does_two_things_at_once(
    scheduler: Scheduler, slots: int, startup: float, budget: float | None, seed: int, fail: float
) -> None:
    count = itertools.count()

    class Stumbling(Walk):
        def step(self, state: Any, config: dict[str, Any], seed: int) -> tuple[Any, float, float]:
            if (next(count) * 0.618) % 1 < fail:
                raise RuntimeError(config["x"])
            return super().step(state, config, seed)

    try:
        result = at.simulate(
            Stumbling(),
            scheduler=scheduler,
            num_trials=10,
            num_slots=slots,
            seed=seed,
            startup=startup,
            time_budget=budget,
            max_failures=1,
        )
    except RunFailed:
        return
    now = 0.0
    busy: dict[int, int] = {}  # slot -> the trial in it
    for record in result.events():
        assert record.time >= now
        now = record.time
        match record:
            case Started(slot=slot, trial=trial):
                assert slot not in busy and trial not in busy.values() and 0 <= slot < slots
                busy[slot] = trial
            case Left(slot=slot, trial=trial):
                assert busy.pop(slot) == trial
            case Reported(trial=trial):
                assert trial in busy.values()
    assert not busy
    assert result.wall == now
    for each in result.trials:
        steps = [(report["segment"], report["step"]) for report in each.reports]
        assert steps == sorted(set(steps))
        assert budget is not None or each.state in ENDED


def test_a_protocol_asks_for_what_a_benchmark_need_not_have() -> None:
    assert isinstance(Line(), CurveBenchmark) and not isinstance(Line(), StepBenchmark)
    assert isinstance(Walk(), StepBenchmark) and not isinstance(Walk(), CurveBenchmark)


def test_a_benchmark_that_changes_its_config_changes_the_record() -> None:
    class Careless(Line):
        def evaluate(self, config: dict[str, Any], seed: int) -> Any:
            curve = super().evaluate(config, seed)
            config["x"] = -1.0
            return curve

    changed, kept = (at.simulate(benchmark, num_trials=5) for benchmark in (Careless(), Line()))
    assert outcome(changed) == outcome(kept)


def test_numpys_numbers_are_no_numbers() -> None:
    class Numpy(Line):
        def evaluate(self, config: dict[str, Any], seed: int) -> Any:
            values, elapsed = super().evaluate(config, seed)
            return [np.float32(value) for value in values], np.array(elapsed, np.float32)

    class Steps(Walk):
        def step(self, state: Any, config: dict[str, Any], seed: int) -> Any:
            state, value, seconds = super().step(state, config, seed)
            return state, np.float32(value), np.int64(seconds)

    for benchmark in (Numpy(), Steps()):
        result = at.simulate(benchmark, num_trials=5)
        assert result.best.value == pytest.approx(result.best.config["x"] * 9)


def test_a_searcher_that_takes_long_makes_no_suggestions() -> None:
    searcher = at.HyperOpt(startup=2)
    runs = [at.simulate(Line(), searcher=searcher, num_trials=6, num_slots=2, seed=3) for _ in range(2)]
    assert outcome(runs[0]) == outcome(runs[1])
    assert len({trial.config["x"] for trial in runs[0].trials}) == 6


def test_a_simulated_run_can_be_read_by_others(tmp_path: Path) -> None:
    at.simulate(Line(), num_trials=2, run_dir=tmp_path / "deep" / "run")
    assert (tmp_path / "deep" / "run").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "deep" / "run" / JOURNAL).stat().st_mode & 0o777 == 0o600
