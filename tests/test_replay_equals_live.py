"""P7, replay equals live: the records of a run, written down and read back, lead a fresh study to the same state, byte for byte.

Compared after every record, for every scheduler and searcher: sequences of events that hypothesis makes up, and whole runs.
"""

import collections
import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import asynctune as at
from asynctune import journal
from asynctune.records import (
    ENDED,
    Action,
    Decided,
    Failed,
    Finished,
    Left,
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
from asynctune.schedulers import Scheduler
from asynctune.searchers import Searcher
from asynctune.study import Study, Suggest
from tests.digest import digest, state
from tests.faults import ROOT
from tests.faults.scenarios import SCENARIOS, arguments

SPACE = {
    "lr": at.loguniform(1e-3, 1.0),
    "units": at.ordinal([16, 32, 64]),
    "layer": at.choice(["plain", {"leak": at.uniform(0.0, 0.5)}, (1, 2), None]),
    "sizes": at.randint(1, 9),
}
CONFIG = {"lr": 0.1, "units": 32, "layer": "plain", "sizes": 3}
SCHEDULE = [(0, CONFIG), (2, CONFIG | {"lr": 0.2}), (5, CONFIG | {"layer": {"leak": 0.25}})]
SEARCHERS = [at.Random(), at.Grid(), at.Sobol(), at.HyperOpt(startup=2), at.TPE(startup=2)]
SCHEDULERS = [
    at.FIFO(),
    at.ASHA(9),
    at.ASHA(9, brackets=2),
    at.ASHA(9, type="promotion"),
    at.ASHA(9, brackets=3, type="promotion"),
    at.Hyperband(9, synchronous=True),
    at.MedianStopping(min_samples=1),
    at.MedianStopping(grace_period=2, min_samples=1, interval=2, max_resource=7),
    at.PASHA(8, reduction_factor=2),
    at.Replay(SCHEDULE),
    at.Replay(SCHEDULE, max_resource=7),
    at.PBT(2, 8, synchronous=False),
    at.PBT(2, 8, synchronous=True),
    at.PBT(3, 8, burn_in=4, quantile_fraction=0.5),
    at.PB2(1, 8, quantile_fraction=0.5),
]
SCORES = [0.0, 1.0, 2.0, 1.0, -1.0, 0.5, 1e300, float("nan"), float("inf"), float("-inf")]


class Shell:
    """A shell around a study in which anything happens that may: what does is told by integers. Keeps records and digests."""

    def __init__(self, make: Any, seed: int) -> None:
        self.study: Study = make()
        self.records: list[Record] = []
        self.digests: list[str] = []
        self.time = 0.0
        self.seed = seed
        self.running: dict[int, int] = {}  # trial -> slot

    def commit(self, record: Record) -> None:
        queue = collections.deque([record])
        while queue:
            record = queue.popleft()
            queue += [effect for effect in self.study.apply(record) if isinstance(effect, Record)]
            self.records.append(record)
            self.digests.append(digest(self.study))
            if isinstance(record, Finished | Failed) or (isinstance(record, Saved) and self.paused(record.trial)):
                self.running.pop(record.trial, None)

    def paused(self, trial: int) -> bool:
        return self.study.state(trial) is TrialState.PAUSED

    def take(self, what: int, who: int, value: int) -> None:
        """One event, if it can happen now."""
        self.time += 0.25
        study = self.study
        if what == 12 and value < 64:
            self.commit(Reopened(time=self.time, num_trials=6, slots=4))
            self.running.clear()
            return
        if not self.running or what < 3:
            self.start()
            return
        trial = sorted(self.running)[who % len(self.running)]
        segment, step = study.segment(trial), study.step(trial)
        match what:
            case 3 | 4 | 5 | 6 | 7 if study.runs_on(trial):
                metrics = {"score": SCORES[value % len(SCORES)]}
                after = step + 1 + (value % 7 == 6)
                self.commit(Reported(time=self.time, trial=trial, segment=segment, step=after, metrics=metrics))
            case 8 if step and study.runs_on(trial):
                self.save(trial)
            case 9:
                self.leave(trial)
                self.commit(Failed(time=self.time, trial=trial, error="ValueError: no", retry=study.may_retry(trial)))
            case 10 if step:
                self.leave(trial)
                self.commit(Finished(time=self.time, trial=trial, state=study.final_state(trial)))
            case 11 if value < 8 and not study.stopping:
                self.commit(Stopping(time=self.time, reason="on request"))
            case 11 if (checkpoint := study.checkpoint(trial)) is not None and study.runs_on(trial):
                self.commit(Lost(time=self.time, trial=trial, checkpoint=checkpoint, error="no such directory"))
                self.running.pop(trial)
        if trial in self.running:
            self.obey(trial)

    def obey(self, trial: int) -> None:
        """Do what the trial has been told."""
        told = next((r.action for r in reversed(self.records) if isinstance(r, Decided) and r.trial == trial), None)
        if self.study.runs_on(trial):
            return
        if told is Action.PAUSE:
            self.save(trial)
        elif told is Action.STOP:
            self.leave(trial)
            self.commit(Finished(time=self.time, trial=trial, state=self.study.final_state(trial)))

    def save(self, trial: int) -> None:
        segment, step = self.study.segment(trial), self.study.step(trial)
        name = f"{trial}-{segment}-{step}"
        self.commit(Saved(time=self.time, trial=trial, segment=segment, step=step, checkpoint=name))

    def leave(self, trial: int) -> None:
        slot = self.running[trial]
        self.commit(
            Left(time=self.time, trial=trial, segment=self.study.segment(trial), slot=slot, busy=0.1, log=(0, 1))
        )

    def start(self) -> None:
        free = next(slot for slot in itertools.count() if slot not in self.running.values())
        if free >= 4:
            return
        offer = self.study.offer(free, time=self.time)
        if isinstance(offer, Suggest):
            row = (
                at.Random()
                .bind(space=self.study.space, seed=self.seed, num_trials=None, rows=self.study._rows)
                .prepare(offer.trial)()
            )
            self.commit(Suggested(time=self.time, trial=offer.trial, config=self.study.space.decode(row)))
        elif isinstance(offer, Started):
            self.running[offer.trial] = free
            self.commit(offer)


def differing(live: Study, replayed: Study) -> Iterator[str]:
    """Where two studies differ, in words."""
    mine, theirs = state(live)["Study"], state(replayed)["Study"]
    for (name, value), (_, other) in zip(mine, theirs, strict=True):
        if value != other:
            yield f"{name}: {value} live, {other} replayed"


@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=repr)
@pytest.mark.parametrize("searcher", SEARCHERS, ids=repr)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(events=st.binary(max_size=300), mode=st.sampled_from(["min", "max"]), seed=st.integers(0, 3))
def test_a_replayed_journal_leads_elsewhere(
    scheduler: Scheduler, searcher: Searcher, events: bytes, mode: Literal["min", "max"], seed: int
) -> None:
    def make() -> Study:
        return Study(
            SPACE,
            metric="score",
            mode=mode,
            num_trials=6,
            searcher=searcher,
            scheduler=scheduler,
            seed=seed,
            max_failures=1,
            num_slots=4,
        )

    shell = Shell(make, seed)
    for event in zip(*(iter(events),) * 3, strict=False):
        shell.take(event[0] % 13, event[1], event[2])
    replayed = make()
    for number, record in enumerate(shell.records):
        replayed.apply(journal.decode(journal.encode(record, number)))
        if digest(replayed) != shell.digests[number]:
            # Where: from the records up to here, once more, by both ways.
            live = make()
            for each in shell.records[: number + 1]:
                live.apply(each)
            raise AssertionError(f"after {record}: " + "; ".join(differing(live, replayed)))


