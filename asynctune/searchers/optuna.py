"""Optuna: any sampler of the Optuna library, asked and told.

A suggestion is made in an Optuna study of its own, which is given the trials so far: so whatever a sampler knows follows from the
records, and a resumed run goes on as it would have. What becomes of a trial in Optuna's terms:

- COMPLETE: it has a value at the model's level, the highest at which enough trials have one (searchers/history.py), and until
  there is one, the lowest. With FIFO that is the final value. Values that are not finite are given as -inf.
- PRUNED: its values all lie below that level, whether it was stopped, is paused or runs on; they are its intermediate values.
- RUNNING: it runs and has no value yet; a sampler has its own kind of liar for it.
- FAIL: it failed, ended without a value, or has values above that level only. Samplers leave it out.

Some samplers keep notes on their trials, beside what these are: CMA-ES its distribution, genetic ones their generations. Such a
sampler is shown the past again for each suggestion: asked for every trial in turn, with the trial's own hyperparameters put in place
of the answer, and told what came of it.
"""

import math
import pickle
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache, partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

from asynctune._core import CHOICE, LOG, NORMAL, SUGGEST, Stream
from asynctune.errors import InvalidArgument
from asynctune.records import FAILED, TrialState
from asynctune.searchers.base import Row, Searcher, Suggestion
from asynctune.searchers.history import History, startup_of
from asynctune.searchers.silence import silence
from asynctune.space import Column, Rows, Space, assemble, nearest

__all__ = ["BoundOptuna", "Optuna"]

_TAIL = 1e-9  # the probability beyond the ends that a normal hyperparameter gets, 6 standard deviations off


@dataclass(frozen=True, init=False, repr=False)
class Optuna(Searcher):
    """Search by a sampler of the Optuna library (`pip install asynctune[optuna]`).

        at.Optuna("TPESampler", multivariate=True)
        at.Optuna(optuna.samplers.TPESampler, multivariate=True)    # the same
        at.Optuna(make)                                             # def make(seed): return optuna.samplers...

    The sampler is made anew for each suggestion, with a seed that follows from the study's, and is given all trials so far: after
    1,000 of them that adds a quarter to the time of `TPESampler`. One that keeps notes of its own (CMA-ES, NSGA-II and -III, QMC,
    Grid) is shown them one by one: 2 ms a trial.

    A sampler knows a hyperparameter by its name in the space, such as "optimizer.momentum": an option of a `choice` or `ordinal`
    by its index, a multiple of q by its number, `normal` by the probability below a value, all else as it is.

    Args:
        sampler: the name of a class in `optuna.samplers`, or what returns a sampler when it is called with `seed=` and the
            arguments: such a class, or a function that has a name in its module.
        arguments: of the sampler: numbers, strings, booleans, None, and lists, tuples and dicts of them.

    Raises InvalidArgument if one is of another kind, or Optuna is not installed.
    """

    sampler: str | Callable[..., Any]
    arguments: tuple[tuple[str, Any], ...]

    def __init__(self, sampler: str | Callable[..., Any], **arguments: Any) -> None:
        if isinstance(sampler, type) and sampler.__module__.startswith("optuna.samplers."):
            sampler = sampler.__name__
        name = sampler if isinstance(sampler, str) else getattr(sampler, "__qualname__", "")
        if not all(part.isidentifier() for part in name.split(".")):
            raise InvalidArgument(
                "sampler must be the name of a class in optuna.samplers, or a class or a function with a name in its module, which is "
                f"called with seed= and the arguments and returns a sampler, got {sampler!r}"
            )
        if "seed" in arguments:
            raise InvalidArgument(f"the sampler's seed follows from the study's, got seed={arguments['seed']!r}")
        for argument, value in arguments.items():
            if not _is_plain(value):
                raise InvalidArgument(
                    f"{argument} must be made of numbers, strings, booleans and None (a function may pass other things), got {value!r}"
                )
        if find_spec("optuna") is None:
            raise InvalidArgument("at.Optuna needs the optuna package: pip install asynctune[optuna]")
        object.__setattr__(self, "sampler", sampler)
        object.__setattr__(self, "arguments", tuple(sorted(deepcopy(arguments).items())))

    def __repr__(self) -> str:
        sampler = self.sampler
        name = repr(sampler) if isinstance(sampler, str) else f"{sampler.__module__}.{sampler.__qualname__}"
        return f"Optuna({', '.join([name, *(f'{argument}={value!r}' for argument, value in self.arguments)])})"

    def bind(self, *, space: Space, seed: int, num_trials: int | None, rows: Rows) -> "BoundOptuna":
        return BoundOptuna(self, space, seed, startup_of(None, num_trials), rows)


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_plain, [*value, *value.values()]))
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


