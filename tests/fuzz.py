"""Fuzz: the array API, called with arguments that nobody should pass, beside the readable reference.

    python -m tests.fuzz --seconds 60 --seed 0

A case is a random sequence of calls on one object; all of it is drawn from one seed, but for how threads meet. Plain
arguments must be answered as the reference answers. Dressed ones say the same in another form (a list, another byte
order, every second element): they are answered so, or refused. Spoilt ones must be refused, and change nothing: what
follows must still agree. Nothing may crash; `make fuzz` runs this under AddressSanitizer and UndefinedBehaviorSanitizer.
"""

import argparse
import array
import inspect
import itertools
import math
import random
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Barrier
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt

import asynctune
from asynctune import _core
from asynctune._core import (
    CHOICE,
    EXPLORE,
    LINEAR,
    LOG,
    NORMAL,
    ORDER,
    ORDINAL,
    SAMPLE,
    Generations,
    Ladder,
    Parzen,
    Stream,
    Table,
)
from asynctune.errors import AsynctuneError
from asynctune.population import Population
from asynctune.records import COMPLETED, FAILED, Action
from asynctune.schedulers import ASHA
from tests import reference

Column = npt.NDArray[Any]

#: How an argument may be refused. OverflowError: Python's word for an integer that does not fit into C's.
REFUSED = (ValueError, TypeError, OverflowError)

#: Few values, so that ties are common.
SCORES = [0.0, 1.0, 2.0, 3.0, 2.0, 1.0, -0.0, -1.0, 5.0, 1e308, -1e308, 5e-324, math.nan, math.inf, -math.inf]

NO_MEMBER = [-1, -(2**31), -(2**63), 2**31 - 1, 2**31, 2**32 + 1, 2**63 - 1, 2**63, 2**70, math.nan, "1", None, []]
NO_NUMBER = ["1", None, [], object(), 1j]


def refused(call: Callable[..., object], *arguments: object) -> bool:
    try:
        call(*arguments)
    except REFUSED:
        return True
    return False


# Columns: arguments of shape (m,).

DRESSES: list[Callable[[Column], object]] = [
    lambda column: column.tolist(),
    lambda column: tuple(column),
    lambda column: array.array("d" if column.dtype == np.float64 else "q", column.tolist()),
    lambda column: column.data,
    lambda column: np.repeat(column, 2)[::2],
    lambda column: column[::-1].copy()[::-1],
    lambda column: column.astype(column.dtype.newbyteorder()),
    lambda column: np.frombuffer(b"\0" + column.tobytes(), column.dtype, offset=1),  # not aligned
    lambda column: np.frombuffer(column.tobytes(), column.dtype),  # not writeable
    lambda column: np.ma.masked_array(column),
    lambda column: column.astype(object),
    lambda column: column.astype(np.longdouble),
]

SPOILS: list[Callable[[Column], object]] = [
    lambda column: column[:-1],
    lambda column: np.append(column, column[:1]),
    lambda column: column[np.newaxis],
    lambda column: column[:, np.newaxis],
    lambda column: column[0],
    lambda column: column.astype(str),
    lambda column: column.astype(complex),
    lambda column: column.astype("datetime64[s]") if column.dtype == np.int64 else column.astype(bytes),
    lambda column: column.view([("field", column.dtype)]),
    lambda column: [object() for _ in column],
    lambda column: [[1], [1, 2]],
    lambda column: iter(column.tolist()),
    lambda column: dict.fromkeys(column.tolist()),
    lambda column: None,
    lambda column: "column",
]


def dressed(draw: random.Random, columns: Sequence[Column]) -> list[object]:
    return [draw.choice(DRESSES)(column) for column in columns]


def spoilt(draw: random.Random, columns: Sequence[Column], least: Sequence[int | None]) -> list[object]:
    """Columns of which one is wrong. `least`: the lowest integer that may stand in a column; None: it holds floats."""
    result: list[object] = list(columns)
    place = draw.randrange(len(columns))
    column, low = columns[place], least[place]
    if low is None or draw.random() < 0.5:
        result[place] = draw.choice(SPOILS)(column)
    elif draw.random() < 0.2:
        result[place] = column + draw.choice([0.5, math.nan])
    else:
        wrong = column.copy()
        wrong[draw.randrange(len(wrong))] = draw.choice([low - 1, -1, -(2**31), -(2**63)])
        result[place] = wrong
    return result


