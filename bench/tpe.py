"""What TPE takes for a suggestion and to learn of a trial, alone and beside other libraries.

    python bench/tpe.py [--repeat 3] [--quick] [--json FILE]

The core's windows first, for 8 hyperparameters of all kinds: a suggestion; a trial that comes to count as the last of so many, and as
any of them, such as one that reaches a rung late. Then a whole trial, asked for and told, through `Study` and through the public calls
of hyperopt, Optuna and Rustuna (peers_decisions.py): the libraries get the same losses and take turns, and what is not installed is
left out. On one core; under 100 calls, p99 is the maximum. Some two minutes with all of them.
"""

import random
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from itertools import chain, count
from time import perf_counter

import asynctune as at
from asynctune._core import SAMPLE, Parzen, Stream
from measure import Row, arguments, calls, in_turn, pinned, show, spread
from peers_decisions import SUGGESTS

SIZES = (100, 1_000, 10_000)
BUDGETS = {1_000: 0.3, 10_000: 1.0}  # ms a suggestion

MIXED = at.Space(
    {
        "lr": at.loguniform(1e-5, 1e-1),
        "dropout": at.uniform(0.0, 0.5),
        "bias": at.normal(0.0, 1.0),
        "layers": at.randint(1, 9),
        "width": at.lograndint(16, 1025),
        "decay": at.quniform(0.0, 1.0, 0.01),
        "batch": at.ordinal([32, 64, 128, 256]),
        "activation": at.choice(["relu", "gelu", "tanh"]),
    }
)
OURS = "asynctune TPE"
PACKAGES = ("hyperopt", "optuna", "rustuna")
NOTE = (
    "Trials so far are random. HyperOpt's model is made of the latest 1,000, the others' of all; TPE(multivariate=True) has of more than "
    "1,000 others the latest 1,000. Optuna's sampler is as it comes: multivariate. A whole trial has the budget of a suggestion; "
    "multivariate, an option, has none."
)

#: A library gets so many calls in a turn; once they have taken LIMIT seconds, and were FEWEST, it is over.
ENOUGH, LIMIT, FEWEST = 200, 2.0, 5


def figure(what: str, seconds: list[float], size: int, *, budget: bool = False, floor: float | None = None) -> Row:
    """A row in milliseconds; floor: the median of what ran beside it, in milliseconds."""
    median, p99 = (sample * 1e3 for sample in spread(seconds))
    limit = BUDGETS.get(size) if budget else None
    return Row(
        what=f"{what}, {size:,} trials",
        unit="ms",
        median=median,
        p99=p99,
        beside=None if floor is None else OURS,
        floor=floor,
        budget=limit,
        rule="" if limit is None else f"<= {limit:g} ms",
    )


def core_rows(size: int, repeat: int, enough: int) -> Iterator[Row]:
    rows = [MIXED.table.sample(Stream(0, SAMPLE, trial)) for trial in range(size)]
    parzen, numbers, draw = Parzen(MIXED.table), count(), random.Random(0)
    for trial, row in enumerate(rows):
        parzen.put(trial, row, trial < min(25, size // 20))

    def put(last: bool) -> list[float]:
        """Seconds a trial, of those that are not the better ones: the last, or any."""
        seconds = []
        for _ in range(enough):
            trial = size - 1 if last else draw.randrange(25, size)
            parzen.drop(trial)
            seconds += calls(partial(parzen.put, trial, rows[trial], False), 1)
        return seconds

    samples = in_turn(
        repeat,
        lambda: calls(lambda: parzen.suggest(0, next(numbers), 24), enough),
        lambda: calls(lambda: parzen.suggest(0, next(numbers), 24, True), enough),
        lambda: put(last=True),
        lambda: put(last=False),
    )
    names = "Parzen.suggest", "Parzen.suggest, joint", "Parzen.put, the last", "Parzen.put, any"
    for name, turns in zip(names, samples, strict=True):
        yield figure(name, list(chain.from_iterable(turns)), size, budget=name == "Parzen.suggest")


def trial_rows(size: int, repeat: int, enough: int) -> Iterator[Row]:
    libraries = {name: prepare for name, (module, prepare) in SUGGESTS.items() if find_spec(module)}
    seconds: dict[str, list[float]] = {name: [] for name in libraries}
    for turn in range(repeat):
        draw = random.Random(turn)
        there, arriving = ([draw.random() for _ in range(n)] for n in (size, min(enough, max(size // 5, FEWEST))))
        for name, prepare in libraries.items():
            waiting = prepare(there, arriving).calls
            end = perf_counter() + LIMIT
            for number, call in enumerate(waiting):
                if number >= FEWEST and perf_counter() > end:
                    break
                seconds[name] += calls(call, 1)
    ours = next(name for name in libraries if name.startswith(OURS))
    floor = spread(seconds[ours])[0] * 1e3
    for name, samples in seconds.items():
        yield figure(name, samples, size, budget=name == ours, floor=None if name == ours else floor)


def main() -> None:
    given = arguments(__doc__, repeat=3)
    sizes, enough = (SIZES[:2], FEWEST) if given.quick else (SIZES, ENOUGH)
    with pinned():
        rows = [row for size in sizes for row in core_rows(size, given.repeat, enough)]
        rows += [row for size in sizes for row in trial_rows(size, given.repeat, enough)]
    show(given, rows, note=NOTE, packages=PACKAGES)


if __name__ == "__main__":
    main()
