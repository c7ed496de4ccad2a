"""Space: the domains of hyperparameters, and a configuration as a dict and as a row of float64.

A space is a dict: a domain for each hyperparameter, anything else a constant, dicts nest, and a dict among the options of
a `choice` is a branch whose hyperparameters are active only when it is chosen. `Space` gives every hyperparameter a column,
parents before children, and turns configurations into rows and back.
"""

import math
import sys
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from asynctune import _core
from asynctune.errors import InvalidArgument, named

__all__ = [
    "Column",
    "Domain",
    "Number",
    "Options",
    "Rows",
    "Space",
    "assemble",
    "choice",
    "lograndint",
    "loguniform",
    "nearest",
    "normal",
    "ordinal",
    "qloguniform",
    "quniform",
    "randint",
    "uniform",
]

Row = npt.NDArray[np.float64]
Path = tuple[str | int, ...]  # keys, and after the key of a choice the index of the option

_EXACT = 2**53  # up to here float64 holds every integer
_OTHER_LIBRARIES = frozenset({"ConfigSpace", "hyperopt", "optuna", "ray", "scipy", "skopt", "syne_tune"})


def nearest(value: float, low: float, high: float, step: float) -> float:
    """The value of a domain that is nearest: clipped to [low, high], on a multiple of step (0: anywhere)."""
    if step > 0:
        # 0.7 / 0.1 is 6.999...: a bound that is a multiple but for rounding is one. The same rule as in _core.
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        value = min(max(round(value / step), first), last) * step
    return float(min(max(value, low), high))


# ---------------------------------------------------------------------------------------------- domains


class Domain:
    """What a hyperparameter may be. Immutable and comparable; its `repr` is the call that makes it."""


@dataclass(frozen=True, repr=False)
class Number(Domain):
    """Numbers from low to high, both included; kind NORMAL: any number, low is the mean and high the standard deviation."""

    kind: int  # LINEAR, LOG or NORMAL of _core
    low: float
    high: float
    step: float = 0.0  # 0: continuous; else values are multiples of it
    integer: bool = False

    def __repr__(self) -> str:
        if self.kind == _core.NORMAL:
            return f"normal({self.low!r}, {self.high!r})"
        log = "log" if self.kind == _core.LOG else ""
        if self.integer:
            return f"{log}randint({self.low:.0f}, {self.high + 1:.0f})"
        if self.step:
            return f"q{log}uniform({self.low!r}, {self.high!r}, {self.step!r})"
        return f"{log}uniform({self.low!r}, {self.high!r})"

    @property
    def rule(self) -> str:
        """What a value must be, in words."""
        if self.kind == _core.NORMAL:
            return "a finite number"
        if self.integer:
            return f"an integer in [{self.low:.0f}, {self.high:.0f}]"
        what = f"a multiple of {self.step!r}" if self.step else "a number"
        return f"{what} in [{self.low!r}, {self.high!r}]"

    def __contains__(self, value: object) -> bool:
        number = _number(value)
        low, high = self.bounds
        if number is None or not low <= number <= high:
            return False
        steps = number / self.step if self.step else 0.0
        tolerance = 0.0 if self.integer else 1e-9 * max(1.0, abs(steps))
        return abs(steps - round(steps)) <= tolerance

    def encode(self, value: Any) -> float:
        """The float64 that stands for a value of the domain."""
        return nearest(float(value), *self.bounds, self.step)

    @property
    def bounds(self) -> tuple[float, float]:
        """The least and the greatest value."""
        if self.kind == _core.NORMAL:
            return -sys.float_info.max, sys.float_info.max
        return self.low, self.high


@dataclass(frozen=True, repr=False)
class Options(Domain):
    """One of some options: unordered (`choice`), or in an order in which neighbours are alike (`ordinal`)."""

    options: tuple[Any, ...]
    ordered: bool = False

    def __repr__(self) -> str:
        return f"{'ordinal' if self.ordered else 'choice'}({list(self.options)!r})"


def uniform(low: float, high: float) -> Number:
    """A float, uniform in [low, high]. Raises InvalidArgument unless low < high, both finite."""
    return Number(_core.LINEAR, *_range(low, high))


def loguniform(low: float, high: float) -> Number:
    """A float whose logarithm is uniform in [log(low), log(high)]. Raises InvalidArgument unless 0 < low < high."""
    return Number(_core.LOG, *_range(low, high, log=True))