# Cases.


class Halving:
    """`ASHA(...).bind()`: reports and promotions in arrays, and one by one as a study makes them."""

    def __init__(self, draw: random.Random) -> None:
        self.draw = draw
        promotion = draw.random() < 0.6
        spec = ASHA(
            max_resource=draw.randint(1, 30),
            reduction_factor=draw.randint(2, 4),
            type="promotion" if promotion else "stopping",
        )
        spec = ASHA(
            spec.max_resource, 1, spec.reduction_factor, brackets=draw.randint(1, len(spec.levels)), type=spec.type
        )
        mode: Literal["min", "max"] = draw.choice(["min", "max"])
        self.sign = 1 if mode == "max" else -1
        self.bound = spec.bind(mode=mode, seed=draw.getrandbits(64))
        self.trials = draw.choice([1, 5, 20, 60])
        self.max_resource = spec.max_resource
        references = {
            level: reference.ASHA(list(spec.levels[bracket:]), spec.reduction_factor, promotion)
            for bracket, level in enumerate(spec.levels[: spec.brackets])
        }
        self.brackets = list(references.values())
        self.of = [references[self.bound.begin(trial)] for trial in range(self.trials)]

    def trial(self) -> int:
        return self.draw.randrange(self.trials)

    def reports(self, m: int) -> list[Column]:
        """Trials, steps and values."""
        return [
            np.array([self.trial() for _ in range(m)], dtype=np.int64),
            np.array([self.draw.choice([1, 2, 3, 9, 30, 2**40]) for _ in range(m)], dtype=np.int64),
            np.array(self.draw.choices(SCORES, k=m), dtype=np.float64),
        ]

    def expected(self, trial: int, step: int, value: float) -> list[int]:
        return self.of[trial].report(trial, step, self.sign * value)

    def promotable(self) -> int | None:
        """From the highest level, then from the lowest bracket."""
        found = [(naive, trial) for naive in self.brackets if (trial := naive.promotable()) is not None]
        return max(found, key=lambda pair: pair[0].due(pair[1]))[1] if found else None

    def report_many(self) -> None:
        columns = self.reports(self.draw.choice([0, 1, 2, 5, 20]))
        arguments = dressed(self.draw, columns) if self.draw.random() < 0.5 else columns
        try:
            going = self.bound.report_many(*arguments)
        except REFUSED:
            assert arguments is not columns
            return
        expected = []
        for trial, step, value in zip(*(column.tolist() for column in columns), strict=True):
            self.expected(trial, step, value)
            self.of[trial].offer(trial)
            expected.append(self.of[trial].goes_on(trial))
        assert going.dtype == np.bool_
        assert going.tolist() == expected

    def spoilt_report_many(self) -> None:
        columns = spoilt(self.draw, self.reports(self.draw.choice([1, 2, 5, 20])), [0, 1, None])
        assert refused(self.bound.report_many, *columns), columns

    def promote_many(self) -> None:
        count = self.draw.choice([0, 1, 3, 100, 2**62, 2**70])
        expected: list[int] = []
        while len(expected) < count and (trial := self.promotable()) is not None:
            self.of[trial].promote(trial)
            expected.append(trial)
        promoted = self.bound.promote_many(count)
        assert promoted.dtype == np.int64
        assert promoted.tolist() == expected, (promoted, expected)

    def spoilt_promote_many(self) -> None:
        count = self.draw.choice([-1, -(2**63), 0.5, math.nan, "1", None, [1], np.arange(3)])
        assert refused(self.bound.promote_many, count), count

    def report(self) -> None:
        trial, step, value = (column.item() for column in self.reports(1))
        verdict = self.bound.report(trial, step, value)
        assert list(verdict.recorded) == self.expected(trial, step, value)
        assert (verdict.action is Action.CONTINUE) == self.of[trial].goes_on(trial)
        if verdict.action is Action.CONTINUE:
            assert verdict.until == self.of[trial].due(trial)

    def spoilt_report(self) -> None:
        arguments: list[object] = [self.trial(), 1, 0.0]
        place = self.draw.randrange(3)
        arguments[place] = self.draw.choice(
            [NO_MEMBER, [0, -1, -(2**63), 2**63, math.nan, "1", None], NO_NUMBER][place]
        )
        assert refused(self.bound.report, *arguments), arguments

    def saved(self) -> None:
        trial = self.trial()
        self.bound.saved(trial, 1, None)
        self.of[trial].offer(trial)

    def finish(self) -> None:
        trial, failed = self.trial(), self.draw.random() < 0.5
        assert list(self.bound.finish(trial, FAILED if failed else COMPLETED)) == self.of[trial].finish(trial, failed)

    def resume(self) -> None:
        resumption, expected = self.bound.resumable(), self.promotable()
        assert (None if resumption is None else resumption.trial) == expected
        if resumption is not None and expected is not None:
            self.bound.resume(resumption)
            self.of[expected].promote(expected)
            assert resumption.until == self.of[expected].due(expected)

    def spoilt_trial(self) -> None:
        trial = self.draw.choice(NO_MEMBER)
        call = self.draw.choice(
            [self.bound.begin, lambda t: self.bound.saved(t, 1, None), lambda t: self.bound.finish(t, FAILED)]
        )
        assert refused(call, trial), trial

    def __iter__(self) -> Iterator[Callable[[], None]]:
        common = [self.report_many, self.spoilt_report_many, self.promote_many, self.report, self.saved]
        rare = [self.spoilt_promote_many, self.spoilt_report, self.finish, self.resume, self.spoilt_trial]
        yield from self.draw.choices(common + rare, [3] * len(common) + [1] * len(rare), k=40)
        yield self.promote_many


