"""Oracle: what must hold of a run that was broken off, and of what became of it. Complaints are sentences; none is what is wanted."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asynctune as at
from asynctune import journal
from asynctune.errors import AsynctuneError
from asynctune.records import ENDED, Finished, Record, Reported, Started, Suggested
from asynctune.resume import Replay
from asynctune.rundir import CHECKPOINTS, JOURNAL
from asynctune.study import Study
from tests.digest import digest
from tests.faults import Drive
from tests.faults.scenarios import Chain, arguments

__all__ = ["Remains", "complaints", "replay", "table"]

Key = tuple[int, int, int]  # trial, segment, step


def table(run_dir: Path) -> dict[str, Any]:
    """All that came of a run and may not depend on how often it was broken off."""
    result = at.Result.load(run_dir)
    trials = [
        {
            "id": trial.id,
            "state": trial.state.name,
            "config": trial.config,
            "reports": trial.reports,
            "lineage": [(s.segment, s.step, s.donor, s.config) for s in trial.lineage],
            "error": trial.error,
        }
        for trial in result.trials
    ]
    return {"trials": trials, "best": result.best.id}


def records(run_dir: Path) -> Iterator[Record]:
    """What is in the journal; nothing where there is none."""
    path = run_dir / JOURNAL
    return journal.read(path) if path.exists() and path.stat().st_size else iter(())


def replay(drive: Drive) -> Replay:
    """The state in which a run is, or was left."""
    given = arguments(drive.scenario) | drive.options
    names = ("space", "metric", "mode", "num_trials", "searcher", "scheduler", "max_failures")
    study = {name: given[name] for name in names if name in given} | {"num_slots": drive.num_slots}
    replayed = Replay(lambda header: Study(**study))
    for record in records(drive.run_dir):
        replayed.take(record)
    return replayed


@dataclass
class Remains:
    """What a driver left behind when it died: what must not be lost from there on."""

    reports: dict[Key, dict[str, float]] = field(default_factory=dict)
    finished: set[int] = field(default_factory=set)
    notes: int = 0  # lines
    missing: set[str] = field(default_factory=set)  # checkpoints that a record needs and that are not there

    @classmethod
    def of(cls, drive: Drive) -> "Remains":
        remains = cls(notes=len(_lines(drive.notes)))
        for record in records(drive.run_dir):
            if isinstance(record, Reported):
                remains.reports[record.trial, record.segment, record.step] = record.metrics
            elif isinstance(record, Finished):
                remains.finished.add(record.trial)
        remains.missing = set(replay(drive).checkpoints) - _checkpoints(drive.run_dir)
        return remains


def complaints(drive: Drive, remains: Iterable[Remains], live: str | None) -> Iterator[str]:
    """What is wrong with a run that has come to its end, after drivers that left `remains`; `live`: the last one's digest."""
    try:
        every = list(records(drive.run_dir))
        result = at.Result.load(drive.run_dir)
        again = replay(drive)
    except AsynctuneError as error:
        yield f"the journal cannot be read: {error}"
        return
    if again.due:
        yield f"these never happened: {again.due}"
    if digest(again.study) != live:
        yield "a replay of the journal leads to another state than the driver's"
    yield from _misreports(every)
    starts = _lines(drive.notes)
    counted: dict[Key, dict[str, float]] = {}
    for trial in result.trials:
        if trial.state not in ENDED:
            yield f"trial {trial.id} is left {trial.state}"
        keys = Counter((trial.id, int(report["segment"]), int(report["step"])) for report in trial.reports)
        yield from (f"{key} counts {n} times" for key, n in keys.items() if n > 1)
        for segment in trial.lineage:
            steps = [step for _, number, step in sorted(keys) if number == segment.segment]
            if steps != list(range(segment.step + 1, segment.step + 1 + len(steps))):
                yield f"trial {trial.id}, segment {segment.segment} after step {segment.step}: its steps are {steps}"
        for report in trial.reports:
            metrics = {name: value for name, value in report.items() if name not in ("segment", "step")}
            counted[trial.id, int(report["segment"]), int(report["step"])] = metrics
    for left in remains:
        yield from (f"checkpoint {name} was gone when the driver died" for name in sorted(left.missing))
        for key, metrics in left.reports.items():
            if counted.get(key) != metrics:
                yield f"report {key} was {metrics}, and is {counted.get(key)}"
        ran = {int(line.split()[0]) for line in starts[left.notes :]}
        yield from (f"trial {trial} had finished, and ran again" for trial in sorted(left.finished & ran))
    there, needed = _checkpoints(drive.run_dir), set(again.checkpoints)
    if not there >= needed:
        yield f"checkpoints {sorted(needed - there)} are missing"
    if there - needed and "keep_checkpoints" not in drive.options:
        yield f"checkpoints {sorted(there - needed)} are of no use"


def _misreports(every: Iterable[Record]) -> Iterator[str]:
    """Reports that a trial which took every step once, from the right start, would not have made."""
    configs: dict[tuple[int, int], dict[str, Any]] = {}
    origins: dict[tuple[int, int], tuple[Key | None, int]] = {}
    chains: dict[Key, Chain] = {}

    def chain(trial: int, segment: int, step: int) -> Chain:
        known = chains.get((trial, segment, step))
        if known is None:
            origin, first = origins[trial, segment]
            if step == first:
                known = Chain() if origin is None else chain(*origin)
            else:
                known = Chain()
                known.load_state_dict(chain(trial, segment, step - 1).state_dict())
                known.advance(configs[trial, segment])
            chains[trial, segment, step] = known
        return known

    for record in every:
        if isinstance(record, Suggested):
            configs[record.trial, 0], origins[record.trial, 0] = record.config, (None, 0)
        elif isinstance(record, Started) and record.config is not None and record.checkpoint is not None:
            donor, segment, step = map(int, record.checkpoint.split("-"))
            configs[record.trial, record.segment] = record.config
            origins[record.trial, record.segment] = (donor, segment, step), step
        elif isinstance(record, Reported):
            right = chain(record.trial, record.segment, record.step).metrics(configs[record.trial, record.segment])
            if record.metrics != right:
                yield f"{record} should have {right}"


def _checkpoints(run_dir: Path) -> set[str]:
    directory = run_dir / CHECKPOINTS
    return {path.name for path in directory.iterdir()} if directory.is_dir() else set()


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []
