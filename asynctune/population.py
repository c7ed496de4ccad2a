"""Population: exploit and explore on arrays, for a program that trains all members in one process.

Jaderberg et al., Population Based Training of Neural Networks, 2017 (arXiv:1711.09846).
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from asynctune import _core
from asynctune.errors import AsynctuneError, InvalidArgument, check_factor, check_integer, check_mode, check_real
from asynctune.slots import usable_cores
from asynctune.space import Space

__all__ = ["Population"]

Members = npt.NDArray[np.int64]
R = TypeVar("R")

_WORTH_A_THREAD = 2**16  # members; below, starting a thread takes longer than what it would do


class Population:
    """The hyperparameters of a whole population, and whose weights each member carries; training is the caller's.

    A generation: train all members for a while, score them, `step(scores)`. Of n members the worst k = min(n // 2,
    max(1, floor(quantile_fraction n))) each take over from a uniform draw of those of the best k whose score is finite,
    and then explore: a hyperparameter is drawn anew with `resample_probability`, else multiplied or divided by
    `perturbation_factor`, inside its bounds (on a grid it moves by a step at least, near zero by a sum, `ordinal` to a
    neighbour; `choice` stays). NaN and infinities are the worst scores; ties go to the lower member.

    Member i begins as trial i of `at.Random()` with the same seed. Every draw is keyed by seed, member and generation:
    results are equal bit by bit whatever the number of threads.

    Args:
        space: a search space, as a dict or a `Space`.
        size: n, the number of members, an integer in 1..2^31 - 2.
        mode: "max" or "min", which scores are the better ones.
        quantile_fraction: in [0, 0.5].
        resample_probability: in [0, 1].
        perturbation_factor: > 1 and finite.
        seed: an integer >= 0.
        num_threads: an integer >= 1; None: the usable cores, and fewer for a small population.

    Attributes:
        space, size: as given.
        values: by hyperparameter's name, as in `Space.names`, an array (size,) float64, contiguous, the same object for
            life. Integers are whole numbers; `choice` and `ordinal` are the option's index; NaN where a hyperparameter
            is not active. Whoever writes to them must stay inside the space.
        generation: how many steps were taken.

    Raises:
        InvalidArgument: an argument breaks its rule.
    """

    def __init__(
        self,
        space: Mapping[str, Any] | Space,
        size: int,
        *,
        mode: str = "max",
        quantile_fraction: float = 0.25,
        resample_probability: float = 0.25,
        perturbation_factor: float = 1.2,
        seed: int = 0,
        num_threads: int | None = None,
    ) -> None:
        self.size = check_integer("size", size, at_least=1, at_most=2**31 - 2)
        check_mode(mode)
        quantile_fraction = check_real("quantile_fraction", quantile_fraction, 0, 0.5)
        self._k = _core.truncated(self.size, quantile_fraction)
        self._sign = 1.0 if mode == "max" else -1.0
        self._resample_probability = check_real("resample_probability", resample_probability, 0, 1)
        self._perturbation_factor = check_factor(perturbation_factor)
        self._seed = check_integer("seed", seed, at_least=0) % 2**64  # all that a stream takes in
        if num_threads is not None:
            num_threads = check_integer("num_threads", num_threads, at_least=1)
        self.space = space if isinstance(space, Space) else Space(space)
        self.generation = 0
        self._threads = num_threads or min(usable_cores(), 1 + self.size // _WORTH_A_THREAD)
        self._busy = threading.Lock()
        self._rows = np.empty((len(self.space.names), self.size))  # one hyperparameter's values lie side by side
        self.values = MappingProxyType(dict(zip(self.space.names, self._rows, strict=True)))
        # Kept, since fresh pages would cost a fifth of a step. The scores are copied: the caller's may change meanwhile.
        self._scores, *self._scratch = np.empty((3, self.size))
        sample = partial(self.space.table.sample_many, self._rows, self._seed)
        self._run([partial(sample, part.start, part.stop) for part in self._parts(self.size)])

    def step(self, scores: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """End a generation. Return each member's donor, (size,) int64: the member itself where it goes on unchanged.

        scores: (size,) real numbers, anything that `numpy.asarray` takes. Gather weights and optimizer state by the
        answer; `values` have changed in place. Nobody gives and takes over at once, so that gathering in place is safe,
        too. Raises InvalidArgument, before anything has changed, if the scores are not that; AsynctuneError if another
        thread is in a step. After any other error (memory, Ctrl-C) the same call once more makes the step whole.
        """
        given = self._checked_scores(scores)
        with self._alone():
            generation = self.generation + 1
            donor = np.arange(self.size)
            self._scores[:] = given
            if self._k:
                tasks = [
                    partial(end, self._scores, self._sign, self._k, scratch)
                    for end, scratch in zip((_core.best, _core.worst), self._scratch, strict=True)
                ]
                best, worst = self._run(tasks)
                if len(best):
                    self._run(
                        [partial(self._exploit, best, worst[part], donor, generation) for part in self._parts(self._k)]
                    )
            self.generation = generation
        return donor

    def config(self, member: int) -> dict[str, Any]:
        """The configuration of a member in 0..size - 1, as `Space.decode` makes it. Raises InvalidArgument."""
        check_integer("member", member, at_least=0)
        if member >= self.size:
            raise InvalidArgument(f"member must be in 0..{self.size - 1}, got {member}")
        return self.space.decode(self._rows[:, member])

    def state_dict(self) -> dict[str, npt.NDArray[Any]]:
        """A copy of what changes, as arrays: "generation" and "seed" (0-d), and "values.NAME" (size,) for each name."""
        with self._alone():
            values = {f"values.{name}": values.copy() for name, values in self.values.items()}
            return {"generation": np.array(self.generation), "seed": np.array(self._seed, np.uint64)} | values

    def load_state_dict(self, state: Mapping[str, npt.ArrayLike]) -> None:
        """Go on from the `state_dict` of a population that was made with the same arguments, as that one would, bit by bit.

        Raises InvalidArgument, before anything has changed, if the state does not fit the size and the space; that the
        other arguments are the same is up to the caller, who may want to change them.
        """
        if not isinstance(state, Mapping):
            raise InvalidArgument(f"state must be a mapping, as state_dict makes it, got {type(state).__name__}")
        expected = {"generation", "seed", *(f"values.{name}" for name in self.space.names)}
        if state.keys() != expected:
            raise InvalidArgument(
                f"state must have the keys {sorted(expected)}, it lacks {sorted(expected - state.keys())} "
                f"and has {sorted(map(str, state.keys() - expected))} beside them"
            )
        arrays = {key: _core.as_array(key, state[key]) for key in expected}
        for key, bits in (("generation", 62), ("seed", 64)):
            if arrays[key].shape or arrays[key].dtype.kind not in "iu" or not 0 <= int(arrays[key]) < 2**bits:
                raise InvalidArgument(f"{key} must be an integer in 0..2^{bits} - 1, got {arrays[key]!r}")
        rows = [arrays[f"values.{name}"] for name in self.space.names]
        for name, row in zip(self.space.names, rows, strict=True):
            if row.shape != (self.size,) or row.dtype != np.float64:
                raise InvalidArgument(
                    f"values.{name} must have shape ({self.size},) and dtype float64, got {row.shape} and {row.dtype}"
                )
        self._check_values(rows)
        with self._alone():
            self.generation, self._seed = int(arrays["generation"]), int(arrays["seed"])
            self._rows[...] = rows

    def _exploit(self, best: Members, members: Members, donor: Members, generation: int) -> None:
        """Let members take over from some of the best, and explore."""
        _core.draw_donors(donor, best, members, self._seed, generation)
        self.space.table.explore_many(
            self._rows, donor, members, self._seed, generation, self._resample_probability, self._perturbation_factor
        )

    def _checked_scores(self, scores: npt.ArrayLike) -> npt.NDArray[Any]:
        array = _core.as_array("scores", scores)
        if array.shape != (self.size,) or array.dtype.kind not in "fiu":
            raise InvalidArgument(
                f"scores must be ({self.size},) real numbers, got shape {array.shape} and dtype {array.dtype}"
            )
        return array

    def _check_values(self, rows: list[npt.NDArray[np.float64]]) -> None:
        """Raise InvalidArgument unless all values are of this space."""
        domains = self.space.describe()
        for column, values in zip(self.space.columns, rows, strict=True):
            valid = np.isfinite(values)
            if column.kind != _core.NORMAL:
                valid &= (column.low <= values) & (values <= column.high)
            if column.step:
                steps = np.where(valid, values, 0) / column.step
                valid &= np.abs(steps - np.rint(steps)) <= 1e-9 * np.maximum(1, np.abs(steps))
            if column.parent >= 0:
                valid = np.where(rows[column.parent] == column.branch, valid, np.isnan(values))
            if not valid.all():
                member = int(np.argmin(valid))
                raise InvalidArgument(
                    f"values.{column.name} must be of {domains[column.name]}, NaN where that is not active, "
                    f"got {values[member]} for member {member}"
                )

    def _parts(self, n: int) -> list[slice]:
        """0..n - 1 in as many parts as there are threads."""
        count = min(self._threads, n)
        return [slice(*ends) for ends in pairwise(n * i // count for i in range(count + 1))]

    def _run(self, tasks: Sequence[Callable[[], R]]) -> list[R]:
        """The results of the tasks, each in a thread of its own if there is more than one thread."""
        if self._threads == 1:
            return [task() for task in tasks]
        *others, own = tasks
        with ThreadPoolExecutor(len(tasks)) as pool:
            futures = [pool.submit(task) for task in others]
            # If the caller only waited, it would often be woken on the core of a thread that it has just started.
            last = own()
            return [*(future.result() for future in futures), last]

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if not self._busy.acquire(blocking=False):
            raise AsynctuneError("another thread is in a step of this population, or loads or saves its state")
        try:
            yield
        finally:
            self._busy.release()
