"""Replay: a member's schedule, read back from its run, is what a trial is trained with from the beginning."""

import json
from pathlib import Path
from typing import Any

import pytest

import asynctune as at
from asynctune.errors import InvalidArgument
from asynctune.records import FAILED, Action, Finished, Header, Lost, Record, Reported, Saved, Started, Suggested
from asynctune.results import Result
from asynctune.schedulers import Replay, Resumption
from asynctune.space import Space
from tests.runs import local, options, write_journal

SPACE = {"lr": at.loguniform(1e-3, 1.0), "layer": at.choice(["plain", {"leak": at.uniform(0.0, 0.5)}])}
FIRST, SECOND, THIRD = (
    {"lr": 0.5, "layer": "plain"},
    {"lr": 0.25, "layer": "plain"},
    {"lr": 0.25, "layer": {"leak": 0.1}},
)
SCHEDULE = [(0, FIRST), (2, SECOND), (5, THIRD)]


@local
def chain(trial: at.Trial) -> None:
    """Its state is the list of all steps with the configuration of each, which a score and a file tell."""
    import json

    history: list[Any] = []
    if trial.restored is not None:
        history = json.loads((trial.restored / "history").read_text())
    trial.on_save(lambda directory: (directory / "history").write_text(json.dumps(history)))
    for step in trial.steps(9):
        history.append([step, trial.config])
        (trial.dir / "history").write_text(json.dumps(history))
        trial.report(score=trial.config["lr"] + trial.id / 100)


def histories(run_dir: Path) -> list[list[tuple[int, Any]]]:
    paths = sorted((run_dir / "trials").glob("*/history"))
    return [[(step, config) for step, config in json.loads(path.read_text())] for path in paths]


def config_at(schedule: list[tuple[int, Any]], step: int) -> Any:
    return [config for after, config in schedule if after < step][-1]


@pytest.mark.parametrize("slots", ["inline", 2])
def test_a_member_was_not_trained_with_its_schedule(tmp_path: Path, slots: int | str) -> None:
    scheduler = at.PBT(2, 9, quantile_fraction=0.5)
    result = at.run(chain, SPACE, **options(tmp_path, slots=slots, scheduler=scheduler, num_trials=4))
    schedules = [result.schedule(trial) for trial in range(4)]
    assert max(map(len, schedules)) > 2
    for schedule, history in zip(schedules, histories(tmp_path / "run"), strict=True):
        assert [after for after, _ in schedule] == sorted({after for after, _ in schedule}) and schedule[0][0] == 0
        assert history == [(step, config_at(schedule, step)) for step in range(1, 10)]
        assert schedule[-1][1] == result.trials[schedules.index(schedule)].config
    longest = max(schedules, key=len)
    again = at.run(
        chain,
        SPACE,
        **options(tmp_path, slots=slots, run_dir=tmp_path / "again", scheduler=at.Replay(longest, 9), num_trials=2),
    )
    for history in histories(tmp_path / "again"):
        assert history == [(step, config_at(longest, step)) for step in range(1, 10)]
    for trial in again.trials:
        assert again.schedule(trial.id) == longest  # which is a member of its own, whose schedule can be replayed
        assert [segment.donor for segment in trial.lineage] == [None] * len(longest)
        assert trial.state.name == "COMPLETED" and trial.step == 9


def test_a_schedule_takes_what_a_donor_did_later(tmp_path: Path) -> None:
    header = Header(metric="score", mode="max", num_trials=3, seed=0, space={}, searcher="", scheduler="", slots=1)
    configs: list[dict[str, Any]] = [{"x": number} for number in range(10)]

    def exploit(trial: int, segment: int, step: int, donor: int, checkpoint: str, config: dict[str, Any]) -> Started:
        return Started(
            trial=trial,
            segment=segment,
            step=step,
            until=None,
            slot=0,
            donor=donor,
            checkpoint=checkpoint,
            config=config,
        )

    records: list[Record] = [header]
    records += [Suggested(trial=trial, config=configs[trial]) for trial in range(3)]
    records += [Saved(trial=trial, segment=0, step=2, checkpoint=f"{trial}-0-2") for trial in (0, 1)]
    records += [exploit(0, 1, 2, 1, "1-0-2", configs[3]), Saved(trial=0, segment=1, step=4, checkpoint="0-1-4")]
    records += [exploit(1, 1, 4, 0, "0-1-4", configs[4]), Saved(trial=1, segment=1, step=6, checkpoint="1-1-6")]
    records += [exploit(0, 2, 6, 1, "1-1-6", configs[5])]
    records += [exploit(2, 1, 2, 1, "1-0-2", configs[6])]  # of a donor that has gone on since
    (tmp_path / "run").mkdir()
    write_journal(tmp_path / "run", records)
    result = Result.load(tmp_path / "run")
    assert result.schedule(0) == [(0, configs[1]), (2, configs[3]), (4, configs[4]), (6, configs[5])]
    assert result.schedule(1) == [(0, configs[1]), (2, configs[3]), (4, configs[4])]
    assert result.schedule(2) == [(0, configs[1]), (2, configs[6])]
    # What a trial was to begin with is lost: it begins from scratch with the configuration that it has.
    records += [
        Lost(trial=2, checkpoint="1-0-2", error="gone"),
        Started(trial=2, segment=1, step=0, until=None, slot=0),
    ]
    records += [
        Reported(trial=2, segment=1, step=1, metrics={"score": 0.0}),
        Finished(trial=2, state=at.TrialState.STOPPED),
    ]
    write_journal(tmp_path / "run", records)
    assert Result.load(tmp_path / "run").schedule(2) == [(0, configs[6])]
    for wrong in (3, -1, True):
        with pytest.raises(InvalidArgument, match="trial must be"):
            result.schedule(wrong)