def quniform(low: float, high: float, q: float) -> Number:
    """A multiple of q in [low, high], uniform. Raises InvalidArgument unless low < high, q > 0 and there is one."""
    return Number(_core.LINEAR, *_grid(*_range(low, high), q))


def qloguniform(low: float, high: float, q: float) -> Number:
    """A multiple of q in [low, high], uniform in the logarithm but for rounding. Raises as `quniform`, and unless low > 0."""
    return Number(_core.LOG, *_grid(*_range(low, high, log=True), q))


def randint(low: int, high: int) -> Number:
    """An integer in low..high - 1, each as likely. Raises InvalidArgument unless low < high are integers within 2**53."""
    return Number(_core.LINEAR, *_integers(low, high), 1.0, integer=True)


def lograndint(low: int, high: int) -> Number:
    """An integer in low..high - 1, uniform in the logarithm. Raises as `randint`, and unless low >= 1."""
    return Number(_core.LOG, *_integers(low, high, log=True), 1.0, integer=True)


def normal(mean: float, sd: float) -> Number:
    """A float, normally distributed with a mean and a standard deviation. Raises InvalidArgument unless sd > 0."""
    mean, sd = _finite("mean", mean), _finite("sd", sd)
    if not sd > 0:
        raise InvalidArgument(f"sd must be > 0, got {sd!r}")
    return Number(_core.NORMAL, mean, sd)


def choice(options: Sequence[Any] | npt.NDArray[Any]) -> Options:
    """One of the options, each as likely, in no order.

    An option may be a dict with domains of its own: its hyperparameters are active only when it is chosen. Any other option
    is taken as it is. Raises InvalidArgument if there is none, or if two could give the same value: then nobody could tell which was
    chosen.
    """
    return Options(_options("choice", options))


def ordinal(values: Sequence[Any] | npt.NDArray[Any]) -> Options:
    """One of the values, each as likely, in an order: population-based training moves to a neighbour.

    Raises InvalidArgument if there is none, if two are equal, or if one is a dict.
    """
    options = _options("ordinal", values)
    for option in options:
        if isinstance(option, dict):
            raise InvalidArgument(f"the values of an ordinal must not be dicts (a choice's may), got {option!r}")
    return Options(options, ordered=True)


def _number(value: object) -> int | float | None:
    """A number, NumPy's as Python's; None: it is not one."""
    if isinstance(value, np.generic):
        value = value.item()
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _finite(what: str, value: Any) -> float:
    number = _number(value)
    if number is None or not abs(number) <= sys.float_info.max:
        raise InvalidArgument(f"{what} must be a finite number, got {value!r}")
    return float(number)


def _range(low: Any, high: Any, log: bool = False) -> tuple[float, float]:
    low, high = _finite("low", low), _finite("high", high)
    if not low < high:
        raise InvalidArgument(f"low must be < high, got low={low!r} and high={high!r}")
    if not math.isfinite(high - low):
        raise InvalidArgument(f"high - low must be finite, got low={low!r} and high={high!r}")
    if log and not low > 0:
        raise InvalidArgument(f"low must be > 0 in a logarithmic domain, got {low!r}")
    return low, high


def _grid(low: float, high: float, q: Any) -> tuple[float, float, float]:
    q = _finite("q", q)
    if not q > 0:
        raise InvalidArgument(f"q must be > 0, got {q!r}")
    if not max(abs(low), abs(high)) / q < _EXACT:
        raise InvalidArgument(f"q must not be below 2**-53 of the bounds, got low={low!r}, high={high!r}, q={q!r}")
    if math.ceil(low / q - 1e-9) > math.floor(high / q + 1e-9):
        raise InvalidArgument(f"there must be a multiple of q in [low, high], got low={low!r}, high={high!r}, q={q!r}")
    return low, high, q


def _integer(what: str, value: Any) -> int:
    number = _number(value)
    if not isinstance(number, int) or abs(number) > _EXACT:
        raise InvalidArgument(f"{what} must be an integer within 2**53, got {value!r}")
    return number


def _integers(low: Any, high: Any, log: bool = False) -> tuple[float, float]:
    low, high = _integer("low", low), _integer("high", high)
    if not low < high:
        raise InvalidArgument(f"low must be < high (the upper bound is excluded), got low={low!r} and high={high!r}")
    if log and low < 1:
        raise InvalidArgument(f"low must be >= 1 in a logarithmic domain of integers, got {low!r}")
    return float(low), float(high - 1)