class Crowd(ABC):
    """Threads that call one object at once: what is not refused must be as in some order, one after the other."""

    def __init__(self, draw: random.Random) -> None:
        self.draw = draw
        self.numbers = np.random.default_rng(draw.getrandbits(64))

    @abstractmethod
    def make(self) -> Any:
        """An object, each time the same."""

    @abstractmethod
    def call(self) -> tuple[str, list[Any]]:
        """The name of a method, and its arguments."""

    @abstractmethod
    def look(self, thing: Any) -> Column:
        """What the calls have left behind."""

    def collide(self) -> None:
        shared = self.make()
        history = [self.call() for _ in range(2)]
        for name, arguments in history:
            getattr(shared, name)(*arguments)
        calls = [self.call() for _ in range(self.draw.randint(2, 4))]
        start = Barrier(len(calls))

        def meet(call: tuple[str, list[Any]]) -> Column | None:
            start.wait()
            with suppress(AsynctuneError):
                return cast("Column", getattr(shared, call[0])(*call[1]))
            return None

        with ThreadPoolExecutor(len(calls)) as pool:
            answers = list(pool.map(meet, calls))
        after = self.look(shared)

        def explains(order: Sequence[int]) -> bool:
            serial = self.make()
            for name, arguments in history:
                getattr(serial, name)(*arguments)
            for number in order:
                name, arguments = calls[number]
                if not np.array_equal(getattr(serial, name)(*arguments), cast("Column", answers[number])):
                    return False
            return np.array_equal(self.look(serial), after)

        accepted = [number for number, answer in enumerate(answers) if answer is not None]
        assert accepted
        assert any(map(explains, itertools.permutations(accepted))), f"no order explains {accepted}"

    def __iter__(self) -> Iterator[Callable[[], None]]:
        yield self.collide


class HalvingCrowd(Crowd):
    def __init__(self, draw: random.Random) -> None:
        super().__init__(draw)
        self.spec = ASHA(27, type=draw.choice(["stopping", "promotion"]), brackets=draw.randint(1, 3))

    def make(self) -> Any:
        return self.spec.bind()

    def call(self) -> tuple[str, list[Any]]:
        if self.draw.random() < 0.3:
            return "promote_many", [500]
        m = self.draw.choice([100, 5000])
        columns = (
            self.numbers.integers(0, 2 * m, m),
            self.numbers.integers(1, 30, m),
            self.numbers.integers(0, 50, m) / 7,
        )
        return "report_many", list(columns)

    def look(self, thing: Any) -> Column:
        return cast("Column", thing.promote_many(10_000))


