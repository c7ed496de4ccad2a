"""Worker: what user code meets, and what the driver hears of it. No processes here; see test_processes."""

import contextlib
import enum
import errno
import json
import math
import os
import pickle
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Sequence
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from asynctune import _wire as wire
from asynctune.errors import InvalidArgument, TrialEnded
from asynctune.processes import InlineWorker
from asynctune.worker import state
from asynctune.worker.channel import Channel
from asynctune.worker.checkpoint import MANIFEST, damage, seal
from asynctune.worker.hyperparameters import transplant
from asynctune.worker.job import run_job
from asynctune.worker.session import Session
from asynctune.worker.trial import Trial

Answer = Callable[[Any], list[wire.ToWorker]]


class Driver:
    """A channel whose other end answers each frame with what `answer` makes of it."""

    shared = False

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

    def start(self, function: Callable[[Trial], object], driver: Channel, **changes: Any) -> Session | None:
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
    path = saved(run, noted)

    def train(trial: Trial) -> None:
        assert (trial.config, trial.id, trial.seed, trial.step, trial.device) == ({"lr": 0.1}, 7, 11, 4, "cuda:0")
        assert trial.restored == path
        assert trial.dir == tmp_path / "trials" / "7"
        assert trial.dir.is_dir()

    driver = run(train, step=4, restore=str(path), device="cuda:0")
    assert isinstance(last(driver), wire.Done)


@pytest.mark.parametrize("place", ["trials", "trials/7"])
def test_a_link_leads_a_trials_own_files_out_of_the_run_directory(run: Runner, tmp_path: Path, place: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).symlink_to(outside)
    assert "must be a directory" in failure(run(lambda trial: trial.dir))
    assert list(outside.iterdir()) == []


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


@pytest.mark.parametrize(
    ("step", "said"),
    [(0, "0"), (-1, "-1"), (1.5, "1.5"), ("3", "'3'"), (10**18 + 1, "one beyond"), (-(10**9999), "one beyond")],
    ids=range(6),
)
def test_a_step_that_is_none_is_refused(run: Runner, step: Any, said: str) -> None:
    assert f"stop must be an integer in 1..10^18, got {said}" in failure(run(lambda trial: trial.steps(step)))
    driver = run(lambda trial: trial.report(loss=1, step=step))
    assert f"step must be an integer in 1..10^18, got {said}" in failure(driver)


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


class Name(enum.StrEnum):
    LOSS = "loss"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1, 1.0),
        (True, 1.0),
        (np.float32(0.5), 0.5),
        (np.float64(0.5), 0.5),
        (np.int64(3), 3.0),
        (np.bool_(True), 1.0),
        (np.array(0.25), 0.25),
        (Tensor(), 0.75),
        (Decimal("0.1"), 0.1),
        (Decimal("1e400"), math.inf),
        (Fraction(1, 4), 0.25),
        (math.inf, math.inf),
        (-math.inf, -math.inf),
        (math.nan, math.nan),
    ],
)
def test_real_numbers_of_all_kinds_arrive_as_floats(run: Runner, value: Any, expected: float) -> None:
    driver = run(lambda trial: trial.report({"loss": value}))
    assert driver.sent[0].metrics == pytest.approx({"loss": expected}, rel=0, nan_ok=True)
    assert type(driver.sent[0].metrics["loss"]) is float
    [frame] = wire.Decoder[Any](wire.FromWorker).feed(wire.encode(driver.sent[0]))
    assert frame.metrics == pytest.approx({"loss": expected}, rel=0, nan_ok=True)


def test_a_tensor_is_a_number_only_without_dimensions(run: Runner) -> None:
    import torch

    assert run(lambda trial: trial.report(loss=torch.tensor(0.5))).sent[0].metrics == {"loss": 0.5}
    for tensor in (torch.tensor([0.5]), torch.ones(1, 1), torch.ones(2)):

        def train(trial: Trial, tensor: Any = tensor) -> None:
            trial.report(loss=tensor)

        assert failure(run(train)) == "TypeError: metric 'loss' must be a real number, got Tensor"
    assert "RuntimeError: value cannot be converted" in failure(run(lambda trial: trial.report(loss=torch.tensor(1j))))