def _options(what: str, values: Any) -> tuple[Any, ...]:
    if isinstance(values, np.ndarray):
        values = values.tolist()
    # Not any iterable: the order of a set differs from process to process.
    if not isinstance(values, Sequence) or isinstance(values, str | bytes):
        raise InvalidArgument(f"{what} needs a list of options, got {values!r}")
    if not values:
        raise InvalidArgument(f"{what} needs at least one option, got {values!r}")
    options = tuple(_copy(value, f"an option of {what}") for value in values)
    for option in options:
        if isinstance(option, Domain):
            raise InvalidArgument(f"a domain among the options of {what} needs a name: {{'name': {option!r}}}")
        _refuse_other_libraries(option, f"an option of {what}")
    plain = all(isinstance(option, str | float | int) for option in options)
    if plain and len({(isinstance(option, bool), option) for option in options}) == len(options):
        return options  # all pairs would take long where there are thousands
    for one, other in combinations(range(len(options)), 2):
        if _overlap(options[one], options[other]):
            hint = "; a constant in each, such as a name, tells them apart" if isinstance(options[one], dict) else ""
            raise InvalidArgument(
                f"no two options of {what} may have a value in common (nobody could tell which was chosen{hint}), "
                f"got options {one} and {other}: {options[one]!r} and {options[other]!r}"
            )
    return options


# ---------------------------------------------------------------------------------------------- the space


@dataclass(frozen=True)
class Column:
    """A hyperparameter's place in a row: its domain in numbers, which is all that a searcher needs to know."""

    name: str
    kind: int  # LINEAR, LOG, NORMAL, CHOICE or ORDINAL of _core
    low: float  # inclusive; NORMAL: the mean; CHOICE and ORDINAL: 0
    high: float  # inclusive; NORMAL: the standard deviation; CHOICE and ORDINAL: the number of options - 1
    step: float  # 0: continuous; 1: integers; q: multiples of q
    parent: int  # the column of the choice that switches this one on, or -1
    branch: int  # the parent's value that does, or -1

    @property
    def steps(self) -> tuple[int, int]:
        """The least and the greatest value in steps from zero; step > 0."""
        low, high, step = self.low, self.high, self.step
        return round(nearest(low, low, high, step) / step), round(nearest(high, low, high, step) / step)

    def quantile(self, probability: float) -> float:
        """The value at a probability in (0, 1), by the law of a random draw: `_core.Table.sample` has it."""
        low, high, step = self.low, self.high, self.step
        if self.kind == _core.NORMAL:
            from statistics import NormalDist  # with decimal and fractions, which nobody else needs

            return NormalDist(low, high).inv_cdf(probability)
        if self.kind == _core.LOG:
            value = math.exp((1 - probability) * math.log(low) + probability * math.log(high + (step == 1)))
            return nearest(math.floor(value) if step == 1 else value, low, high, step)
        if step == 1:
            first, last = self.steps
            return nearest(math.floor(first + probability * (last - first + 1)), low, high, 1)
        return nearest((1 - probability) * low + probability * high, low, high, step)


def assemble(columns: Sequence[Column], value: Callable[[int, Column], float]) -> Row:
    """The row (d,) of which `value` knows the numbers: it is asked for each active column in turn, parents before children."""
    row = np.full(len(columns), math.nan)
    for j, column in enumerate(columns):
        if column.parent < 0 or row[column.parent] == column.branch:
            row[j] = value(j, column)
    return row


class Rows:
    """The configurations of a study's trials, (n, d) float64, in one array that grows where it lies.

    before: rows (d,) of what is known already. They count as trials before the first: the last of them is -1.
    """

    def __init__(self, width: int, before: Sequence[Row] = ()) -> None:
        self._width = width
        self._numbers = array("d")
        self._before = len(before)
        for row in before:
            self.append(row)

    def append(self, row: Row) -> None:
        """Add the row (d,) of the next trial."""
        self._numbers.frombytes(row.tobytes())

    def __getitem__(self, trial: int) -> Row:
        """A copy of a trial's row (d,)."""
        start = (trial + self._before) * self._width
        return np.frombuffer(self._numbers[start : start + self._width])

    def __setitem__(self, trial: int, row: Row) -> None:
        start = (trial + self._before) * self._width
        self._numbers[start : start + self._width] = array("d", row.tobytes())

    def take(self, trials: Sequence[int]) -> Row:
        """A copy of the rows of at least one trial, (len(trials), d)."""
        return np.frombuffer(self._numbers).reshape(-1, self._width)[np.add(trials, self._before)]


