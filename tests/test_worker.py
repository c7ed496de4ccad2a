"""Worker: what user code meets, and what the driver hears of it. No processes here; see test_processes."""

import contextlib
import json
import math
import pickle
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from asynctune import _wire as wire
from asynctune.errors import TrialEnded
from asynctune.worker.checkpoint import Checkpoints, transplant
from asynctune.worker.job import run_job
from asynctune.worker.session import Session
from asynctune.worker.trial import Trial

Answer = Callable[[Any], list[wire.ToWorker]]


class Driver:
    """A channel whose other end answers each frame with what `answer` makes of it."""

    def __init__(self, answer: Answer = lambda frame: [], awaited: Callable[[], object] = lambda: None) -> None:
        self.sent: list[Any] = []
        self._answer = answer
        self._awaited = awaited  # called when the job waits
        self._frames: deque[wire.ToWorker] = deque()

    def send(self, *frames: wire.FromWorker) -> None:
        for frame in frames:
            self.sent.append(frame)
            self._frames += self._answer(frame)

    def receive(self) -> wire.ToWorker:
        self._awaited()
        assert self._frames, "the job waits for a frame that never comes"
        return self._frames.popleft()

    def poll(self) -> wire.ToWorker | None:
        return self._frames.popleft() if self._frames else None

    def steps(self) -> list[int]:
        return [frame.step for frame in self.sent if isinstance(frame, wire.Report)]

    def names(self) -> list[str]:
        return [type(frame).__name__ for frame in self.sent]


class Counter:
    """The smallest thing that can be tracked."""

    def __init__(self, value: Any = 0) -> None:
        self.value = value

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value = state["value"]


class Runner:
    """Runs jobs whose checkpoints are under one directory."""

    def __init__(self, checkpoints: Path) -> None:
        self.checkpoints = checkpoints

    def __call__(self, function: Callable[[Trial], object], driver: Driver | None = None, **changes: Any) -> Driver:
        driver = driver or Driver()
        self.session = self.start(function, driver, **changes)
        return driver

    def start(self, function: Callable[[Trial], object], driver: Driver, **changes: Any) -> Session | None:
        fields: dict[str, Any] = {
            "job": 1, "trial": 7, "segment": 0, "seed": 11, "config": {"lr": 0.1}, "metric": "loss", "step": 0, "stop": None, "until": None,
            "restore": None, "save_to": str(self.checkpoints), "checkpoint_every": None, "device": "cpu",
        }  # fmt: skip
        fields |= changes
        return run_job(function, wire.Run(**(fields | {"config": pickle.dumps(fields["config"])})), driver)


@pytest.fixture
def run(tmp_path: Path) -> Runner:
    return Runner(tmp_path / "checkpoints")


