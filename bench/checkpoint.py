"""What a checkpoint costs: to make it, to go on from it, and both, as PBT's exploit takes them.

    python bench/checkpoint.py [--repeat 7] [--quick] [--json FILE] [--folder FOLDER]

The state is a model and its Adam: a third of it weights. *Save*: how long the trial is held, from the decision to the checkpoint's being
sealed under its name. *Restore*: from the start until user code has its state, the checkpoint's sums verified. *Exploit*: the donor's save and the
recipient's restore. Beside each, in turn with it, the same by hand: torch.save to a file; torch.load and load_state_dict; both. With
"process" nothing is synced by either, with "power" by both. *Held meanwhile*: how long a checkpoint that is written while training goes on
holds the trial.

Without torch, the same for a state of numpy's; beside it pickle. Last, the place itself: 100 MB written to a file in FOLDER, where they stay
in the page cache, beside one in shared memory. Files go to a folder of their own in FOLDER, on a disk, not in memory.
"""

import argparse
import os
import pickle
import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from asynctune._wire import Run
from asynctune.worker.checkpoint import damage
from asynctune.worker.tracking import Tracked
from measure import Row, arguments, in_turn, show

MB = 2**20
SIZES = {"1 MB": MB, "100 MB": 100 * MB, "2 GB": 2048 * MB}
SHARED_MEMORY = Path("/dev/shm")
FEW = 3  # runs of what takes seconds

MISSED = (
    "what is restored is read once more before, to verify it, on several cores where they are idle; "
    "and directory, manifest and random numbers take half a millisecond each way"
)

Objects = dict[str, Any]
Call = Callable[[], object]


class Light:
    """A state that needs no torch."""

    def __init__(self) -> None:
        self.weights = np.random.default_rng(0).normal(size=(64, 64))

    def state_dict(self) -> dict[str, Any]:
        return {"weights": self.weights, "steps": 3}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.weights = state["weights"]


def network(size: int) -> Objects:
    """A model and its optimizer, together of `size` bytes."""
    import torch

    layers = 12
    side = int((size / 3 / 4 / layers) ** 0.5)
    model = torch.nn.Sequential(*(torch.nn.Linear(side, side, bias=False) for _ in range(layers)))
    optimizer = torch.optim.Adam(model.parameters())
    for weight in model.parameters():
        optimizer.state[weight] = {
            "step": torch.tensor(1.0),
            "exp_avg": torch.rand_like(weight),
            "exp_avg_sq": torch.rand_like(weight),
        }
    return {"model": model, "optimizer": optimizer}


def tracked(folder: Path, objects: Objects, *, durable: bool = False, restore: Path | None = None) -> Tracked:
    run = Run(
        1, 0, 0, 0, b"", "loss", 0, None, None, str(restore) if restore else None, str(folder), None, "cpu", durable
    )
    tracked = Tracked(run)
    tracked.track(objects)
    return tracked


class Pair:
    """A checkpoint of a state, made and restored, and files of the same state beside it."""

    def __init__(
        self,
        folder: Path,
        ours: Callable[[], Objects],
        write: Callable[[Any, Any], object],
        read: Callable[[Path], dict[str, Any]],
    ) -> None:
        self._folder = folder
        self._donor = ours()
        self._recipient = ours()
        self._write = write
        self._read = read
        self._name = folder / "0-0-1"
        self._beside = folder / "beside"

    def saved(self, durable: bool) -> float:
        """Seconds."""
        donor = tracked(self._folder, self._donor, durable=durable)
        return seconds(donor.prepare(1, later=False))

    def held(self) -> float:
        donor = tracked(self._folder, self._donor)
        return seconds(lambda: donor.prepare(1, later=True))

    def restored(self) -> float:
        def restore() -> None:
            assert damage(str(self._name)) is None
            tracked(self._folder, self._recipient, restore=self._name)

        return seconds(restore)

    def written(self, durable: bool) -> float:
        state = {name: thing.state_dict() for name, thing in self._donor.items()}

        def write() -> None:
            with open(self._beside, "wb") as file:
                self._write(state, file)
                if durable:
                    file.flush()
                    os.fsync(file.fileno())

        return seconds(write)

    def read(self) -> float:
        def read() -> None:
            for name, state in self._read(self._beside).items():
                self._recipient[name].load_state_dict(state)

        return seconds(read)

    def remove(self) -> float:
        """What was written, so that each finds the disk as the other did."""
        shutil.rmtree(self._folder)
        self._folder.mkdir()
        return 0.0