class Space:
    """A search space: a dict of domains, constants and dicts, with a column for every hyperparameter.

    A hyperparameter's name is its path joined with ".", such as "optimizer.momentum"; where several branches have the same path,
    the index of the option is part of it: "optimizer.0.lr". Raises InvalidArgument if the space is not a dict, has no
    hyperparameter, a key that is not a string, contains itself, or holds what is most likely a mistake: a list for a choice, a
    lambda, a domain of another library.

    names: (d,) tuple of str. columns: (d,) tuple of Column, parents before children. table: the same as a `_core.Table`.
    """

    def __init__(self, mapping: Mapping[str, Any]) -> None:
        if not isinstance(mapping, dict):
            raise InvalidArgument(f"a space must be a dict of hyperparameters, got {mapping!r}")
        self._tree: dict[str, Any] = _copy(mapping, "the space")
        self._at: dict[Path, int] = {}  # path -> column
        self._domains: list[Domain] = []  # (d,)
        switches: list[tuple[int, int]] = []  # (d,) parent, branch
        self._grow(self._tree, (), (-1, -1), switches)
        if not self._domains:
            raise InvalidArgument(
                f"a space must have at least one hyperparameter, such as at.uniform(0.0, 1.0), got only constants: {mapping!r}"
            )
        self.names = _names(list(self._at))
        self.columns = tuple(
            Column(name, *_numbers(domain), *switch)
            for name, domain, switch in zip(self.names, self._domains, switches, strict=True)
        )
        self.table = _core.Table(
            *(
                [getattr(c, field) for c in self.columns]
                for field in ("kind", "low", "high", "step", "parent", "branch")
            )
        )
        self._decode, self._encode = self._codec(self._tree, ())

    def __repr__(self) -> str:
        return f"Space({self._tree!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Space) and _same(self._tree, other._tree)

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Any, ...]:
        return Space, (self._tree,)

    def describe(self) -> dict[str, str]:
        """The text of every hyperparameter's domain, by name, and of the constants; those of an option stand in their choice's text."""
        domains = {name: repr(domain) for name, domain in zip(self.names, self._domains, strict=True)}
        return domains | dict(_constants(self._tree, ()))

    def decode(self, row: Row) -> dict[str, Any]:
        """The configuration of a row (d,) float64: new dicts and lists each time, integers as int, options as themselves."""
        if row.shape != (len(self.names),):
            raise InvalidArgument(f"a row must have shape ({len(self.names)},), got {row.shape}")
        config: dict[str, Any] = self._decode(row.tolist())
        return config

    def encode(self, config: dict[str, Any]) -> Row:
        """The row (d,) float64 of a configuration, NaN where a hyperparameter is not active.

        Raises InvalidArgument, naming the hyperparameter, the rule and the value, if the configuration is not of this space.
        """
        row = [math.nan] * len(self.names)
        self._encode(config, row)
        return np.array(row, np.float64)  # of integers alone it would be an array of integers

    def encode_each(self, argument: str, configs: Sequence[dict[str, Any]]) -> list[Row]:
        """The rows (d,) of several. Raises InvalidArgument as `encode` does, with the argument and the number of the first that is not of this space."""
        rows = []
        for number, config in enumerate(configs):
            with named(f"{argument}[{number}]"):
                rows.append(self.encode(config))
        return rows

    def check(self, config: dict[str, Any]) -> None:
        """Raise InvalidArgument, naming the hyperparameter, the rule and the value, unless a configuration is of this space."""
        self.encode(config)

    def _grow(self, node: Any, path: Path, switch: tuple[int, int], switches: list[tuple[int, int]]) -> None:
        """Give a column to every hyperparameter in a node."""
        if isinstance(node, dict):
            if set(node) == {"grid_search"}:
                raise InvalidArgument(
                    f"{_dotted(path) or 'the space'}: grid_search is Ray Tune's; write at.choice([...]), got {node!r}"
                )
            for key, child in node.items():
                if not isinstance(key, str):
                    raise InvalidArgument(
                        f"the keys of a space must be strings, got {key!r} in {_dotted(path) or 'it'}"
                    )
                self._grow(child, (*path, key), switch, switches)
        elif isinstance(node, Domain):
            column = self._at[path] = len(self._domains)
            self._domains.append(node)
            switches.append(switch)
            if isinstance(node, Options):
                for branch, option in enumerate(node.options):
                    if isinstance(option, dict):
                        self._grow(option, (*path, branch), (column, branch), switches)
                    else:
                        _check_plain(option, _dotted(path))
        else:
            _check_constant(node, _dotted(path))

    def _codec(self, node: Any, path: Path) -> "_Codec":
        """What decodes and encodes a node: closures, since they find out once what walking the tree would find out each time."""
        name = self.names[self._at[path]] if path in self._at else _dotted(path) or "the configuration"
        if isinstance(node, dict):
            return _dict_codec(name, path, {key: self._codec(child, (*path, key)) for key, child in node.items()})
        if isinstance(node, Number):
            return _number_codec(name, self._at[path], node)
        if isinstance(node, Options):
            options = [self._codec(option, (*path, branch)) for branch, option in enumerate(node.options)]
            return _options_codec(name, self._at[path], node, options)
        return _constant_codec(name, node)


