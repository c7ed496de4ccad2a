"""The study as a shell drives it: any number of slots, any order, failures; and as people drive it, by ask and tell."""

import gc
import math
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import asynctune as at
from asynctune.errors import AsynctuneError, InvalidArgument
from asynctune.records import (
    ENDED,
    Action,
    Decided,
    Failed,
    Finished,
    Record,
    Reported,
    Saved,
    Started,
    Stopping,
    Suggested,
    TrialState,
)
from asynctune.study import Release, Save, Study, Suggest

SPACE = {"lr": at.loguniform(1e-4, 1.0), "layers": at.randint(1, 5)}


class Shell:
    """A shell without processes: it drives a study on `slots` slots in an order drawn from `seed`, and keeps the books
    on checkpoints that a real one would keep on disk."""

    def __init__(self, study: Study, slots: int, seed: int, *, fail: float = 0.0, longest: int = 30) -> None:
        self.study = study
        self.random = random.Random(seed)
        self.slots: list[Started | None] = [None] * slots
        self.fail = fail
        self.longest = longest
        self.records: list[Record] = []
        self.disk: set[str] = set()
        self.saving: dict[int, tuple[int, int]] = {}
        self.trained: dict[int, list[tuple[int, int]]] = {}  # trial -> (segment, step) in the order of training

    def commit(self, record: Record) -> None:
        effects = self.study.apply(record)
        self.records.append(record)
        for effect in effects:
            match effect:
                case Record():
                    self.commit(effect)
                case Release(checkpoint):
                    self.disk.remove(checkpoint)
                case Save(trial):
                    self.save(trial, self.study.segment(trial), self.study.step(trial))

    def save(self, trial: int, segment: int, step: int) -> None:
        name = f"{trial}-{segment}-{step}"
        self.disk.add(name)
        self.commit(Saved(trial=trial, segment=segment, step=step, checkpoint=name))

    def start(self, slot: int) -> bool:
        offer = self.study.offer(slot)
        if isinstance(offer, Suggest):
            self.commit(
                Suggested(trial=offer.trial, config=self.study.space.decode(self.study.suggestion(offer.trial)()))
            )
            offer = self.study.offer(slot)
        if not isinstance(offer, Started):
            return False
        assert offer.checkpoint is None or offer.checkpoint in self.disk, f"{offer.checkpoint} was released too early"
        self.commit(offer)
        self.slots[slot] = offer
        return True

    def advance(self, slot: int) -> None:
        """One step of training in a slot, and what comes of it."""
        started = self.slots[slot]
        assert started is not None
        trial, study = started.trial, self.study
        if self.random.random() < self.fail:
            self.slots[slot] = None
            self.commit(Failed(trial=trial, error="ValueError: chance", retry=study.may_retry(trial)))
            return
        step = max(study.step(trial), started.step) + 1
        self.trained.setdefault(trial, []).append((started.segment, step))
        before = len(self.records)
        value = self.random.choice([0.0, 1.0, 2.0, 3.0, math.nan])
        self.commit(Reported(trial=trial, segment=started.segment, step=step, metrics={"score": value}))
        for decided in [record for record in self.records[before:] if isinstance(record, Decided)]:
            if decided.action is Action.PAUSE:
                self.slots[slot] = None
                self.save(trial, started.segment, step)
            elif decided.action is Action.STOP:
                self.slots[slot] = None
                self.commit(Finished(trial=trial, state=study.final_state(trial)))
        if self.slots[slot] is not None and step >= self.longest:
            self.slots[slot] = None
            self.commit(Finished(trial=trial, state=study.final_state(trial)))

    def run(self, turns: int = 100_000) -> None:
        for _ in range(turns):
            for slot, running in enumerate(self.slots):
                if running is None:
                    self.start(slot)
            busy = [slot for slot, running in enumerate(self.slots) if running is not None]
            if not busy:
                break
            self.advance(self.random.choice(busy))
        assert self.study.done
        assert not any(self.slots)


SCHEDULERS: dict[str, Callable[[], Any]] = {
    "fifo": at.FIFO,
    "stopping": lambda: at.ASHA(max_resource=9, min_resource=1, reduction_factor=3),
    "promotion": lambda: at.ASHA(max_resource=9, min_resource=1, reduction_factor=3, type="promotion"),
    "brackets": lambda: at.ASHA(max_resource=9, min_resource=1, reduction_factor=3, brackets=2, type="promotion"),
    "pbt": lambda: at.PBT(perturbation_interval=3, max_resource=9),
    "synchronous": lambda: at.PBT(perturbation_interval=3, max_resource=9, synchronous=True),
}


def make(scheduler: str, num_trials: int = 8, **options: Any) -> Study:
    return Study(SPACE, metric="score", mode="max", num_trials=num_trials, scheduler=SCHEDULERS[scheduler](), **options)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), slots=st.integers(1, 5), fail=st.sampled_from([0.0, 0.02, 0.1]))
