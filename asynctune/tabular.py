"""Tabular: recorded learning curves as a benchmark that `at.simulate` runs on."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from asynctune import _core
from asynctune.errors import InvalidArgument, check_metric, check_mode
from asynctune.space import Column, Space, choice, lograndint, loguniform, ordinal, randint, uniform

__all__ = ["DIGITS", "DIGITS_FILE", "Once", "Tabular"]

#: How far from a recorded configuration a hyperparameter may lie that is the same but for roundings; its range is 1 long.
_ROUNDING = 1e-9

Curve = tuple[list[float], list[float]]  # values and seconds, (s,) each

#: The search space of LCBench (Zimmer et al., "Auto-PyTorch Tabular", 2021). Its configurations have 1 to 4 layers.
_LCBENCH = {
    "batch_size": lograndint(16, 513),
    "learning_rate": loguniform(1e-4, 1e-1),
    "momentum": uniform(0.1, 0.99),
    "weight_decay": uniform(1e-5, 1e-1),
    "num_layers": randint(1, 5),
    "max_units": lograndint(64, 1025),
    "max_dropout": uniform(0.0, 1.0),
}
_EPOCHS = slice(1, 51)  # of 52 in its logs: the first is before training, the last a repeat

#: The search space of the networks that bench/record.py has trained, and where their curves are.
DIGITS = {
    "lr": loguniform(1e-4, 1.0),
    "batch_size": ordinal([8, 16, 32, 64, 128]),
    "optimizer": choice(
        [{"name": "sgd", "momentum": uniform(0.0, 0.99)}, {"name": "adam", "beta1": uniform(0.5, 0.99)}]
    ),
    "weight_decay": loguniform(1e-6, 1e-1),
    "layers": randint(1, 4),
    "width": lograndint(8, 257),
    "activation": choice(["relu", "tanh"]),
    "dropout": uniform(0.0, 0.8),
}
DIGITS_FILE = Path(__file__).with_name("recorded") / "digits.npz"


class Tabular:
    """Recorded learning curves: what a trial would report is looked up under the recorded configuration that is nearest.

    The distance is Euclidean, where the range of each hyperparameter is 1 long in its own scale (four standard deviations of a `normal`),
    two options of a `choice` are 1 apart, and what is not active lies in the middle. A recorded configuration may come up again and again; `once`
    forbids it.

    Args:
        space: a dict of domains, or a `Space`.
        configs: (n,) the recorded configurations, dicts of this space.
        values: (n, s) the metric after each step; NaN: training fails in that step.
        seconds: (n, s) from the beginning of training to the end of each step; they never decrease.
        metric: the metric's name.
        mode: `"min"` or `"max"`.
        exact: whether a configuration that was not recorded, but for roundings, is refused, with `InvalidArgument`: for tables that hold a
            whole grid.

    Attributes:
        max_resource: s.
        configs: as given.

    Raises:
        InvalidArgument: an argument breaks its rule.
    """

    def __init__(
        self,
        space: Mapping[str, Any] | Space,
        configs: Sequence[dict[str, Any]],
        values: npt.ArrayLike,
        seconds: npt.ArrayLike,
        *,
        metric: str,
        mode: Literal["min", "max"],
        exact: bool = False,
    ) -> None:
        check_metric(metric)
        check_mode(mode)
        self.space = space if isinstance(space, Space) else Space(space)
        self.metric = metric
        self.mode = mode
        self.configs = configs
        self._values = _numbers("values", values)
        self._seconds = _numbers("seconds", seconds)
        shape = self._values.shape
        if len(shape) != 2 or shape[0] != len(configs) or 0 in shape or self._seconds.shape != shape:
            raise InvalidArgument(
                f"values and seconds must have shape (n, s) for {len(configs)} configurations, got {shape} and {self._seconds.shape}"
            )
        if not (np.isfinite(self._seconds).all() and (np.diff(self._seconds, axis=1, prepend=0) >= 0).all()):
            raise InvalidArgument("seconds must be finite, >= 0 and never decrease")
        self.max_resource = shape[1]
        rows = self.space.encode_each("configs", configs)
        self._exact = exact
        self._scale = _Scale(self.space.columns)
        self._points = np.array([self._scale(row) for row in rows])
        self._halves = (self._points**2).sum(axis=1) / 2
        self._curves: dict[int, Curve] = {}  # by number, those that came up

    def __len__(self) -> int:
        """n, how many configurations are recorded."""
        return len(self._points)

    def __repr__(self) -> str:
        return f"<Tabular: {len(self)} curves of {self.max_resource} steps, {self.metric}, {self.mode}>"

    def evaluate(self, config: dict[str, Any], seed: int) -> Curve:
        """The curve of the recorded configuration that is nearest: what `at.simulate` asks for."""
        return self.curve(self.nearest(config))

    def nearest(self, config: dict[str, Any]) -> int:
        """The number of the recorded configuration that stands for `config`. Raises `InvalidArgument` if there is none."""
        row = self.space.encode(config)
        number = int(self._distances(row).argmin())
        if self._exact and np.abs(self._points[number] - self._scale(row)).max() > _ROUNDING:
            raise InvalidArgument(f"a configuration must be one of the {len(self)} recorded ones, got {config!r}")
        return number

    def curve(self, number: int) -> Curve:
        """The values and the seconds of a recorded configuration, (s,) each."""
        curve = self._curves.get(number)
        if curve is None:
            curve = self._values[number].tolist(), self._seconds[number].tolist()
            self._curves[number] = curve
        return curve

    def once(self) -> "Once":
        """The same table for one simulation, in which a recorded configuration comes up for one trial at most."""
        return Once(self)

    def _distances(self, row: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """(n,) half the squared distance of each configuration to a row (d,), but for what is the same for all."""
        # By a product of a matrix and a vector: at 2,000 configurations faster than a k-d tree.
        return np.asarray(self._halves - self._points @ self._scale(row))

    @classmethod
    def digits(cls) -> "Tabular":
        """What comes with asynctune: 600 perceptrons on 8 x 8 digits with wrong labels among them, accuracy in percent after 1..50 epochs.

        Trained for real, by bench/record.py; the space is conditional.
        """
        with np.load(DIGITS_FILE, allow_pickle=False) as arrays:
            rows, values = arrays["rows"], arrays["accuracy"] / 100
            seconds = arrays["seconds"][:, None] * np.arange(1.0, values.shape[1] + 1)
        space = Space(DIGITS)
        return cls(space, [space.decode(row) for row in rows], values, seconds, metric="accuracy", mode="max")

    @classmethod
    def lcbench(cls, path: Path | str, task: str | int | None = None) -> "Tabular":
        """A task of LCBench: 2,000 networks on a tabular data set, validation accuracy in percent after 1..50 epochs.

        Zimmer, Lindauer, Hutter, "Auto-PyTorch Tabular: Multi-Fidelity MetaLearning for Efficient and Robust AutoDL", 2021.

        Args:
            path: a `.json` as published (https://github.com/automl/LCBench), or an `.npz` of arrays: `config` (n, 7) with the
                hyperparameters in the order of LCBench's README, and either `task_<task>_val_accuracy` (n, 50) in hundredths and `task_<task>_total_time`
                (n,), which is spread evenly, or, for one task, `val_accuracy` and `time` (n, 52).
            task: the name of a data set, or of a task; None: the only one.

        Raises:
            InvalidArgument: there is no such task in the file.
        """
        path = Path(path)
        rows, values, seconds = (_published if path.suffix == ".json" else _arrays)(path, task)
        space = Space(_LCBENCH)
        configs = [space.decode(row) for row in rows]
        return cls(space, configs, values, seconds, metric="val_accuracy", mode="max")


class Once:
    """A table in which each recorded configuration comes up for one trial at most: the nearest that has not yet. For one simulation.

    Trials are told apart by configuration and seed: asked for again, a trial has the curve that it had.

    Attributes:
        table: the whole table.
        space, metric, mode, max_resource: its.
    """

    def __init__(self, table: Tabular) -> None:
        self.table = table
        self.space = table.space
        self.metric = table.metric
        self.mode = table.mode
        self.max_resource = table.max_resource
        self._free = np.zeros(len(table))  # by number: 0, and infinity once it has come up
        self._given: dict[tuple[bytes, int], int] = {}

    @property
    def left(self) -> int:
        """How many configurations have not come up yet."""
        return len(self.table) - len(self._given)

    def evaluate(self, config: dict[str, Any], seed: int) -> Curve:
        """The curve of the nearest recorded configuration that no other trial has. Raises `InvalidArgument` when there is none left."""
        row = self.space.encode(config)
        key = row.tobytes(), seed
        number = self._given.get(key)
        if number is None:
            if not self.left:
                raise InvalidArgument(f"all {len(self.table)} recorded configurations have come up")
            number = self._given[key] = int((self.table._distances(row) + self._free).argmin())
            self._free[number] = math.inf
        return self.table.curve(number)


def _numbers(name: str, array: npt.ArrayLike) -> npt.NDArray[Any]:
    """As an array, of the type that it is if that is one of numbers."""
    try:
        numbers = np.asarray(array)
        return numbers if numbers.dtype.kind in "fiu" else numbers.astype(float)
    except ValueError as error:
        raise InvalidArgument(
            f"{name} must be numbers, a row of equal length for each configuration: {error}"
        ) from None


class _Scale:
    """Rows (d,) as points in which every hyperparameter counts alike: numbers span 0..1, options are corners 1 apart."""

    def __init__(self, columns: Sequence[Column]) -> None:
        self._log = np.array([column.kind == _core.LOG for column in columns])
        choices = [column.kind == _core.CHOICE for column in columns]
        self._numbers = np.flatnonzero(np.logical_not(choices))
        lows, spans = zip(*map(_range, columns), strict=True)
        self._low = np.array(lows)
        self._span = np.array(spans)
        self._corners: list[tuple[int, int]] = []  # column, where the corners of its options begin
        self._size = len(self._numbers)
        for column in np.flatnonzero(choices).tolist():
            self._corners.append((column, self._size))
            self._size += int(columns[column].high) + 1

    def __call__(self, row: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        values = np.log(row, out=row.copy(), where=self._log)
        values = (values - self._low) / self._span
        values[np.isnan(values)] = 0.5
        point = np.zeros(self._size)
        point[: len(self._numbers)] = values[self._numbers]
        for column, begin in self._corners:
            if row[column] >= 0:  # it is active
                point[begin + int(row[column])] = math.sqrt(0.5)
        return point


def _range(column: Column) -> tuple[float, float]:
    """The value at 0 and the length of a column's range, in its own scale."""
    low, high = column.low, column.high
    if column.kind == _core.NORMAL:
        return low - 2 * high, 4 * high
    if column.kind == _core.LOG:
        low, high = math.log(low), math.log(high)
    return low, high - low or 1.0  # of one value


_Columns = tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]  # rows (n, d), values (n, s), seconds (n, s)