@pytest.mark.parametrize(
    "value",
    [
        None,
        "0.5",
        [1.0],
        np.array([1.0]),
        1j,
        np.complex64(1),
        np.str_("0.5"),
        np.datetime64("2020"),
        {"a": 1},
    ],
    ids=repr,
)
def test_what_is_no_real_number_is_refused_by_name_and_type(run: Runner, value: Any) -> None:
    driver = run(lambda trial: trial.report(accuracy=1.0, loss=value))
    assert failure(driver) == f"TypeError: metric 'loss' must be a real number, got {type(value).__name__}"


@pytest.mark.parametrize(
    "value", [10**400, -(10**400), 10**9999, Fraction(10**400)], ids=["int", "less", "long", "fraction"]
)
def test_a_number_that_no_float_holds_is_refused_whether_or_not_it_can_be_printed(run: Runner, value: Any) -> None:
    error = failure(run(lambda trial: trial.report(loss=value)))
    assert error.startswith(
        "InvalidArgument: metric 'loss' must be a number that a float can hold, up to 1.8e308, got a larger "
    )


def test_reports_without_metrics_or_with_odd_names_are_refused(run: Runner) -> None:
    assert "the study's metric, 'loss', got nothing" in failure(run(lambda trial: trial.report()))
    assert "the study's metric, 'loss', got 'los'" in failure(run(lambda trial: trial.report(los=1)))
    assert "must be a str, got 3" in failure(run(lambda trial: trial.report(cast("Any", {"loss": 1.0, 3: 1.0}))))
    assert "no metric may be called 'step'" in failure(run(lambda trial: trial.report({"loss": 1.0, "step": 1.0})))
    assert "must be text that UTF-8 can hold, got '\\udcff'" in failure(
        run(lambda trial: trial.report({"loss": 1.0, "\udcff": 1.0}))
    )


@pytest.mark.parametrize("name", ["é" * 200, "\x1b[2J\0", "", Name.LOSS, np.str_("loss")], ids=ascii)
def test_any_text_that_is_short_is_a_name(run: Runner, name: str) -> None:
    driver = run(lambda trial: trial.report({"loss": 1.0, name: 0.5}))
    [frame] = wire.Decoder[Any](wire.FromWorker).feed(wire.encode(driver.sent[0]))
    assert frame.metrics[name] == 0.5


def test_a_report_is_as_large_as_a_trial_likes(run: Runner) -> None:
    def named(count: int, length: int) -> dict[str, float]:
        return {"loss": 1.0} | {f"{number:é>{length}}": 0.5 for number in range(count - 1)}

    driver = run(lambda trial: trial.report(named(1000, 200)))
    assert len(wire.encode(driver.sent[0])) < 1e6
    assert "a report may hold 1000 metrics, got 1001" in failure(run(lambda trial: trial.report(named(1001, 4))))
    assert "a report may hold 1000 metrics, got 200000" in failure(run(lambda trial: trial.report(named(200_000, 500))))
    error = failure(run(lambda trial: trial.report(named(2, 201))))
    assert error == f"InvalidArgument: the name of a metric may have 200 characters, got 201: {'é' * 20!r}..."


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
    assert driver.sent[2] == wire.Saved(1, 2, "7-0-2", size_of(run.checkpoints / "7-0-2"), paused=True)


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


def test_an_error_is_as_large_as_its_message(run: Runner, capfd: pytest.CaptureFixture[str]) -> None:
    odd: Any = type("Odd\x1b[2J\n" + "x" * 10_000, (Exception,), {})

    def train(trial: Trial) -> None:
        try:
            raise odd("first " + "word " * 10_000_000)
        except odd as error:
            error.add_note("n" * 10_000_000)
            raise ValueError("\x1b[2J" + "y" * 50_000_000) from error

    driver = run(train)
    assert len(failure(driver)) == 1000
    assert "\n" not in failure(driver)
    assert failure(driver).startswith("ValueError: \x1b[2Jyyy")
    traceback = last(driver).traceback
    assert len(traceback) == 100_000
    assert "in train" in traceback, "a long message leaves no room for where it happened"
    assert len(capfd.readouterr().err) == 100_000
    wire.encode(last(driver))


# Checkpoints.


def saved(run: Runner, function: Callable[[Trial], object], **changes: Any) -> Path:
    """The checkpoint that a job makes when it is paused after step 1."""

    driver = run(function, Driver(pause_and_end(1)), until=1, **changes)
    assert isinstance(last(driver), wire.Done), driver.sent
    [name] = [frame.checkpoint for frame in driver.sent if isinstance(frame, wire.Saved)]
    assert name is not None
    return run.checkpoints / name