class Truncation:
    """`Generations`: members recorded, saved, decided on and gone, in any order."""

    def __init__(self, draw: random.Random) -> None:
        self.draw = draw
        self.population, self.depths = draw.randint(1, 12), draw.randint(1, 5)
        quantile, seed, barrier = draw.choice([0.0, 0.2, 0.25, 0.5]), draw.getrandbits(64), draw.random() < 0.5
        self.bound = Generations(self.population, self.depths, quantile, seed, barrier)

        def turn(depth: int, decided: int, n: int) -> int:
            return Stream(seed, ORDER, decided, 0, depth).below(n)

        self.naive = reference.PBT(self.population, 1, self.depths + 1, quantile, 0, barrier, turn)
        self.saves = 0

    def member(self) -> int:
        return self.draw.randrange(self.population)

    def record(self) -> None:
        member, depth, score = self.member(), self.draw.randint(1, self.depths), self.draw.choice(SCORES)
        assert self.bound.record(member, depth, score) == bool(self.naive.report(member, depth, score))

    def save(self) -> None:
        member = self.member()
        self.saves += 1
        checkpoint = f"{self.saves}" if self.draw.random() < 0.75 else None
        self.bound.save(member, self.saves, checkpoint)
        self.naive.saved(member, self.saves, checkpoint)

    def turn(self) -> None:
        warm = self.draw.choice([None, self.member()])
        member = self.bound.next(warm)
        assert member == self.naive.resumable(warm)
        if member is None:
            return
        donors, donor = self.naive.donors(member), self.bound.donor(member)
        assert donor == self.bound.donor(member)
        if donor is None:
            assert not donors
        else:
            triple = donors[donor[0]]
            assert donor[1:] == (triple.checkpoint, triple.step, triple.score)
        self.bound.advance(member)
        self.naive.resume(member)

    def leave(self) -> None:
        member = self.member()
        self.bound.leave(member)
        self.naive.finish(member)

    def look(self) -> None:
        member = self.member()
        recorded, passed = self.naive.recorded(member), self.naive.passed.get(member, 0)
        assert self.bound.passed_depth(member) == passed
        assert self.bound.undecided_depth(member) == (recorded if recorded > passed else None)
        released = self.bound.released()
        assert len(set(released)) == len(released)
        assert set(released) == self.naive.released()

    def spoilt(self) -> None:
        wrong: Any = self.draw.choice([self.population, *NO_MEMBER])
        idle = [member for member in range(self.population) if member not in self.naive.waiting()]
        calls: list[tuple[Callable[..., object], tuple[Any, ...]]] = [
            (self.bound.record, (wrong, 1, 0.0)),
            (self.bound.record, (0, self.draw.choice([0, self.depths + 1, *NO_MEMBER]), 0.0)),
            (self.bound.record, (0, 1, self.draw.choice(NO_NUMBER))),
            (self.bound.save, (wrong, 1, "wrong")),
            (self.bound.leave, (wrong,)),
            *((call, (member,)) for call in (self.bound.donor, self.bound.advance) for member in [wrong, *idle]),
        ]
        call, arguments = self.draw.choice(calls)
        assert refused(call, *arguments), arguments

    def __iter__(self) -> Iterator[Callable[[], None]]:
        calls = [self.record, self.save, self.turn, self.leave, self.look, self.spoilt]
        yield from self.draw.choices(calls, [8, 8, 5, 1, 3, 3], k=80)
        yield self.look


