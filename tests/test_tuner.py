"""The engine with real worker processes: trials that raise, exit, hang on to state, pause and go on elsewhere."""

import asyncio
import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any, Literal

import pytest

import asynctune as at
from asynctune.errors import AsynctuneError, InvalidArgument, RunFailed
from asynctune.journal import Journal, writer
from asynctune.records import Record, Reported, Saved, TrialState
from tests.runs import climb, local, options

SPACE = {"x": at.uniform(0.0, 1.0)}
COMPLETED, STOPPED, FAILED, PAUSED = TrialState.COMPLETED, TrialState.STOPPED, TrialState.FAILED, TrialState.PAUSED


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][:3]


def test_every_trial_runs_in_a_reused_worker_that_sees_only_its_devices(tmp_path: Path) -> None:
    @local
    def train(trial: at.Trial) -> None:
        assert trial.device == "cpu"
        assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
        trial.report(score=trial.config["x"], pid=os.getpid())

    result = at.run(train, SPACE, **options(tmp_path, num_trials=8))
    assert [trial.state for trial in result.trials] == [COMPLETED] * 8
    pids = {trial.reports[0]["pid"] for trial in result.trials}
    assert 1 <= len(pids) <= 2 and os.getpid() not in pids
    best = max(trial.config["x"] for trial in result.trials)
    assert result.best.value == result.best.config["x"] == best
    assert not any(alive(int(pid)) for pid in pids)


def test_same_seed_gives_the_same_configs_whatever_the_slots(tmp_path: Path) -> None:
    runs = [
        at.run(climb, SPACE, **options(tmp_path, run_dir=tmp_path / str(slots), slots=slots, seed=7))
        for slots in (1, 3)
    ]
    assert [t.config for t in runs[0].trials] == [t.config for t in runs[1].trials]
    assert [t.value for t in runs[0].trials] == [t.value for t in runs[1].trials]


def test_a_trial_that_raises_fails_alone_with_its_traceback_in_the_log(tmp_path: Path) -> None:
    @local
    def train(trial: at.Trial) -> None:
        print("hello from", trial.id)
        if trial.id == 1:
            raise ValueError("boom")
        trial.report(score=1.0)

    result = at.run(train, SPACE, **options(tmp_path))
    assert [trial.state for trial in result.trials] == [COMPLETED, FAILED] + [COMPLETED] * 4
    assert result.trials[1].error == "ValueError: boom"
    assert "hello from 1" in result.trials[1].log() and 'raise ValueError("boom")' in result.trials[1].log()
    assert "hello from 2" in result.trials[2].log() and "boom" not in result.trials[2].log()


@pytest.mark.parametrize(
    ("ending", "words"),
    [
        ("os._exit(3)", "exited with code 3"),
        ("os.kill(os.getpid(), 9)", "SIGKILL"),
        ("os._exit(0)", "exited with code 0"),
    ],
)
def test_a_worker_that_dies_fails_its_trial_alone(tmp_path: Path, ending: str, words: str) -> None:
    @local
    def train(trial: at.Trial) -> None:
        trial.report(score=1.0)
        if trial.id == 1:
            print("about to die", flush=True)
            exec("import os; " + ending)

    result = at.run(train, SPACE, **options(tmp_path))
    assert [trial.state for trial in result.trials] == [COMPLETED, FAILED] + [COMPLETED] * 4
    assert words in (result.trials[1].error or "")
    assert result.trials[1].log().startswith("about to die"), "what it printed is what tells why"


def test_nan_is_worst_and_never_best(tmp_path: Path) -> None:
    @local
    def train(trial: at.Trial) -> float:
        return math.nan if trial.id != 2 else -5.0

    result = at.run(train, SPACE, **options(tmp_path))
    assert [trial.state for trial in result.trials] == [COMPLETED] * 6
    assert str(result.trials[0].value) == "nan"
    assert result.best.id == 2


def test_what_cannot_be_pickled_is_refused_before_any_worker_starts(tmp_path: Path) -> None:
    lock = threading.Lock()

    @local
    def train(trial: at.Trial) -> None:
        with lock:
            trial.report(score=1.0)

    with pytest.raises(InvalidArgument, match="train must be picklable.*lock"):
        at.run(train, SPACE, **options(tmp_path))
    assert not (tmp_path / "run").exists()


