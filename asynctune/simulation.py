"""Simulate: a study under a virtual clock. Slots, start-up costs, failures and stragglers as a benchmark has them; nothing waits.

The study is the one that a real run has, and so are the records: what differs is who makes them, workers or an arithmetic of times.
"""

import heapq
import itertools
import math
import os
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from asynctune import journal
from asynctune._core import SEED, Stream
from asynctune.errors import InvalidArgument, check_integer, check_real, check_seconds
from asynctune.observations import Observations
from asynctune.records import (
    CONTINUE,
    PAUSE,
    STOP,
    Config,
    Decided,
    Failed,
    Finished,
    Left,
    Record,
    Reported,
    Saved,
    Started,
    Stopping,
    Suggested,
)
from asynctune.results import Result, observed
from asynctune.rundir import JOURNAL
from asynctune.schedulers import Scheduler
from asynctune.searchers import Searcher
from asynctune.space import Space
from asynctune.study import Release, Save, Study, Suggest
from asynctune.tabular import Once

__all__ = ["Benchmark", "CurveBenchmark", "Shell", "StepBenchmark", "simulate"]


#: Records that are handed over at a time. Kept and counted in turn with what makes them, each would take twice as long.
PORTION = 500

#: Ends of trials, beyond one for each slot, at the same time: then it does not pass.
STANDSTILL = 10_000


class Benchmark(Protocol):
    """What there is to tune, without the training: a `CurveBenchmark` or a `StepBenchmark`.

    Attributes:
        space: a dict of domains, or a `Space`.
        metric: the metric that decides.
        mode: `"min"` or `"max"`.
        max_resource: the step at which a trial ends by itself, an integer >= 1.

    What a benchmark raises fails the trial; an `InvalidArgument`, though, is about the benchmark, and goes through. A value that is NaN fails
    the trial as well, in its step and at its time; infinite ones are scores like others, and the worst.
    """

    @property
    def space(self) -> Mapping[str, Any] | Space: ...
    @property
    def metric(self) -> str: ...
    @property
    def mode(self) -> Literal["min", "max"]: ...
    @property
    def max_resource(self) -> int: ...


@runtime_checkable
class CurveBenchmark(Benchmark, Protocol):
    """Whole learning curves, by configuration."""

    def evaluate(
        self, config: dict[str, Any], seed: int
    ) -> tuple[Sequence[float] | npt.NDArray[Any], Sequence[float] | npt.NDArray[Any]]:
        """A trial's values after each step, (max_resource,), and the seconds from its beginning to then, (max_resource,): they never decrease.

        `seed` is the trial's, 0 <= seed < 2**31. The call may come again, when a trial goes on that had paused: the same arguments, the same curve.
        """


@runtime_checkable
class StepBenchmark(Benchmark, Protocol):
    """Training step by step, for hyperparameters that change while it goes on."""

    def step(self, state: Any, config: dict[str, Any], seed: int) -> tuple[Any, float, float]:
        """One step from `state` (None: from scratch). Return the state after it, the value there, and the seconds that it took, >= 0.

        The state is a new one: the old one may be another trial's checkpoint. `seed` is this very step's, 0 <= seed < 2**31, and another one
        when the step is tried again after a failure.
        """