def noted(trial: Trial) -> None:
    """A trainable with a checkpoint of a few small files."""

    def write(directory: Path) -> None:
        (directory / "notes").write_text("some notes")
        (directory / "sub").mkdir()
        (directory / "sub" / "more").write_text("more of them")

    trial.on_save(write)
    for _ in trial.steps(2):
        trial.report(loss=1)


def size_of(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


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
    assert {file.name for file in path.iterdir()} == {"state.msgpack", MANIFEST}
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
    assert driver.sent[1] == wire.Saved(1, 1, None, paused=True)
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
    assert {file.name for file in path.iterdir()} == {"second", "state.msgpack", MANIFEST}
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
    shutil.rmtree(run.checkpoints / "7-0-1")  # the driver needs it no more, and then again
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
    assert last(driver) == wire.Saved(1, 2, "7-0-2", size_of(run.checkpoints / "7-0-2"))


def test_checkpoints_are_made_when_due(run: Runner, clock: Clock) -> None:
    def train(trial: Trial) -> None:
        trial.track(counter=Counter())
        for step in trial.steps(4):
            trial.report(loss=1)
            clock.advance(7 if step == 2 else 1)

    driver = run(train, checkpoint_every=5.0)
    assert [frame.step for frame in driver.sent if isinstance(frame, wire.Saved)] == [2]


def test_tracking_mistakes_are_named(run: Runner) -> None:
    assert "got net=int" in failure(run(lambda trial: trial.track(net=3)))

    def twice(trial: Trial) -> None:
        trial.track(net=Counter())
        trial.track(net=Counter())

    assert "'net' is tracked already" in failure(run(twice))
    driver = run(lambda trial: trial.track(net=Counter()), restore=str(saved(run, noted)), step=1)
    assert "'net' is tracked, but the checkpoint holds nothing" in failure(driver)
    assert "on_save takes a function" in failure(run(lambda trial: trial.on_save(cast("Any", "path"))))


# Checkpoints that are not as they were made.


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def replace(path: Path) -> None:
    shutil.rmtree(path)
    path.touch()


def link(path: Path) -> None:
    """The same contents, behind a link."""
    away = path.parent.parent / "away"
    path.rename(away)
    path.symlink_to(away)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (shutil.rmtree, "cannot be read: No such file or directory"),
        (replace, "cannot be read: Not a directory"),
        (link, "it is a link"),
        (lambda path: (path / "notes").unlink(), "'notes' is missing"),
        (lambda path: shutil.rmtree(path / "sub"), "'sub/more' is missing"),
        (lambda path: (path / "sub" / "new").touch(), "'sub/new' is none of its files"),
        (lambda path: cut(path / "sub" / "more"), "'sub/more' must have 12 bytes, it has 11"),
        (lambda path: (path / "notes").write_text("same notes"), "'notes' has changed: its CRC-32 must be "),
        (lambda path: link(path / "notes"), "'notes' is neither"),
        (lambda path: link(path / "sub"), "'sub' is neither"),
        (lambda path: (path / "link").symlink_to("notes"), "'link' is neither"),
        (lambda path: os.mkfifo(path / "pipe"), "'pipe' is neither"),
        (lambda path: (path / MANIFEST).unlink(), f"{MANIFEST} is missing"),
        (lambda path: link(path / MANIFEST), f"'{MANIFEST}' is neither"),
        (lambda path: cut(path / MANIFEST), f"{MANIFEST} is damaged: "),
        (lambda path: (path / MANIFEST).write_bytes(b""), f"{MANIFEST} is damaged: "),
        (lambda path: (path / MANIFEST).write_bytes(pickle.dumps({})), f"{MANIFEST} is damaged: "),
    ],
)
def test_user_code_begins_with_a_damaged_checkpoint(run: Runner, harm: Callable[[Path], object], said: str) -> None:
    path = saved(run, noted)
    called: list[Trial] = []
    driver = run(called.append, restore=str(path))
    assert (driver.names(), len(called)) == (["Done"], 1)
    harm(path)
    driver = run(called.append, job=3, restore=str(path))
    assert driver.names() == ["Lost"]
    assert last(driver).job == 3
    assert said in last(driver).error
    assert (run.session, len(called)) == (None, 1)


def test_a_flipped_byte_passes_for_the_checkpoint(run: Runner) -> None:
    path = saved(run, noted)
    for file in (path / "notes", path / "sub" / "more", path / MANIFEST):
        whole = file.read_bytes()
        for place in range(len(whole)):
            for bit in (1, 128):
                file.write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
                assert damage(str(path)) is not None, (file, place, bit)
        file.write_bytes(whole)
    assert damage(str(path)) is None