def seconds(call: Call) -> float:
    began = perf_counter()
    call()
    return perf_counter() - began


def rows(what: str, beside: str, pair: Pair, repeat: int) -> Iterator[Row]:
    pair.saved(durable=False)  # the first one of a process is also read back
    pair.restored()
    pair.remove()
    for durable in (False, True):
        columns = in_turn(
            repeat,
            lambda durable=durable: pair.written(durable),  # type: ignore[misc]
            pair.read,
            pair.remove,
            lambda durable=durable: pair.saved(durable),  # type: ignore[misc]
            pair.restored,
            pair.held,
            pair.remove,
        )
        write, read, _, save, restore, held, _ = ([1e3 * each for each in column] for column in columns)
        both = [a + b for a, b in zip(save, restore, strict=True)]
        floor = [a + b for a, b in zip(write, read, strict=True)]
        if not durable:
            yield row(f"{what}, save", save, f"{beside}.save", write)
            yield row(f"{what}, restore", restore, f"{beside}.load", read)
            yield row(f"{what}, exploit", both, f"{beside}.save + load", floor, budget=beside == "torch")
            yield row(f"{what}, held meanwhile", held, f"{beside}.save", write)
        else:
            yield row(f'{what}, exploit, "power"', both, f"{beside}.save + fsync + load", floor)


def places(folder: Path, repeat: int) -> Iterator[Row]:
    data = bytes(range(256)) * (MB // 256)

    def written(where: Path) -> float:
        with tempfile.TemporaryFile(dir=where, buffering=0) as file:
            return seconds(lambda: [file.write(data) for _ in range(100)])

    if SHARED_MEMORY.exists():
        ours, theirs = in_turn(repeat, lambda: 1e3 * written(folder), lambda: 1e3 * written(SHARED_MEMORY))
        yield row("100 MB written", list(ours), str(SHARED_MEMORY), list(theirs))


def row(what: str, ours: list[float], beside: str, floor: list[float], *, budget: bool = False) -> Row:
    middle = statistics.median(floor)
    return Row(
        what=what,
        unit="ms",
        median=statistics.median(ours),
        beside=beside,
        floor=middle,
        budget=middle if budget else None,
        rule=f"<= {beside}" if budget else "",
        missed=MISSED if budget else "",
    )


def light(folder: Path, repeat: int) -> Iterator[Row]:
    def load(path: Path) -> dict[str, Any]:
        with open(path, "rb") as file:
            loaded: dict[str, Any] = pickle.load(file)
            return loaded

    yield from rows("numpy, 32 KB", "pickle", Pair(folder, lambda: {"light": Light()}, pickle.dump, load), repeat)


def heavy(folder: Path, size: str, repeat: int) -> Iterator[Row]:
    import torch

    torch.set_num_threads(1)  # as a worker has, of two on two cores

    def load(path: Path) -> dict[str, Any]:
        loaded: dict[str, Any] = torch.load(path, weights_only=True)
        return loaded

    yield from rows(f"torch, {size}", "torch", Pair(folder, lambda: network(SIZES[size]), torch.save, load), repeat)


def main() -> None:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--folder", type=Path, default=Path(tempfile.gettempdir()), help="default: the system's for temporary files"
        )

    given = arguments(__doc__, repeat=7, add=add)
    sizes = ["1 MB"] if given.quick else list(SIZES)
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        found = list(light(Path(name), given.repeat))
        for size in sizes:
            found += heavy(Path(name), size, min(given.repeat, FEW) if SIZES[size] > 1000 * MB else given.repeat)
        found += places(Path(name), given.repeat)
    show(given, found, packages=["torch"])


if __name__ == "__main__":
    main()
