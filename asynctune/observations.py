"""Observations: results that are known before a run begins, for its searcher to learn from."""

import hashlib
import itertools
import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from asynctune.errors import InvalidArgument, check_integer, named
from asynctune.records import COMPLETED, FAILED, STOPPED, Config, TrialState
from asynctune.space import Row, Space

__all__ = ["Known", "Observation", "Observations", "Observed", "check", "encode", "fingerprint", "listed"]


class Observation(NamedTuple):
    """What a configuration scored. A plain tuple will do, `(config, value)` or `(config, {step: value})`.

    config: of the space. values: the metric after each step known, or the final value alone; where one is not finite, training had failed.
    complete: whether training came to its end, so that the value after the last step is the final one. If not it was stopped: others went on where
    it did not, and a model of later steps counts it among the worse ones.
    """

    config: Config
    values: float | Mapping[int, float]
    complete: bool = True


@runtime_checkable
class Observed(Protocol):
    """Who has observations to give: a `Result`, a `Study`."""

    def observations(self, metric: str) -> list[Observation]: ...


Observations = Iterable[tuple[Any, ...]] | Observed


class Known(NamedTuple):
    """An observation as a study takes it: its row (d,); (step, value) pairs, steps ascending; the final value, None if there is none; how it ended."""

    row: Row
    values: list[tuple[int, float]]
    final: float | None
    state: TrialState


def listed(observations: Observations, metric: str) -> list[Observation]:
    """One by one. Raises `InvalidArgument` if they are not observations at all."""
    if isinstance(observations, Observed):
        return observations.observations(metric)
    try:
        return [Observation(*observation) for observation in observations]
    except TypeError:
        raise InvalidArgument(
            f"observations must be (config, value) pairs, a Result or a Study, got {observations!r:.200}"
        ) from None


def check(observations: Iterable[Observation], space: Space) -> list[Known]:
    """As a study takes them. Raises `InvalidArgument`, naming the observation, the rule and the value, if one breaks its rule."""
    known = []
    for number, (config, values, complete) in enumerate(observations):
        with named(f"observations[{number}]"):
            row = space.encode(config)
            pairs = _curve(values) if isinstance(values, Mapping) else [(0, _value(values))]
        finite = list(itertools.takewhile(lambda pair: math.isfinite(pair[1]), pairs))
        state = FAILED if len(finite) < len(pairs) else COMPLETED if complete else STOPPED
        final = finite[-1][1] if state is COMPLETED else None
        known.append(Known(row, finite if isinstance(values, Mapping) else [], final, state))
    return known


def _curve(values: Mapping[int, float]) -> list[tuple[int, float]]:
    if not values:
        raise InvalidArgument("values must be those of one step at least, got {}")
    return sorted((check_integer("a step", step, at_least=1), _value(value)) for step, value in values.items())


def _value(value: object) -> float:
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise InvalidArgument(f"a value must be a number, or numbers by step, got {value!r}")
    return float(value)


def encode(points: Sequence[Config], space: Space) -> list[Row]:
    """The rows (d,) of `points_to_evaluate`. Raises `InvalidArgument`, naming the point, the rule and the value, if one is not of the space."""
    if not isinstance(points, Sequence):
        raise InvalidArgument(f"points_to_evaluate must be a list of configurations, got {points!r}")
    return space.encode_each("points_to_evaluate", points)


def fingerprint(rows: Sequence[Row], scores: object = None) -> str:
    """The number of some configurations and a digest of them and their scores, by which a resumed run knows them again; "none" without any."""
    digest = hashlib.sha256(b"".join(row.tobytes() for row in rows) + repr(scores).encode()).hexdigest()
    return f"{len(rows)} ({digest[:16]})" if rows else "none"
