import contextlib
import io
import os
import pty
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asynctune.progress import Board, Progress
from asynctune.records import (
    Action,
    Decided,
    Failed,
    Finished,
    Header,
    Record,
    Reported,
    Started,
    Stopping,
    Suggested,
    TrialState,
)
from asynctune.results import printable


def header(mode: str = "max", num_trials: int | None = 4) -> Header:
    return Header(
        metric="acc",
        mode=mode,
        num_trials=num_trials,
        seed=0,
        space={},
        searcher="Random()",
        scheduler="FIFO()",
        slots=2,
    )


def board(records: Iterable[Record], *, mode: str = "max", num_trials: int | None = 4, **more: Any) -> Board:
    board = Board(header(mode, num_trials), Path("runs/first"), **more)
    for record in records:
        board.apply(record)
    return board


def begin(trial: int, slot: int = 0, step: int = 0) -> list[Record]:
    return [Suggested(trial=trial, config={}), Started(trial=trial, segment=0, step=step, until=None, slot=slot)]


def reported(trial: int, step: int, value: float) -> Reported:
    return Reported(trial=trial, segment=0, step=step, metrics={"acc": value})


def finished(trial: int, state: TrialState = TrialState.COMPLETED) -> Finished:
    return Finished(trial=trial, state=state)


def pause(trial: int, step: int) -> Decided:
    return Decided(trial=trial, segment=0, step=step, action=Action.PAUSE)


def failed(trial: int, error: str = "ValueError: boom", *, retry: bool = False) -> Failed:
    return Failed(trial=trial, error=error, retry=retry)


def test_each_slot_shows_what_it_runs() -> None:
    seen = board([*begin(0), *begin(1, slot=1), reported(1, 3, 0.5), finished(0)], max_resource=10)
    assert list(seen.slots()) == ["slot 0  idle", "slot 1  trial 1  step 3 of 10  acc 0.5"]


def test_a_paused_trial_leaves_its_slot_to_the_next() -> None:
    seen = board([*begin(0), reported(0, 1, 0.5), pause(0, 1), *begin(1)])
    assert next(seen.slots()).startswith("slot 0  trial 1")
    assert seen.counts() == "1 running, 1 paused of 4"
    seen.apply(finished(0, TrialState.STOPPED))  # while slot 0 runs trial 1
    assert next(seen.slots()).startswith("slot 0  trial 1")
    assert seen.counts() == "1 running, 1 stopped of 4"


def test_a_retried_trial_is_counted_once() -> None:
    seen = board([*begin(0), failed(0, retry=True), Started(trial=0, segment=0, step=0, until=None, slot=1)])
    assert seen.counts() == "1 running of 4"
    assert board([], num_trials=None).counts() == "no trial yet"


@pytest.mark.parametrize(
    ("mode", "best"), [("max", "best acc 0.9 (trial 1, step 1)"), ("min", "best acc 0.1 (trial 0")]
)
def test_the_best_is_taken_in_the_direction_of_the_mode(mode: str, best: str) -> None:
    records = [*begin(0), reported(0, 1, 0.1), finished(0), *begin(1), reported(1, 1, 0.9), finished(1)]
    assert board(records, mode=mode).best().startswith(best)


def test_the_best_is_a_completed_trial_if_there_is_one_and_never_nan() -> None:
    records: list[Record] = [*begin(0), reported(0, 1, float("nan")), *begin(1, slot=1)]
    assert board(records).best() == ""
    records.append(reported(1, 1, 0.9))
    assert board(records).best() == "best acc 0.9 (trial 1, step 1)"
    records += [finished(1, TrialState.STOPPED), *begin(2, slot=1), reported(2, 1, 0.2), finished(2)]
    assert board(records).best() == "best acc 0.2 (trial 2, step 1)"