@pytest.mark.parametrize("slots", ["inline", 3])
@pytest.mark.parametrize("scenario", sorted(set(SCENARIOS) - {"bohb"}))
def test_a_finished_run_replays_to_another_state(tmp_path: Path, scenario: str, slots: int | Literal["inline"]) -> None:
    if scenario == "hyperopt" and slots != "inline":
        pytest.skip("the same as inline, but for an import of two seconds in another process")
    digests: list[str] = []
    tuner = at.Tuner(
        **arguments(scenario),
        slots=slots,
        run_dir=tmp_path / "run",
        checkpoint_every=0.001,
        callbacks=[lambda record: digests.append(digest(tuner._study))],
    )
    at.run.__wrapped__(tuner)  # type: ignore[attr-defined]
    fresh = at.Tuner(**arguments(scenario), slots=slots, run_dir=tmp_path / "another")._study
    records = journal.read(tmp_path / "run" / "journal.jsonl")
    next(records)  # the header
    for number, record in enumerate(records):
        fresh.apply(record)
        assert digest(fresh) == digests[number], f"after record {number}: {record}"
    assert number + 1 == len(digests) > 20


def test_a_digest_depends_on_the_seed_of_hashes() -> None:
    code = """
import asynctune as at
from tests.digest import digest
study = at.Study({"x": at.uniform(0.0, 1.0), "c": at.choice(["a", "b", "c"])}, metric="m", mode="min", num_trials=9,
                 searcher=at.HyperOpt(startup=2), scheduler=at.ASHA(9, type="promotion"))
while job := study.ask():
    study.tell(job.trial_id, step=job.until, m=job.trial_id % 4)
print(digest(study))
"""
    said = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(said) == 1


def test_a_digest_misses_a_change() -> None:
    study = Study(SPACE, metric="score", mode="max", num_trials=9, scheduler=at.ASHA(9, type="promotion"))
    seen = {digest(study)}
    for number in itertools.count(1):
        job = study.ask()
        if job is None:
            break
        seen.add(digest(study))
        study.tell(job.trial_id, step=job.until or 1, score=float(number % 5))
        seen.add(digest(study))
        assert len(seen) == 1 + 2 * number
    assert number > 9 and study.count(TrialState.STOPPED) + study.count(TrialState.COMPLETED) == 9
    assert all(study.state(trial) in ENDED for trial in range(9))