def test_returning_what_is_no_metric_fails_the_trial(tmp_path: Path) -> None:
    @local
    def train(trial: at.Trial) -> Any:
        if trial.id == 0:
            return object()
        if trial.id == 1:
            trial.report(score=1.0)
            return 2.0
        if trial.id == 2:
            return None
        return {"score": 1.0, "other": 2}

    result = at.run(train, SPACE, **options(tmp_path))
    assert [trial.state for trial in result.trials] == [FAILED] * 3 + [COMPLETED] * 3
    assert "object" in (result.trials[0].error or "")
    assert "return" in (result.trials[1].error or "")
    assert result.trials[2].error == "ended without a report of 'score'"
    assert result.trials[3].reports == [{"step": 1, "segment": 0, "score": 1.0, "other": 2.0}]


def test_a_misspelt_metric_ends_the_run_at_the_first_reports(tmp_path: Path) -> None:
    @local
    def train(trial: at.Trial) -> None:
        for _ in trial.steps(1000):
            trial.report(accuracy=1.0)

    with pytest.raises(
        RunFailed, match="every report must hold the study's metric, 'acuracy', got 'accuracy'"
    ) as caught:
        at.run(train, SPACE, **options(tmp_path, metric="acuracy", num_trials=1000))
    assert "trial.report(accuracy=1.0)" in caught.value.__notes__[0], "the note shows the line"
    assert str(tmp_path / "run") in caught.value.__notes__[1]


def test_a_run_of_nothing_but_failures_fails(tmp_path: Path) -> None:
    @local
    def train(trial: at.Trial) -> None:
        raise ValueError(str(trial.id))

    with pytest.raises(RunFailed, match="every trial failed, the first with ValueError: 0"):
        at.run(train, SPACE, **options(tmp_path, num_trials=2))


def test_the_first_trials_failing_alike_end_the_run(tmp_path: Path) -> None:
    @local
    def train(trial: at.Trial) -> None:
        raise ImportError("no such thing")

    with pytest.raises(RunFailed, match="the first 3 trials failed in the same way: ImportError: no such thing"):
        at.run(train, SPACE, **options(tmp_path, num_trials=1000))


def test_a_trainable_that_cannot_be_loaded_ends_the_run(tmp_path: Path) -> None:
    class Unloadable:
        def __call__(self, trial: at.Trial) -> None: ...

        def __reduce__(self) -> tuple[Any, ...]:
            return (exec, ("raise OSError('not here')",))

    with pytest.raises(RunFailed, match="cannot load the trainable: OSError: not here"):
        at.run(Unloadable(), SPACE, **options(tmp_path))