class Domains:
    """`Table`: what is drawn and explored stays in its domain."""

    def __init__(self, draw: random.Random) -> None:
        self.draw = draw
        self.columns = [self.column(place) for place in range(draw.randint(0, 6))]
        self.table = Table(*(zip(*self.columns, strict=True) if self.columns else [[]] * 6))

    def column(self, place: int) -> tuple[float, ...]:
        """Kind, low, high, step, parent and branch."""
        kind = self.draw.choice([LINEAR, LOG, NORMAL, CHOICE, ORDINAL])
        low, high = sorted(self.draw.choice([-3.0, -1e-3, 0.0, 0.5, 1.0, 7.0, 1e6, 1e300]) for _ in range(2))
        step = self.draw.choice([0.0, 0.0, 1.0, 0.25])
        if kind in (CHOICE, ORDINAL):
            low, high = 0.0, self.draw.randint(0, 4)
        elif kind == NORMAL:
            high = max(high, 1e-3)
        elif kind == LOG:
            low, high = max(low, 1e-3), max(high, 1e-3)
        if step and kind in (LINEAR, LOG):
            low, high = math.ceil(min(low, 2.0**51)), math.ceil(min(high, 2.0**51))  # as many steps as `Space` allows
        parent = self.draw.randrange(-1, place)
        return kind, low, high, step, parent, self.draw.randint(0, 2)

    def check(self, row: Column) -> None:
        assert row.shape == (len(self.columns),)
        for (kind, low, high, step, parent, branch), value in zip(self.columns, row.tolist(), strict=True):
            if parent >= 0 and row[int(parent)] != branch:
                assert math.isnan(value)
            elif kind in (CHOICE, ORDINAL):
                assert value in range(int(high) + 1)
            else:
                assert math.isfinite(value) if kind == NORMAL else low <= value <= high
                assert not step or abs(value) > 1e15 or (value / step).is_integer()

    def stream(self) -> Stream:
        return Stream(self.draw.getrandbits(64), self.draw.choice([SAMPLE, EXPLORE]))

    def explore(self) -> None:
        row = self.table.sample(self.stream())
        self.check(row)
        for _ in range(5):
            before = row.copy()
            new = self.table.explore(row, self.stream(), self.draw.random(), self.draw.choice([1.0001, 1.2, 2, 10]))
            assert np.array_equal(row, before, equal_nan=True)
            self.check(new)
            row = new

    def wild_row(self) -> None:
        """A row that is in no domain: only the shape of the answer is known."""
        wild = [math.nan, math.inf, -math.inf, -1.0, 0.5, 1e308, -1e308, 2.0**63, 2.0**31, 5e-324]
        row = np.array(self.draw.choices(wild, k=len(self.columns)), dtype=np.float64)
        new = self.table.explore(row, self.stream(), self.draw.random(), self.draw.choice([1.2, 1e300]))
        assert new.shape == row.shape

    def spoilt_explore(self) -> None:
        row: Any = self.table.sample(self.stream())
        wrong = np.append(row, 1.0), row[np.newaxis], row.astype(object), row.tolist(), None, "row"
        calls: list[tuple[Any, ...]] = [
            *((bad, self.stream(), 0.25, 1.2) for bad in wrong),
            *((row, bad, 0.25, 1.2) for bad in (None, 3, self.table)),
            *((row, self.stream(), bad, 1.2) for bad in (-0.1, 1.1, math.nan, *NO_NUMBER)),
            *((row, self.stream(), 0.25, bad) for bad in (1.0, 0.5, -2.0, 0.0, math.nan, math.inf, *NO_NUMBER)),
        ]
        arguments = self.draw.choice(calls)
        assert refused(self.table.explore, *arguments), arguments

    def spoilt_columns(self) -> None:
        columns = [*self.columns, (LINEAR, 0.0, 1.0, 0.0, -1, 0)]
        place = self.draw.randrange(len(columns))
        row: list[Any] = list(columns[place])
        field, wrong = self.draw.choice(
            [
                (0, [5, 255, 256, -1, "x", None]),
                (1, [math.nan, math.inf, "x"]),
                (2, [math.nan, -math.inf, -1e301, "x"]),
                (3, [math.nan, math.inf, -1.0, "x"]),
                (4, [place, place + 1, -2, 2**31, 2**63, "x", None]),
                (5, [2**31, 2**63, "x", None]),
            ]
        )
        row[field] = self.draw.choice(wrong)
        columns[place] = tuple(row)
        assert refused(Table, *zip(*columns, strict=True)), columns
        short = [list(field) for field in zip(*columns, strict=True)]
        short[self.draw.randrange(6)].pop()
        assert refused(Table, *short), short

    def __iter__(self) -> Iterator[Callable[[], None]]:
        yield from self.draw.choices([self.explore, self.wild_row, self.spoilt_explore, self.spoilt_columns], k=20)


