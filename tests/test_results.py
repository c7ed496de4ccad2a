import math
import sys
import tracemalloc
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asynctune.errors import AsynctuneError, InvalidArgument, JournalError
from asynctune.journal import encode
from asynctune.records import (
    Action,
    Decided,
    Failed,
    Finished,
    Header,
    Left,
    Record,
    Reported,
    Saved,
    Started,
    Stopping,
    Suggested,
    TrialState,
)
from asynctune.results import Result, Segment, flat
from asynctune.rundir import CHECKPOINTS, JOURNAL, log_file
from tests.runs import write_journal

HEADER = Header(
    metric="acc",
    mode="max",
    num_trials=None,
    seed=0,
    space={"lr": "uniform(0, 1)"},
    searcher="Random()",
    scheduler="FIFO()",
    slots=1,
)


def suggested(trial: int, **config: Any) -> Suggested:
    return Suggested(trial=trial, config=config or {"lr": trial / 10})


def started(trial: int, step: int = 0, **more: Any) -> Started:
    return Started(**{"trial": trial, "segment": 0, "step": step, "until": None, "slot": 0} | more)


def reported(trial: int, step: int, value: float, segment: int = 0) -> Reported:
    return Reported(trial=trial, segment=segment, step=step, metrics={"acc": value})


def trial(number: int, *values: float, state: TrialState = TrialState.COMPLETED) -> list[Record]:
    reports = [reported(number, step, value) for step, value in enumerate(values, start=1)]
    begun = [suggested(number), started(number), *reports]
    if state is TrialState.RUNNING:
        return begun
    failed = state is TrialState.FAILED
    return [*begun, Failed(trial=number, error="boom", retry=False) if failed else Finished(trial=number, state=state)]