def test_an_inline_trial_begins_with_a_damaged_checkpoint(run: Runner) -> None:
    path = saved(run, noted)
    (path / "notes").unlink()
    got: list[wire.FromWorker] = []
    worker = InlineWorker(lambda trial: pytest.fail("called"), got.extend)
    config = pickle.dumps({})
    worker.send(wire.Run(1, 7, 0, 11, config, "loss", 1, None, None, str(path), str(run.checkpoints), None, "cpu"))
    assert got == [wire.Lost(1, "'notes' is missing")]


def test_a_checkpoint_with_odd_names_and_empty_files_is_lost(run: Runner) -> None:
    def write(directory: Path) -> None:
        for name in (b"\xff\xfe", "ä\n".encode(), b"empty", b"..."):
            (directory / os.fsdecode(name)).touch()
        (directory / "no" / "files").mkdir(parents=True)

    def train(trial: Trial) -> None:
        trial.on_save(write)
        for _ in trial.steps(1):
            trial.report(loss=1)

    path = saved(run, train)
    assert damage(str(path)) is None
    (path / os.fsdecode(b"\xff\xfe")).unlink()
    assert last(run(train, restore=str(path))).error == "'\\udcff\\udcfe' is missing"


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (lambda path: (path / "link").symlink_to("/etc/passwd"), "'link' is neither"),
        (lambda path: os.mkfifo(path / "pipe"), "'pipe' is neither"),
        (lambda path: (path / MANIFEST).touch(), f"FileExistsError: [Errno {errno.EEXIST}]"),
    ],
)
def test_what_would_be_lost_at_the_restart_is_saved(run: Runner, write: Callable[[Path], object], said: str) -> None:
    def train(trial: Trial) -> None:
        trial.on_save(write)
        for _ in trial.steps(1):
            trial.report(loss=1)

    driver = run(train, Driver(at(1, wire.Save(1))))
    assert said in failure(driver)
    assert not last(driver).disk
    assert list(run.checkpoints.iterdir()) == []


def forged(run: Runner, write: Callable[[Path], object]) -> Path:
    """A sound checkpoint with another `state.pt`."""

    def train(trial: Trial) -> None:
        import torch

        trial.track(counter=Counter(torch.zeros(1)))
        for _ in trial.steps(1):
            trial.report(loss=1)

    path = saved(run, train)
    write(path / "state.pt")
    (path / MANIFEST).unlink()
    seal(path, durable=False)
    return path


def test_a_state_that_torch_cannot_load_passes_for_a_lost_checkpoint(run: Runner) -> None:
    path = forged(run, lambda path: path.write_bytes(b"PK\3\4" + bytes(100)))
    assert "RuntimeError: PytorchStreamReader" in failure(
        run(lambda trial: trial.track(counter=Counter()), restore=str(path))
    )


def test_a_state_in_an_older_format_of_torchs_is_read(run: Runner) -> None:
    import torch

    path = forged(run, lambda path: torch.save({"state": {}, "built": {}}, path, _use_new_zipfile_serialization=False))
    assert "must be a zip archive" in failure(run(lambda trial: trial.track(counter=Counter()), restore=str(path)))


# Disks that are full, or fail.


def large(kind: str) -> Callable[[Trial], object]:
    """A trainable that writes 4 MB into a checkpoint in one way or another."""

    def by_torch(path: Path) -> None:
        import torch

        torch.save(torch.zeros(10**6), path / "weights.pt")  # by itself: what the disk says gets lost in C++

    def train(trial: Trial) -> None:
        match kind:
            case "msgpack":
                trial.track(counter=Counter(np.zeros(500_000)))
            case "on_save":
                trial.on_save(lambda path: (path / "large").write_bytes(bytes(4 * 10**6)))
            case "torch":
                import torch

                trial.track(net=torch.nn.Linear(1000, 1000))
            case "by_torch":
                trial.on_save(by_torch)
        for _ in trial.steps(1):
            trial.report(loss=1)

    return train


