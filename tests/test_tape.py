"""The records of a simulation in memory: what comes back is what was put there."""

import math

from asynctune.records import Action, Decided, Failed, Left, Record, Reported, Saved, Started, Stopping, Suggested
from asynctune.tape import Tape

RECORDS: list[Record] = [
    Suggested(trial=0, config={"x": math.inf, "options": [1, None, {"deep": "nan"}], "on": True, "n": 2**60}),
    Started(time=0.5, trial=0, segment=0, step=0, until=3, slot=1),
    Reported(time=1e9 + 0.1, trial=0, segment=0, step=1, metrics={"score": -math.inf, "other": 5.0}),
    Decided(trial=0, segment=0, step=1, action=Action.PAUSE),
    Saved(trial=0, segment=0, step=1, checkpoint=None),
    Failed(trial=0, error="ValueError: \N{SNOWMAN}", retry=True, traceback="line\nline"),
    Left(trial=0, segment=0, slot=1, busy=2.5, log=(3, 4)),
    Stopping(reason="enough"),
]


def test_a_tape_plays_other_records() -> None:
    tape = Tape()
    taken = list(tape.take(RECORDS))
    assert taken == list(enumerate(RECORDS)) == list(tape.scan())
    assert list(tape.at([7, 0, 2, 2])) == [RECORDS[number] for number in (7, 0, 2, 2)]
    assert list(tape.take(RECORDS[:1])) == [(8, RECORDS[0])]
    assert [place for place, _ in tape.scan()] == list(range(9))


def test_a_value_that_is_nan_comes_back_as_something_else() -> None:
    tape = Tape()
    list(tape.take([Reported(trial=0, segment=0, step=1, metrics={"score": math.nan})]))
    [record] = tape.at([0])
    assert isinstance(record, Reported) and math.isnan(record.metrics["score"])


def test_the_config_of_a_record_changes_when_that_of_its_trial_does() -> None:
    tape = Tape()
    config = {"x": 1.0}
    list(tape.take([Suggested(trial=0, config=config)]))
    config["x"] = 2.0
    [record] = tape.at([0])
    assert isinstance(record, Suggested) and record.config == {"x": 1.0}