def test_a_worker_that_cannot_boot_ends_the_run_with_its_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text("import os; os._exit(7)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(RunFailed, match="code 7"):
        at.run(climb, SPACE, **options(tmp_path))


@pytest.mark.parametrize("type", ["stopping", "promotion"])
def test_asha_trials_go_on_from_their_state(tmp_path: Path, type: Literal["stopping", "promotion"]) -> None:
    result = at.run(
        climb,
        SPACE,
        **options(tmp_path, num_trials=12, scheduler=at.ASHA(max_resource=9, type=type, reduction_factor=3)),
    )
    assert {trial.state for trial in result.trials} <= {COMPLETED, STOPPED}
    assert 1 <= sum(trial.state is COMPLETED for trial in result.trials) < 12
    for trial in result.trials:
        assert [report["step"] for report in trial.reports] == list(range(1, trial.step + 1))
        assert trial.value == pytest.approx(trial.step * trial.config["x"])
    assert result.best.checkpoint is not None
    assert float((result.best.checkpoint / "total").read_text()) == result.best.value
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == [result.best.checkpoint.name]


@pytest.mark.parametrize("slots", [2, 6])
def test_pbt_recipients_go_on_from_the_donors_state(tmp_path: Path, slots: int) -> None:
    result = at.run(
        climb, SPACE, **options(tmp_path, slots=slots, scheduler=at.PBT(perturbation_interval=3, max_resource=9))
    )
    assert [trial.state for trial in result.trials] == [COMPLETED] * 6
    values = {
        (trial.id, report["segment"], report["step"]): report["score"]
        for trial in result.trials
        for report in trial.reports
    }
    exploits = 0
    for trial in result.trials:
        assert sum(report["segment"] == trial.lineage[0].segment for report in trial.reports) >= 3
        for before, segment in zip(trial.lineage, trial.lineage[1:], strict=False):
            exploits += 1
            donor = next(
                value for (number, _, step), value in values.items() if number == segment.donor and step == segment.step
            )
            assert values[trial.id, segment.segment, segment.step + 1] == pytest.approx(donor + segment.config["x"])
            assert 0.0 <= segment.config["x"] <= 1.0
            assert before.segment + 1 == segment.segment
    assert exploits


def test_a_retried_trial_goes_on_from_its_last_checkpoint_and_counts_no_step_twice(tmp_path: Path) -> None:
    @local
    def train(trial: at.Trial) -> None:
        total = float((trial.restored / "total").read_text()) if trial.restored else 0.0
        trial.on_save(lambda directory: (directory / "total").write_text(repr(total)))
        for step in trial.steps(9):
            total += 1.0
            trial.report(score=total)
            time.sleep(0.01)
            if step == 6 and not (trial.dir / "tried").exists():
                (trial.dir / "tried").touch()
                os._exit(1)

    result = at.run(train, SPACE, **options(tmp_path, num_trials=2, max_failures=1, checkpoint_every=0.001))
    for trial in result.trials:
        assert trial.state is COMPLETED and trial.value == 9.0
        assert [report["step"] for report in trial.reports] == list(range(1, 10))


def test_a_slot_goes_on_with_what_it_held_of_a_trial_that_has_been_elsewhere_since(tmp_path: Path) -> None:
    """Trial 2 dies when both others wait at the barrier, so that its slot takes one of them over; at the next barrier an idle slot comes first."""
    flags = tmp_path / "flags"
    flags.mkdir()

    def train(trial: at.Trial) -> None:
        def wait_for(*names: str) -> None:
            end = time.monotonic() + 20.0
            while time.monotonic() < end and not all((flags / name).exists() for name in names):
                time.sleep(0.01)
            time.sleep(0.3)  # and for what follows from that

        trained: list[float] = []  # with what, step by step
        if trial.restored is not None:
            trained = json.loads((trial.restored / "trained").read_text())
        trial.on_save(lambda directory: (directory / "trained").write_text(json.dumps(trained)))
        (flags / f"{trial.id} at 0").touch()
        wait_for("0 at 0", "1 at 0", "2 at 0")  # each in a slot of its own
        if trial.id == 2:
            wait_for("0 at 2", "1 at 2")
            raise ValueError("no more")
        for step in trial.steps():
            if (trial.id, step) == (0, 4):
                wait_for("1 at 4")
            trained.append(trial.config["x"])
            # Trial 1 takes over from trial 0, then goes on as it is.
            trial.report(score=1.0 if trial.id == 0 else 2.0 * (step > 2), trained=float(len(trained)), x=trained[-1])
            (flags / f"{trial.id} at {step}").touch()

    barrier = at.PBT(perturbation_interval=2, max_resource=8, synchronous=True)
    result = at.run(local(train), SPACE, **options(tmp_path, num_trials=3, slots=3, scheduler=barrier))
    assert [trial.state for trial in result.trials] == [COMPLETED, COMPLETED, FAILED]
    assert any(len(trial.lineage) > 1 for trial in result.trials)
    for trial in result.trials[:2]:
        segments = [report["segment"] for report in trial.reports]
        assert segments == sorted(segments)
        for report in trial.reports:
            assert report["trained"] == report["step"]
            assert report["x"] == trial.lineage[int(report["segment"])].config["x"]


def test_stop_when_ends_the_run_and_keeps_the_state(tmp_path: Path) -> None:
    result = at.run(
        climb, SPACE, **options(tmp_path, num_trials=1000, stop_when=lambda report: report.metrics["score"] > 7.0)
    )
    assert result.stopping is not None and result.stopping.startswith("stop_when held at step")
    assert any(report["score"] > 7.0 for trial in result.trials for report in trial.reports)
    assert len(result.trials) < 1000


def test_the_time_budget_pauses_what_runs(tmp_path: Path) -> None:
    @local
    def train(trial: at.Trial) -> None:
        trial.on_save(lambda directory: (directory / "step").write_text(str(trial.step)))
        for _ in trial.steps(100_000):
            time.sleep(0.01)
            trial.report(score=1.0)

    result = at.run(train, SPACE, **options(tmp_path, num_trials=None, time_budget=3))
    assert result.stopping == "the time budget of 3 s is used up"
    assert [trial.state for trial in result.trials] == [PAUSED, PAUSED]
    for trial in result.trials:
        assert trial.checkpoint is not None
        assert (trial.checkpoint / "step").read_text() == str(trial.step)


def test_events_come_in_order_and_a_trial_can_be_stopped(tmp_path: Path) -> None:
    @local
    def train(trial: at.Trial) -> None:
        for _ in trial.steps(100_000 if trial.id == 0 else 3):
            time.sleep(0.002)
            trial.report(score=1.0)

    async def main() -> tuple[list[Record], at.Result]:
        events: list[Record] = []
        async with at.Tuner(train, SPACE, **options(tmp_path, num_trials=4)) as tuner:
            async for event in tuner:
                events.append(event)
                if isinstance(event, Reported) and event.trial == 0 and event.step == 5:
                    tuner.stop(0)
            return events, await tuner.result()

    events, result = asyncio.run(main())
    assert [trial.state for trial in result.trials] == [STOPPED, COMPLETED, COMPLETED, COMPLETED]
    assert [event.kind for event in events if getattr(event, "trial", None) == 1] == [
        "suggested",
        "started",
        "reported",
        "reported",
        "reported",
        "left",
        "finished",
    ]


def test_stopping_the_tuner_pauses_what_runs(tmp_path: Path) -> None:
    async def main() -> at.Result:
        async with at.Tuner(climb, SPACE, **options(tmp_path, num_trials=10_000)) as tuner:
            async for event in tuner:
                if isinstance(event, Reported) and event.trial >= 3:
                    tuner.stop()
            return await tuner.result()

    result = asyncio.run(main())
    assert result.stopping == "stopped on request"
    assert len(result.trials) < 10_000


def test_cancelling_leaves_no_process_and_a_readable_journal(tmp_path: Path) -> None:
    @local
    def train(trial: at.Trial) -> None:
        trial.report(score=1.0, pid=os.getpid())
        time.sleep(600)

    pids: list[int] = []

    def note(event: Record) -> None:
        if isinstance(event, Reported):
            pids.append(int(event.metrics["pid"]))

    async def main() -> None:
        task = asyncio.create_task(at.tune(train, SPACE, **options(tmp_path, callbacks=[note])))
        while len(pids) < 2:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    began = time.monotonic()
    asyncio.run(main())
    assert time.monotonic() - began < 20
    assert not any(alive(pid) for pid in pids)
    assert len(at.Result.load(tmp_path / "run").trials) == 2


def test_a_callback_that_raises_ends_the_run_with_its_error(tmp_path: Path) -> None:
    def note(event: Record) -> None:
        if isinstance(event, Reported):
            raise ZeroDivisionError("in the callback")

    with pytest.raises(ZeroDivisionError, match="in the callback"):
        at.run(climb, SPACE, **options(tmp_path, callbacks=[note]))


@pytest.mark.parametrize("kind", ["suggested", "started", "saved", "left", "failed", "finished", "stopping"])
def test_a_callback_that_raises_at_any_event_ends_the_run_with_its_error(tmp_path: Path, kind: str) -> None:
    @local
    def train(trial: at.Trial) -> float:
        trial.on_save(lambda directory: None)
        if trial.id == 1:
            os._exit(3)
        return float(trial.id)

    def note(event: Record) -> None:
        if event.kind == kind:
            raise ZeroDivisionError(kind)

    with pytest.raises(ZeroDivisionError, match=kind):
        at.run(train, SPACE, **options(tmp_path, callbacks=[note], num_trials=10_000, time_budget=2.0))


@local
def stroll(trial: at.Trial) -> None:
    """So slow that a stop overtakes it."""
    for _ in trial.steps(1000):
        time.sleep(0.005)
        trial.report(score=trial.config["x"])


@pytest.mark.parametrize("scheduler", [at.FIFO(), at.ASHA(max_resource=1000, min_resource=3)])
def test_a_stop_from_a_callback_at_any_report_is_not_lost(tmp_path: Path, scheduler: Any) -> None:
    async def main() -> at.Result:
        def note(event: Record) -> None:
            if isinstance(event, Reported) and event.step == 3:
                tuner.stop(event.trial)

        async with at.Tuner(stroll, SPACE, **options(tmp_path, scheduler=scheduler, callbacks=[note])) as tuner:
            return await tuner.result()

    result = asyncio.run(main())
    assert {trial.state for trial in result.trials} == {STOPPED}
    assert max(trial.step for trial in result.trials) < 1000


def test_a_stop_of_the_run_from_a_callback_at_a_milestone_is_not_lost(tmp_path: Path) -> None:
    async def main() -> at.Result:
        def note(event: Record) -> None:
            if isinstance(event, Reported) and event.step == 3:
                tuner.stop()

        more = options(tmp_path, scheduler=at.ASHA(1000, min_resource=3), callbacks=[note], num_trials=10_000)
        async with at.Tuner(stroll, SPACE, **more) as tuner:
            return await tuner.result()

    result = asyncio.run(main())
    assert result.stopping == "stopped on request"
    assert not any(trial.state is COMPLETED for trial in result.trials)


def test_an_unknown_trial_cannot_be_stopped(tmp_path: Path) -> None:
    async def main() -> None:
        async with at.Tuner(climb, SPACE, **options(tmp_path, num_trials=2)) as tuner:
            for wrong in (-1, 77, True, "1"):
                with pytest.raises(InvalidArgument, match="trial_id must be one of"):
                    tuner.stop(wrong)  # type: ignore[arg-type]
            await tuner.result()

    asyncio.run(main())


def test_a_worker_that_dies_while_it_waits_is_replaced(tmp_path: Path) -> None:
    @local
    def train(trial: at.Trial) -> None:
        total = float((trial.restored / "total").read_text()) if trial.restored else 0.0
        trial.on_save(lambda directory: (directory / "total").write_text(repr(total)))
        begun = trial.dir.parent / "begun"
        if trial.id == 1:
            begun.touch()
        while not begun.exists():  # each in a worker of its own
            time.sleep(0.01)
        for _ in trial.steps(4):
            if trial.id == 1 and trial.step == 3:
                time.sleep(1.0)
            total += 1.0
            trial.report(score=total, pid=os.getpid())

    pids: dict[int, int] = {}

    async def main() -> at.Result:
        more = options(tmp_path, num_trials=2, scheduler=at.PBT(perturbation_interval=3, max_resource=4))
        async with at.Tuner(train, SPACE, **more) as tuner:
            async for event in tuner:
                if isinstance(event, Reported):
                    pids[event.trial] = int(event.metrics["pid"])
                if isinstance(event, Saved) and (event.trial, event.step) == (0, 3):  # it waits for the other one
                    os.kill(pids[0], signal.SIGKILL)
            return await tuner.result()

    result = asyncio.run(main())
    assert [trial.state for trial in result.trials] == [COMPLETED] * 2
    assert [trial.value for trial in result.trials] == [4.0] * 2


def test_a_best_trial_that_cannot_be_saved_does_not_hold_up_the_end(tmp_path: Path) -> None:
    @local
    def train(trial: at.Trial) -> float:
        def save(directory: Path) -> None:
            raise OSError("no space left")

        trial.on_save(save)
        return float(trial.id)

    result = at.run(train, SPACE, **options(tmp_path, num_trials=3))
    assert [trial.state for trial in result.trials] == [COMPLETED] * 3
    assert result.best.checkpoint is None
    assert any("no space left" in log.read_text() for log in (tmp_path / "run").glob("slot-*.log"))
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []


def test_a_worker_that_still_loads_does_not_hold_up_the_end(tmp_path: Path) -> None:
    class Slow:  # all but the first wait for ever, while they are unpickled
        def __reduce__(self) -> Any:
            return exec, (
                f"import os, time\ntry: os.mkdir({str(tmp_path / 'first')!r})\nexcept OSError: time.sleep(600)",
            )

    slow = Slow()

    @local
    def train(trial: at.Trial, slow: Any = slow) -> float:
        return float(trial.id)

    async def main() -> at.Result:
        async with asyncio.timeout(30):
            return await at.tune(train, SPACE, **options(tmp_path))

    result = asyncio.run(main())
    assert [trial.state for trial in result.trials] == [COMPLETED] * 6


def test_reports_do_not_fill_the_memory_while_the_disk_is_slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = []
    append = Journal.append

    def counted(self: Journal, record: Record) -> None:
        append(self, record)
        waiting.append(len(self._lines))

    monkeypatch.setattr(Journal, "append", counted)
    monkeypatch.setattr(writer, "BACKLOG", 100)
    monkeypatch.setattr(writer, "GATHER", 0.1)

    @local
    def train(trial: at.Trial) -> None:
        for step in trial.steps(1000):
            trial.report({f"long{name}": 0.5 for name in range(50)}, score=step)

    result = at.run(train, SPACE, **options(tmp_path, num_trials=2))
    assert [len(trial.reports) for trial in result.trials] == [1000, 1000]
    assert max(waiting) < 100 + 2 * 2**16 / (50 * 8)  # what one look at each of two sockets may bring comes on top


def test_cancelling_while_the_run_opens_leaves_nothing_behind(tmp_path: Path) -> None:
    async def main() -> None:
        for turns in range(4):
            task = asyncio.create_task(at.tune(climb, SPACE, **options(tmp_path, run_dir=tmp_path / str(turns))))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


def test_an_error_that_was_heard_is_not_raised_again(tmp_path: Path) -> None:
    @local
    def train(trial: at.Trial) -> None:
        raise ImportError("no such thing")

    async def main() -> None:
        async with at.Tuner(train, SPACE, **options(tmp_path)) as tuner:
            with pytest.raises(RunFailed):
                await tuner.result()

    asyncio.run(main())


def test_a_tuner_outside_its_block_says_so(tmp_path: Path) -> None:
    async def main() -> None:
        tuner = at.Tuner(climb, SPACE, **options(tmp_path, num_trials=10_000))
        with pytest.raises(AsynctuneError, match="inside its block"):
            await tuner.result()
        async with tuner:
            pass
        with pytest.raises(AsynctuneError, match="left before its end"):
            await tuner.result()

    asyncio.run(main())


def test_runs_without_a_directory_of_their_own_do_not_collide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    async def main() -> list[at.Result]:
        return await asyncio.gather(*(at.tune(climb, SPACE, **options(tmp_path, run_dir=None)) for _ in range(3)))

    assert len({result.run_dir for result in asyncio.run(main())}) == 3


def test_a_config_arrives_with_its_tuples(tmp_path: Path) -> None:
    @local
    def train(trial: at.Trial) -> float:
        return {(3, 3): 1.0, (5, 5): 2.0}[trial.config["kernel"]] + float(trial.config["pair"][1])

    result = at.run(train, {"kernel": at.choice([(3, 3), (5, 5)]), "pair": (0, 1)}, **options(tmp_path))
    assert {trial.value for trial in result.trials} <= {2.0, 3.0}
    assert all(trial.state is COMPLETED for trial in result.trials)


def test_a_pausing_scheduler_and_nothing_saved_ends_the_run(tmp_path: Path) -> None:
    @local
    def train(trial: at.Trial) -> None:
        for _ in trial.steps(9):
            trial.report(score=1.0)

    with pytest.raises(RunFailed, match=r"has nothing to save: call trial.track\(...\)"):
        at.run(train, SPACE, **options(tmp_path, scheduler=at.PBT(perturbation_interval=3, max_resource=9)))


def test_a_time_budget_ends_inline_trials_too(tmp_path: Path) -> None:
    def train(trial: at.Trial) -> None:
        for _ in trial.steps(10_000):
            time.sleep(0.01)
            trial.report(score=1.0)

    result = at.run(train, SPACE, **options(tmp_path, slots="inline", num_trials=None, time_budget=0.3))
    assert result.stopping == "the time budget of 0.3 s is used up"
    assert [trial.state for trial in result.trials] == [PAUSED]


def test_run_works_inside_a_running_loop(tmp_path: Path) -> None:
    async def main() -> at.Result:
        return at.run(climb, SPACE, **options(tmp_path, num_trials=2))

    assert len(asyncio.run(main()).trials) == 2


def test_inline_slots_run_in_this_very_process(tmp_path: Path) -> None:
    seen: list[int] = []

    def train(trial: at.Trial) -> None:
        seen.append(os.getpid())
        climb(trial)

    scheduler = at.ASHA(max_resource=9, type="promotion")
    result = at.run(train, SPACE, **options(tmp_path, slots="inline", scheduler=scheduler, num_trials=9))
    assert set(seen) == {os.getpid()}
    assert {trial.state for trial in result.trials} == {COMPLETED, STOPPED}
    for trial in result.trials:
        assert trial.value == pytest.approx(trial.step * trial.config["x"])


def test_inline_failures_fail_alone_and_an_interrupt_gets_through(tmp_path: Path) -> None:
    def train(trial: at.Trial) -> float:
        if trial.id == 1:
            raise ValueError("boom")
        if trial.id == 3:
            raise KeyboardInterrupt
        return 1.0

    with pytest.raises(KeyboardInterrupt):
        at.run(train, SPACE, **options(tmp_path, slots="inline"))
    result = at.Result.load(tmp_path / "run")
    assert [trial.state for trial in result.trials] == [COMPLETED, FAILED, COMPLETED, TrialState.PENDING]
    assert result.stopping == "interrupted"
    assert result.trials[1].log() == ""


def run_script(tmp_path: Path, code: str, *, interrupts: int = 0) -> tuple[int, str]:
    """Run `code` as a script; send it `interrupts` times SIGINT once it prints "go"."""
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(code))
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    process = subprocess.Popen(
        [sys.executable, "-W", "error", str(script)],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    text = ""
    with process:
        try:
            for line in process.stdout:
                text += line
                if line.startswith("go") and interrupts:
                    for _ in range(interrupts):
                        process.send_signal(signal.SIGINT)
                        time.sleep(0.5)
                    interrupts = 0
            return process.wait(30), text
        finally:
            process.kill()


def test_hyperopt_leaves_its_random_start_without_work_on_the_loop(tmp_path: Path) -> None:
    code, text = run_script(
        tmp_path,
        """
        import sys
        import asynctune as at

        def configs(searcher):
            result = at.run(lambda trial: -abs(trial.config["x"] - 0.7), {"x": at.uniform(0, 1)}, metric="score",
                            mode="max", num_trials=20, slots=2, searcher=searcher, progress=False)
            return [trial.config for trial in result.trials]

        if __name__ == "__main__":
            random, hyperopt = configs(at.Random()), configs(at.HyperOpt())
            same = [a == b for a, b in zip(random, hyperopt)]
            print(all(same[:5]), any(same[8:]), {"hyperopt", "scipy"} & set(sys.modules))
        """,
    )
    assert code == 0 and text == "True False set()\n", text


INTERRUPTED = """
    import os, time
    import asynctune as at

    def train(trial):
        trial.on_save(lambda directory: (directory / "step").write_text(str(trial.step)))
        for _ in trial.steps(100_000):
            trial.report(score=1.0, pid=os.getpid())
            time.sleep({pause})

    def note(event, seen=set()):
        if event.kind == "reported":
            seen.add(event.trial)
            if len(seen) == 2 and event.step < 3:
                print("go", flush=True)

    if __name__ == "__main__":
        try:
            at.run(train, {{"x": at.uniform(0, 1)}}, metric="score", mode="max", num_trials=4, slots=2, run_dir="run",
                   callbacks=[note], progress=False)
        except KeyboardInterrupt:
            print("KeyboardInterrupt")
"""


def test_the_first_ctrl_c_saves_and_pauses(tmp_path: Path) -> None:
    code, text = run_script(tmp_path, INTERRUPTED.format(pause=0.01), interrupts=1)
    assert code == 0 and "KeyboardInterrupt" in text and "Traceback" not in text, text
    result = at.Result.load(tmp_path / "run")
    assert [trial.state for trial in result.trials] == [PAUSED, PAUSED]
    assert all(trial.checkpoint is not None and trial.checkpoint.exists() for trial in result.trials)
    assert not any(alive(int(trial.reports[0]["pid"])) for trial in result.trials)


def test_the_second_ctrl_c_kills_the_workers(tmp_path: Path) -> None:
    code, text = run_script(tmp_path, INTERRUPTED.format(pause=600), interrupts=2)
    assert code == 0 and "KeyboardInterrupt" in text and "Traceback" not in text, text
    result = at.Result.load(tmp_path / "run")
    assert len(result.trials) == 2
    assert not any(alive(int(trial.reports[0]["pid"])) for trial in result.trials)


def test_functions_of_main_lambdas_and_importable_ones_all_run(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def train(trial):\n    trial.report(score=trial.config['x'])\n")
    code, text = run_script(
        tmp_path,
        """
        import asynctune as at
        import mine

        FACTOR = 2.0

        def train(trial):
            trial.report(score=FACTOR * trial.config["x"])

        if __name__ == "__main__":
            for number, function in enumerate([train, mine.train, lambda trial: trial.config["x"]]):
                result = at.run(function, {"x": at.uniform(0, 1)}, metric="score", mode="max", num_trials=3, slots=2,
                                run_dir=f"run-{number}", progress=False)
                assert len(result.trials) == 3 and result.best.value > 0
            print("fine")
        """,
    )
    assert code == 0 and text == "fine\n", text


def test_an_empty_terminal_output_when_progress_is_off(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    at.run(climb, SPACE, **options(tmp_path, num_trials=2))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_trials": 0}, "num_trials"),
        ({"num_trials": None}, "num_trials must be given, or else a time_budget"),
        ({"slots": 0}, "slots"),
        ({"slots": at.Slots(gpus_per_trial=1)}, "GPU"),
        ({"slots": "many"}, "slots"),
        ({"time_budget": -1}, "time_budget must be a positive number of seconds, got -1"),
        ({"mode": "best"}, "mode must be"),
        ({"stop_when": 0.5}, "stop_when must be"),
        ({"callbacks": [1]}, "callbacks must be"),
        ({"max_failures": True}, "max_failures"),
        ({"num_trials": 10.0}, "num_trials must be an integer"),
        ({"callbacks": print}, "callbacks must be a list"),
        ({"run_dir": __file__}, "run_dir must be a directory"),
    ],
)
def test_wrong_arguments_are_refused_before_any_worker_starts(
    tmp_path: Path, changes: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(InvalidArgument, match=words):
        at.run(climb, SPACE, **options(tmp_path, **changes))
    with pytest.raises(InvalidArgument, match="space"):
        at.run(climb, {}, **options(tmp_path))
    with pytest.raises(InvalidArgument, match="train must be a function"):
        at.run(3, SPACE, **options(tmp_path))  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="train must take one argument"):
        at.run(lambda: None, SPACE, **options(tmp_path))

    async def coroutine(trial: at.Trial) -> None: ...

    with pytest.raises(InvalidArgument, match="train must be a plain function"):
        at.run(coroutine, SPACE, **options(tmp_path))
    assert not (tmp_path / "run").exists()


def test_a_used_run_directory_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    at.run(climb, SPACE, **options(tmp_path, num_trials=1))
    before = (tmp_path / "run" / "journal.jsonl").read_bytes()
    with pytest.raises(InvalidArgument, match="run_dir must not hold a run already"):
        at.run(climb, SPACE, **options(tmp_path, num_trials=1))
    assert (tmp_path / "run" / "journal.jsonl").read_bytes() == before


def test_the_journal_holds_one_json_object_per_record(tmp_path: Path) -> None:
    at.run(climb, SPACE, **options(tmp_path, num_trials=2))
    lines = [json.loads(line) for line in (tmp_path / "run" / "journal.jsonl").read_text().splitlines()]
    assert lines[0]["t"] == "header" and lines[0]["metric"] == "score"
    assert [line["t"] for line in lines].count("reported") == 18
    assert (tmp_path / "run").stat().st_mode & 0o777 == 0o700


def test_a_trial_that_closes_its_output_silences_the_next(tmp_path: Path) -> None:
    @local
    def train(trial: at.Trial) -> float:
        if trial.id == 0:
            os.close(1)
            os.close(2)
        else:
            print("hello from", trial.id)
        return 1.0

    result = at.run(train, SPACE, **options(tmp_path, num_trials=3, slots=1))
    assert [trial.state for trial in result.trials] == [COMPLETED] * 3
    assert [trial.log() for trial in result.trials] == ["", "hello from 1\n", "hello from 2\n"]