SPACE = {
    "rate": asynctune.loguniform(1e-5, 1e-1),
    "shift": asynctune.uniform(-1.0, 1.0),
    "layers": asynctune.randint(1, 5),
    "size": asynctune.ordinal([32, 64, 128]),
    "kind": asynctune.choice(["a", "b", "c"]),
}
BOUNDS = {"rate": (1e-5, 1e-1), "shift": (-1.0, 1.0), "layers": (1, 4), "size": (0, 2), "kind": (0, 2)}


class Windows(Domains):
    """`Parzen`: trials come, change sides and go; what is suggested is in its domain, and the densities are what they were."""

    def __init__(self, draw: random.Random) -> None:
        super().__init__(draw)
        self.columns = self.columns or [(LINEAR, 0.0, 1.0, 0.0, -1, 0)]
        self.table = Table(*zip(*self.columns, strict=True))
        self.parzen = Parzen(self.table, draw.choice([1.0, 0.1, 1e3]))
        self.sides: dict[int, bool] = {}

    def trial(self) -> int:
        return self.draw.choice([self.draw.randrange(200), self.draw.randrange(200), 2**40, -1])

    def put(self) -> None:
        for _ in range(self.draw.choice([1, 20])):
            trial, better = self.trial(), self.draw.random() < 0.2
            full = better and sum(side for other, side in self.sides.items() if other != trial) == 25
            row = self.table.sample(self.stream())
            assert refused(self.parzen.put, trial, row, better) == full
            if not full:
                self.sides[trial] = better

    def drop(self) -> None:
        trial = self.trial()
        self.parzen.drop(trial)
        self.sides.pop(trial, None)

    def suggest(self) -> None:
        seed, trial = self.draw.getrandbits(64), self.trial()
        arguments = seed, trial, self.draw.choice([1, 5]), self.draw.random() < 0.5
        self.check(row := self.parzen.suggest(*arguments))
        assert np.array_equal(self.parzen.suggest(*arguments), row, equal_nan=True)
        for j, value in enumerate(row.tolist()):
            if not math.isnan(value):
                self.parzen.density(j, np.array([value]), self.draw.random() < 0.5)

    def spoilt(self) -> None:
        before = self.parzen.state()
        row: Any = self.table.sample(self.stream())
        wrong = (
            np.append(row, 1.0),
            row[np.newaxis],
            row.astype(object),
            row.tolist(),
            None,
            "row",
            np.full_like(row, math.inf),
        )
        calls: list[tuple[Callable[..., object], tuple[Any, ...]]] = [
            *((self.parzen.put, (1, bad, False)) for bad in wrong),
            *((self.parzen.put, (bad, row, False)) for bad in (2**63, -(2**63) - 1, math.nan, "1", None)),
            *((self.parzen.suggest, (0, 0, bad)) for bad in (0, -1, 10_001, 2**63, "1", None)),
            *((self.parzen.density, (bad, np.zeros(1), True)) for bad in (len(self.columns), *NO_MEMBER)),
            (self.parzen.density, (0, np.zeros((1, 1)), True)),
        ]
        call, arguments = self.draw.choice(calls)
        assert refused(call, *arguments), arguments
        assert self.parzen.state() == before

    def look(self) -> None:
        others, better = ([trial for trial, _ in side] for side in self.parzen.state()[0])
        assert others == sorted(trial for trial, side in self.sides.items() if not side)
        assert better == sorted(trial for trial, side in self.sides.items() if side)

    def __iter__(self) -> Iterator[Callable[[], None]]:
        yield from self.draw.choices([self.put, self.drop, self.suggest, self.spoilt], [4, 2, 2, 1], k=40)
        yield self.look


