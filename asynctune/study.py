"""Study: the pure state machine of a run. Records in, effects out.

`apply` is the only mutation, `offer` the only question. No asyncio, no clock, no file: a live run, a resumed run and a
simulation drive the same object, and the same list of records always leads to the same state. `ask`, `tell` and
`finish` are the same two calls for people who bring their own loop.
"""

import math
from array import array
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from asynctune._core import SEED, Stream
from asynctune.errors import AsynctuneError, InvalidArgument, check_integer, check_metric, check_mode
from asynctune.observations import Known, Observation, Observations, check, encode, fingerprint, listed
from asynctune.records import (
    COMPLETED,
    CONTINUE,
    ENDED,
    FAILED,
    PAUSE,
    PAUSED,
    PENDING,
    RUNNING,
    STOP,
    STOPPED,
    Action,
    Config,
    Decided,
    Failed,
    Finished,
    Header,
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
    check_transition,
)
from asynctune.references import References
from asynctune.schedulers import FIFO, Scheduler
from asynctune.searchers import Random, Searcher
from asynctune.searchers.base import FINAL, Suggestion
from asynctune.space import Rows, Space
from asynctune.worker.trial import measurements

__all__ = ["Assignment", "Decision", "Release", "Save", "Study", "Suggest"]

_NOTHING_SAVED = (
    "this scheduler pauses trials, but trial {} has nothing to save: call trial.track(...) or trial.on_save(...); "
    "if there is no state, trial.on_save(lambda directory: None)"
)

#: The first trials that fail with one and the same exception end the run: it is the program, not the configuration.
FAIL_FAST = 3

#: The slot of who asks without one.
_NO_SLOT = -1

#: Checkpoints released with one record: more than one, since each save may add one.
_RELEASED_AT_ONCE = 2


class Suggest(NamedTuple):
    """Wanted: the configuration of a new trial. Call `suggestion(trial)`, decode its row, apply it as `Suggested`."""

    trial: int
    slow: bool  # the call may take long: off the loop, please


class Save(NamedTuple):
    """The trial that just completed is the best so far: save it if it is still at hand."""

    trial: int


class Release(NamedTuple):
    """No restart point, no triple and no best trial refers to this checkpoint any more."""

    checkpoint: str


Effect = Decided | Finished | Stopping | Save | Release


class Assignment(msgspec.Struct, frozen=True):
    """What `ask` hands out: train `trial_id` with `config` on from `start_step`.

    `restore_from` names the state to begin with, `"trial-segment-step"`: this trial's own when it was paused, the donor's
    after an exploit, None at the very beginning. The next decision is due at the step `until` (None: never).
    """

    trial_id: int
    config: dict[str, Any]
    start_step: int
    until: int | None
    restore_from: str | None
    segment: int
    donor: int | None


class Decision(msgspec.Struct, frozen=True, gc=False):
    """What `tell` answers: CONTINUE to the step `until`; PAUSE, `ask` may hand the trial out again later; or STOP."""

    action: Action
    until: int | None


class _Trial(msgspec.Struct, gc=False):
    """A trial, but for its row and its value, which lie in arrays.

    gc=False: nothing in it refers to anything else, so that the garbage collector need not walk through a million of them.
    """

    until: int | None
    state: TrialState = PENDING
    told: Action = CONTINUE
    waits: bool = False  # if PAUSED: the scheduler says when it goes on; else it paused because the run ended early
    slot: int = _NO_SLOT  # where it last ran
    segment: int = 0
    step: int = 0
    checkpoint: str | None = None
    checkpoint_step: int = 0
    failures: int = 0