# ------------------------------------------------------------------------------------- from a row and to a row

Decode = Callable[[list[float]], Any]  # row (d,) -> value
Encode = Callable[[Any, list[float]], None]  # value, row (d,) to write it to
_Codec = tuple[Decode, Encode]

_PLAIN = (str, int, float)  # these very types: among them a dict finds what `_same` says, which True and 1 are not


def _dict_codec(name: str, path: Path, children: dict[str, _Codec]) -> _Codec:
    decoders = [(key, decode) for key, (decode, _) in children.items()]
    encoders = [(key, encode) for key, (_, encode) in children.items()]

    def decode(row: list[float]) -> dict[str, Any]:
        return {key: decode(row) for key, decode in decoders}

    def encode(value: Any, row: list[float]) -> None:
        if not isinstance(value, dict):
            raise InvalidArgument(f"{name} must be a dict, got {value!r}")
        for key in value:
            if key not in children:
                raise InvalidArgument(f"{_dotted((*path, str(key)))} is not in the space, got {value[key]!r}")
        for key, encode in encoders:
            if key not in value:
                raise InvalidArgument(f"{_dotted((*path, key))} is missing, got {value!r}")
            encode(value[key], row)

    return decode, encode


def _number_codec(name: str, column: int, domain: Number) -> _Codec:
    low, high = domain.bounds
    plain = int if domain.integer else float
    step = 0.0 if domain.integer else domain.step

    def decode(row: list[float]) -> float:
        return row[column]

    def decode_integer(row: list[float]) -> int:
        return int(row[column])

    def encode(value: Any, row: list[float]) -> None:
        # First what `decode` gives, in the least time; then what people and other encoders write.
        if type(value) is plain and low <= value <= high and (not step or round(value / step) * step == value):
            row[column] = value
        elif value in domain:
            row[column] = domain.encode(value)
        else:
            raise InvalidArgument(f"{name} must be {domain.rule}, got {value!r}")

    return decode_integer if domain.integer else decode, encode


def _options_codec(name: str, column: int, domain: Options, options: list[_Codec]) -> _Codec:
    decoders = [decode for decode, _ in options]
    encoders = [encode for _, encode in options]
    plain = {option: branch for branch, option in enumerate(domain.options) if type(option) in _PLAIN}

    def decode(row: list[float]) -> Any:
        return decoders[int(row[column])](row)

    def encode(value: Any, row: list[float]) -> None:
        branch = plain.get(value) if type(value) in _PLAIN else _branch(domain, value)
        if branch is None:
            raise InvalidArgument(f"{name} must be one of {list(domain.options)!r}, got {value!r}")
        row[column] = branch
        encoders[branch](value, row)

    return decode, encode


def _constant_codec(name: str, constant: Any) -> _Codec:
    def decode(row: list[float]) -> Any:
        return constant

    def decode_copy(row: list[float]) -> Any:
        return _copy(constant, name)

    def encode(value: Any, row: list[float]) -> None:
        if not _same(constant, value):
            raise InvalidArgument(f"{name} is the constant {constant!r} in this space, got {value!r}")

    return decode_copy if isinstance(constant, list | tuple) else decode, encode


def _constants(node: dict[str, Any], path: Path) -> Iterator[tuple[str, str]]:
    """The constants outside of options, as name and text."""
    for key, child in node.items():
        if isinstance(child, dict):
            yield from _constants(child, (*path, key))
        elif not isinstance(child, Domain):
            yield _dotted((*path, key)), repr(child)


def _numbers(domain: Domain) -> tuple[int, float, float, float]:
    """kind, low, high, step."""
    if isinstance(domain, Options):
        return _core.ORDINAL if domain.ordered else _core.CHOICE, 0.0, len(domain.options) - 1.0, 1.0
    assert isinstance(domain, Number)
    return domain.kind, domain.low, domain.high, domain.step