class Clock:
    """Time that passes only when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("asynctune.worker.session.monotonic", clock)
    monkeypatch.setattr("asynctune.worker.job.monotonic", clock)
    return clock


@pytest.fixture
def without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)


def last(driver: Driver) -> Any:
    return driver.sent[-1]


def failure(driver: Driver) -> str:
    assert isinstance(last(driver), wire.Error), driver.sent
    return cast("str", last(driver).error)


def at(step: int, *frames: wire.ToWorker) -> Answer:
    """Answer the report of a step."""
    return lambda frame: list(frames) if isinstance(frame, wire.Report) and frame.step == step else []


def pause_and_end(step: int) -> Answer:
    """Answer the report of a step with a pause that the trial does not come back from."""
    return lambda frame: [wire.End(1)] if isinstance(frame, wire.Saved) else at(step, wire.Pause(1))(frame)


# The handle.


def test_importing_the_worker_loads_nothing_heavy() -> None:
    code = "import asynctune.worker.__main__, sys; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = set(
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    )
    assert "msgspec" in loaded
    assert loaded.isdisjoint(
        {"numpy", "torch", "asyncio", "cloudpickle", "hyperopt", "subprocess", "logging", "dataclasses"}
    )


def test_a_trial_shows_its_assignment(run: Runner, tmp_path: Path) -> None:
    def train(trial: Trial) -> None:
        assert (trial.config, trial.id, trial.seed, trial.step, trial.device) == ({"lr": 0.1}, 7, 11, 4, "cuda:0")
        assert trial.restored == Path("/somewhere")
        assert trial.dir == tmp_path / "trials" / "7"
        assert trial.dir.is_dir()

    driver = run(train, step=4, restore="/somewhere", device="cuda:0")
    assert isinstance(last(driver), wire.Done)


def test_steps_go_on_after_the_restored_one(run: Runner) -> None:
    def train(trial: Trial) -> None:
        assert list(trial.steps(6)) == [5, 6]
        assert trial.step == 6

    assert isinstance(last(run(train, step=4)), wire.Done)


def test_steps_end_at_max_resource_by_default(run: Runner) -> None:
    def train(trial: Trial) -> None:
        for _ in trial.steps():
            trial.report(loss=1)

    assert run(train, stop=3).steps() == [1, 2, 3]


def test_steps_without_an_end_are_refused_at_the_call(run: Runner) -> None:
    def train(trial: Trial) -> None:
        trial.steps()

    assert "steps() needs its last step" in failure(run(train))


@pytest.mark.parametrize("stop", [0, -1, 1.5, "3"])
def test_a_last_step_that_is_none_is_refused(run: Runner, stop: Any) -> None:
    def train(trial: Trial) -> None:
        trial.steps(stop)

    assert f"stop must be an integer >= 1, got {stop!r}" in failure(run(train))


def test_reports_outside_of_steps_count_by_themselves(run: Runner) -> None:
    def train(trial: Trial) -> None:
        trial.report(loss=1)
        trial.report(loss=1, step=5)
        trial.report(loss=1)
        assert trial.step == 6

    assert run(train).steps() == [1, 5, 6]


def test_a_loop_left_early_goes_on_where_it_was(run: Runner) -> None:
    def train(trial: Trial) -> None:
        for step in trial.steps(10):
            trial.report(loss=1)
            if step == 2:
                break
        trial.report(loss=1)
        for _ in trial.steps(5):
            trial.report(loss=1)

    assert run(train).steps() == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("step", [3, 2])
def test_steps_that_do_not_increase_are_refused(run: Runner, step: int) -> None:
    def train(trial: Trial) -> None:
        trial.report(loss=1, step=3)
        trial.report(loss=1, step=step)

    assert f"got a report of step {step} after one of step 3" in failure(run(train))


def test_two_reports_in_one_turn_are_refused(run: Runner) -> None:
    def train(trial: Trial) -> None:
        for _ in trial.steps(3):
            trial.report(loss=1)
            trial.report(loss=2, accuracy=1)

    assert "got a report of step 1 after one of step 1" in failure(run(train))


def test_another_step_than_the_loops_is_refused(run: Runner) -> None:
    def train(trial: Trial) -> None:
        for _ in trial.steps(3):
            trial.report(loss=1, step=100)

    assert "inside steps() the step is the loop's, 1, got 100" in failure(run(train))


class Tensor:
    ndim = 0

    def __float__(self) -> float:
        return 0.75


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1, 1.0),
        (True, 1.0),
        (np.float32(0.5), 0.5),
        (np.int64(3), 3.0),
        (np.bool_(True), 1.0),
        (np.array(0.25), 0.25),
        (Tensor(), 0.75),
        (math.inf, math.inf),
    ],
)
def test_real_numbers_of_all_kinds_arrive_as_floats(run: Runner, value: Any, expected: float) -> None:
    driver = run(lambda trial: trial.report({"loss": value}))
    assert driver.sent[0].metrics == {"loss": expected}
    assert type(driver.sent[0].metrics["loss"]) is float


@pytest.mark.parametrize("value", [None, "0.5", [1.0], np.array([1.0]), 1j, {"a": 1}])
def test_what_is_no_number_is_refused_by_name_and_type(run: Runner, value: Any) -> None:
    driver = run(lambda trial: trial.report(accuracy=1.0, loss=value))
    assert failure(driver) == f"TypeError: metric 'loss' must be a real number, got {type(value).__name__}"


def test_reports_without_metrics_or_with_odd_names_are_refused(run: Runner) -> None:
    assert "the study's metric, 'loss', got nothing" in failure(run(lambda trial: trial.report()))
    assert "the study's metric, 'loss', got 'los'" in failure(run(lambda trial: trial.report(los=1)))
    assert "must be a str, got 3" in failure(run(lambda trial: trial.report(cast("Any", {"loss": 1.0, 3: 1.0}))))
    assert "no metric may be called 'step'" in failure(run(lambda trial: trial.report({"loss": 1.0, "step": 1.0})))
    assert "a float can hold" in failure(run(lambda trial: trial.report(loss=10**400)))


# Decisions.


def test_the_answer_is_awaited_after_the_body_has_run(run: Runner) -> None:
    seen: list[Any] = []

    def train(trial: Trial) -> None:
        for step in trial.steps(4):
            trial.report(loss=1)
            seen.append(("after report", step))

    def answer(frame: Any) -> list[wire.ToWorker]:
        return [wire.Continue(1, 4)] if isinstance(frame, wire.Report) and frame.step in (2, 4) else []

    driver = Driver(answer, lambda: seen.append("awaited"))
    run(train, driver, until=2)
    assert seen == [
        ("after report", 1), ("after report", 2), "awaited", ("after report", 3), ("after report", 4), "awaited",
    ]  # fmt: skip
    assert not last(driver).ended


def test_a_report_that_jumps_over_the_milestone_is_answered(run: Runner) -> None:
    def train(trial: Trial) -> None:
        trial.report(loss=1, step=3)

    assert run(train, Driver(at(3, wire.End(1))), until=2).names() == ["Report", "Done"]


def test_a_stop_at_a_milestone_ends_the_loop(run: Runner) -> None:
    def train(trial: Trial) -> None:
        for _ in trial.steps(9):
            trial.report(loss=1)

    driver = run(train, Driver(at(3, wire.End(1))), until=3)
    assert driver.steps() == [1, 2, 3]
    assert last(driver).ended


def test_a_stop_is_noticed_between_milestones(run: Runner) -> None:
    def train(trial: Trial) -> None:
        for _ in trial.steps(9):
            trial.report(loss=1)

    driver = run(train, Driver(at(2, wire.End(1))))
    assert driver.steps() == [1, 2]
    assert last(driver).ended


def test_outside_of_steps_a_stop_is_raised_past_except_exception(run: Runner) -> None:
    def train(trial: Trial) -> None:
        while True:
            with contextlib.suppress(Exception):
                trial.report(loss=1)

    driver = run(train, Driver(at(2, wire.End(1))), until=2)
    assert driver.steps() == [1, 2]
    assert last(driver).ended


def test_a_report_after_the_end_raises(run: Runner) -> None:
    def train(trial: Trial) -> None:
        for _ in trial.steps(9):
            trial.report(loss=1)
        with pytest.raises(TrialEnded, match="trial 7 ended after step 1"):
            trial.report(loss=2)

    driver = run(train, Driver(at(1, wire.End(1))), until=1)
    assert driver.steps() == [1]
    assert last(driver).ended


def test_an_answer_still_due_after_break_is_awaited_by_the_next_report(run: Runner) -> None:
    def train(trial: Trial) -> None:
        for _ in trial.steps(9):
            trial.report(loss=1)
            break
        trial.report(loss=2)

    driver = run(train, Driver(at(1, wire.End(1))), until=1)
    assert driver.steps() == [1]
    assert last(driver).ended


def test_a_frame_for_a_job_that_is_over_changes_nothing(run: Runner) -> None:
    def train(trial: Trial) -> None:
        for _ in trial.steps(3):
            trial.report(loss=1)

    stale: list[wire.ToWorker] = [wire.End(4), wire.Pause(4), wire.Save(4), wire.Continue(4, 1)]
    driver = run(train, Driver(lambda frame: [*stale, *at(2, wire.Continue(5, None))(frame)]), until=2, job=5)
    assert driver.names() == ["Report", "Report", "Report", "Done"]


def test_a_pause_saves_and_goes_on_in_place(run: Runner) -> None:
    counter = Counter()

    def train(trial: Trial) -> None:
        trial.track(counter=counter)
        for step in trial.steps(3):
            trial.report(loss=1)
            counter.value = step

    def answer(frame: Any) -> list[wire.ToWorker]:
        if isinstance(frame, wire.Saved):
            return [wire.Continue(1, None)]
        return at(2, wire.Pause(1))(frame)

    driver = run(train, Driver(answer), until=2)
    assert driver.names() == ["Report", "Report", "Saved", "Report", "Done"]
    assert driver.sent[2] == wire.Saved(1, 2, "7-0-2")


def test_a_paused_trial_that_is_not_wanted_leaves(run: Runner) -> None:
    def train(trial: Trial) -> None:
        trial.track(counter=Counter())
        for _ in trial.steps(3):
            trial.report(loss=1)

    driver = run(train, Driver(pause_and_end(2)), until=2)
    assert driver.names() == ["Report", "Report", "Saved", "Done"]
    assert last(driver).ended


def test_a_pause_outside_of_steps_waits_inside_report(run: Runner) -> None:
    def train(trial: Trial) -> None:
        trial.report(loss=1)
        trial.report(loss=1)

    def answer(frame: Any) -> list[wire.ToWorker]:
        return [wire.Continue(1, None)] if isinstance(frame, wire.Saved) else at(1, wire.Pause(1))(frame)

    assert run(train, Driver(answer)).names() == ["Report", "Saved", "Report", "Done"]


def test_waiting_and_saving_are_not_busy(run: Runner, clock: Clock) -> None:
    def train(trial: Trial) -> None:
        trial.on_save(lambda directory: clock.advance(100))
        for _ in trial.steps(2):
            clock.advance(1)
            trial.report(loss=1)

    driver = run(train, Driver(at(1, wire.Save(1), wire.Continue(1, None)), lambda: clock.advance(10)), until=1)
    assert driver.names() == ["Report", "Saved", "Report", "Done"]
    assert last(driver).busy == 2


# The end.


@pytest.mark.parametrize("result", [2, {"loss": np.float32(2)}])
def test_what_a_trainable_returns_counts_as_a_report_of_the_next_step(run: Runner, result: Any) -> None:
    driver = run(lambda trial: result, step=4)
    assert driver.names() == ["Report", "Done"]
    assert driver.sent[0] == wire.Report(1, 5, {"loss": 2.0})
    assert (last(driver).ended, last(driver).saveable) == (False, False)


def test_a_trainable_that_returns_nothing_reports_nothing(run: Runner) -> None:
    assert run(lambda trial: None).names() == ["Done"]


def test_returning_after_reporting_is_an_error(run: Runner) -> None:
    def train(trial: Trial) -> float:
        trial.report(loss=1)
        return 0.5

    assert "either reports or returns its result; this one reported up to step 1 and returned 0.5" in failure(
        run(train)
    )


def test_returning_something_else_is_an_error(run: Runner) -> None:
    assert "a number, a dict of metrics or None, got list" in failure(run(lambda trial: [1.0]))
    assert "metric 'loss' must be a real number, got str" in failure(run(lambda trial: {"loss": "low"}))


def test_an_error_arrives_in_one_line_and_with_its_traceback(run: Runner, capfd: pytest.CaptureFixture[str]) -> None:
    def train(trial: Trial) -> None:
        print("training")
        raise ValueError("two\n  lines \udcff")

    driver = run(train)
    assert failure(driver) == "ValueError: two lines \\udcff"
    assert last(driver).traceback.startswith("Traceback (most recent call last):\n")
    assert 'raise ValueError("two' in last(driver).traceback
    assert "run_job" not in last(driver).traceback
    assert capfd.readouterr().err.startswith("Traceback")


def test_sys_exit_in_user_code_is_an_error(run: Runner) -> None:
    assert failure(run(lambda trial: sys.exit(3))) == "SystemExit: 3"


def test_an_error_whose_message_fails_is_still_reported(run: Runner) -> None:
    class Broken(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    def train(trial: Trial) -> None:
        raise Broken

    assert failure(run(train)).startswith("Broken: ")


# Checkpoints.


def saved(run: Runner, function: Callable[[Trial], object], **changes: Any) -> Path:
    """The checkpoint that a job makes when it is paused after step 1."""

    driver = run(function, Driver(pause_and_end(1)), until=1, **changes)
    assert isinstance(last(driver), wire.Done), driver.sent
    [name] = [frame.checkpoint for frame in driver.sent if isinstance(frame, wire.Saved)]
    assert name is not None
    return run.checkpoints / name


@pytest.mark.usefixtures("without_torch")
def test_what_is_tracked_is_restored_without_unpickling(run: Runner) -> None:
    value = {
        "weights": np.arange(6.0).reshape(2, 3),
        3: [1, "é", None, np.float32(0.5)],
        "names": np.array(["a", "bc"]),
    }

    def train(trial: Trial) -> None:
        trial.track(counter=Counter(value))
        for _ in trial.steps(2):
            trial.report(loss=1)

    path = saved(run, train)
    assert [file.name for file in path.iterdir()] == ["state.msgpack"]
    counter = Counter()

    def again(trial: Trial) -> None:
        trial.track(counter=counter)
        assert list(trial.steps(2)) == [2]

    assert isinstance(last(run(again, restore=str(path), step=1)), wire.Done)
    assert repr(counter.value) == repr({**value, 3: [1, "é", None, 0.5]})


@pytest.mark.usefixtures("without_torch")
def test_what_would_need_pickling_is_refused(run: Runner) -> None:
    for value in (object(), np.array([object()])):

        def train(trial: Trial, value: Any = value) -> None:
            trial.track(counter=Counter(value))
            for _ in trial.steps(2):
                trial.report(loss=1)

        driver = run(train, Driver(at(1, wire.Save(1))))
        assert "got object" in failure(driver) or "allow_pickle" in failure(driver)
        assert list(run.checkpoints.iterdir()) == []


def test_on_save_writes_into_the_checkpoint(run: Runner) -> None:
    def train(trial: Trial) -> None:
        trial.on_save(lambda path: (path / "sub").mkdir())
        trial.on_save(lambda path: (path / "sub" / "notes.json").write_text("[1]"))
        for _ in trial.steps(1):
            trial.report(loss=1)

    assert json.loads((saved(run, train, segment=2) / "sub" / "notes.json").read_text()) == [1]
    assert [path.name for path in run.checkpoints.iterdir()] == ["7-2-1"]


def test_a_checkpoint_is_there_whole_or_not_at_all(run: Runner) -> None:
    def train(trial: Trial) -> None:
        trial.track(counter=Counter())
        trial.on_save(lambda path: 1 / 0)
        for _ in trial.steps(1):
            trial.report(loss=1)

    assert failure(run(train, Driver(at(1, wire.Save(1))))) == "ZeroDivisionError: division by zero"
    assert list(run.checkpoints.iterdir()) == []


def test_a_pause_with_nothing_to_save_makes_no_checkpoint(run: Runner) -> None:
    def train(trial: Trial) -> None:
        for _ in trial.steps(2):
            trial.report(loss=1)

    driver = run(train, Driver(pause_and_end(1)))
    assert driver.sent[1] == wire.Saved(1, 1, None)
    assert not run.checkpoints.exists()


def test_a_later_attempt_replaces_a_checkpoint_of_the_same_name(run: Runner) -> None:
    for text in ("first", "second"):

        def train(trial: Trial, text: str = text) -> None:
            def write(directory: Path) -> None:
                (directory / text).touch()

            trial.on_save(write)
            for _ in trial.steps(1):
                trial.report(loss=1)

        path = saved(run, train)
    assert [file.name for file in path.iterdir()] == ["second"]
    assert list(run.checkpoints.iterdir()) == [path]


def test_one_state_is_saved_once_unless_it_is_gone(run: Runner) -> None:
    def train(trial: Trial) -> None:
        trial.on_save(made.append)
        trial.report(loss=1)

    made: list[Path] = []
    run(train)
    assert run.session is not None
    run.session.save()
    run.session.save()
    assert len(made) == 1
    (run.checkpoints / "7-0-1").rmdir()  # the driver needs it no more, and then again
    run.session.save()
    assert len(made) == 2
    assert (run.checkpoints / "7-0-1").exists()


def test_a_trial_that_is_done_can_still_be_saved(run: Runner) -> None:
    counter = Counter()

    def train(trial: Trial) -> None:
        trial.track(counter=counter)
        for step in trial.steps(2):
            trial.report(loss=1)
            counter.value = step

    driver = run(train)
    assert last(driver).saveable
    assert run.session is not None
    run.session.save()
    assert last(driver) == wire.Saved(1, 2, "7-0-2")


def test_checkpoints_are_made_when_due(run: Runner, clock: Clock) -> None:
    def train(trial: Trial) -> None:
        trial.track(counter=Counter())
        for step in trial.steps(4):
            trial.report(loss=1)
            clock.advance(7 if step == 2 else 1)

    driver = run(train, checkpoint_every=5.0)
    assert [frame.step for frame in driver.sent if isinstance(frame, wire.Saved)] == [2]


def test_tracking_mistakes_are_named(run: Runner, tmp_path: Path) -> None:
    assert "got net=int" in failure(run(lambda trial: trial.track(net=3)))

    def twice(trial: Trial) -> None:
        trial.track(net=Counter())
        trial.track(net=Counter())

    assert "'net' is tracked already" in failure(run(twice))
    driver = run(lambda trial: trial.track(net=Counter()), restore=str(tmp_path), step=1)
    assert "'net' is tracked, but the checkpoint holds nothing" in failure(driver)
    assert "on_save takes a function" in failure(run(lambda trial: trial.on_save(cast("Any", "path"))))


# Optimizers.


@pytest.mark.parametrize(
    ("restored", "old", "new", "expected"),
    [
        # A schedule has halved the rate: it stays halved.
        ({"lr": 0.05}, {"lr": 0.1}, {"lr": 0.2}, {"lr": 0.1}),
        # Nothing has moved it: the new value, to the last bit.
        ({"lr": 0.1}, {"lr": 0.1}, {"lr": 0.3}, {"lr": 0.3}),
        # The configuration left it alone: what training made of it stays.
        ({"momentum": 0.95, "betas": (0.8, 0.99)}, {"momentum": 0.9, "betas": (0.9, 0.99)}, {"momentum": 0.9, "betas": (0.9, 0.99)},
         {"momentum": 0.95, "betas": (0.8, 0.99)}),
        # No proportion to 0.
        ({"weight_decay": 0.0}, {"weight_decay": 0}, {"weight_decay": 0.01}, {"weight_decay": 0.01}),
        ({"weight_decay": 0.5}, {"weight_decay": 0.0}, {"weight_decay": 0.01}, {"weight_decay": 0.01}),
        ({"momentum": 0.5}, {"momentum": 0.9}, {"momentum": 0.0}, {"momentum": 0.0}),
        # Element by element; lists where the checkpoint's format has no tuples.
        ({"betas": [0.9, 0.999]}, {"betas": [0.9, 0.999]}, {"betas": (0.8, 0.999)}, {"betas": (0.8, 0.999)}),
        # What is no float takes the new value.
        ({"nesterov": False}, {"nesterov": False}, {"nesterov": True}, {"nesterov": True}),
        ({"amsgrad": None}, {"amsgrad": None}, {"amsgrad": True}, {"amsgrad": True}),
        ({"warmup": 4}, {"warmup": 5}, {"warmup": 10}, {"warmup": 10}),
        # A rate that somebody wrote as an integer.
        ({"lr": 0.25}, {"lr": 1}, {"lr": 2}, {"lr": 0.5}),
        # What a scheduler built after `track` put there follows the rate.
        ({"lr": 0.05, "initial_lr": 0.1, "max_lr": 1.0, "min_lr": 0.01}, {"lr": 0.1}, {"lr": 0.2},
         {"lr": 0.1, "initial_lr": 0.2, "max_lr": 2.0, "min_lr": 0.02}),
        # A warm-up from 0, begun before `track`, hides the rate; `initial_lr` has it.
        ({"lr": 0.05, "initial_lr": 0.1, "max_lr": 1.0}, {"lr": 0.0, "initial_lr": 0.1}, {"lr": 0.0, "initial_lr": 0.2},
         {"lr": 0.05, "initial_lr": 0.2, "max_lr": 2.0}),
        # What neither constructor set is none of our business.
        ({"params": [3], "extra": 1.0}, {}, {}, {"params": [3], "extra": 1.0}),
    ],
)  # fmt: skip
def test_hyperparameters_move_to_the_new_configuration(
    restored: dict[str, Any], old: dict[str, Any], new: dict[str, Any], expected: dict[str, Any]
) -> None:
    transplant(restored, old, new)
    assert restored == expected


def test_an_exploit_keeps_the_optimizers_state_and_the_schedules_place(run: Runner) -> None:
    import torch

    def build(config: dict[str, Any]) -> Any:
        net = torch.nn.Linear(2, 1)
        sgd = torch.optim.SGD(net.parameters(), lr=config["lr"], momentum=config["momentum"])
        other = [torch.nn.Parameter(torch.zeros(1))]
        adam = torch.optim.Adam(other, lr=np.float64(0.5), betas=(config["beta1"], 0.999))  # numpy's by some arithmetic
        return net, sgd, adam, torch.optim.lr_scheduler.StepLR(sgd, step_size=1, gamma=0.5)

    def donor(trial: Trial) -> None:
        net, sgd, adam, schedule = build(trial.config)
        trial.track(schedule=schedule, net=net, sgd=sgd, adam=adam)
        for _ in trial.steps(1):
            net(torch.ones(1, 2)).sum().backward()
            sgd.step()
            trial.report(loss=1)
            schedule.step()
        left.update(weight=net.weight.detach(), momentum=sgd.state[net.weight]["momentum_buffer"])

    left: dict[str, Any] = {}
    path = saved(run, donor, config={"lr": 0.1, "momentum": 0.9, "beta1": 0.9})
    assert torch.load(path / "state.pt", weights_only=True)["state"]["net"].keys() == {"weight", "bias"}

    def recipient(trial: Trial) -> None:
        net, sgd, adam, schedule = build(trial.config)
        trial.track(schedule=schedule, net=net, sgd=sgd, adam=adam)
        assert torch.equal(net.weight, left["weight"])
        assert torch.equal(sgd.state[net.weight]["momentum_buffer"], left["momentum"])
        [group] = sgd.param_groups
        # The donor's rate had been halved once, from 0.1 to 0.05; 0.4 halved once is 0.2.
        assert (group["lr"], group["initial_lr"], group["momentum"]) == (pytest.approx(0.2), pytest.approx(0.4), 0.5)
        assert schedule.base_lrs == [pytest.approx(0.4)]
        assert schedule.get_last_lr() == [pytest.approx(0.2)]
        assert adam.param_groups[0]["betas"] == (0.8, 0.999)
        schedule.step()
        assert group["lr"] == pytest.approx(0.1)

    config = {"lr": 0.4, "momentum": 0.5, "beta1": 0.8}
    assert isinstance(last(run(recipient, trial=8, segment=1, config=config, restore=str(path), step=1)), wire.Done)


def test_another_kind_of_optimizer_begins_anew(run: Runner) -> None:
    import torch

    def donor(trial: Trial) -> None:
        trial.track(optimizer=torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1))
        for _ in trial.steps(1):
            trial.report(loss=1)

    def recipient(trial: Trial) -> None:
        adam = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
        trial.track(optimizer=adam)
        assert (adam.param_groups[0]["lr"], adam.param_groups[0]["betas"]) == (0.3, (0.9, 0.999))

    assert isinstance(last(run(recipient, restore=str(saved(run, donor)), step=1)), wire.Done)


def test_a_state_that_torch_would_not_load_again_is_refused_at_the_first_save(
    run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(Checkpoints, "_checked", False)  # as in a fresh worker

    def train(trial: Trial) -> None:
        trial.track(net=torch.nn.Linear(1, 1), other=Counter(np.zeros(3)))
        for _ in trial.steps(1):
            trial.report(loss=1)

    assert "may hold tensors, numbers, strings" in failure(run(train, Driver(at(1, wire.Save(1)))))
    assert list(run.checkpoints.iterdir()) == []