def test_every_run_ends_with_every_trial_ended_and_no_checkpoint_lost(
    scheduler: str, seed: int, slots: int, fail: float
) -> None:
    study = make(scheduler, num_slots=slots, seed=seed % 1000, max_failures=1)
    shell = Shell(study, slots, seed, fail=fail, longest=12)
    shell.run()
    if any(isinstance(record, Stopping) for record in shell.records):  # the first three happened to fail
        return
    assert all(study.state(trial) in ENDED for trial in range(8))
    best = {f"{study.best}-{study.segment(study.best)}-{study.step(study.best)}"} if study.best is not None else set()
    assert shell.disk == best, "of an ended run only the best trial's checkpoint is kept"
    books = study._references
    assert not (books._counts or books._ended or study._unneeded), "the books on checkpoints grow"


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), slots=st.integers(1, 4), cut=st.floats(0, 1))
def test_replayed_records_lead_to_the_same_next_decision(scheduler: str, seed: int, slots: int, cut: float) -> None:
    live = Shell(make(scheduler, num_slots=slots, max_failures=1), slots, seed, fail=0.05)
    live.run()
    records = live.records[: int(cut * len(live.records))]
    first, second = make(scheduler, num_slots=slots, max_failures=1), make(scheduler, num_slots=slots, max_failures=1)
    for record in records:
        first.apply(record)
        second.apply(record)
        assert _offer(first) == _offer(second)
    for record in live.records[len(records) :]:
        first.apply(record)
    assert _offer(first) == _offer(live.study)
    trials = range(len(live.study))
    assert [first.state(trial) for trial in trials] == [live.study.state(trial) for trial in trials]


def _offer(study: Study) -> str:
    offer = study.offer()
    return repr((offer, list(study.suggestion(offer.trial)())) if isinstance(offer, Suggest) else offer)


@pytest.mark.parametrize("scheduler", ["pbt", "synchronous"])
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), slots=st.integers(1, 10))
def test_pbt_trains_exactly_population_times_max_resource(scheduler: str, seed: int, slots: int) -> None:
    shell = Shell(make(scheduler, num_slots=slots), slots, seed)
    shell.run()
    assert sorted(len(steps) for steps in shell.trained.values()) == [9] * 8
    for trial in range(8):
        assert [step for _, step in shell.trained[trial]] == list(range(1, 10)), "nobody moves backwards or ahead"
        assert shell.study.state(trial) is TrialState.COMPLETED


def test_a_recipient_takes_the_donors_weights_and_step_under_a_new_segment() -> None:
    shell = Shell(make("pbt"), 1, seed=3)
    shell.run()
    exploits = [record for record in shell.records if isinstance(record, Started) and record.how == "exploited"]
    assert exploits
    for exploit in exploits:
        assert exploit.donor is not None and exploit.donor != exploit.trial
        assert exploit.checkpoint is not None
        donor, _, step = map(int, exploit.checkpoint.split("-"))
        assert (donor, step) == (exploit.donor, exploit.step)
        assert exploit.config is not None
        shell.study.space.check(exploit.config)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32), slots=st.integers(1, 11))
def test_a_recipient_explores_from_the_hyperparameters_that_its_weights_were_trained_with(
    seed: int, slots: int
) -> None:
    scheduler = at.PBT(2, 20, quantile_fraction=0.5, resample_probability=0.0)  # donors that exploit are frequent
    space = {"lr": at.loguniform(1e-9, 1e9)}
    shell = Shell(Study(space, metric="score", mode="max", num_trials=12, scheduler=scheduler), slots, seed)
    shell.run()
    rates: dict[str, float] = {}  # "trial-segment" -> lr
    for record in shell.records:
        if isinstance(record, Suggested):
            rates[f"{record.trial}-0"] = record.config["lr"]
        elif isinstance(record, Started) and record.config is not None and record.checkpoint is not None:
            donor = rates[record.checkpoint.rpartition("-")[0]]
            assert sorted((donor, record.config["lr"]))[1] == pytest.approx(1.2 * min(donor, record.config["lr"]))
            rates[f"{record.trial}-{record.segment}"] = record.config["lr"]


@pytest.mark.parametrize("slots", [1, 3])
def test_no_record_waits_for_the_release_of_a_whole_generation(slots: int) -> None:
    shell = Shell(make("pbt", num_trials=40), slots, seed=1)
    released: list[int] = []
    apply = shell.study.apply

    def counted(record: Record) -> Any:
        effects = apply(record)
        if not shell.study.done:
            released.append(sum(isinstance(effect, Release) for effect in effects))
        return effects

    shell.study.apply = counted  # type: ignore[method-assign]
    shell.run()
    assert sum(released) > 40, "this test would pass if nothing were released"
    assert max(released) <= 3


