"""Resume, without files and processes: records are replayed into a fresh study."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import asynctune as at
from asynctune.errors import InvalidArgument, JournalError
from asynctune.records import (
    Action,
    Decided,
    Failed,
    Finished,
    Header,
    Lost,
    Record,
    Reopened,
    Reported,
    Saved,
    Started,
    Stopping,
    Suggested,
    TrialState,
)
from asynctune.resume import Replay
from asynctune.study import Study, Suggest

SPACE = {"x": at.uniform(0.0, 1.0)}
HEADER = Header(metric="loss", mode="min", num_trials=4, seed=0, space={}, searcher="", scheduler="", slots=1)


def study(scheduler: Any = None, num_trials: int = 4) -> Study:
    return Study(SPACE, metric="loss", mode="min", num_trials=num_trials, scheduler=scheduler)


def replayed(records: Iterable[Record], scheduler: Any = None, num_trials: int = 4) -> Replay:
    replay = Replay(lambda header: study(scheduler, num_trials))
    for record in (HEADER, *records):
        replay.take(record)
    return replay


def start(study: Study, slot: int = 0) -> tuple[Suggested, Started]:
    """The records with which a slot takes up a new trial."""
    offer = study.offer(slot)
    assert isinstance(offer, Suggest)
    suggested = Suggested(trial=offer.trial, config=study.space.decode(study.suggestion(offer.trial)()))
    study.apply(suggested)
    started = study.offer(slot)
    assert isinstance(started, Started)
    study.apply(started)
    return suggested, started


def reported(trial: int, step: int, loss: float = 1.0, segment: int = 0) -> Reported:
    return Reported(trial=trial, segment=segment, step=step, metrics={"loss": loss})


def reopened(num_trials: int | None = 4) -> Reopened:
    return Reopened(num_trials=num_trials, slots=1)


def test_a_trial_that_ran_is_forgotten() -> None:
    live = study()
    replay = replayed([*start(live), reported(0, 1), reported(0, 2)])
    replay.study.apply(reopened())
    assert replay.study.state(0) is TrialState.PENDING
    offer = replay.study.offer(0)
    assert isinstance(offer, Started)
    assert (offer.trial, offer.step, offer.checkpoint, offer.how) == (0, 0, None, "restarted")


def test_a_trial_does_not_go_on_from_its_checkpoint() -> None:
    live = study()
    saved = Saved(trial=0, segment=0, step=2, checkpoint="0-0-2")
    replay = replayed([*start(live), reported(0, 1), reported(0, 2), saved, reported(0, 3)])
    replay.study.apply(reopened())
    offer = replay.study.offer(0)
    assert isinstance(offer, Started)
    assert (offer.trial, offer.step, offer.checkpoint) == (0, 2, "0-0-2")
    assert replay.checkpoints == {"0-0-2"}


def test_a_decision_that_was_not_written_is_forgotten() -> None:
    scheduler = at.ASHA(max_resource=9)
    live = study(scheduler)
    records: list[Record] = [*start(live), reported(0, 1, 0.5)]
    live.apply(records[-1])
    live.apply(Decided(trial=0, segment=0, step=1, action=Action.CONTINUE, until=3))
    records += [Decided(trial=0, segment=0, step=1, action=Action.CONTINUE, until=3), *start(live, 1)]
    replay = replayed([*records, reported(1, 1, 0.9)], scheduler)
    [due] = replay.due
    assert isinstance(due, Decided)
    assert (due.trial, due.action) == (1, Action.STOP)


def test_a_decision_that_was_written_is_made_again() -> None:
    scheduler = at.ASHA(max_resource=9)
    live = study(scheduler)
    decided = Decided(trial=0, segment=0, step=1, action=Action.CONTINUE, until=3)
    assert replayed([*start(live), reported(0, 1, 0.5), decided], scheduler).due == []


def test_a_trial_that_was_stopped_runs_again() -> None:
    scheduler = at.ASHA(max_resource=9)
    live = study(scheduler)
    stop = Decided(trial=0, segment=0, step=9, action=Action.STOP)
    replay = replayed([*start(live), reported(0, 9), stop], scheduler)
    assert replay.study.apply(reopened()) == [Finished(trial=0, state=TrialState.COMPLETED)]


def test_a_trial_told_to_pause_passes_its_rung_unpaused() -> None:
    scheduler = at.ASHA(max_resource=9, type="promotion")
    live = study(scheduler)
    pause = Decided(trial=0, segment=0, step=1, action=Action.PAUSE)
    again = replayed([*start(live), reported(0, 1), pause], scheduler).study
    again.apply(reopened())
    offer = again.offer(0)
    assert isinstance(offer, Started) and offer.until == 1
    again.apply(offer)
    [decision] = again.apply(reported(0, 1))
    assert isinstance(decision, Decided) and decision.action is Action.PAUSE


def test_what_a_time_budget_paused_waits_for_ever() -> None:
    live = study()
    budget = Stopping(reason="the time budget is used up")
    pause = Decided(trial=0, segment=0, step=1, action=Action.PAUSE)
    saved = Saved(trial=0, segment=0, step=2, checkpoint="0-0-2")
    again = replayed([*start(live), reported(0, 1), budget, pause, reported(0, 2), saved]).study
    assert again.done and again.stopping
    again.apply(reopened())
    assert not again.done
    offer = again.offer(0)
    assert isinstance(offer, Started)
    assert (offer.trial, offer.step, offer.checkpoint) == (0, 2, "0-0-2")


def test_a_paused_trial_of_the_scheduler_is_started_without_being_promoted() -> None:
    scheduler = at.ASHA(max_resource=9, type="promotion")
    live = study(scheduler)
    pause = Decided(trial=0, segment=0, step=1, action=Action.PAUSE)
    saved = Saved(trial=0, segment=0, step=1, checkpoint="0-0-1")
    again = replayed([*start(live), reported(0, 1), pause, saved], scheduler).study
    again.apply(reopened())
    assert again.state(0) is TrialState.PAUSED
    assert isinstance(again.offer(0), Suggest)


def test_being_killed_by_the_end_of_a_run_counts_as_a_failure() -> None:
    live = study()
    killed = Failed(trial=0, error="WorkerDied: killed by asynctune", retry=True)
    again = replayed([*start(live), Stopping(reason="interrupted"), killed]).study
    again.max_failures = 1
    again.apply(reopened())
    offer = again.offer(0)
    assert isinstance(offer, Started)
    again.apply(offer)
    assert again.may_retry(0)


def test_a_lost_checkpoint_ends_its_trial() -> None:
    live = study()
    saved = Saved(trial=0, segment=0, step=2, checkpoint="0-0-2")
    replay = replayed([*start(live), reported(0, 1), reported(0, 2), saved, reopened()])
    again = replay.study
    offer = again.offer(0)
    assert isinstance(offer, Started)
    replay.take(offer)
    replay.take(Lost(trial=0, checkpoint="0-0-2", error="it is missing"))
    assert replay.checkpoints == set()
    offer = again.offer(0)
    assert isinstance(offer, Started)
    assert (offer.trial, offer.step, offer.checkpoint) == (0, 0, None)


def test_num_trials_is_lowered_or_raised_where_it_is_the_population() -> None:
    again = replayed([]).study
    with pytest.raises(InvalidArgument, match="num_trials may be raised from 4, got 3"):
        again.check_num_trials(3)
    again.check_num_trials(9)
    again.check_num_trials(None)
    again.apply(reopened(9))
    assert again.num_trials == 9
    population = replayed([], at.PBT(perturbation_interval=1, max_resource=4)).study
    population.check_num_trials(4)
    with pytest.raises(InvalidArgument, match="num_trials must stay 4, the size of the scheduler's population, got 9"):
        population.check_num_trials(9)


@pytest.mark.parametrize(
    "record",
    [
        reported(0, 1),
        reported(-1, 1),
        Finished(trial=7, state=TrialState.COMPLETED),
        Suggested(trial=3, config={"x": 0.5}),
        Suggested(trial=0, config={"x": 7.0}),
        Started(trial=0, segment=0, step=0, until=None, slot=0),
        Saved(trial=0, segment=0, step=1, checkpoint="0-0-1"),
    ],
)
def test_a_record_that_follows_from_nothing_is_taken(record: Record) -> None:
    with pytest.raises(JournalError, match=f"record 1, '{record.kind}', does not follow from those before"):
        replayed([record])


SCHEDULERS: list[Callable[[], Any]] = [
    at.FIFO,
    lambda: at.ASHA(max_resource=9),
    lambda: at.ASHA(max_resource=9, type="promotion"),
    lambda: at.ASHA(max_resource=9, brackets=2),
    lambda: at.PBT(perturbation_interval=2, max_resource=9),
    lambda: at.PBT(perturbation_interval=2, max_resource=9, synchronous=True),
]


class Run:
    """A run on one slot without processes, as its journal has it: what the engine does, and no more.

    A trial's loss follows from its configuration and what it has trained so far, which a checkpoint holds.
    """

    def __init__(self, scheduler: Any, num_trials: int = 6) -> None:
        self.scheduler, self.num_trials = scheduler, num_trials
        self.journal: list[Record] = []
        self.disk: dict[str, float] = {}  # checkpoint -> state
        self.budget = 10**9  # records that may still be written

    def commit(self, record: Record) -> list[Record]:
        """Let a record happen and be written; return what follows from it. Raises EOFError instead of writing one too many."""
        if self.budget == 0:
            raise EOFError
        self.budget -= 1
        self.journal.append(record)
        return [effect for effect in self.study.apply(record) if isinstance(effect, Record)]

    def follow(self, *records: Record) -> None:
        queue = list(records)
        while queue:
            queue += self.commit(queue.pop(0))

    def go(self) -> None:
        replay = Replay(lambda header: study(self.scheduler, self.num_trials))
        for record in (HEADER, *self.journal):
            replay.take(record)
        self.study = replay.study
        if self.journal:
            self.follow(*replay.due)
            if self.study.done:
                return
            self.follow(reopened(self.num_trials))
        while not self.study.done:
            offer = self.study.offer(0)
            if isinstance(offer, Suggest):
                config = self.study.space.decode(self.study.suggestion(offer.trial)())
                self.follow(Suggested(trial=offer.trial, config=config))
            else:
                assert offer is not None
                self.follow(offer)
                self.train(offer)

    def train(self, started: Started) -> None:
        trial, segment = started.trial, started.segment
        state = 0.0 if started.checkpoint is None else self.disk[started.checkpoint]
        x = self.study.config(trial)["x"]
        for step in range(started.step + 1, 10):
            state = 0.7 * state + (x - 0.3) ** 2 * ((step * 7) % 5)
            self.follow(reported(trial, step, state, segment))
            if self.study.state(trial) is not TrialState.RUNNING or not self.study.runs_on(trial):
                break
            if step % 3 == 0:
                self.save(trial, segment, step, state)
        if self.study.state(trial) is TrialState.RUNNING:
            told = self.study._trials[trial].told
            if told is Action.PAUSE:
                self.save(trial, segment, step, state)
            else:
                self.follow(Finished(trial=trial, state=self.study.final_state(trial)))

    def save(self, trial: int, segment: int, step: int, state: float) -> None:
        name = f"{trial}-{segment}-{step}"
        self.disk[name] = state
        self.follow(Saved(trial=trial, segment=segment, step=step, checkpoint=name))

    def table(self) -> Any:
        """What is left when all is over: the reports that count, the states, the configurations."""
        reports: dict[tuple[int, int, int], float] = {}
        for record in self.journal:
            if isinstance(record, Reported):
                key = (record.trial, record.segment, record.step)
                assert reports.setdefault(key, record.metrics["loss"]) == record.metrics["loss"]
        count = range(len(self.study))
        return sorted(reports.items()), [
            (self.study.state(i), self.study.config(i), self.study.segment(i)) for i in count
        ]


@pytest.mark.parametrize("make", SCHEDULERS)
def test_a_run_cut_off_at_any_record_ends_otherwise(make: Callable[[], Any]) -> None:
    whole = Run(make())
    whole.go()
    expected = whole.table()
    exploits = any(isinstance(record, Started) and record.donor is not None for record in whole.journal)
    assert exploits == isinstance(make(), at.PBT)
    for point in range(1, len(whole.journal)):
        run = Run(make())
        run.budget = point
        with pytest.raises(EOFError):
            run.go()
        run.budget = 10**9
        run.go()
        assert run.table() == expected, point


@settings(max_examples=60, deadline=None)
@given(make=st.sampled_from(SCHEDULERS), lives=st.lists(st.integers(1, 25), max_size=12))
def test_a_run_that_is_cut_off_again_and_again_ends_otherwise(make: Callable[[], Any], lives: list[int]) -> None:
    whole, run = Run(make()), Run(make())
    whole.go()
    for life in lives:
        run.budget = life
        try:
            run.go()
        except EOFError:
            continue
        break
    run.budget = 10**9
    run.go()
    assert run.table() == whole.table()
