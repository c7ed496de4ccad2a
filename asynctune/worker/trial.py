"""Trial: the handle that user code gets."""

import pickle
from collections.abc import Callable, Iterator, Mapping
from operator import index
from typing import TYPE_CHECKING, Any

from asynctune.errors import InvalidArgument, TrialEnded
from asynctune.worker.session import Session

if TYPE_CHECKING:
    from pathlib import Path  # imported where a path is made: most trials make none

__all__ = ["Trial", "measurements"]

MAX_METRICS = 1000  # in a report
MAX_NAME = 200  # characters of a metric's name; a report has some megabyte at most
MAX_STEP = 10**18  # leaves room for one more in 64 bits

_NOT_REAL = frozenset("cSUMm")  # kinds of NumPy's types

#: Names of metrics that were checked in earlier reports. To find one here takes no longer than to look at its type.
_known: set[str] = set()


class Trial:
    """One trial, as the function that trains it sees it.

        def train(trial: at.Trial) -> None:
            model, optimizer = build(trial.config)
            trial.track(model=model, optimizer=optimizer)
            for step in trial.steps(50):
                loss = one_epoch(model, optimizer)
                trial.report(loss=loss)

    Attributes:
        config: the configuration, a dict.
        id: the trial's number in its run, from 0.
        seed: an integer >= 0 for this trial's random numbers, the same whenever and wherever it runs.
        device: `"cuda:0"` or `"cpu"`.
        step: the step at work in `steps`, else the last one reported, or restored; 0 at first.
    """

    def __init__(self, session: Session) -> None:
        run = session.run
        self.config: dict[str, Any] = pickle.loads(run.config)
        self.id: int = run.trial
        self.seed: int = run.seed
        self.device: str = run.device
        self.step: int = run.step
        self._session = session
        self._looping = False

    def __repr__(self) -> str:
        return f"<Trial {self.id} at step {self.step}>"

    @property
    def dir(self) -> "Path":
        """A directory for this trial's own files; made when first asked for, the same whenever the trial runs."""
        from pathlib import Path

        from asynctune.rundir import TRIALS, make_directory

        trials = Path(self._session.run.save_to).parent / TRIALS
        make_directory(trials)
        make_directory(trials / str(self.id))
        return trials / str(self.id)

    @property
    def restored(self) -> "Path | None":
        """The checkpoint that this start begins with, for what `on_save` wrote there; None: it begins from scratch."""
        from pathlib import Path

        restore = self._session.run.restore
        return None if restore is None else Path(restore)

    def track(self, **objects: Any) -> None:
        """Save these objects with every checkpoint, and restore them now if the trial goes on from one.

        An object has `state_dict()` and `load_state_dict(state)`: models, optimizers, learning-rate schedulers, gradient scalers; or
        `get_state()` and `set_state(state)`; or is a random number generator: torch.Generator, numpy.random.Generator, random.Random. Of a
        sampler that shuffles, track the generator that it was given.

        Optimizers and schedulers keep their state and take the hyperparameters of this trial's configuration. Call it when all are built,
        and before training; name the objects alike at every start.

        Raises:
            InvalidArgument: an object is none of these, its name is taken, or the checkpoint does not have it.
        """
        self._session.tracked.track(objects)

    def on_save(self, save: Callable[["Path"], object]) -> None:
        """Call `save(directory)` for every checkpoint, to write there what has no `state_dict`; see `restored`.

        Regular files and directories: all that lies there when it returns is part of the checkpoint, and is read back as it was, or not at all.
        """
        self._session.tracked.on_save(save)

    def steps(self, stop: int | None = None) -> Iterator[int]:
        """Count the steps of training: from the one after the last restored step to `stop`, included.

        A decision takes effect between two steps: the loop ends, or waits, before the next one. Where the trial goes on from a checkpoint
        of its own, random numbers go on as well, from the first step here: those of `random`, `numpy.random` and torch that all code shares.

        Args:
            stop: the last step, >= 1; default: the scheduler's `max_resource`.

        Raises:
            InvalidArgument: `stop` is no such integer, or neither it nor a `max_resource` is given.
        """
        if stop is None:
            stop = self._session.run.stop
            if stop is None:
                raise InvalidArgument(
                    "steps() needs its last step, as in trial.steps(50): this scheduler has no max_resource"
                )
        return self._loop(_step("stop", stop))

    def _loop(self, stop: int) -> Iterator[int]:
        session = self._session
        session.tracked.resume_generators()
        try:
            for step in range(self.step + 1, stop + 1):
                if session.ended:
                    return
                self.step = step
                self._looping = True
                yield step
                self._looping = False
                session.step = step
                session.settle()
        finally:
            self._looping = False

    def report(self, metrics: Mapping[str, Any] | None = None, /, *, step: int | None = None, **more: Any) -> None:
        """Report metrics after a step: `trial.report(loss=0.3, accuracy=0.9)` or `trial.report({"loss": 0.3})`.

        In `steps`, a decision that this report brings about takes effect at the loop's next turn; elsewhere here, and if the trial is to
        end, as `TrialEnded`. A pause waits there.

        Args:
            metrics: numbers by name: int, float, bool, numpy scalars, tensors with one element and no dimension.
            step: an integer, more than the last; default: the loop's, else the last one plus 1.

        Raises:
            TypeError: a metric is not a real number, or its name not a string.
            InvalidArgument: the study's metric is missing, or the step is not more than the last.
            TrialEnded: the trial has been ended.
        """
        session = self._session
        if not self._looping:
            session.settle(complete=False)  # a loop left by `break` may still owe its last answer
            if session.ended:
                raise TrialEnded(f"trial {self.id} ended after step {session.step}")
        values = measurements(more if metrics is None else {**metrics, **more}, session.run.metric)
        last = session.step
        if self._looping:
            if step is not None and step != self.step:
                raise InvalidArgument(f"inside steps() the step is the loop's, {self.step}, got {step!r}")
            step = self.step
        else:
            step = last + 1 if step is None else _step("step", step)
        if step <= last:
            raise InvalidArgument(f"steps must increase, got a report of step {step} after one of step {last}")
        session.report(step, values)
        if not self._looping:
            self.step = step
            session.settle()
            if session.ended:
                raise TrialEnded(f"trial {self.id} ended after step {step}")