def test_a_searcher_has_a_say_in_a_replay() -> None:
    study = at.Study(SPACE, metric="score", mode="max", num_trials=2, scheduler=at.Replay(SCHEDULE, 8))
    seen = []
    while (job := study.ask()) is not None:
        for step in range(job.start_step + 1, 9):
            seen.append((job.trial_id, step, job.config))
            if study.tell(job.trial_id, step=step, score=float(step)).action is not Action.CONTINUE:
                break
    assert study.done
    assert sorted(seen, key=lambda each: each[:2]) == [
        (trial, step, config_at(SCHEDULE, step)) for trial in range(2) for step in range(1, 9)
    ]


def test_steps_that_are_jumped_over_are_changes_of_their_own() -> None:
    bound = Replay(SCHEDULE).bind(space=Space(SPACE))
    assert bound.begin(0) == 2
    assert bound.report(0, 1, 1.0) == (Action.CONTINUE, 2, ())
    assert bound.report(0, 7, 2.0) == (Action.PAUSE, None, ())
    assert bound.resumable() is None  # not saved yet
    bound.saved(0, 7, "0-0-7")
    expected = Resumption(0, None, None, "0-0-7", 7, 2.0)
    assert bound.resumable() == expected
    bound.resume(expected)
    assert bound.explore(bound.initial(0), 0, 1, 7).tolist() == Space(SPACE).encode(THIRD).tolist()
    assert bound.report(0, 8, 0.0) == (Action.CONTINUE, None, ())
    assert bound.retried(0, 3) == 5 and bound.retried(0, 1) == 2 and bound.retried(0, 7) is None
    assert bound.resumable() is None


def test_a_slot_drops_the_trial_that_it_holds() -> None:
    bound = Replay(SCHEDULE, 8).bind(space=Space(SPACE))
    for trial in range(3):
        bound.begin(trial)
        bound.report(trial, 2, 0.0)
        bound.saved(trial, 2, f"{trial}-0-2")
    assert [resumption.trial for resumption in map(bound.resumable, (None, 2, 7)) if resumption] == [0, 2, 0]
    bound.finish(0, FAILED)
    first = bound.resumable()
    assert first is not None and first.trial == 1 and first.until == 5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Replay([]), "schedule must begin with a config for step 0, got []"),
        (lambda: Replay([(1, FIRST)]), "schedule must begin with a config for step 0"),
        (lambda: Replay([0]), "schedule must be pairs of a step and a config, got [0]"),  # type: ignore[list-item]
        (lambda: Replay([(0, FIRST), (0, SECOND)]), "a step of a schedule must be an integer >= 1, got 0"),
        (lambda: Replay(SCHEDULE, 5), "max_resource must be an integer >= 6, got 5"),
        (lambda: Replay(SCHEDULE).bind(), "Replay needs space"),
        (lambda: Replay([(0, {"lr": 0.5})]).bind(space=Space(SPACE)), "layer is missing"),
    ],
)
def test_bad_argument_is_accepted(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(InvalidArgument) as caught:
        make()
    assert message in str(caught.value)


def test_specification_is_not_a_value() -> None:
    config = dict(FIRST)
    spec = Replay([(0, config), (3, SECOND)], 9)
    config["lr"] = 0.0
    again = eval(repr(spec), {"Replay": Replay})
    assert again == spec and len({spec, again, Replay(SCHEDULE)}) == 2 and spec.schedule[0][1] == FIRST