class _Outcome(NamedTuple):
    """What became of a trial, in Optuna's terms."""

    state: str  # the name of a TrialState
    value: float | None  # COMPLETE and PRUNED
    values: dict[int, float]  # level -> score, of all levels


class BoundOptuna:
    """A sampler at work for one study. The same seed and the same history give the same suggestion."""

    def __init__(self, spec: Optuna, space: Space, seed: int, startup: int, rows: Rows) -> None:
        import cloudpickle  # takes functions of __main__ and of notebooks along

        self.preload: Callable[[], object] = _load_library
        self._sampler: bytes = cloudpickle.dumps((spec.sampler, dict(spec.arguments)))
        self._space = space
        self._seed = seed
        self._rows = rows
        self._history = History(startup, gamma=1.0)
        self._values: dict[int, dict[int, float]] = {}  # trial -> level -> score, in the order in which trials started
        self._failed: set[int] = set()

    def prepare(self, number: int) -> Suggestion:
        return partial(
            _suggest,
            self._sampler,
            self._space.columns,
            self._rows.take(list(self._values)) if self._values else (),
            self._outcomes(),
            Stream(self._seed, SUGGEST, number).below(2**31),
            Stream(self._seed, SUGGEST).below(2**31),
        )

    def slow(self, number: int) -> bool:
        return True

    def started(self, trial: int) -> None:
        self._history.started(trial)
        self._values[trial] = {}

    def observe(self, trial: int, level: int, score: float) -> None:
        self._history.observe(trial, level, score)
        self._values[trial][level] = score if math.isfinite(score) else -math.inf

    def ended(self, trial: int, state: TrialState) -> None:
        self._history.ended(trial, state)
        if state is FAILED:
            self._failed.add(trial)

    def _outcomes(self) -> list[_Outcome]:
        """By trial, in the order in which they started."""
        level = self._history.level
        if level is None:
            level = min((min(values) for values in self._values.values() if values), default=0)
        outcomes = []
        for trial, values in self._values.items():
            state, value = "FAIL", None
            if trial in self._failed:
                pass
            elif level in values:
                state, value = "COMPLETE", values[level]
            elif values and max(values) < level:
                state, value = "PRUNED", values[max(values)]
            elif trial in self._history.alive and not values:
                state = "RUNNING"
            outcomes.append(_Outcome(state, value, dict(values)))
        return outcomes


def _load_library() -> None:
    with silence():
        import_module("optuna")


def _suggest(
    sampler: bytes,
    columns: tuple[Column, ...],
    rows: Iterable[Row],
    outcomes: list[_Outcome],
    seed: int,
    common_seed: int,
) -> Row:
    """The row (d,) that a sampler suggests after `rows` (n, d), of which `outcomes` (n,) became.

    `seed` is the suggestion's own. A sampler that is shown the past has one seed for all suggestions: it has come to another place in
    its sequence at each.
    """
    with _quiet():
        asked = _Asked(sampler, columns, seed)
        for row, outcome in zip(rows, outcomes, strict=True):
            asked.give(row, outcome)
        suggested = asked.ask()
        if asked.notes:
            asked = _Asked(sampler, columns, common_seed)
            for row, outcome in zip(rows, outcomes, strict=True):
                asked.show(row, outcome)
            suggested = asked.ask()
        return suggested