Load = Callable[..., Result]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Writes records as a run and loads it."""

    def load(*records: Record, header: Header = HEADER) -> Result:
        write_journal(tmp_path, [header, *records])
        return Result.load(tmp_path)

    return load


def test_the_best_is_taken_in_the_direction_of_the_mode(load: Load) -> None:
    records = [*trial(0, 0.5), *trial(1, 0.9), *trial(2, 0.1)]
    assert load(*records).best.trial_id == 1
    lowest = Header(**{name: getattr(HEADER, name) for name in HEADER.__struct_fields__} | {"mode": "min"})
    assert load(*records, header=lowest).best.id == 2


def test_a_trial_that_ends_in_nan_is_not_the_best(load: Load) -> None:
    result = load(*trial(0, 0.5), *trial(1, 0.9, math.nan), *trial(2, math.inf), *trial(3, 0.4))
    assert result.best.id == 0
    assert result.trials[1].value is not None
    assert math.isnan(result.trials[1].value)


def test_a_completed_trial_comes_before_a_better_one_that_was_stopped(load: Load) -> None:
    assert load(*trial(0, 0.5), *trial(1, 0.7, 0.9, state=TrialState.STOPPED)).best.id == 0


def test_without_a_completed_trial_those_at_the_highest_step_count(load: Load) -> None:
    stopped = TrialState.STOPPED
    result = load(
        *trial(0, 0.99, state=stopped), *trial(1, 0.1, 0.2, state=stopped), *trial(2, 0.1, 0.3, state=stopped)
    )
    assert result.best.id == 2
    assert (result.best.step, result.best.value) == (2, 0.3)


def test_equal_values_leave_the_best_to_the_first_trial(load: Load) -> None:
    assert load(*trial(0, 0.1), *trial(1, 0.5), *trial(2, 0.5)).best.id == 1


def test_a_failed_trial_is_not_the_best_and_a_run_without_one_says_how_it_ended(load: Load) -> None:
    result = load(*trial(0, 0.9, state=TrialState.FAILED), *trial(1, math.nan))
    with pytest.raises(AsynctuneError, match=r"^no trial has a finite acc: 1 completed, 1 failed$"):
        _ = result.best
    assert result.summary() == "2 trials in 0.0 s: 1 completed, 1 failed"
    with pytest.raises(AsynctuneError, match="no trial started"):
        _ = load().best


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    mode=st.sampled_from(["min", "max"]),
    trials=st.lists(
        st.tuples(
            st.sampled_from([TrialState.COMPLETED, TrialState.STOPPED, TrialState.FAILED, TrialState.RUNNING]),
            st.lists(st.sampled_from([0.0, -0.0, 0.5, 1.0, math.nan, math.inf, -math.inf]), max_size=3),
        ),
        max_size=8,
    ),
)
def test_the_best_is_what_its_rule_says(load: Load, mode: str, trials: list[tuple[TrialState, list[float]]]) -> None:
    header = msgspec.structs.replace(HEADER, mode=mode)
    result = load(
        *(r for i, (state, values) in enumerate(trials) for r in trial(i, *values, state=state)), header=header
    )
    able = [
        t for t in result.trials if t.state is not TrialState.FAILED and t.value is not None and math.isfinite(t.value)
    ]
    deepest = max((t.step for t in able), default=0)
    chosen = [t for t in able if t.state is TrialState.COMPLETED] or [t for t in able if t.step == deepest]
    if not chosen:
        with pytest.raises(AsynctuneError, match="no trial has a finite acc"):
            _ = result.best
        return
    direction = max if mode == "max" else min
    assert result.best == direction(chosen, key=lambda t: t.value or 0.0)


@pytest.mark.parametrize(
    ("records", "state"),
    [
        ([], TrialState.PENDING),
        ([started(0)], TrialState.RUNNING),
        ([started(0), Decided(trial=0, segment=0, step=1, action=Action.PAUSE)], TrialState.PAUSED),
        ([started(0), Decided(trial=0, segment=0, step=1, action=Action.CONTINUE, until=2)], TrialState.RUNNING),
        ([started(0), Failed(trial=0, error="boom", retry=True)], TrialState.PENDING),
        ([started(0), Failed(trial=0, error="boom", retry=False)], TrialState.FAILED),
        ([started(0), Finished(trial=0, state=TrialState.STOPPED)], TrialState.STOPPED),
    ],
)
def test_a_run_that_goes_on_shows_where_each_trial_stands(load: Load, records: list[Record], state: TrialState) -> None:
    assert load(suggested(0), *records).trials[0].state is state


def test_reports_come_back_in_order_from_a_journal_where_trials_alternate(load: Load) -> None:
    result = load(
        suggested(0),
        suggested(1),
        started(0),
        started(1),
        reported(1, 1, 0.1),
        reported(0, 1, 0.2),
        reported(1, 2, math.nan),
        reported(0, 2, 0.4),
    )
    assert result.trials[0].reports == [
        {"step": 1, "segment": 0, "acc": 0.2},
        {"step": 2, "segment": 0, "acc": 0.4},
    ]
    assert [report["step"] for report in result.trials[1].reports] == [1, 2]
    assert math.isnan(result.trials[1].reports[1]["acc"])


def test_reports_after_the_checkpoint_of_a_new_attempt_do_not_count_twice(load: Load) -> None:
    result = load(
        suggested(0),
        started(0),
        reported(0, 1, 0.1),
        reported(0, 2, 0.2),
        reported(0, 3, 0.3),
        Failed(trial=0, error="boom", retry=True),
        started(0, 1, how="retried", checkpoint="0-0-1"),
        reported(0, 2, 0.25),
        Finished(trial=0, state=TrialState.COMPLETED),
    )
    assert [(report["step"], report["acc"]) for report in result.trials[0].reports] == [(1, 0.1), (2, 0.25)]
    assert result.trials[0].error is None


def test_an_exploit_opens_a_segment_with_the_new_configuration(load: Load) -> None:
    result = load(
        suggested(0),
        suggested(1),
        started(0),
        reported(0, 10, 0.1),
        started(0, 10, segment=1, donor=1, config={"lr": 0.12}, checkpoint="1-0-10", how="exploited"),
        reported(0, 20, 0.5, segment=1),
        started(0, 20, segment=1, how="resumed"),
    )
    assert result.trials[0].lineage == [Segment(0, 0, None, {"lr": 0.0}), Segment(1, 10, 1, {"lr": 0.12})]
    assert result.trials[0].config == {"lr": 0.12}
    assert [report["segment"] for report in result.trials[0].reports] == [0, 1]


def test_a_checkpoint_is_named_only_while_it_is_there(load: Load, tmp_path: Path) -> None:
    result = load(suggested(0), Saved(trial=0, segment=0, step=1, checkpoint="0-0-1"), *trial(1, 0.5))
    assert result.trials[0].checkpoint is None
    (tmp_path / CHECKPOINTS / "0-0-1").mkdir(parents=True)
    assert result.trials[0].checkpoint == tmp_path / CHECKPOINTS / "0-0-1"
    assert result.trials[1].checkpoint is None


def test_the_log_joins_the_ranges_of_every_start(load: Load, tmp_path: Path) -> None:
    (tmp_path / log_file(0)).write_bytes(b"first other\xff")
    (tmp_path / log_file(1)).write_bytes(b"xx second")
    result = load(
        suggested(0),
        Left(trial=0, segment=0, slot=0, busy=0.25, log=(0, 6)),
        Left(trial=0, segment=0, slot=1, busy=0.5, log=(3, 9)),
        suggested(1),
        Left(trial=1, segment=0, slot=0, busy=0.0, log=(11, 12)),
        suggested(2),
    )
    assert result.trials[0].log() == "first second"
    assert result.trials[1].log() == "�"
    assert result.trials[2].log() == ""
    assert result.trials[0].busy == 0.75


def test_times_are_those_of_the_records(load: Load) -> None:
    result = load(
        Suggested(time=0.1, trial=0, config={}),
        Started(time=0.3, trial=0, segment=0, step=0, until=None, slot=0),
        Started(time=0.5, trial=0, segment=0, step=0, until=None, slot=0),
        Stopping(time=2.5, reason="the time budget of 2 s is used up"),
    )
    assert (result.startup, result.wall) == (0.3, 2.5)
    assert result.stopping == "the time budget of 2 s is used up"
    assert load(suggested(0)).startup is None


def test_the_summary_names_what_a_person_wants_first(load: Load, tmp_path: Path) -> None:
    optimizer = {"name": "sgd", "momentum": 0.123456789}
    summary = str(load(suggested(0, lr=0.1, optimizer=optimizer), started(0), reported(0, 7, 0.875)))
    assert summary.splitlines() == [
        "1 trial in 0.0 s: 1 running; best acc 0.875 (trial 0, step 7)",
        "  lr = 0.1",
        "  optimizer.name = sgd",
        "  optimizer.momentum = 0.123457",
        f"run directory: {tmp_path}",
    ]


def test_a_data_frame_without_pandas_is_refused_in_one_line(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(AsynctuneError, match="to_dataframe needs pandas, which is not installed"):
        load(*trial(0, 0.5)).to_dataframe()


def test_a_data_frame_has_a_row_for_each_trial(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    class Pandas:
        DataFrame = list

    monkeypatch.setitem(sys.modules, "pandas", Pandas)
    assert load(*trial(0, 0.5), suggested(1, a={"b": 2})).to_dataframe() == [
        {"id": 0, "state": "COMPLETED", "value": 0.5, "step": 1, "config.lr": 0.0},
        {"id": 1, "state": "PENDING", "value": None, "step": 0, "config.a.b": 2},
    ]


def test_a_directory_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=f"run_dir must hold a run, .*{JOURNAL}' is missing"):
        Result.load(tmp_path)
    (tmp_path / JOURNAL).touch()
    with pytest.raises(JournalError, match="empty"):
        Result.load(tmp_path)


def test_a_record_of_an_unknown_trial_is_refused_with_its_place(load: Load) -> None:
    with pytest.raises(JournalError, match=rf"the 'reported' record at byte {len(encode(HEADER, 0))} is out of place"):
        load(reported(3, 1, 0.5))
    with pytest.raises(JournalError, match="the 'suggested' record"):
        load(suggested(1))
    with pytest.raises(JournalError, match="the 'suggested' record"):
        load(suggested(0), suggested(0))
    with pytest.raises(JournalError, match="the 'header' record"):
        load(suggested(0), HEADER)


def test_nested_names_are_paths() -> None:
    assert flat({"a": 1, "b": {"c": 2, "d": {"e": 3}}}) == {"a": 1, "b.c": 2, "b.d.e": 3}


def test_a_trial_tried_again_does_not_show_the_value_of_the_void_attempt(load: Load) -> None:
    failed = Failed(trial=0, error="OSError: x", retry=True)
    result = load(suggested(0), started(0), reported(0, 5, 0.1), failed, started(0, how="retried"))
    assert (result.trials[0].step, result.trials[0].value, result.trials[0].reports) == (0, None, [])


def test_trials_are_a_sequence(load: Load) -> None:
    trials = load(*trial(0, 0.1), *trial(1, 0.2), *trial(2, 0.3)).trials
    assert len(trials) == 3
    assert [t.id for t in trials] == [0, 1, 2]
    assert [t.id for t in trials[1:]] == [1, 2]
    assert [t.id for t in reversed(trials)] == [2, 1, 0]
    assert (trials[-1].id, trials[-1].value) == (2, 0.3)
    assert trials[1] in trials
    assert trials[1] in {trials[1]}
    assert trials.index(trials[2]) == 2
    assert trials[0] != trials[1]
    for index in (3, -4):
        with pytest.raises(IndexError):
            _ = trials[index]


def test_trials_of_two_results_are_not_equal(load: Load) -> None:
    assert load(*trial(0, 0.1)).trials[0] != load(*trial(0, 0.1)).trials[0]


def test_a_result_stays_what_it_was_while_the_journal_grows(load: Load, tmp_path: Path) -> None:
    before = [suggested(0), started(0), reported(0, 1, 0.1), Stopping(time=1.0, reason="enough")]
    result = load(*before)
    since = [
        started(0, 0, segment=1, donor=1, config={"lr": 0.7}, how="exploited"),
        reported(0, 2, 0.2, segment=1),
        Left(trial=0, segment=1, slot=0, busy=0.5, log=(0, 6)),
        Failed(trial=0, error="boom", retry=False),
        *trial(1, 0.9),
    ]
    with open(tmp_path / JOURNAL, "ab") as file:
        file.writelines(map(encode, since, count(1 + len(before))))
    [only] = result.trials
    assert (only.state, only.value, only.step, only.busy) == (TrialState.RUNNING, 0.1, 1, 0.0)
    assert (only.lineage, only.error) == ([Segment(0, 0, None, {"lr": 0.0})], None)
    assert only.reports == [{"step": 1, "segment": 0, "acc": 0.1}]
    assert result.best.id == 0


def test_a_view_of_a_journal_that_was_damaged_since_names_the_byte(load: Load, tmp_path: Path) -> None:
    result = load(*trial(0, 0.5))
    journal = bytearray((tmp_path / JOURNAL).read_bytes())
    first = len(encode(HEADER, 0))
    journal[first] = ord("?")
    (tmp_path / JOURNAL).write_bytes(journal)
    assert result.best.value == 0.5
    with pytest.raises(JournalError, match=f"no record at byte {first}"):
        _ = result.best.config
    with pytest.raises(JournalError, match=f"no record at byte {first}"):
        _ = result.best.reports


def test_a_view_of_a_journal_that_is_gone_says_so(load: Load, tmp_path: Path) -> None:
    result = load(*trial(0, 0.5))
    (tmp_path / JOURNAL).unlink()
    for name in ("config", "reports"):
        with pytest.raises(JournalError, match="cannot read .*: No such file or directory"):
            getattr(result.best, name)


def test_neither_reports_nor_configurations_stay_in_memory(load: Load, tmp_path: Path) -> None:
    def held(hyperparameters: int, reports: int) -> float:
        """Bytes that a result holds for each trial."""
        config = {f"x{i}": i / 7 for i in range(hyperparameters)}
        load(*(r for i in range(400) for r in [suggested(i, **config), *trial(i, *[0.5] * reports)[1:]]))
        tracemalloc.start()
        result = Result.load(tmp_path)
        memory, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return memory / len(result.trials)

    assert held(1, 1) < 100
    assert held(16, 20) < held(1, 1) + 16