def simulate(
    benchmark: CurveBenchmark | StepBenchmark,
    *,
    searcher: Searcher | None = None,
    scheduler: Scheduler | None = None,
    num_trials: int | None = None,
    num_slots: int = 4,
    seed: int = 0,
    time_budget: float | None = None,
    max_failures: int = 0,
    startup: float = 0.0,
    run_dir: str | os.PathLike[str] | None = None,
    points_to_evaluate: Sequence[Config] = (),
    observations: Observations | str | os.PathLike[str] = (),
) -> Result:
    """Run a study on a benchmark under a virtual clock: `at.run` without workers, in the time that decisions take.

    Deterministic: equal arguments give equal records. Suggestions and saving take no time. What falls on the same instant happens in the
    order of trials.

    Args:
        benchmark: a `CurveBenchmark` such as `at.Tabular`, or a `StepBenchmark`.
        searcher, scheduler, num_trials, seed, max_failures, points_to_evaluate, observations: as `at.run` has them. Without `num_trials`, steps have
            to take time, unless the searcher is `Grid`; `Tabular.once()` then has as many trials as configurations.
        num_slots: how many trials run at a time, an integer >= 1.
        time_budget: virtual seconds after which the run ends; what runs then pauses at its next report.
        startup: virtual seconds that each start costs before the first step, unless the trial goes on in the slot that still holds it.
        run_dir: where a journal goes, for `Result.load`; None: nothing is written, the records stay in memory.

    Raises:
        InvalidArgument: an argument breaks its rule, a curve is not `max_resource` long or goes back in time, or a scheduler would change
            configurations of a `CurveBenchmark`.
        RunFailed: the first trials all fail in the same way, or all trials do.
    """
    num_slots = check_integer("num_slots", num_slots, at_least=1)
    startup = check_real("startup", startup, 0.0, sys.float_info.max)
    if time_budget is not None:
        check_seconds("time_budget", time_budget)
    curves = isinstance(benchmark, CurveBenchmark)
    if isinstance(benchmark, type) or curves is isinstance(benchmark, StepBenchmark):
        raise InvalidArgument(
            f"a benchmark must be an object with space, metric, mode, max_resource, and either evaluate or step, got {benchmark!r}"
        )
    check_integer("max_resource of a benchmark", benchmark.max_resource, at_least=1)
    left = None
    if isinstance(benchmark, Once):
        left = benchmark.left
        finite = isinstance(searcher, Searcher) and searcher.size(benchmark.space) is not None
        if left and num_trials is None and not finite:
            num_trials = left
    study = Study(
        benchmark.space,
        metric=benchmark.metric,
        mode=benchmark.mode,
        num_trials=num_trials,
        searcher=searcher,
        scheduler=scheduler,
        seed=seed,
        max_failures=max_failures,
        num_slots=num_slots,
        points_to_evaluate=points_to_evaluate,
        observations=observed(observations, benchmark.metric),
    )
    study.check_end(time_budget)
    if left is not None and (study.num_trials is None or study.num_trials > left):
        raise InvalidArgument(
            f"num_trials must be <= the {left} configurations that have not come up, got {study.num_trials}"
        )
    if curves and study.changes_configs:
        raise InvalidArgument(
            f"{study.scheduler!r} changes configurations, which takes a benchmark with step, not evaluate"
        )
    if study.num_trials is not None:
        num_slots = min(num_slots, study.num_trials)
    header = study.header(num_slots)
    simulation = _Simulation(study, benchmark, num_slots, startup, time_budget)
    records = itertools.chain([header], simulation.run())
    if run_dir is None:
        result = Result.of(records)
    else:
        path = Path(run_dir).expanduser().absolute()
        journal.write(path / JOURNAL, records)
        result = Result.load(path)
    result.check(simulation.failure)
    return result


class Shell:
    """A study driven by hand: what a slot asks is answered, what happens has its effects, and nothing else does.

    Attributes:
        records: what has happened, in order; whoever reads them may take them away.
    """

    def __init__(self, study: Study) -> None:
        self.study = study
        self.records: list[Record] = []

    def ask(self, slot: int, time: float) -> Started | None:
        """A free slot takes up what it is to run next, with a suggestion first if that is a new trial. None: there is nothing now."""
        study = self.study
        offer = study.offer(slot, time=time)
        if type(offer) is Suggest:
            config = study.space.decode(study.suggestion(offer.trial)())
            self.happen(Suggested(time=time, trial=offer.trial, config=config))
            offer = study.offer(slot, time=time)
        if type(offer) is not Started:
            return None
        self.happen(offer)
        return offer

    def happen(self, record: Record) -> None:
        """Let `record` happen, and then, in turn, all that follows from it."""
        due = [record]
        for each in due:  # which grows meanwhile
            self.records.append(each)
            for effect in self.study.apply(each):
                if isinstance(effect, (Save, Release)):
                    due += self.carry_out(effect)
                else:
                    due.append(effect)
            if type(each) is Decided or type(each) is Stopping:
                due += self.obey(each)

    def carry_out(self, effect: Save | Release) -> Sequence[Record]:
        """What comes of an effect on a checkpoint."""
        return ()

    def obey(self, record: Decided | Stopping) -> Sequence[Record]:
        """What comes of a decision, of one on the whole run too."""
        return ()


_Step = tuple[float, float, Any]  # when it is over, the value, the state


class _Job:
    """One start of a trial in a slot."""

    __slots__ = ("began", "next", "segment", "slot", "state", "step", "told", "training", "trial")

    def __init__(self, started: Started, state: Any, began: float, training: Iterator[_Step]) -> None:
        self.trial = started.trial
        self.segment = started.segment
        self.slot = started.slot
        self.step = started.step  # the last one that is over
        self.state = state  # after that
        self.began = began
        self.training = training
        self.next: _Step | Exception | None = None  # what comes of the next step; None: there is none
        self.told = CONTINUE