def child(limit: str, checkpoints: str, *kinds: str) -> None:
    """What `in_child` runs. Files may have `limit` bytes."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
    run = Runner(Path(checkpoints))
    for kind in kinds:
        error = last(run(large(kind), Driver(pause_and_end(1)), until=1))
        print("RESULT", json.dumps([kind, error.error, error.disk, os.listdir(checkpoints)]))


def in_child(checkpoints: Path, *kinds: str, limit: int = -1, before: Sequence[str] = ()) -> list[Any]:
    """Jobs in a process of its own: of each its kind, its error, whether that is the disk's, and what lies in `checkpoints` after it."""
    code = "import sys; sys.path.insert(0, sys.argv[1]); import test_worker; test_worker.child(*sys.argv[2:])"
    command = [*before, sys.executable, "-c", code, str(Path(__file__).parent), str(limit), str(checkpoints), *kinds]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    return [json.loads(line[7:]) for line in done.stdout.splitlines() if line.startswith("RESULT")]


def mounted(directory: Path, options: str) -> list[str]:
    """The beginning of a command that sees a file system of its own there."""
    script = 'mount -t tmpfs -o "$0" none "$1" && shift && exec "$@"'
    before = ["unshare", "-rm", "sh", "-c", script, options, str(directory)]
    if shutil.which("unshare") is None:
        pytest.skip("no unshare here")
    if subprocess.run([*before, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("nothing can be mounted here")
    return before


def test_a_file_that_may_not_grow_is_the_trials_fault(tmp_path: Path) -> None:
    said = ["DiskError: cannot write the checkpoint 7-0-1: File too large", True, []]
    kinds = ("msgpack", "on_save", "torch")
    assert in_child(tmp_path, *kinds, limit=2**20) == [[kind, *said] for kind in kinds]


def test_a_full_disk_is_the_trials_fault(tmp_path: Path) -> None:
    said = ["DiskError: cannot write the checkpoint 7-0-1: No space left on device", True, []]
    kinds = ("msgpack", "on_save", "torch", "by_torch")
    assert in_child(tmp_path, *kinds, before=mounted(tmp_path, "size=3m")) == [[kind, *said] for kind in kinds]


def test_a_read_only_disk_is_the_trials_fault(tmp_path: Path) -> None:
    said = ["DiskError: cannot write the checkpoint 7-0-1: Read-only file system", True, []]
    assert in_child(tmp_path, "on_save", before=mounted(tmp_path, "ro")) == [["on_save", *said]]


def test_what_is_printed_to_a_full_disk_is_the_trials_fault(run: Runner) -> None:
    def train(trial: Trial) -> None:
        with open("/dev/full", "w", buffering=1) as full:
            try:
                print("training", file=full)
            finally:
                with contextlib.suppress(OSError):
                    full.close()

    driver = run(train)
    assert failure(driver) == "OSError: [Errno 28] No space left on device"
    assert last(driver).disk


@pytest.mark.parametrize(
    "error", [ValueError("no"), FileNotFoundError(errno.ENOENT, "no"), OSError(errno.EIO, "no"), InvalidArgument("no")]
)
def test_an_error_of_user_code_passes_for_the_disks(run: Runner, error: Exception) -> None:
    error.__cause__ = error  # a circle has an end too

    def train(trial: Trial) -> None:
        raise error

    driver = run(train)
    failure(driver)
    assert not last(driver).disk


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
         {"lr": 0.1, "initial_lr": 0.2, "max_lr": 2.0}),
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

    monkeypatch.setattr(state, "_checked", False)  # as in a fresh worker

    def train(trial: Trial) -> None:
        trial.track(net=torch.nn.Linear(1, 1), other=Counter(np.zeros(3)))
        for _ in trial.steps(1):
            trial.report(loss=1)

    assert "may hold tensors, numbers, strings" in failure(run(train, Driver(at(1, wire.Save(1)))))
    assert list(run.checkpoints.iterdir()) == []


def test_a_loss_that_still_has_its_gradient_warns(run: Runner) -> None:
    torch = pytest.importorskip("torch")
    driver = run(lambda trial: trial.report(loss=torch.ones(1, requires_grad=True).sum()))
    assert driver.sent[0] == wire.Report(1, 1, {"loss": 1.0})


def test_a_checkpoint_of_an_own_loop_is_a_step_ahead_of_its_name(run: Runner, clock: Clock) -> None:
    steps: list[int] = []

    def train(trial: Trial) -> None:
        trained = 0

        def save(directory: Path) -> None:
            steps.append(trained)

        trial.on_save(save)
        for _ in range(3):
            trained += 1
            clock.advance(10)
            trial.report(loss=1)

    driver = run(train, checkpoint_every=5.0)
    assert steps == [frame.step for frame in driver.sent if isinstance(frame, wire.Saved)] == [1, 2, 3]