def _dotted(path: Path) -> str:
    return ".".join(part for part in path if isinstance(part, str))


def _names(paths: Sequence[Path]) -> tuple[str, ...]:
    """A name for each path: without the indices of options where that is unique, else with them."""
    count = Counter(map(_dotted, paths))
    names = tuple(_dotted(path) if count[_dotted(path)] == 1 else ".".join(map(str, path)) for path in paths)
    for name, times in Counter(names).items():
        if times > 1:
            raise InvalidArgument(f"two hyperparameters must not have one name, got {name!r} {times} times")
    return names


def _branch(domain: Options, value: Any) -> int | None:
    """The option to which a value belongs.

    If there is none, then the only one whose constants it has: encoding it as that one says what is wrong with it.
    """
    for branch, option in enumerate(domain.options):
        if _overlap(option, value):
            return branch
    alike = [branch for branch, option in enumerate(domain.options) if _constants_agree(option, value)]
    return alike[0] if len(alike) == 1 else None


def _constants_agree(option: Any, value: Any) -> bool:
    if not isinstance(option, dict) or not isinstance(value, dict):
        return False
    return all(
        key in value and _same(child, value[key])
        for key, child in option.items()
        if not isinstance(child, dict | Domain)
    )


def _overlap(one: Any, other: Any) -> bool:
    """Whether two nodes have a value in common. A value is a node, too: that of a constant."""
    if isinstance(one, Options):
        return any(_overlap(option, other) for option in one.options)
    if isinstance(other, Options):
        return _overlap(other, one)
    if isinstance(one, Number) and isinstance(other, Number):
        (low, high), (other_low, other_high) = one.bounds, other.bounds
        return max(low, other_low) <= min(high, other_high)
    if isinstance(one, Number):
        return other in one
    if isinstance(other, Number):
        return one in other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_overlap(one[key], other[key]) for key in one)
    return _same(one, other)


def _same(one: Any, other: Any) -> bool:
    """Equality as the reader of a journal needs it: JSON makes lists of tuples; 1.0 is 1, True is not."""
    if one is other:
        return True
    if isinstance(one, bool) is not isinstance(other, bool):
        return False
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    try:
        return bool(one == other)
    except (TypeError, ValueError):  # an array is equal element by element
        return False


def _copy(value: Any, where: str, inside: tuple[int, ...] = ()) -> Any:
    """A copy with new dicts, lists and tuples, so that nobody changes another's; NumPy's scalars become Python's."""
    if isinstance(value, np.generic):
        return value.item()
    if not isinstance(value, dict) and type(value) not in (list, tuple):  # a named tuple stays what it is
        return value
    if id(value) in inside:
        raise InvalidArgument(f"{where} must not contain itself")
    inside = (*inside, id(value))
    if isinstance(value, dict):
        return {key: _copy(child, where, inside) for key, child in value.items()}
    for child in value:
        if isinstance(child, Domain):
            raise InvalidArgument(
                f"{where}: a domain inside a list or tuple would not be sampled, use a dict, got {value!r}"
            )
    return type(value)(_copy(child, where, inside) for child in value)


def _check_constant(value: Any, name: str) -> None:
    """Refuse what is hardly meant as a constant."""
    if isinstance(value, list | set | frozenset | range | np.ndarray):
        raise InvalidArgument(
            f"{name} is a {type(value).__name__}: write at.choice([...]) or at.ordinal([...]) for one of its values, "
            f"a tuple for a constant, got {value!r}"
        )
    if callable(value) and getattr(value, "__name__", "") == "<lambda>":
        raise InvalidArgument(f"{name} is a lambda: a space holds domains and constants, such as at.uniform(0.0, 1.0)")
    _refuse_other_libraries(value, name)
    _check_plain(value, name)


def _check_plain(value: Any, name: str) -> None:
    """Refuse what the journal could not hold, and a worker not be sent."""
    if isinstance(value, tuple | list):
        for child in value:
            _check_plain(child, name)
    elif not (value is None or isinstance(value, bool | int | float | str)):
        raise InvalidArgument(
            f"{name}: the values of a space are numbers, strings, booleans, None and tuples of them; give this one a name, and look "
            f"it up in the trainable, got {value!r}"
        )


def _refuse_other_libraries(value: Any, name: str) -> None:
    library = type(value).__module__.partition(".")[0]
    if library in _OTHER_LIBRARIES:
        raise InvalidArgument(
            f"{name} is an object of {library}: write it with asynctune's domains, such as at.loguniform(1e-5, 1e-1)"
        )