class _Simulation(Shell):
    """Virtual slots: each step of a job is an event, and the clock goes from one to the next.

    Attributes:
        failure: why the run is to end with an error.
    """

    def __init__(
        self,
        study: Study,
        benchmark: CurveBenchmark | StepBenchmark,
        num_slots: int,
        startup: float,
        time_budget: float | None,
    ) -> None:
        super().__init__(study)
        self._training: Callable[[Started, Any, float], Iterator[_Step]] = (
            partial(self._curve, benchmark)
            if isinstance(benchmark, CurveBenchmark)
            else partial(self._steps, benchmark)
        )
        self._metric = study.metric
        self._startup = startup
        self._time_budget = math.inf if time_budget is None else time_budget
        self._now = 0.0
        self._events: list[tuple[float, int, _Job]] = []  # a heap; one at most of each trial: jobs are not compared
        self._jobs: dict[int, _Job] = {}  # by trial, those that run
        self._idle = deque(range(num_slots))  # slots, in the order in which they began to wait
        self._states: dict[str, Any] = {}  # by checkpoint; a curve needs none
        self._ended: _Job | None = None  # the last one
        self._since = 0.0  # the last time at which one ended
        self._at_once = 0  # how many did then
        self._most_at_once = math.inf if study.num_trials is not None else num_slots + STANDSTILL
        self.failure: str | None = None

    def run(self) -> Iterator[Record]:
        """All that happens, in order."""
        self._fill()
        events, records = self._events, self.records
        while events:
            time, _, job = events[0]
            if time > self._time_budget and not self.study.stopping:
                self._now = self._time_budget
                reason = f"the time budget of {self._time_budget:g} s is used up"
                self.happen(Stopping(time=self._now, reason=reason))
            else:
                self._now = time
                self._step(job)
            if len(records) >= PORTION or not events:
                yield from records
                records.clear()

    # A slot's life.

    def _fill(self) -> None:
        """Slots that wait take up what there is, one after the other."""
        while self._idle and self._take(self._idle[0]):
            self._idle.popleft()

    def _take(self, slot: int) -> bool:
        """A free slot takes up what comes next. Return whether there is anything."""
        held = self.study.held(slot)
        started = self.ask(slot, self._now)
        if started is None:
            return False
        trial = started.trial
        warm = started.how == "resumed" and held == trial
        began = self._now if warm else self._now + self._startup
        state = None if started.checkpoint is None else self._states.get(started.checkpoint)
        job = self._jobs[trial] = _Job(started, state, began, self._training(started, state, began))
        heapq.heappush(self._events, (self._train(job, began), trial, job))
        return True

    def _curve(self, benchmark: CurveBenchmark, started: Started, state: None, began: float) -> Iterator[_Step]:
        """The steps of a start, from the time `began` on: those of a curve after the last that is over."""
        study, steps = self.study, benchmark.max_resource
        curve = benchmark.evaluate(study.config(started.trial), study.trial_seed(started.trial))
        try:
            values, elapsed = map(_listed, curve)
            lengths = len(values), len(elapsed)
        except (TypeError, ValueError):
            raise InvalidArgument(f"evaluate must return values and seconds, got {curve!r:.200}") from None
        if lengths != (steps, steps):
            what = "{} values and {} times".format(*lengths)
            raise InvalidArgument(f"a curve must have max_resource = {steps} steps, got {what}")
        last = elapsed[started.step - 1] if started.step else 0.0
        origin, now = began - last, began
        for step in range(started.step, steps):
            time = elapsed[step]
            if not last <= time < math.inf:
                raise InvalidArgument(
                    f"the times of a curve must be finite and never decrease, got {time} after {last}"
                )
            last = time
            now = max(now, origin + time)  # the sum, rounded, may be a little less
            yield now, float(values[step]), None

    def _steps(self, benchmark: StepBenchmark, started: Started, state: Any, began: float) -> Iterator[_Step]:
        """The same, computed one by one."""
        study = self.study
        attempt = study.failures(started.trial)
        for step in range(started.step + 1, benchmark.max_resource + 1):
            stream = Stream(study.seed, SEED, started.trial, started.segment, step)
            for _ in range(attempt):
                stream.below(2**31)
            done = benchmark.step(state, study.config(started.trial), stream.below(2**31))
            try:
                state, value, seconds = done
            except (TypeError, ValueError):
                raise InvalidArgument(f"step must return a state, a value and seconds, got {done!r:.200}") from None
            if not 0 <= seconds < math.inf:
                raise InvalidArgument(f"the seconds of a step must be finite and >= 0, got {seconds}")
            began += float(seconds)
            yield began, float(value), state

    def _train(self, job: _Job, began: float) -> float:
        """Find out what comes of a job's next step. Return when that is over."""
        try:
            job.next = upcoming = next(job.training, None)
        except InvalidArgument:
            raise
        except Exception as error:  # noqa: BLE001 - the trial fails, whatever it is
            job.next = error
            return began
        return began if upcoming is None else upcoming[0]

    def _step(self, job: _Job) -> None:
        """What is on top of the heap: a step of `job` is over, or fails, or there is none any more."""
        upcoming = job.next
        if not isinstance(upcoming, tuple):
            self._end(job, self._finished(job) if upcoming is None else self._failed(job, upcoming))
            return
        _, value, job.state = upcoming
        job.step += 1
        if math.isnan(value):
            self._end(job, self._failed(job, ArithmeticError(f"the value of step {job.step} is NaN")))
            return
        metrics = {self._metric: value}
        self.happen(Reported(time=self._now, trial=job.trial, segment=job.segment, step=job.step, metrics=metrics))
        if job.told is CONTINUE:
            heapq.heapreplace(self._events, (self._train(job, self._now), job.trial, job))
        elif job.told is STOP:
            self._end(job, self._finished(job))
        else:
            self._end(job, self._saved(job))

    def _end(self, job: _Job, record: Record) -> None:
        """The job on top of the heap is over, as `record` says; its slot takes up what comes next, and so may those that wait."""
        heapq.heappop(self._events)
        del self._jobs[job.trial]
        self._ended = job
        if self._now > self._since:
            self._since, self._at_once = self._now, 0
        self._at_once += 1
        if self._at_once > self._most_at_once:
            raise InvalidArgument(
                f"without num_trials, steps must take time, got {self._at_once:,} ends of trials after {self._now:g} s, all at once"
            )
        busy = self._now - job.began if self._now > job.began else 0.0  # it may have failed before
        self.happen(Left(time=self._now, trial=job.trial, segment=job.segment, slot=job.slot, busy=busy, log=(0, 0)))
        self.happen(record)
        if self._take(job.slot):
            self._fill()
        else:
            self._idle.append(job.slot)

    # What happens.

    def _finished(self, job: _Job) -> Record:
        return Finished(time=self._now, trial=job.trial, state=self.study.final_state(job.trial))

    def _failed(self, job: _Job, error: Exception) -> Record:
        line = " ".join(f"{type(error).__name__}: {error}".split())
        text = "".join(traceback.format_exception(error))
        retry = self.study.may_retry(job.trial)
        return Failed(time=self._now, trial=job.trial, error=line, traceback=text, retry=retry)

    def _saved(self, job: _Job) -> Record:
        name = f"{job.trial}-{job.segment}-{job.step}"
        if job.state is not None:
            self._states[name] = job.state
        return Saved(time=self._now, trial=job.trial, segment=job.segment, step=job.step, checkpoint=name)

    def carry_out(self, effect: Save | Release) -> Sequence[Record]:
        if isinstance(effect, Release):
            self._states.pop(effect.checkpoint, None)
            return ()
        assert self._ended is not None and self._ended.trial == effect.trial
        return (self._saved(self._ended),)

    def obey(self, record: Decided | Stopping) -> Sequence[Record]:
        if isinstance(record, Decided):
            if (job := self._jobs.get(record.trial)) is not None:
                job.told = record.action
        elif record.failed:  # what runs is RUNNING to the end
            self.failure = record.reason
            self._events.clear()
        else:
            return [self._pause(job) for job in self._jobs.values() if self.study.runs_on(job.trial)]
        return ()

    def _pause(self, job: _Job) -> Record:
        return Decided(time=self._now, trial=job.trial, segment=job.segment, step=job.step, action=PAUSE)


def _listed(numbers: Sequence[float] | npt.NDArray[Any]) -> Sequence[float]:
    """Numbers as Python has them, which it takes one by one in a tenth of the time."""
    return numbers.tolist() if isinstance(numbers, np.ndarray) else numbers