def test_the_time_left_counts_the_steps_of_what_runs() -> None:
    records = [*begin(0), reported(0, 10, 0.5), finished(0), *begin(1), reported(1, 6, 0.5)]
    assert board(records, max_resource=10).fraction() == pytest.approx(1.6 / 4)
    assert board(records, max_resource=10).time(60.0) == "1:00, about 1:30 left"
    assert board(records).fraction() == 0.25
    assert board(records, num_trials=None).time(3661.0) == "1:01:01"
    assert board(records, max_resource=10, time_budget=65.0).time(60.0) == "1:00, about 0:05 left"
    assert board([*records, failed(1)], max_resource=10).fraction() == 0.5


def test_a_failure_is_one_line_that_names_the_log() -> None:
    seen = board([*begin(3, slot=1), failed(3), *begin(4), failed(4, "KeyError: 'a'\nb", retry=True)])
    assert list(seen.lines) == [
        (True, "trial 3 failed: ValueError: boom (runs/first/slot-1.log)"),
        (True, "trial 4 failed: KeyError: 'a' b (runs/first/slot-0.log); it is tried again"),
    ]


@given(st.text() | st.text("\x1b[]0;m\x07\\\x9b2J", min_size=5))
def test_no_text_can_steer_a_terminal(text: str) -> None:
    assert printable(text).isprintable()


def test_escape_sequences_go_and_the_words_stay() -> None:
    assert printable("\x1b[31mred\x1b[0m \x1b]0;title\x07and\tplain\u202e") == "red and plain"


def plain(records: Iterable[Record]) -> list[str]:
    file = io.StringIO()
    progress = Progress(header(), "runs/first", file=file)
    for record in records:
        progress.update(record)
    progress.close()
    return file.getvalue().splitlines()


def test_without_a_terminal_each_trial_that_ends_has_a_line() -> None:
    assert plain([*begin(0), reported(0, 2, 0.5), finished(0), *begin(1), failed(1)]) == [
        "trial 0 completed: acc = 0.5 at step 2",
        "trial 1 failed: ValueError: boom (runs/first/slot-0.log)",
        "1 completed, 1 failed of 4; best acc 0.5 (trial 0, step 2); 0:00",
        "run directory: runs/first",
    ]


def test_thousands_of_trials_do_not_bury_a_failure() -> None:
    records = [record for trial in range(3000) for record in (*begin(trial), finished(trial))]
    lines = plain([*records, *begin(3000), failed(3000), Stopping(reason="enough\x1b[2J")])
    assert "trial 3000 failed: ValueError: boom (runs/first/slot-0.log)" in lines
    assert "stopping: enough" in lines
    assert len(lines) < 40
    assert any(line.startswith("3000 completed, 1 failed of 4") for line in lines)


def test_a_closed_file_disturbs_nobody() -> None:
    file = io.StringIO()
    progress = Progress(header(), "runs/first", file=file)
    file.close()
    for record in [*begin(0), failed(0)]:
        progress.update(record)
    progress.close()


def test_a_terminal_shows_slots_failures_and_where_the_run_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as file:
        progress = Progress(header(), "runs/first", max_resource=10, file=file)
        for record in [*begin(0), reported(0, 1, 0.5), *begin(1, 1), failed(1, "[red]boom\x1b[2J\x07")]:
            progress.update(record)
        shown = ""
        while "slot 1" not in shown:
            shown += os.read(master, 1 << 16).decode()
        progress.close()
        while "run directory" not in shown:  # it may come in pieces, as it was written
            shown += os.read(master, 1 << 16).decode()
    os.close(master)
    assert "slot 0  trial 0  step 1 of 10  acc 0.5" in shown
    assert "trial 1 failed: [red]boom (runs/first/slot-1.log)" in shown
    assert "\x1b[2J" not in shown
    assert "\x07" not in shown
    assert shown.rstrip().endswith("run directory: runs/first")


def test_a_stopped_terminal_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    master, slave = pty.openpty()
    file = os.fdopen(slave, "w")
    progress = Progress(header(), "runs/first", file=file)
    for trial in range(2000):  # nobody reads: the terminal's buffer fills, and the thread that draws stands still
        for record in [*begin(trial), failed(trial, "x" * 100)]:
            progress.update(record)
    time.sleep(0.5)
    progress.update(begin(2000)[0])
    os.close(master)
    progress.close()
    progress._thread.join()
    with contextlib.suppress(OSError):
        file.close()
