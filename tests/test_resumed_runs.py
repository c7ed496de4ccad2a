"""Runs that are resumed, with real worker processes and a journal on disk."""

import asyncio
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

import asynctune as at
from asynctune import journal
from asynctune.errors import InvalidArgument, JournalError, RunFailed
from asynctune.records import Lost, Record, Reopened, Started, TrialState
from asynctune.rundir import CHECKPOINTS, JOURNAL
from tests.runs import climb, local, options

SPACE: dict[str, Any] = {"x": at.uniform(0.0, 1.0), "depth": at.randint(1, 4), "kind": "small"}
COMPLETED, STOPPED, FAILED, PAUSED = TrialState.COMPLETED, TrialState.STOPPED, TrialState.FAILED, TrialState.PAUSED


def table(result: at.Result) -> list[tuple[Any, ...]]:
    return [(t.id, t.state, t.config, t.reports) for t in result.trials]


def records(run_dir: Path) -> list[Record]:
    return list(journal.read(run_dir / JOURNAL))


def digest(run_dir: Path) -> dict[str, str]:
    return {
        str(path.relative_to(run_dir)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(run_dir.rglob("*"))
        if path.is_file() and path.name != "lock"
    }


def cut_off(run_dir: Path, after: type[Record], times: int = 1) -> None:
    """Cut the journal right behind the last record of a kind, or an earlier one: as if the driver had been killed there."""
    found = [offset for offset, record in journal.scan(run_dir / JOURNAL) if isinstance(record, after)]
    data = (run_dir / JOURNAL).read_bytes()
    end = data.index(b"\n", found[-times]) + 1
    (run_dir / JOURNAL).write_bytes(data[:end])


def test_resuming_a_finished_run_changes_it(tmp_path: Path) -> None:
    whole = at.run(climb, SPACE, **options(tmp_path))
    before = digest(tmp_path / "run")
    again = at.run(climb, SPACE, **options(tmp_path), resume=True)
    assert table(again) == table(whole)
    assert digest(tmp_path / "run") == before


def test_a_resumed_run_does_not_grow(tmp_path: Path) -> None:
    at.run(climb, SPACE, **options(tmp_path, num_trials=2))
    result = at.run(climb, SPACE, **options(tmp_path, num_trials=4), resume=True)
    assert [trial.state for trial in result.trials] == [COMPLETED] * 4
    whole = at.run(climb, SPACE, **options(tmp_path, num_trials=4, run_dir=tmp_path / "whole"))
    assert table(result) == table(whole)
    assert [type(record) for record in records(tmp_path / "run")].count(Reopened) == 1


@pytest.mark.parametrize("auto", [True, "auto"])
def test_what_was_cut_off_is_not_taken_up(tmp_path: Path, auto: Any) -> None:
    whole = table(at.run(climb, SPACE, **options(tmp_path, slots=1)))
    cut_off(tmp_path / "run", after=Started, times=3)
    result = at.run(climb, SPACE, **options(tmp_path, slots=1), resume=auto)
    assert table(result) == whole
    assert [record.how for record in records(tmp_path / "run") if isinstance(record, Started)].count("restarted") == 1


def test_a_run_that_does_not_exist_is_resumed(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="run_dir must hold a run"):
        at.run(climb, SPACE, **options(tmp_path), resume=True)
    assert not (tmp_path / "run").exists() or not any((tmp_path / "run").iterdir())
    result = at.run(climb, SPACE, **options(tmp_path), resume="auto")
    assert [trial.state for trial in result.trials] == [COMPLETED] * 6


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"space": SPACE | {"x": at.uniform(0.0, 2.0)}},
            r"space: x was uniform\(0.0, 1.0\) and is uniform\(0.0, 2.0\)",
        ),
        ({"space": SPACE | {"kind": "large"}}, "space: kind was 'small' and is 'large'"),
        ({"space": SPACE | {"y": at.uniform(0.0, 2.0)}}, r"space: y was missing and is uniform\(0.0, 2.0\)"),
        ({"space": dict(reversed(SPACE.items()))}, "space: its hyperparameters come in another order"),
        ({"metric": "loss"}, "metric was score and is loss"),
        ({"mode": "min"}, "mode was max and is min"),
        ({"scheduler": at.ASHA(max_resource=9)}, r"scheduler was FIFO\(\) and is ASHA"),
        ({"searcher": at.HyperOpt()}, r"searcher was Random\(\) and is HyperOpt"),
        ({"seed": 1}, "seed was 0 and is 1"),
        ({"num_trials": 5}, "num_trials may be raised from 6, got 5"),
    ],
)
def test_another_run_is_resumed(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    at.run(climb, SPACE, **options(tmp_path, slots="inline"))
    before = digest(tmp_path / "run")
    space = change.pop("space", SPACE)
    with pytest.raises(InvalidArgument, match=words):
        at.run(climb, space, **options(tmp_path, slots="inline", **change), resume=True)
    assert digest(tmp_path / "run") == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"resume": True, "run_dir": None}, "resume=True needs a run_dir"),
        ({"resume": "yes"}, "resume must be False, True or 'auto', got 'yes'"),
        ({"resume": 1}, "resume must be False, True or 'auto', got 1"),
        ({"durability": "none"}, "durability must be 'process' or 'power', got 'none'"),
        ({"report_timeout": 0}, "report_timeout must be a positive number of seconds, got 0"),
        ({"trial_timeout": -1.0}, "trial_timeout must be a positive number of seconds, got -1.0"),
        ({"trial_timeout": 9.0, "slots": "inline"}, 'trial_timeout needs a worker to kill, got slots="inline"'),
        ({"durability": "power", "slots": "inline"}, 'durability="power" needs workers that can wait'),
        ({"keep_checkpoints": -1}, "keep_checkpoints must be an integer >= 0, got -1"),
    ],
)
def test_wrong_arguments_are_taken(tmp_path: Path, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        at.Tuner(climb, SPACE, **options(tmp_path, **arguments))
    assert not (tmp_path / "run").exists()


def test_what_the_time_budget_paused_stays_paused(tmp_path: Path) -> None:
    @local
    def slow(trial: at.Trial) -> None:
        total = 0.0
        if trial.restored is not None:
            total = float((trial.restored / "total").read_text())
        trial.on_save(lambda directory: (directory / "total").write_text(repr(total)))
        for step in trial.steps(9):
            while step == 2 and not used_up.exists():
                time.sleep(0.01)
            total += 1.0
            trial.report(score=total)

    used_up = tmp_path / "used up"

    def watch(record: Record) -> None:
        if record.kind == "stopping":
            used_up.touch()

    paused = at.run(slow, SPACE, **options(tmp_path, num_trials=2, time_budget=2, callbacks=[watch]))
    assert {trial.state for trial in paused.trials} == {PAUSED}
    assert paused.stopping == "the time budget of 2 s is used up"
    result = at.run(slow, SPACE, **options(tmp_path, num_trials=2, time_budget=60), resume=True)
    assert [trial.state for trial in result.trials] == [COMPLETED] * 2
    assert [[report["score"] for report in trial.reports] for trial in result.trials] == [list(range(1, 10))] * 2
    assert result.stopping is None


def test_a_missing_or_damaged_checkpoint_ends_the_run(tmp_path: Path) -> None:
    options_ = options(tmp_path, num_trials=3, slots=1, scheduler=at.ASHA(max_resource=9, type="promotion"))
    whole = table(at.run(climb, SPACE, **options_))
    cut_off(tmp_path / "run", after=Started)
    [*_, started] = records(tmp_path / "run")
    assert isinstance(started, Started) and started.checkpoint is not None
    shutil.rmtree(tmp_path / "run" / CHECKPOINTS)
    result = at.run(climb, SPACE, **options_, resume=True)
    assert table(result) == whole
    [lost] = [record for record in records(tmp_path / "run") if isinstance(record, Lost)]
    assert (lost.trial, lost.checkpoint) == (started.trial, started.checkpoint)


def test_a_damaged_journal_is_resumed(tmp_path: Path) -> None:
    at.run(climb, SPACE, **options(tmp_path, slots="inline"))
    path = tmp_path / "run" / JOURNAL
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(JournalError, match=r"no record at byte \d+.*asynctune repair"):
        at.run(climb, SPACE, **options(tmp_path, slots="inline"), resume=True)
    assert path.read_bytes() == data


@pytest.mark.parametrize("limit", ["report_timeout", "trial_timeout"])
def test_a_trial_that_hangs_holds_its_slot_for_ever(tmp_path: Path, limit: str) -> None:
    @local
    def hang(trial: at.Trial) -> None:
        if trial.id == 1:
            time.sleep(600)
        trial.report(score=1.0)

    result = at.run(hang, SPACE, **options(tmp_path, num_trials=4, **{limit: 1.5}))
    assert [trial.state for trial in result.trials] == [COMPLETED, FAILED, COMPLETED, COMPLETED]
    assert result.trials[1].error is not None and limit in result.trials[1].error
    assert "in hang" in result.trials[1].log()


def test_a_full_disk_fails_trials(tmp_path: Path) -> None:
    @local
    def train(trial: at.Trial) -> None:
        if trial.id == 1:
            raise OSError(28, "No space left on device")
        trial.report(score=1.0)

    with pytest.raises(RunFailed, match="trial 1 cannot write: OSError.*No space left"):
        at.run(train, SPACE, **options(tmp_path, slots=1))

    @local
    def there_is_room_again(trial: at.Trial) -> None:
        trial.report(score=1.0)

    result = at.run(there_is_room_again, SPACE, **options(tmp_path, slots=1), resume=True)
    assert [trial.state for trial in result.trials] == [COMPLETED] * 6


def test_power_answers_before_the_record_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from asynctune.processes import Worker

    log: list[str] = []
    fdatasync, send = os.fdatasync, Worker.send

    def note_sync(descriptor: int) -> None:
        fdatasync(descriptor)
        log.append("sync")

    def note_send(worker: Worker, frame: Any) -> None:
        log.append(type(frame).__name__)
        send(worker, frame)

    monkeypatch.setattr(os, "fdatasync", note_sync)
    monkeypatch.setattr(Worker, "send", note_send)

    def note_record(record: Record) -> None:
        log.append(record.kind)

    scheduler = at.ASHA(max_resource=9)
    at.run(climb, SPACE, **options(tmp_path, slots=1, scheduler=scheduler, callbacks=[note_record]), durability="power")
    for answer, record in (("Run", "started"), ("Continue", "continued"), ("End", "stopped")):
        places = [place for place, entry in enumerate(log) if entry == answer]
        assert places
        for place in places:
            recorded = max(index for index in range(place) if log[index] == record)
            assert "sync" in log[recorded:place], answer


def test_a_slow_reader_of_events_holds_up_the_run_or_fills_the_memory(tmp_path: Path) -> None:
    @local
    def chatter(trial: at.Trial) -> None:
        for step in range(5000):
            trial.report(score=float(step))

    async def main() -> tuple[list[Record], int]:
        seen: list[Record] = []
        async with at.Tuner(chatter, SPACE, **options(tmp_path, num_trials=2)) as tuner:
            async for event in tuner:
                seen.append(event)
                if len(seen) == 1:
                    await tuner.result()  # the run comes to its end, whoever looks
            return seen, len(seen)

    seen, count = asyncio.run(main())
    assert seen == records(tmp_path / "run")[1:]
    assert count > 10_000


def test_spare_checkpoints_go_although_there_is_room(tmp_path: Path) -> None:
    schedule = {"scheduler": at.ASHA(max_resource=9, type="promotion"), "slots": 1}
    at.run(climb, SPACE, **options(tmp_path, run_dir=tmp_path / "none", **schedule))
    at.run(climb, SPACE, **options(tmp_path, run_dir=tmp_path / "all", **schedule), keep_checkpoints=10**9)
    kept = {path.name for path in (tmp_path / "all" / CHECKPOINTS).iterdir()}
    assert {path.name for path in (tmp_path / "none" / CHECKPOINTS).iterdir()} < kept
    assert len(kept) >= 6


def test_a_driver_that_is_killed_leaves_a_lock_or_a_worker(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import time
            import asynctune as at

            def train(trial):
                trial.on_save(lambda directory: None)
                for _ in trial.steps(40):
                    time.sleep(0.02)
                    trial.report(score=trial.config["x"])

            if __name__ == "__main__":
                result = at.run(train, {{"x": at.uniform(0.0, 1.0)}}, metric="score", mode="max", num_trials=4, slots=2,
                                run_dir={str(tmp_path / "run")!r}, resume="auto", progress=False)
                print([str(trial.state) for trial in result.trials], [len(trial.reports) for trial in result.trials])
            """
        )
    )
    first = subprocess.Popen([sys.executable, script], start_new_session=True)
    path = tmp_path / "run" / JOURNAL
    while not path.exists() or path.read_bytes().count(b'"reported"') < 20:
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.wait()
    second = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, check=True)
    assert second.stdout == f"{['COMPLETED'] * 4} {[40] * 4}\n"