@pytest.mark.parametrize("searcher", [at.Random(), at.HyperOpt(startup=10_000)])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_the_garbage_collector_walks_through_no_trial(scheduler: str, searcher: Any) -> None:
    study = make(scheduler, num_trials=1000, searcher=searcher)

    def train(trials: int) -> int:
        while len(study) < trials:
            job = study.ask()
            assert job is not None
            study.tell(job.trial_id, step=job.until or 1, score=float(job.trial_id % 7))
        gc.collect()
        return len(gc.get_objects())

    before = train(100)
    assert train(900) - before < 100


def test_what_is_still_paused_when_nothing_can_start_becomes_stopped() -> None:
    shell = Shell(make("promotion"), 2, seed=0)
    shell.run()
    states = [shell.study.state(trial) for trial in range(8)]
    assert set(states) <= {TrialState.COMPLETED, TrialState.STOPPED}
    assert states.count(TrialState.STOPPED) >= 5


def test_the_first_three_trials_failing_alike_end_the_run() -> None:
    study = make("fifo")
    for trial in range(3):
        job = study.ask()
        assert job is not None
        study.finish(job.trial_id, error=f"ImportError: no module {trial}")
    assert study.stopping
    assert study.ask() is None


def test_failures_that_differ_or_come_later_do_not_end_the_run() -> None:
    study = make("fifo")
    for error in ("ValueError: a", "ValueError: b", "OSError: c", "OSError: d", "OSError: e"):
        job = study.ask()
        assert job is not None
        study.finish(job.trial_id, error=error)
    assert not study.stopping
    assert study.ask() is not None


def test_a_failed_trial_is_tried_again_as_often_as_max_failures_says() -> None:
    study = make("fifo", num_trials=1, max_failures=2)
    for _ in range(2):
        job = study.ask()
        assert job is not None and job.trial_id == 0
        study.finish(0, error="ValueError: again")
        assert study.state(0) is TrialState.PENDING
    assert study.ask() is not None
    study.finish(0, error="ValueError: for good")
    assert study.state(0) is TrialState.FAILED
    assert study.ask() is None and study.done


def test_ask_and_tell_as_the_documentation_has_it() -> None:
    study = at.Study(
        SPACE, metric="loss", mode="min", num_trials=30, searcher=at.Random(), scheduler=at.ASHA(max_resource=9), seed=0
    )
    while (job := study.ask()) is not None:
        assert job.start_step == 0 and job.until == 1 and job.restore_from is None
        for step in range(1, 10):
            decision = study.tell(job.trial_id, step=step, loss=abs(math.log10(job.config["lr"]) + 2) + 1 / step)
            if decision.action is not Action.CONTINUE:
                break
        study.finish(job.trial_id)  # does nothing: each was stopped, or reached max_resource
    assert study.done
    assert study.count(TrialState.COMPLETED) + study.count(TrialState.STOPPED) == 30
    assert 1 <= study.count(TrialState.COMPLETED) < 15
    assert study.best is not None


def test_a_promoted_trial_is_handed_out_again_with_its_own_state() -> None:
    study = make("promotion", num_trials=3)
    for value in (1.0, 3.0, 2.0):
        job = study.ask()
        assert job is not None
        assert study.tell(job.trial_id, step=1, score=value).action is Action.PAUSE
    job = study.ask()
    assert job is not None
    assert (job.trial_id, job.start_step, job.until, job.restore_from) == (1, 1, 3, "1-0-1")


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"step": 1, "accuracy": 0.5}, "'score'"),
        ({"step": 0, "score": 0.5}, "step must be an integer >= 1"),
        ({"step": 1.5, "score": 0.5}, "step must be an integer >= 1"),
    ],
)
def test_a_wrong_tell_names_the_rule(told: dict[str, Any], words: str) -> None:
    study = make("fifo")
    job = study.ask()
    assert job is not None
    with pytest.raises(InvalidArgument, match=words):
        study.tell(job.trial_id, **told)
    assert study.tell(job.trial_id, step=1, score=0.5).action is Action.CONTINUE, "nothing was lost"


def test_telling_a_trial_that_does_not_run_is_refused() -> None:
    study = make("fifo")
    with pytest.raises(InvalidArgument, match="trial_id must be one of the 0 trials so far, got 5"):
        study.tell(5, step=1, score=0.0)