def measurements(metrics: dict[str, Any], metric: str) -> dict[str, float]:
    """The metrics of one report as floats, `metric` among them; changes the dict that it is given.

    Raises:
        TypeError: a value is not a real number, or a name not a string.
        InvalidArgument: the study's metric is missing, one is called `step`, a value is beyond the range of a float, there are more than
            `MAX_METRICS`, or a name has more than `MAX_NAME` characters or is no text.
    """
    if metric not in metrics:
        given = ", ".join(map(repr, list(metrics)[:20])) or "nothing"
        raise InvalidArgument(f"every report must hold the study's metric, {metric!r}, got {given}")
    for name, value in metrics.items():
        if name not in _known:
            _check_name(name, metrics)
            if len(_known) >= MAX_METRICS:  # so that more names than a report may hold are never all known
                _known.clear()
            _known.add(name)
        if type(value) is not float:
            metrics[name] = _real(name, value)
    return metrics


def _check_name(name: object, metrics: dict[str, Any]) -> None:
    if len(metrics) > MAX_METRICS:
        raise InvalidArgument(f"a report may hold {MAX_METRICS} metrics, got {len(metrics)}")
    if not isinstance(name, str):
        raise TypeError(f"the name of a metric must be a str, got {name!r}")
    if name == "step":
        raise InvalidArgument("no metric may be called 'step': pass trial.report(..., step=...)")
    if len(name) > MAX_NAME:
        raise InvalidArgument(f"the name of a metric may have {MAX_NAME} characters, got {len(name)}: {name[:20]!r}...")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise InvalidArgument(f"the name of a metric must be text that UTF-8 can hold, got {name!r}") from None


def _step(name: str, value: Any) -> int:
    try:
        step = index(value)
    except TypeError:
        step = 0
    if not 1 <= step <= MAX_STEP:
        got = repr(value) if abs(step) <= MAX_STEP else "one beyond"  # Python refuses to print very long ones
        raise InvalidArgument(f"{name} must be an integer in 1..10^18, got {got}")
    return step


def _real(name: str, value: Any) -> float:
    if type(value) is not int:
        # Strings, dates and complex numbers of NumPy have __float__ too. So have arrays and tensors of one element; one that has
        # dimensions is a mistake, whatever its size.
        kind = getattr(getattr(value, "dtype", None), "kind", None)
        if not hasattr(value, "__float__") or getattr(value, "ndim", 0) != 0 or kind in _NOT_REAL:
            raise TypeError(f"metric {name!r} must be a real number, got {type(value).__name__}")
        if getattr(value, "requires_grad", False):  # torch would warn
            value = value.detach()
    try:
        return float(value)
    except OverflowError:
        raise InvalidArgument(
            f"metric {name!r} must be a number that a float can hold, up to 1.8e308, got a larger {type(value).__name__}"
        ) from None