class Study:
    """One run's state: its trials, its scheduler, its searcher.

    Args:
        space: a search space, as a dict of domains or a `Space`.
        metric: the name of the metric that decides.
        mode: `"min"` or `"max"`.
        num_trials: how many trials at most; None: as many as the searcher has configurations, a grid's, or no limit.
        searcher: which configurations; default `Random()`.
        scheduler: which trials go on; default `FIFO()`.
        seed: an integer >= 0. The same seed and the same order of records give the same decisions.
        max_failures: how often a trial that failed is tried again, from its last checkpoint.
        num_slots: how many trials run at a time, where known (PBT waits at its intervals if every member has a slot).
        points_to_evaluate: configurations of the first trials, in this order; the searcher's come after them.
        observations: what is known already, for the searcher to learn from: `(config, value)` or `(config, {step: value})` pairs, the result of
            another run, or another study. A value counts at the highest level that its step has reached (a rung, an interval), the first
            one there; a final value at the highest of all. Trials that were trained with more than one configuration are left out.

    Raises:
        InvalidArgument: an argument breaks its rule.

    Not thread-safe: one loop owns it.
    """

    def __init__(
        self,
        space: Mapping[str, Any] | Space,
        *,
        metric: str,
        mode: str,
        num_trials: int | None,
        searcher: Searcher | None = None,
        scheduler: Scheduler | None = None,
        seed: int = 0,
        max_failures: int = 0,
        num_slots: int | None = None,
        points_to_evaluate: Sequence[Config] = (),
        observations: Observations = (),
    ) -> None:
        check_metric(metric)
        check_mode(mode)
        if num_trials is not None:
            check_integer("num_trials", num_trials, at_least=1)
        check_integer("seed", seed, at_least=0)
        check_integer("max_failures", max_failures, at_least=0)
        searcher = Random() if searcher is None else searcher
        scheduler = FIFO() if scheduler is None else scheduler
        if not isinstance(searcher, Searcher):
            raise InvalidArgument(f"searcher must be a searcher such as at.HyperOpt(), got {searcher!r}")
        if not isinstance(scheduler, Scheduler):
            raise InvalidArgument(f"scheduler must be a scheduler such as at.ASHA(max_resource=50), got {scheduler!r}")

        self.space = space if isinstance(space, Space) else Space(space)
        self.metric = metric
        self.mode = mode
        self._points = encode(points_to_evaluate, self.space)
        known = check(listed(observations, metric), self.space)
        rows = [observation.row for observation in known]
        self._given = fingerprint(self._points), fingerprint(rows, [observation[1:] for observation in known])
        size = searcher.size(self.space)
        if size is not None:
            size += len(self._points)
            if num_trials is not None and num_trials > size:
                raise InvalidArgument(
                    f"num_trials must be <= the {size} configurations of {searcher!r}, got {num_trials}"
                )
        self.num_trials = size if num_trials is None else num_trials
        if self.num_trials is not None and len(self._points) > self.num_trials:
            raise InvalidArgument(
                f"points_to_evaluate must be at most num_trials = {self.num_trials} configurations, got {len(self._points)}"
            )
        self.seed = seed
        self.max_failures = max_failures
        self._sign = 1.0 if mode == "max" else -1.0
        self.searcher = searcher
        self.scheduler = scheduler
        self._rows = Rows(len(self.space.names), rows)  # by trial
        self._values = array("d")  # by trial: the last one reported, NaN before
        self._searcher = searcher.bind(space=self.space, seed=seed, num_trials=self.num_trials, rows=self._rows)
        self._scheduler = scheduler.bind(
            seed=seed, num_trials=self.num_trials, num_slots=num_slots, space=self.space, rows=self._rows
        )
        if self._points and self._scheduler.initial(0) is not None:
            raise InvalidArgument(
                f"points_to_evaluate cannot be tried with {scheduler!r}, which has configurations of its own"
            )
        for trial, observation in enumerate(known, -len(known)):
            self._learn(trial, observation)
        self._trials: list[_Trial] = []
        self._new: OrderedDict[int, None] = (
            OrderedDict()
        )  # those that have not started, in the order in which they are to
        self._again: OrderedDict[int, None] = OrderedDict()  # those to be started again, ahead of all else
        self._last: dict[int, int] = {}  # slot -> the trial that it ran last
        self._counts = [0] * len(TrialState)
        self._references = References()
        self._unneeded: list[str] = []  # checkpoints that the scheduler has let go of, still to be taken off the books
        self._best: int | None = None
        self._kept: int | None = None  # the best so far of which the checkpoint is there
        self._first_errors: list[str] = []
        self._stopping = False
        self._first_paused = 0  # no trial before it is PAUSED; of use when nothing goes on any more
        self._apply: dict[type[Record], Callable[[Any], list[Effect]]] = {
            Suggested: self._suggested,
            Started: self._started,
            Reported: self._reported,
            Saved: self._saved,
            Decided: self._decided,
            Failed: self._failed,
            Lost: self._lost,
            Finished: self._finished,
            Left: lambda record: [],
            Stopping: self._stop,
            Reopened: self._reopened,
        }

    # What a shell calls.

    def apply(self, record: Record) -> list[Effect]:
        """Let `record` have happened. Return what follows from it.

        Effects that are records (`Decided`, `Finished`, `Stopping`) take hold when they are applied in turn, so that a
        replay can take them from its journal instead.
        """
        try:
            apply = self._apply[type(record)]
        except KeyError:
            raise AsynctuneError(f"a study does not know records of type {type(record).__name__}") from None
        return apply(record)

    def offer(self, slot: int = _NO_SLOT, *, time: float = 0.0) -> Started | Suggest | None:
        """What a free slot should do now; None: wait until another record is applied, or `done`. Changes nothing.

        A paused trial that the slot has `held` since is preferred among equals: its process may still be warm.
        """
        if self._stopping:
            return None
        if self._again:
            return self._offer_pending(self._again, slot, time)
        if self._scheduler.new_first:
            return self._offer_new(slot, time) or self._offer_paused(slot, time)
        return self._offer_paused(slot, time) or self._offer_new(slot, time)

    def suggestion(self, trial: int) -> Suggestion:
        """The call that finds the configuration of a new trial, a row (d,), from what is known now."""
        initial = self._points[trial] if trial < len(self._points) else self._scheduler.initial(trial)
        return self._searcher.prepare(trial - len(self._points)) if initial is None else initial.copy

    @property
    def done(self) -> bool:
        """Whether nothing runs and nothing more will."""
        if self._counts[RUNNING]:
            return False
        return self._stopping or not (self._again or self._new or self._may_grow() or self._scheduler.resumable(None))

    @property
    def stopping(self) -> bool:
        return self._stopping

    @property
    def max_resource(self) -> int | None:
        """The step at which a trial completes by decision; None: it ends by itself."""
        return self._scheduler.max_resource

    @property
    def changes_configs(self) -> bool:
        """Whether its scheduler lets trials go on with other configurations than they began with."""
        return self._scheduler.changes_configs

    @property
    def preload(self) -> Callable[[], object] | None:
        """What gets another process ready for the searcher's slow suggestions; None: it has none."""
        return self._searcher.preload

    @property
    def best(self) -> int | None:
        """The completed trial with the best last value so far."""
        return self._best

    def __len__(self) -> int:
        """How many trials there are so far; their ids count from 0."""
        return len(self._trials)

    def header(self, slots: int) -> Header:
        """What a run of it in so many slots is about."""
        points_to_evaluate, observations = self._given
        return Header(
            metric=self.metric,
            mode=self.mode,
            num_trials=self.num_trials,
            seed=self.seed,
            space=self.space.describe(),
            searcher=repr(self.searcher),
            scheduler=repr(self.scheduler),
            slots=slots,
            points_to_evaluate=points_to_evaluate,
            observations=observations,
        )

    def state(self, trial: int) -> TrialState:
        return self._known(trial).state

    def step(self, trial: int) -> int:
        """The last step that `trial` reported."""
        return self._known(trial).step

    def segment(self, trial: int) -> int:
        return self._trials[trial].segment

    def checkpoint(self, trial: int) -> str | None:
        """What a start of `trial` begins with; None: from scratch."""
        return self._trials[trial].checkpoint

    def config(self, trial: int) -> dict[str, Any]:
        """The configuration of the trial's present segment, decoded afresh."""
        self._known(trial)
        return self.space.decode(self._rows[trial])

    def observations(self, metric: str | None = None) -> list[Observation]:
        """What its trials have scored, as `observations` of another study takes it: the last values, since a study keeps no others.

        `metric` is its own, or None. Raises `InvalidArgument` if it is another.
        """
        if metric not in (None, self.metric):
            raise InvalidArgument(f"metric must be the study's own, {self.metric!r}, got {metric!r}")
        observations = []
        for number, trial in enumerate(self._trials):
            value = self._values[number]
            # What a trial that is to start again had reported is void, and its value NaN.
            known = trial.step > 0 and (trial.state in ENDED or not math.isnan(value))
            values = {trial.step: value} if known else {}
            if trial.state is FAILED:
                values[trial.step + 1] = math.nan
            if values and not trial.segment:
                observations.append(Observation(self.config(number), values, trial.state is COMPLETED))
        return observations

    def trial_seed(self, trial: int) -> int:
        """The seed that user code gets, 0 <= seed < 2**31; the same in every segment and attempt."""
        return Stream(self.seed, SEED, trial).below(2**31)

    def held(self, slot: int) -> int | None:
        """The trial that ran last in a slot, and nowhere else since: only its process can still be where the trial is."""
        trial = self._last.get(slot)
        return trial if trial is not None and self._trials[trial].slot == slot else None

    def told(self, trial: int) -> Action:
        """What a trial that runs was told last."""
        return self._trials[trial].told

    def runs_on(self, trial: int) -> bool:
        """Whether `trial` is RUNNING, and neither told to pause nor to stop."""
        return self._trials[trial].state is RUNNING and self._trials[trial].told is CONTINUE

    def failures(self, trial: int) -> int:
        """How many attempts of `trial` have failed."""
        return self._trials[trial].failures

    def may_retry(self, trial: int) -> bool:
        """Whether a failure of `trial` now is not its last: never of one told to stop, always if the run is to end."""
        if self._trials[trial].told is STOP:
            return False
        return self._stopping or self._trials[trial].failures < self.max_failures

    def count(self, state: TrialState) -> int:
        return self._counts[state]

    # Ask and tell.

    def ask(self) -> Assignment | None:
        """Hand out the next piece of work, or None: nothing can start before other trials report (or `done`)."""
        config = None
        while isinstance(offer := self.offer(), Suggest):  # at most once: what was suggested is then offered
            config = self.space.decode(self.suggestion(offer.trial)())
            self.apply(Suggested(trial=offer.trial, config=config))
        if offer is None:
            return None
        self.apply(offer)
        if config is None:
            config = self.config(offer.trial)
        return Assignment(offer.trial, config, offer.step, offer.until, offer.checkpoint, offer.segment, offer.donor)

    def tell(
        self, trial_id: int, metrics: Mapping[str, float] | None = None, /, *, step: int, **more: float
    ) -> Decision:
        """Report a running trial's metrics after `step` (1, 2, ...; it increases). Return what the trial is to do.

        A trial told to PAUSE counts as saved from here on, under the name `"trial-segment-step"`.

        Raises:
            InvalidArgument: the trial does not run, its step does not increase, or the study's metric is missing.
            TypeError: a metric is not a real number.
        """
        trial = self._running(trial_id)
        values = measurements({**metrics, **more} if metrics else more, self.metric)
        if type(step) is not int or step <= trial.step:
            check_integer("step", step, at_least=trial.step + 1)
        segment = trial.segment
        decided = self._follow(Reported(trial=trial_id, segment=segment, step=step, metrics=values))
        if decided is None:
            return Decision(CONTINUE, trial.until)
        if decided.action is PAUSE:
            name = f"{trial_id}-{segment}-{step}"
            self._follow(Saved(trial=trial_id, segment=segment, step=step, checkpoint=name))
        elif decided.action is STOP:
            self._follow(Finished(trial=trial_id, state=self.final_state(trial_id)))
        return Decision(decided.action, decided.until)

    def finish(self, trial_id: int, *, error: str | None = None) -> None:
        """The trial ended by itself, or failed with `error`. Nothing happens if a decision stopped or paused it before.

        One that ends by itself without a report has failed.
        """
        state = self._known(trial_id).state
        if state in ENDED or state is PAUSED:
            return
        self._running(trial_id)
        error = error or self.nothing_reported(trial_id)
        if error is None:
            self._follow(Finished(trial=trial_id, state=self.final_state(trial_id)))
        else:
            self._follow(Failed(trial=trial_id, error=error, retry=self.may_retry(trial_id)))

    def final_state(self, trial: int) -> TrialState:
        """What a trial becomes whose user code is through: STOPPED if a decision stopped it short, else COMPLETED."""
        told, step, complete = self._trials[trial].told, self._trials[trial].step, self.max_resource
        return STOPPED if told is STOP and (complete is None or step < complete) else COMPLETED

    def nothing_reported(self, trial: int) -> str | None:
        """What is wrong with a trial that ends by itself now; None: it has reported."""
        return None if self._trials[trial].step else f"ended without a report of {self.metric!r}"

    def _known(self, trial_id: int) -> _Trial:
        if type(trial_id) is not int or not 0 <= trial_id < len(self._trials):
            raise InvalidArgument(f"trial_id must be one of the {len(self._trials)} trials so far, got {trial_id!r}")
        return self._trials[trial_id]

    def _running(self, trial_id: int) -> _Trial:
        trial = self._known(trial_id)
        if trial.state is not RUNNING:
            raise InvalidArgument(f"trial {trial_id} must be RUNNING, it is {trial.state}")
        return trial

    def _follow(self, record: Record) -> Decided | None:
        """Apply `record` and every record that follows from it; return the decision among them."""
        decided = None
        follows = [record]
        while follows:
            record = follows.pop(0)
            if type(record) is Decided:
                decided = record
            follows += [effect for effect in self.apply(record) if isinstance(effect, Record)]
        return decided

    # What a free slot may do.

    def _offer_pending(self, queue: OrderedDict[int, None], slot: int, time: float) -> Started:
        number = next(iter(queue))
        trial = self._trials[number]
        how = "started"
        if queue is self._again:
            how = "retried" if trial.failures else "restarted"
        return Started(
            time=time,
            trial=number,
            segment=trial.segment,
            step=trial.checkpoint_step,
            until=trial.until,
            slot=slot,
            checkpoint=trial.checkpoint,
            how=how,
        )

    def _offer_new(self, slot: int, time: float) -> Started | Suggest | None:
        if self._new:
            return self._offer_pending(self._new, slot, time)
        if not self._may_grow():
            return None
        trial = len(self._trials)
        number = trial - len(self._points)
        return Suggest(trial, number >= 0 and self._searcher.slow(number))

    def _offer_paused(self, slot: int, time: float) -> Started | None:
        if not self._counts[PAUSED]:
            return None
        resumption = self._scheduler.resumable(self.held(slot))
        if resumption is None:
            return None
        trial = self._trials[resumption.trial]
        if resumption.checkpoint is None:
            return Started(
                time=time,
                trial=resumption.trial,
                segment=trial.segment,
                step=trial.checkpoint_step,
                until=resumption.until,
                slot=slot,
                checkpoint=trial.checkpoint,
                how="resumed",
            )
        segment = trial.segment + 1
        trained = self._references.trained_with(resumption.checkpoint)
        if trained is None:
            trained = self._rows[resumption.trial if resumption.donor is None else resumption.donor]
        row = self._scheduler.explore(trained, resumption.trial, segment, resumption.step)
        return Started(
            time=time,
            trial=resumption.trial,
            segment=segment,
            step=resumption.step,
            until=resumption.until,
            slot=slot,
            checkpoint=resumption.checkpoint,
            donor=resumption.donor,
            config=self.space.decode(row),
            how="changed" if resumption.donor is None else "exploited",
        )

    # What each record does.

    def _suggested(self, record: Suggested) -> list[Effect]:
        if record.trial != len(self._trials):
            raise AsynctuneError(f"trial {record.trial} suggested, {len(self._trials)} is next")
        row = self.space.encode(record.config)
        self._trials.append(_Trial(self._scheduler.begin(record.trial)))
        self._rows.append(row)
        self._values.append(math.nan)
        self._counts[PENDING] += 1
        self._new[record.trial] = None
        self._searcher.started(record.trial)
        return []

    def _started(self, record: Started) -> list[Effect]:
        trial = self._trials[record.trial]
        effects: list[Effect] = []
        if not self._unqueue(record.trial):
            effects = self._resumed(record, trial)
        self._move(record.trial, RUNNING)  # ahead of `_released`: the run is not done
        trial.until = record.until
        trial.told, trial.waits = CONTINUE, False
        if record.slot != _NO_SLOT:
            trial.slot = record.slot
            self._last[record.slot] = record.trial
        return effects + self._released()

    def _resumed(self, record: Started, trial: _Trial) -> list[Effect]:
        resumption = self._scheduler.resumable(record.trial)
        if resumption is None or (resumption.trial, resumption.donor) != (record.trial, record.donor):
            raise AsynctuneError(f"trial {record.trial} cannot go on now from {record.donor}")
        self._scheduler.resume(resumption)
        if record.config is None:
            return []
        assert record.checkpoint is not None and trial.checkpoint is not None
        self._references.end_segment(record.trial, trial.segment, self._rows[record.trial], trial.checkpoint)
        self._rows[record.trial] = self.space.encode(record.config)
        self._values[record.trial] = self._sign * resumption.score
        trial.segment, trial.step = record.segment, record.step
        self._references.add(record.checkpoint)
        return self._restart_point(trial, record.checkpoint, record.step)

    def _reported(self, record: Reported) -> list[Effect]:
        trial = self._trials[record.trial]
        trial.step = record.step
        value = self._values[record.trial] = record.metrics[self.metric]
        score = self._sign * value
        verdict = self._scheduler.report(record.trial, record.step, score)
        for level in verdict.recorded:
            self._searcher.observe(record.trial, level, score)
        if trial.until is None or record.step < trial.until or trial.told is STOP:
            return []
        trial.waits = verdict.action is PAUSE
        if trial.told is PAUSE and verdict.action is not STOP:
            return []
        return [
            Decided(
                time=record.time,
                trial=record.trial,
                segment=record.segment,
                step=record.step,
                action=verdict.action,
                until=verdict.until,
            )
        ]

    def _decided(self, record: Decided) -> list[Effect]:
        trial = self._trials[record.trial]
        trial.told = record.action
        if record.action is CONTINUE:
            trial.until = record.until
        return []

    def _saved(self, record: Saved) -> list[Effect]:
        trial = self._trials[record.trial]
        effects: list[Effect] = []
        if record.checkpoint != trial.checkpoint:  # else nothing has changed since it was last saved
            effects = self._restart_point(trial, record.checkpoint, 0 if record.checkpoint is None else record.step)
        if trial.state in ENDED and record.trial != self._best:  # a better one has ended since the save was asked for
            effects += self._restart_point(trial, None, 0)
        elif trial.state in ENDED:
            if self._kept is not None and self._kept != record.trial:
                effects += self._restart_point(self._trials[self._kept], None, 0)
            self._kept = record.trial
        elif trial.state is RUNNING and trial.told is PAUSE:
            self._move(record.trial, PAUSED)
            held = trial.waits and self._scheduler.saved(record.trial, record.step, record.checkpoint)
            if held and record.checkpoint is not None:
                self._references.add(record.checkpoint)
            effects += self._released() + self._close(record.time)
            if record.checkpoint is None and not self._stopping:
                effects.append(Stopping(time=record.time, reason=_NOTHING_SAVED.format(record.trial), failed=True))
        return effects

    def _failed(self, record: Failed) -> list[Effect]:
        trial = self._trials[record.trial]
        trial.failures += not self._stopping  # else it may be we who killed it
        if record.retry:
            self._move(record.trial, PENDING)
            self._start_again(record.trial)
            return []
        self._move(record.trial, FAILED)
        for level in self._scheduler.finish(record.trial, FAILED):
            self._searcher.observe(record.trial, level, -math.inf)
        self._searcher.ended(record.trial, FAILED)
        effects = self._restart_point(trial, None, 0) + self._released()
        if len(self._first_errors) < FAIL_FAST:
            self._first_errors.append(record.error)
        if self._failed_fast():
            reason = f"the first {FAIL_FAST} trials failed in the same way: {record.error}"
            effects.append(Stopping(time=record.time, reason=reason, failed=True))
        return effects + self._close(record.time)

    def _lost(self, record: Lost) -> list[Effect]:
        trial = self._trials[record.trial]
        if trial.told is STOP:
            return [Finished(time=record.time, trial=record.trial, state=self.final_state(record.trial))]
        self._move(record.trial, PENDING)
        effects = self._restart_point(trial, None, 0)
        self._start_again(record.trial)
        return effects

    def _failed_fast(self) -> bool:
        ended = sum(self._counts[state] for state in ENDED)
        if ended != FAIL_FAST or self._counts[FAILED] != FAIL_FAST:
            return False
        return len({error.partition(":")[0] for error in self._first_errors}) == 1

    def _finished(self, record: Finished) -> list[Effect]:
        trial = self._trials[record.trial]
        if trial.state is not RUNNING:
            self._unqueue(record.trial)
        self._move(record.trial, record.state)
        for level in self._scheduler.finish(record.trial, record.state):
            self._searcher.observe(record.trial, level, -math.inf)
        completed = record.state is COMPLETED
        if completed and self.max_resource is None:
            self._searcher.observe(record.trial, FINAL, self._sign * self._values[record.trial])
        self._searcher.ended(record.trial, record.state)
        effects: list[Effect] = []
        if completed and self._is_best(record.trial):
            if self._best is not None and self._best != self._kept:
                effects += self._restart_point(self._trials[self._best], None, 0)
            self._best = record.trial
            effects.append(Save(record.trial))
        else:
            effects += self._restart_point(trial, None, 0)
        return effects + self._released() + self._close(record.time)

    def _stop(self, record: Stopping) -> list[Effect]:
        self._stopping = True
        return []

    def _reopened(self, record: Reopened) -> list[Effect]:
        self.check_num_trials(record.num_trials)
        self.num_trials = record.num_trials
        self._stopping = False
        effects: list[Effect] = []
        for number, trial in enumerate(self._trials):
            if trial.state is RUNNING and trial.told is STOP:
                effects.append(Finished(time=record.time, trial=number, state=self.final_state(number)))
            elif trial.state is RUNNING:
                self._move(number, PENDING)
                self._start_again(number)
            elif trial.state is PAUSED and not trial.waits:
                self._start_again(number)
        return effects

    # Upkeep.

    def _learn(self, trial: int, known: Known) -> None:
        """The searcher hears of a trial before the first what it would hear of one of the run."""
        self._searcher.started(trial)
        # From the last step to the first, which stays.
        values = {level: value for step, value in reversed(known.values) if (level := self._scheduler.level(step))}
        if known.final is not None and (self.max_resource is None or not known.values):
            values[self.max_resource or FINAL] = known.final
        for level in sorted(values):
            self._searcher.observe(trial, level, self._sign * values[level])
        self._searcher.ended(trial, known.state)

    def check_num_trials(self, num_trials: int | None) -> None:
        """Raise `InvalidArgument` unless the study may go on with so many trials: it may with as many, or with more."""
        if num_trials == self.num_trials:
            return
        if self.num_trials is None or (num_trials is not None and num_trials < self.num_trials):
            raise InvalidArgument(f"num_trials may be raised from {self.num_trials}, got {num_trials}")
        if self._scheduler.fixed_population:
            raise InvalidArgument(
                f"num_trials must stay {self.num_trials}, the size of the scheduler's population, got {num_trials}"
            )

    def check_end(self, time_budget: float | None) -> None:
        """Raise `InvalidArgument` unless the study comes to an end: by its trials, or after a time."""
        if self.num_trials is None and time_budget is None:
            raise InvalidArgument(
                "num_trials must be given, or else a time_budget or a searcher that comes to an end: Grid"
            )

    def _start_again(self, number: int) -> None:
        """What a trial reported after its restart point is void, and reported again."""
        trial = self._trials[number]
        trial.told, trial.waits = CONTINUE, False
        trial.step, self._values[number] = trial.checkpoint_step, math.nan
        trial.until = self._scheduler.retried(number, trial.checkpoint_step)
        self._again[number] = None

    def _unqueue(self, number: int) -> bool:
        """Whether a trial was to be started for the first time, or again; it no longer is."""
        for queue in (self._new, self._again):
            if number in queue:
                del queue[number]
                return True
        return False

    def _may_grow(self) -> bool:
        return self.num_trials is None or len(self._trials) < self.num_trials

    def _move(self, number: int, state: TrialState) -> None:
        trial = self._trials[number]
        check_transition(number, trial.state, state)
        self._counts[trial.state] -= 1
        self._counts[state] += 1
        trial.state = state

    def _is_best(self, number: int) -> bool:
        value = self._values[number]
        if not math.isfinite(value):
            return False
        return self._best is None or self._sign * value > self._sign * self._values[self._best]

    def _restart_point(self, trial: _Trial, checkpoint: str | None, step: int) -> list[Effect]:
        """Let a trial restart from another `checkpoint`: its own new one, one that is counted already, or from nowhere."""
        before, trial.checkpoint, trial.checkpoint_step = trial.checkpoint, checkpoint, step
        return [] if before is None else self._unrefer(before)

    def _released(self) -> list[Effect]:
        """What no decision needs any more. All at once only at the end, so that no record waits for a whole generation's."""
        if released := self._scheduler.released():
            self._unneeded += released
        if not self._unneeded:
            return []
        count = len(self._unneeded) if self.done else min(_RELEASED_AT_ONCE, len(self._unneeded))
        return [effect for _ in range(count) for effect in self._unrefer(self._unneeded.pop())]

    def _unrefer(self, checkpoint: str) -> list[Effect]:
        return [Release(checkpoint)] if self._references.drop(checkpoint) else []

    def _close(self, time: float) -> list[Effect]:
        """When nothing runs and nothing can start, what is still paused comes to its end, one trial after the other."""
        if self._stopping or not self._counts[PAUSED] or not self.done:
            return []
        while self._trials[self._first_paused].state is not PAUSED:
            self._first_paused += 1
        return [Finished(time=time, trial=self._first_paused, state=STOPPED)]