def test_an_impossible_transition_is_refused() -> None:
    study = make("fifo")
    job = study.ask()
    assert job is not None
    study.tell(job.trial_id, step=1, score=0.0)
    study.finish(job.trial_id)
    with pytest.raises(AsynctuneError, match="trial 0: COMPLETED cannot become FAILED"):
        study.apply(Failed(trial=0, error="ValueError: late", retry=False))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"metric": ""}, "metric must be"),
        ({"metric": 3}, "metric must be"),
        ({"mode": "maximum"}, "mode must be 'min' or 'max', got 'maximum'"),
        ({"num_trials": 0}, "num_trials must be an integer >= 1, got 0"),
        ({"num_trials": 2.5}, "num_trials must be"),
        ({"seed": -1}, "seed must be"),
        ({"max_failures": -1}, "max_failures must be"),
        ({"space": {}}, "space"),
        ({"searcher": "random"}, "searcher must be"),
        ({"searcher": at.Random}, "searcher must be"),
        ({"scheduler": "asha"}, "scheduler must be"),
        ({"scheduler": at.PBT(perturbation_interval=1, max_resource=5), "num_trials": None}, "num_trials"),
    ],
)
def test_a_wrong_argument_names_the_rule_and_the_value(options: dict[str, Any], words: str) -> None:
    arguments: dict[str, Any] = {"space": SPACE, "metric": "score", "mode": "max", "num_trials": 5} | options
    with pytest.raises(InvalidArgument, match=words):
        Study(arguments.pop("space"), **arguments)


@pytest.mark.parametrize("scheduler", ["promotion", "pbt"])
def test_a_loop_that_finishes_whatever_it_was_told_works_with_every_scheduler(scheduler: str) -> None:
    study = make(scheduler)
    while (job := study.ask()) is not None:
        for step in range(job.start_step + 1, 10):
            if study.tell(job.trial_id, step=step, score=1.0 / (1 + job.trial_id)).action is not Action.CONTINUE:
                break
        study.finish(job.trial_id)
    assert study.done and all(study.state(trial) in ENDED for trial in range(8))


def test_a_trial_that_ends_without_a_report_has_failed() -> None:
    study = make("fifo")
    job = study.ask()
    assert job is not None
    study.finish(job.trial_id)
    assert study.state(job.trial_id) is TrialState.FAILED


@pytest.mark.parametrize("value", ["high", None, 10**400, [1.0]])
def test_a_value_that_is_no_number_changes_nothing(value: Any) -> None:
    study = make("fifo")
    job = study.ask()
    assert job is not None
    with pytest.raises((TypeError, InvalidArgument), match="metric 'score' must be"):
        study.tell(job.trial_id, step=1, score=value)
    assert study.tell(job.trial_id, step=1, score=0.5).action is Action.CONTINUE


def test_a_trial_that_is_to_pause_and_reaches_its_end_completes() -> None:
    study = Study(SPACE, metric="score", mode="max", num_trials=1, scheduler=at.ASHA(max_resource=2, min_resource=2))
    assert study.ask() is not None
    study.apply(Stopping(reason="enough"))
    study.apply(Decided(trial=0, segment=0, step=0, action=Action.PAUSE))
    [decision] = study.apply(Reported(trial=0, segment=0, step=2, metrics={"score": 1.0}))
    assert isinstance(decision, Decided) and decision.action is Action.STOP
    study.apply(decision)
    assert study.final_state(0) is TrialState.COMPLETED


def test_pausing_with_nothing_saved_ends_the_run_with_what_to_do() -> None:
    study = make("promotion")
    assert study.ask() is not None
    study.apply(Reported(trial=0, segment=0, step=1, metrics={"score": 1.0}))
    study.apply(Decided(trial=0, segment=0, step=1, action=Action.PAUSE))
    [stopping] = study.apply(Saved(trial=0, segment=0, step=1, checkpoint=None))
    assert isinstance(stopping, Stopping) and stopping.failed and "trial.track" in stopping.reason


def test_the_last_best_checkpoint_is_kept_until_the_next_is_there() -> None:
    study = make("fifo")
    for trial, score in ((0, 1.0), (1, 2.0)):
        assert study.ask() is not None
        study.tell(trial, step=1, score=score)
        effects = study.apply(Finished(trial=trial, state=TrialState.COMPLETED))
        assert effects == [Save(trial)]
        if trial == 0:
            study.apply(Saved(trial=0, segment=0, step=1, checkpoint="0-0-1"))
    assert study.apply(Saved(trial=1, segment=0, step=1, checkpoint="1-0-1")) == [Release("0-0-1")]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_the_best_trial_is_never_one_without_a_finite_value(value: float) -> None:
    study = make("fifo", num_trials=2)
    for score in (value, -1e9):
        job = study.ask()
        assert job is not None
        study.tell(job.trial_id, step=1, score=score)
        study.finish(job.trial_id)
    assert study.best == 1


def test_a_trial_of_integers_alone_gets_another_configuration() -> None:
    study = Study({"n": at.randint(1, 5), "c": at.choice(["a", "b"])}, metric="score", mode="max", num_trials=9)
    jobs = [study.ask() for _ in range(9)]
    assert [job and job.config for job in jobs] == [study.config(trial) for trial in range(9)]