class _Log(msgspec.Struct):
    time: list[float]
    val_accuracy: list[float] = msgspec.field(name="Train/val_accuracy")


class _Run(msgspec.Struct):
    config: dict[str, Any]
    log: _Log


def _published(path: Path, task: str | int | None) -> _Columns:
    """A task of LCBench's own file: {data set: {number: {"config": ..., "log": {tag: [after 0 epochs, 1, ...]}}}}."""
    tasks = msgspec.json.decode(path.read_bytes(), type=dict[str, dict[str, _Run]])
    runs = tasks[_chosen(task, tasks)].values()
    rows = np.array([[float(run.config[name]) for name in _LCBENCH] for run in runs])
    values = np.array([run.log.val_accuracy for run in runs])
    return rows, values[:, _EPOCHS], np.array([run.log.time for run in runs])[:, _EPOCHS]


def _arrays(path: Path, task: str | int | None) -> _Columns:
    with np.load(path, allow_pickle=False) as arrays:
        rows = arrays["config"].astype(float)
        if "val_accuracy" in arrays:
            return rows, arrays["val_accuracy"][:, _EPOCHS], arrays["time"][:, _EPOCHS]
        ending = "_val_accuracy"
        tasks = [name.removeprefix("task_").removesuffix(ending) for name in arrays.files if name.endswith(ending)]
        name = f"task_{_chosen(task, tasks)}"
        values = arrays[name + ending] / 100
        epochs = values.shape[1]
        return rows, values, arrays[f"{name}_total_time"][:, None] * (np.arange(1, epochs + 1) / epochs)


def _chosen(task: str | int | None, tasks: Any) -> str:
    if task is None and len(tasks) == 1:
        return str(next(iter(tasks)))
    if str(task) not in tasks:
        raise InvalidArgument(f"task must be one of {', '.join(tasks)}, got {task!r}")
    return str(task)