class Generation:
    """`Population`: who takes over from whom, what stays as it was, what stays in its domain; on any number of threads."""

    def __init__(self, draw: random.Random) -> None:
        self.draw = draw
        self.size = draw.choice([1, 2, 3, 10, 40])
        self.quantile = draw.choice([0.0, 0.1, 0.25, 0.5])
        self.mode = draw.choice(["min", "max"])
        self.seed = draw.getrandbits(64)
        self.tested, self.twin = self.make(1), self.make(draw.randint(2, 4))

    def make(self, num_threads: int) -> Any:
        return Population(
            SPACE,
            size=self.size,
            mode=self.mode,
            quantile_fraction=self.quantile,
            resample_probability=0.25,
            perturbation_factor=1.2,
            seed=self.seed,
            num_threads=num_threads,
        )

    def state(self) -> dict[str, bytes]:
        state = {name: np.asarray(part).tobytes() for name, part in self.tested.state_dict().items()}
        return state | {f"values.{name}": column.tobytes() for name, column in self.tested.values.items()}

    def scores(self) -> Column:
        return np.array(self.draw.choices(SCORES, k=self.size), dtype=np.float64)

    def step(self) -> None:
        scores = self.scores()
        argument = self.draw.choice(DRESSES)(scores) if self.draw.random() < 0.5 else scores
        before = {name: column.copy() for name, column in self.tested.values.items()}
        try:
            donors = self.tested.step(argument)
        except REFUSED:
            assert argument is not scores
            return
        assert np.array_equal(self.twin.step(scores), donors)
        sign = 1 if self.mode == "max" else -1
        ranks = reference.rank(
            {member: reference.oriented(sign * score) for member, score in enumerate(scores.tolist())}
        )
        k = min(self.size // 2, max(1, math.floor(self.quantile * self.size)))
        best = {member for member in ranks[:k] if math.isfinite(scores[member])}
        worst = set(ranks[self.size - k :]) if best else set()
        for member, donor in enumerate(donors.tolist()):
            assert donor in best if member in worst else donor == member
        stays = np.array([member not in worst for member in range(self.size)])
        for name, column in self.tested.values.items():
            low, high = BOUNDS[name]
            assert np.array_equal(column, self.twin.values[name])
            assert np.array_equal(column[stays], before[name][stays])
            assert (low <= column).all() and (column <= high).all()
            assert isinstance(low, float) or np.array_equal(column, np.rint(column))

    def spoilt_step(self) -> None:
        before, (scores,) = self.state(), spoilt(self.draw, [self.scores()], [None])
        assert refused(self.tested.step, scores), scores
        assert self.state() == before

    def resume(self) -> None:
        again = self.make(1)
        again.load_state_dict(self.tested.state_dict())
        self.tested = again

    def spoilt_resume(self) -> None:
        before, state = self.state(), dict(self.tested.state_dict())
        name = self.draw.choice(list(state))
        if self.draw.random() < 0.5:
            del state[name]
        else:
            state[name] = self.draw.choice(
                [None, "x", object(), [[1], [1, 2]], np.zeros((3, 3, 3)), np.full(self.size, 7.5)]
            )
        assert refused(self.tested.load_state_dict, self.draw.choice([state, {}])), state
        assert self.state() == before

    def __iter__(self) -> Iterator[Callable[[], None]]:
        yield from self.draw.choices([self.step, self.spoilt_step, self.resume, self.spoilt_resume], [6, 3, 1, 1], k=20)


class GenerationCrowd(Crowd):
    def __init__(self, draw: random.Random) -> None:
        super().__init__(draw)
        self.num_threads = draw.randint(1, 3)

    def make(self) -> Any:
        return Population(SPACE, size=3000, seed=1, num_threads=self.num_threads)

    def call(self) -> tuple[str, list[Any]]:
        return "step", [self.numbers.integers(0, 50, 3000) / 7]

    def look(self, thing: Any) -> Column:
        return np.array(list(thing.values.values()))


class Nonsense:
    """Any call of the core with anything, on objects whole, made twice and not made at all: it may not crash."""

    def __init__(self, draw: random.Random) -> None:
        self.draw = draw
        self.things = [
            Ladder([1, 3, 9], 3, draw.random() < 0.5),
            Generations(5, 3, 0.25, 1, draw.random() < 0.5),
            Table([LINEAR, CHOICE], [0, 0], [1, 2], [0, 0], [-1, -1], [0, 0]),
            Stream(1, SAMPLE),
            Parzen(Table([LINEAR, CHOICE], [0, 0], [1, 2], [0, 0], [-1, -1], [0, 0])),
        ]
        for made in self.things[:]:
            with suppress(TypeError):
                self.things.append(type(made).__new__(type(made)))
        names = "__init__", "__setstate__", "__reduce__", "__len__"
        self.calls: list[Callable[..., object]] = [
            getattr(thing, name)
            for thing in self.things
            for name in dir(thing)
            if (not name.startswith("_") or name in names) and callable(getattr(thing, name))
        ]
        self.calls += [
            function for name, function in vars(_core).items() if inspect.isroutine(function) and name[0] != "_"
        ]

    def argument(self) -> object:
        draw, m = self.draw, self.draw.choice([0, 1, 2, 3, 10])
        match draw.randrange(8):
            case 0 | 1:
                return draw.choice([0, 1, 2, 3, 5, 10])
            case 2:
                return draw.choice(NO_MEMBER)
            case 3:
                return draw.choice([0.25, 1.2, *SCORES])
            case 4:
                return np.array([draw.randrange(-1, 12) for _ in range(m)], dtype=np.int64)
            case 5:
                return np.array(draw.choices(SCORES, k=m), dtype=np.float64)
            case 6:
                return np.array(draw.choices(SCORES, k=2 * m), dtype=np.float64).reshape(draw.choice([(2, m), (m, 2)]))
            case _:
                return draw.choice([*self.things, None, True, "x", [1, 2], [1, 3, 9], (0, 0), b"", object()])

    def call(self) -> None:
        function = self.draw.choice(self.calls)
        try:
            few = sum(p.default is p.empty for p in inspect.signature(function).parameters.values())
        except ValueError:  # has no signature
            few = self.draw.randrange(7)
        arguments = [self.argument() for _ in range(max(0, few + self.draw.choice([0, 0, 0, 0, 1, -1])))]
        with suppress(AsynctuneError, MemoryError, BufferError, *REFUSED):  # BufferError: bytes, where it would write
            function(*arguments)

    def __iter__(self) -> Iterator[Callable[[], None]]:
        return itertools.repeat(self.call, 200)


CASES: list[Callable[[random.Random], Iterable[Callable[[], None]]]] = [
    Halving,
    Halving,
    Halving,
    Truncation,
    Domains,
    Windows,
    Nonsense,
    HalvingCrowd,
    Generation,
    GenerationCrowd,
]


def run(seed: int) -> int:
    """Run the case of a seed. Return how many calls it made."""
    draw = random.Random(seed)
    calls = 0
    for call in draw.choice(CASES)(draw):
        call()
        calls += 1
    return calls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long; 0: the case of the seed and no other")
    parser.add_argument(
        "--seed", type=int, default=int(time.time()), help="of the first case; the next one has the next"
    )
    arguments = parser.parse_args()
    warnings.simplefilter("error")
    print(f"{_core.__file__}\nseed {arguments.seed}", flush=True)
    calls, end, shown = 0, time.monotonic() + arguments.seconds, 0.0
    for seed in itertools.count(arguments.seed):
        try:
            calls += run(seed)
        except BaseException:
            print(f"failed after {calls} calls: python -m tests.fuzz --seconds 0 --seed {seed}", flush=True)
            raise
        now = time.monotonic()
        if now >= end:
            print(f"{calls} calls, seeds {arguments.seed} to {seed}: nothing found")
            return
        if now >= shown + 1:
            # If the process dies, the seed that killed it is at most a second after the last one shown.
            print(f"seed {seed + 1}: {calls} calls", flush=True)
            shown = now


if __name__ == "__main__":
    main()