class _Asked:
    """An Optuna study that is asked for one suggestion."""

    def __init__(self, pickled: bytes, columns: tuple[Column, ...], seed: int) -> None:
        import optuna

        sampler, arguments = pickle.loads(pickled)
        if isinstance(sampler, str):
            try:
                sampler = getattr(optuna.samplers, sampler)
            except AttributeError:
                raise InvalidArgument(
                    f"sampler must be the name of a class in optuna.samplers, got {sampler!r}"
                ) from None
        self._columns = columns
        self._distributions = _distributions(columns)
        self._storage = optuna.storages.InMemoryStorage()
        try:
            made = sampler(seed=seed, **arguments)
        except (ImportError, TypeError, ValueError) as error:
            raise InvalidArgument(
                f"a sampler must be made of seed= and its arguments, got {sampler!r} with {arguments!r}: {error}"
            ) from error
        self._study = optuna.create_study(storage=self._storage, sampler=made, direction="maximize")
        self._id = self._storage.get_study_id_from_name(self._study.study_name)

    def give(self, row: Row, outcome: _Outcome) -> None:
        """Let the study have had a trial."""
        parameters = self._parameters(row)
        trial = _given()(
            number=-1,
            trial_id=-1,
            state=_state(outcome),
            value=outcome.value,
            datetime_start=datetime.min,
            datetime_complete=None if outcome.state == "RUNNING" else datetime.min,
            params=parameters,
            distributions={name: self._distributions[name] for name in parameters},
            user_attrs={},
            system_attrs={},
            intermediate_values=outcome.values,
        )
        self._storage.create_new_trial(self._id, template_trial=trial)

    def show(self, row: Row, outcome: _Outcome) -> None:
        """Let the study have had a trial for which its sampler was asked, and of which it was told."""
        trial = self._study.ask()
        parameters = self._parameters(row)
        for column in self._columns:
            if column.name in parameters:
                self._suggestion(trial, column)
                distribution = self._distributions[column.name]
                internal = distribution.to_internal_repr(parameters[column.name])
                self._storage.set_trial_param(trial._trial_id, column.name, internal, distribution)
        for level, score in outcome.values.items():
            trial.report(score, level)
        if outcome.state != "RUNNING":
            value = outcome.value if outcome.state == "COMPLETE" else None
            # A sampler that is through asks the study to stop, which can only do so within `optimize`.
            with suppress(RuntimeError):
                self._study.tell(trial, value, _state(outcome))

    def ask(self) -> Row:
        trial = self._study.ask()
        return assemble(self._columns, lambda j, column: _value(column, self._suggestion(trial, column)))

    def _suggestion(self, trial: Any, column: Column) -> float:
        """What the sampler suggests for a hyperparameter."""
        distribution = self._distributions[column.name]
        if column.kind == CHOICE:
            return float(trial.suggest_categorical(column.name, distribution.choices))
        suggest = trial.suggest_int if column.step else trial.suggest_float
        return float(suggest(column.name, distribution.low, distribution.high, log=distribution.log))

    @property
    def notes(self) -> bool:
        """Whether the sampler left any with the trial that it was last asked for, or with the study."""
        kept = self._study.get_trials(deepcopy=False)[-1].system_attrs
        # What it suggested is none: it is written down for other processes, which here have the trial itself.
        own = [key for key in kept if ":relative_params:" not in key]
        return bool(own or self._storage.get_study_system_attrs(self._id))

    def _parameters(self, row: Row) -> dict[str, Any]:
        return {
            column.name: _parameter(column, value)
            for column, value in zip(self._columns, row.tolist(), strict=True)
            if not math.isnan(value)
        }


def _state(outcome: _Outcome) -> Any:
    import optuna

    return optuna.trial.TrialState[outcome.state]


@lru_cache(maxsize=1)
def _given() -> Any:
    import optuna

    class Given(optuna.trial.FrozenTrial):
        """A trial that is a storage's own: copying takes several times as long as the sampler's suggestion."""

        def __deepcopy__(self, memo: dict[int, Any]) -> "Given":
            return self

    return Given


@lru_cache(maxsize=16)
def _distributions(columns: tuple[Column, ...]) -> dict[str, Any]:
    """Optuna's own form of a space, by name."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    def distribution(column: Column) -> Any:
        low, high, step = column.low, column.high, column.step
        if column.kind == CHOICE:
            return CategoricalDistribution(range(int(high) + 1))
        if column.kind == NORMAL:
            return FloatDistribution(_TAIL, 1 - _TAIL)
        if not step:
            return FloatDistribution(low, high, log=column.kind == LOG)
        first, last = column.steps
        return IntDistribution(first, last, log=column.kind == LOG and first >= 1)

    return {column.name: distribution(column) for column in columns}


def _parameter(column: Column, value: float) -> float:
    """What Optuna knows a hyperparameter's value as."""
    if column.kind == NORMAL:
        from statistics import NormalDist

        return min(max(NormalDist(column.low, column.high).cdf(value), _TAIL), 1 - _TAIL)
    return round(value / column.step) if column.step else value


def _value(column: Column, parameter: float) -> float:
    if column.kind == NORMAL:
        return column.quantile(parameter)
    return nearest(parameter * (column.step or 1), column.low, column.high, column.step)


@contextmanager
def _quiet() -> Iterator[None]:
    """Neither warnings nor log lines of Optuna, whose level is the program's to choose."""
    with silence():
        from optuna import logging

        level = logging.get_verbosity()
        logging.set_verbosity(logging.ERROR)
        try:
            yield
        finally:
            logging.set_verbosity(level)
