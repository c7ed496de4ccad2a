"""Tracking: what comes back of optimizers, schedules and random numbers when a trial goes on, and after an exploit."""

import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, TensorDataset

import asynctune as at
from asynctune import _wire as wire
from asynctune import journal
from asynctune.records import Started, TrialState
from asynctune.rundir import JOURNAL
from asynctune.worker.trial import Trial
from tests.runs import local, options
from tests.test_worker import Counter, Driver, Runner, failure, last, pause_and_end, saved


@pytest.fixture
def run(tmp_path: Path) -> Runner:
    return Runner(tmp_path / "checkpoints")


@pytest.fixture(autouse=True)
def _shared_generators() -> Iterator[None]:
    """What a test draws is nobody else's business."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    yield
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])


# Random numbers.


def training(workers: int, weights: dict[str, Any], *, tracked: bool = False) -> Callable[[Trial], None]:
    """Ten steps that draw random numbers of every kind; leaves its final state in `weights`."""

    def train(trial: Trial) -> None:
        torch.manual_seed(trial.seed)
        random.seed(trial.seed)
        np.random.seed(trial.seed)
        order = torch.Generator().manual_seed(trial.seed)
        noise = np.random.default_rng(trial.seed)
        model = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Dropout(0.5), torch.nn.Linear(16, 1))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        schedule = lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)
        trial.track(model=model, optimizer=optimizer, schedule=schedule)
        if tracked:
            trial.track(order=order, noise=noise)
        data = TensorDataset(torch.rand(24, 4))  # drawn after `track`, from what was seeded: the same at every start
        loader = DataLoader(data, batch_size=8, shuffle=True, num_workers=workers, generator=order if tracked else None)
        for _ in trial.steps(10):
            for (x,) in loader:
                shift = noise.normal() if tracked else np.random.normal() + random.gauss(0.0, 1.0)
                loss = (model(x).sum(1) - x.sum(1) - shift).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            trial.report(loss=loss.item())
            weights.setdefault("losses", []).append(loss.item())
            schedule.step()
        weights["model"] = model.state_dict()

    return train


def interrupted(run: Runner, train: Callable[[Trial], object], segment: int = 0) -> None:
    """Ten steps, with a pause after each, and a start from that checkpoint."""
    restore, step = None, 0
    while step < 10:
        step += 1
        driver = run(train, Driver(pause_and_end(step)), until=step, restore=restore, step=step - 1, segment=segment)
        assert isinstance(last(driver), wire.Done), last(driver)
        restore = str(run.checkpoints / f"7-{segment}-{step}")
    driver = run(train, restore=restore, step=10, segment=segment)
    assert isinstance(last(driver), wire.Done), last(driver)


@pytest.mark.parametrize(("workers", "tracked"), [(0, False), (2, False), (0, True)])
def test_a_trial_paused_at_every_step_ends_with_other_weights(run: Runner, workers: int, tracked: bool) -> None:
    whole: dict[str, Any] = {}
    pieces: dict[str, Any] = {}
    assert run(training(workers, whole, tracked=tracked)).steps() == list(range(1, 11))
    interrupted(run, training(workers, pieces, tracked=tracked))
    assert pieces["losses"] == whole["losses"]
    assert len(set(whole["losses"])) == 10
    assert all(torch.equal(pieces["model"][name], weight) for name, weight in whole["model"].items())


@pytest.mark.slow
def test_a_trial_whose_process_died_ends_with_other_losses(tmp_path: Path) -> None:
    """It goes on in a new process, from a checkpoint that was written while training went on."""

    @local
    def train(trial: at.Trial) -> None:
        import os
        import threading

        import torch

        torch.manual_seed(trial.seed)
        model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(0.5), torch.nn.Linear(4, 1))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        trial.track(model=model, optimizer=optimizer)
        first = trial.step == 0
        for step in trial.steps(10):
            loss = (model(torch.rand(8, 4)) - 1).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            trial.report(score=loss.item())
            if trial.config["dies"] and first and step == 6:
                for thread in threading.enumerate():
                    if thread.name == "asynctune-checkpoint":
                        thread.join()
                os._exit(1)

    losses = []
    slots: Any
    for dies, slots in ((False, "inline"), (True, 1)):
        more = options(tmp_path, num_trials=1, slots=slots, run_dir=tmp_path / str(dies), checkpoint_every=1e-9)
        result = at.run(train, {"x": at.uniform(0, 1), "dies": dies}, **more, max_failures=1, seed=1)
        steps = [s.step for s in journal.read(tmp_path / str(dies) / JOURNAL) if isinstance(s, Started)]
        assert len(steps) == 1 + dies
        assert (steps[-1] > 0) is dies
        losses.append([report["score"] for report in result.trials[0].reports])
    assert losses[0] == losses[1]


def test_a_first_start_or_an_exploit_takes_random_numbers_from_a_checkpoint(run: Runner) -> None:
    drawn: list[float] = []

    def train(trial: Trial) -> None:
        random.seed(trial.id)
        trial.track(counter=Counter())
        for _ in trial.steps(2):
            drawn.append(random.random())
            trial.report(loss=1)

    path = saved(run, train)  # of trial 7, segment 0
    run(train, restore=str(path), step=1)
    run(train, restore=str(path), step=1, segment=1)
    run(train, restore=str(path), step=1, trial=8)
    own, other = random.Random(7), random.Random(8)
    first = own.random()
    assert drawn == [first, own.random(), first, other.random()]


def test_random_numbers_go_on_where_nothing_is_tracked(run: Runner) -> None:
    drawn: list[float] = []

    def train(trial: Trial) -> None:
        np.random.seed(3)
        trial.on_save(lambda directory: None)
        for _ in trial.steps(2):
            drawn.append(np.random.normal())
            trial.report(loss=1)

    run(train, restore=str(saved(run, train)), step=1)
    assert drawn == list(np.random.RandomState(3).normal(size=2))


def test_a_generator_of_the_users_own_begins_anew(run: Runner) -> None:
    kinds: list[Callable[[], Any]] = [
        lambda: random.Random(5),
        lambda: np.random.RandomState(5),
        lambda: torch.Generator().manual_seed(5),
        *(
            (lambda bits=bits: np.random.Generator(bits(5)))
            for bits in (np.random.PCG64, np.random.PCG64DXSM, np.random.MT19937, np.random.Philox, np.random.SFC64)
        ),
    ]

    def draw(generator: Any) -> float:
        if isinstance(generator, torch.Generator):
            return torch.randn((), generator=generator).item()
        return float(generator.gauss(0, 1) if isinstance(generator, random.Random) else generator.normal())

    def train(trial: Trial) -> None:
        generators = {f"g{number}": make() for number, make in enumerate(kinds)}
        trial.track(**generators)
        for _ in trial.steps(2):
            drawn.append([draw(generator) for generator in generators.values()])
            trial.report(loss=1)

    drawn: list[list[float]] = []
    assert isinstance(last(run(train, restore=str(saved(run, train)), step=1)), wire.Done)
    assert drawn == [[draw(generator) for generator in whole] for whole in [[make() for make in kinds]] for _ in (1, 2)]


LIGHT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_worker as w
drawn = []
def train(trial):
    import random, numpy as np
    random.seed(3)
    generators = {"a": random.Random(5), "b": np.random.default_rng(5)}
    trial.track(**generators)
    for _ in trial.steps(2):
        drawn.extend((random.random(), generators["a"].random(), generators["b"].random()))
        trial.report(loss=1)
run = w.Runner(Path(sys.argv[2]))
run(train, restore=str(w.saved(run, train)), step=1)
assert "torch" not in sys.modules
print(*drawn)
"""


def test_random_numbers_go_on_only_where_torch_is_loaded(tmp_path: Path) -> None:
    command = [sys.executable, "-c", LIGHT, str(Path(__file__).parent), str(tmp_path / "checkpoints")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    shared, a, b = random.Random(3), random.Random(5), np.random.default_rng(5)
    assert [float(word) for word in done.stdout.split()] == [
        draw() for _ in (1, 2) for draw in (shared.random, a.random, b.random)
    ]


def test_what_cannot_be_tracked_is_tracked(run: Runner) -> None:
    for thing in (3, random.random, np.zeros(3), TensorDataset(torch.zeros(1))):

        def train(trial: Trial, thing: Any = thing) -> None:
            trial.track(thing=thing)

        driver = run(train)
        assert "track takes objects with state_dict and load_state_dict, and random number generators" in failure(
            driver
        )


# Hyperparameters.

OPTIMIZERS = [
    kind
    for kind in vars(torch.optim).values()
    if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer
]


class Problem:
    """A little model of one embedding, whose gradient is sparse where that is needed, and an optimizer of it."""

    def __init__(self, kind: type[torch.optim.Optimizer], lr: Any) -> None:
        torch.manual_seed(1)
        self.model = torch.nn.Embedding(6, 3, sparse=kind is torch.optim.SparseAdam)
        self.optimizer = cast("Any", kind)(self.model.parameters(), lr=lr)

    def step(self) -> None:
        def closure() -> torch.Tensor:
            self.optimizer.zero_grad()
            loss = (self.model(torch.arange(6)) - torch.arange(18.0).reshape(6, 3)).square().mean()
            loss.backward()
            return cast("torch.Tensor", loss)

        self.optimizer.step(closure)


@pytest.mark.parametrize("kind", OPTIMIZERS, ids=lambda kind: kind.__name__)
def test_an_exploit_leaves_an_optimizer_its_rate_or_takes_its_state(
    run: Runner, kind: type[torch.optim.Optimizer]
) -> None:
    expected = Problem(kind, 0.02)

    def donor(trial: Trial) -> None:
        trial.track(model=expected.model, optimizer=expected.optimizer)
        for _ in trial.steps(1):
            for _ in range(3):
                expected.step()
            trial.report(loss=1)

    path = saved(run, donor)
    expected.optimizer.param_groups[0]["lr"] = 0.05
    expected.step()
    taken = Problem(kind, 0.05)

    def recipient(trial: Trial) -> None:
        trial.track(model=taken.model, optimizer=taken.optimizer)
        assert taken.optimizer.param_groups[0]["lr"] == 0.05
        taken.step()

    driver = run(recipient, trial=8, segment=1, restore=str(path), step=1)
    assert isinstance(last(driver), wire.Done), last(driver)
    assert torch.equal(taken.model.weight, expected.model.weight)
    assert not torch.equal(taken.model.weight, Problem(kind, 0.05).model.weight)


def test_a_rate_that_is_a_tensor_stays_the_donors(run: Runner) -> None:
    def train(trial: Trial) -> None:
        problem = Problem(torch.optim.Adam, torch.tensor(trial.config["lr"]))
        [group] = problem.optimizer.param_groups
        schedule = lr_scheduler.ExponentialLR(problem.optimizer, 0.5)
        trial.track(optimizer=problem.optimizer, schedule=schedule)
        for _ in trial.steps(1):
            trial.report(loss=1)
            problem.step()
            schedule.step()
        rates.append(group["lr"] if trial.step == 1 else None)
        assert isinstance(problem.optimizer.param_groups[0]["lr"], torch.Tensor)
        rates.append(problem.optimizer.param_groups[0]["lr"].item())

    rates: list[Any] = []
    path = saved(run, train, config={"lr": 0.5})
    run(train, trial=8, segment=1, restore=str(path), step=1, config={"lr": 0.25})
    assert rates[-1] == pytest.approx(0.125)


def cosine(optimizer: Any, lr: float) -> Any:
    return lr_scheduler.CosineAnnealingLR(optimizer, 20)


#: Rates in proportion to the optimizer's, or given in proportion to it.
SCHEDULES: dict[str, Callable[[Any, float], Any]] = {
    "LambdaLR": lambda optimizer, lr: lr_scheduler.LambdaLR(optimizer, lambda epoch: epoch / 10),
    "MultiplicativeLR": lambda optimizer, lr: lr_scheduler.MultiplicativeLR(optimizer, lambda epoch: 0.9),
    "StepLR": lambda optimizer, lr: lr_scheduler.StepLR(optimizer, 3, 0.5),
    "MultiStepLR": lambda optimizer, lr: lr_scheduler.MultiStepLR(optimizer, [2, 7, 9], 0.5),
    "ConstantLR": lambda optimizer, lr: lr_scheduler.ConstantLR(optimizer, 0.25, 8),
    "LinearLR": lambda optimizer, lr: lr_scheduler.LinearLR(optimizer, 0.1, total_iters=8),
    "ExponentialLR": lambda optimizer, lr: lr_scheduler.ExponentialLR(optimizer, 0.8),
    "PolynomialLR": lambda optimizer, lr: lr_scheduler.PolynomialLR(optimizer, 15, 2.0),
    "CosineAnnealingLR": cosine,
    "CosineAnnealingLR, eta_min": lambda optimizer, lr: lr_scheduler.CosineAnnealingLR(optimizer, 20, eta_min=lr / 50),
    "CosineAnnealingWarmRestarts": lambda optimizer, lr: lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 4, 2),
    "CyclicLR": lambda optimizer, lr: lr_scheduler.CyclicLR(optimizer, lr / 10, lr, 3, mode="triangular2"),
    "OneCycleLR": lambda optimizer, lr: lr_scheduler.OneCycleLR(optimizer, lr, 20),
    "ReduceLROnPlateau": lambda optimizer, lr: lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.5, patience=1, min_lr=lr / 5
    ),
    "ChainedScheduler": lambda optimizer, lr: lr_scheduler.ChainedScheduler(
        [lr_scheduler.LinearLR(optimizer, 0.1, total_iters=5), lr_scheduler.ExponentialLR(optimizer, 0.9)]
    ),
    "SequentialLR": lambda optimizer, lr: lr_scheduler.SequentialLR(
        optimizer, [lr_scheduler.LinearLR(optimizer, 0.1, total_iters=5), cosine(optimizer, lr)], [8]
    ),
    "nested": lambda optimizer, lr: lr_scheduler.ChainedScheduler(
        [SCHEDULES["SequentialLR"](optimizer, lr), SCHEDULES["StepLR"](optimizer, lr)]
    ),
}


def test_a_kind_of_schedule_is_not_tried() -> None:
    kinds = {
        name
        for name, kind in vars(lr_scheduler).items()
        if isinstance(kind, type) and issubclass(kind, lr_scheduler.LRScheduler) and not name.startswith("_")
    }
    assert kinds - SCHEDULES.keys() == {"LRScheduler"}


@pytest.mark.parametrize("order", ["optimizer first", "schedule first"])
@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.filterwarnings("ignore:The epoch parameter in")
def test_an_exploit_leaves_the_schedule_that_a_run_with_this_rate_would_have_had(
    run: Runner, name: str, order: str
) -> None:
    def build(lr: float) -> tuple[Any, Any]:
        groups: list[dict[str, Any]] = [
            {"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr},
            {"params": [torch.nn.Parameter(torch.zeros(1))]},
        ]
        optimizer = torch.optim.SGD(groups, lr=2 * lr, momentum=0.9)
        return optimizer, SCHEDULES[name](optimizer, lr)

    def advance(optimizer: Any, schedule: Any) -> list[list[float]]:
        """The rates and momenta after each of five steps."""
        seen = []
        for _ in range(5):
            optimizer.step()
            if isinstance(schedule, lr_scheduler.ReduceLROnPlateau):
                schedule.step(1.0)
            else:
                schedule.step()
            rates = [group["lr"] for group in optimizer.param_groups]
            assert schedule.get_last_lr() == pytest.approx(rates)
            seen.append([*rates, *(group["momentum"] for group in optimizer.param_groups)])
        return seen

    def track(trial: Trial, optimizer: Any, schedule: Any) -> None:
        both = {"optimizer": optimizer, "schedule": schedule}
        trial.track(**(both if order == "optimizer first" else dict(reversed(both.items()))))

    def donor(trial: Trial) -> None:
        optimizer, schedule = build(0.5)
        track(trial, optimizer, schedule)
        for _ in trial.steps(1):
            advance(optimizer, schedule)
            trial.report(loss=1)

    def recipient(trial: Trial) -> None:
        optimizer, schedule = build(0.125)
        track(trial, optimizer, schedule)
        now = [group["lr"] for group in optimizer.param_groups]
        assert schedule.get_last_lr() == pytest.approx(now)
        got.extend([now, *advance(optimizer, schedule), *advance(optimizer, schedule)])

    got: list[Any] = []
    driver = run(recipient, trial=8, segment=1, restore=str(saved(run, donor)), step=1)
    assert isinstance(last(driver), wire.Done), last(driver)
    expected = build(0.125)
    at_once = advance(*expected)[-1][:2]
    assert got == [pytest.approx(each) for each in [at_once, *advance(*expected), *advance(*expected)]]


def test_a_schedule_keeps_what_the_donors_constructor_set(run: Runner) -> None:
    def train(trial: Trial) -> None:
        optimizer = Problem(torch.optim.SGD, 0.5).optimizer
        schedule = lr_scheduler.MultiStepLR(optimizer, trial.config["milestones"], trial.config["gamma"])
        trial.track(optimizer=optimizer, schedule=schedule)
        for _ in trial.steps(4):
            trial.report(loss=1)
            optimizer.step()
            schedule.step()
        rates.append(optimizer.param_groups[0]["lr"])

    rates: list[float] = []
    path = saved(run, train, config={"milestones": [1, 3], "gamma": 0.5})
    run(train, trial=8, segment=1, restore=str(path), step=1, config={"milestones": [1, 4], "gamma": 0.1})
    assert rates == [0.25, pytest.approx(0.025)]


def test_another_kind_of_schedule_takes_the_donors_place(run: Runner) -> None:
    def train(trial: Trial) -> None:
        optimizer = Problem(torch.optim.SGD, 0.5).optimizer
        schedule = SCHEDULES[trial.config["schedule"]](optimizer, 0.5)
        trial.track(optimizer=optimizer, schedule=schedule)
        for _ in trial.steps(1):
            optimizer.step()
            schedule.step()
            trial.report(loss=1)
        places.append(schedule.last_epoch)

    places: list[int] = []
    path = saved(run, train, config={"schedule": "StepLR"})
    run(train, trial=8, segment=1, restore=str(path), step=1, config={"schedule": "ExponentialLR"})
    assert places == [1, 0]


def test_pbt_takes_the_donors_rate_or_its_own_momentum(tmp_path: Path) -> None:
    """SGD with momentum, a cosine over 12 steps, exploits after 4 and 8: there the cosine has 3/4 and 1/4 of the rate left."""
    left = {4: 0.75, 8: 0.25}
    momenta: dict[tuple[int, int], torch.Tensor] = {}  # of each trial after each step
    begun: list[tuple[int, int, float, float, torch.Tensor]] = []

    def train(trial: at.Trial) -> None:
        torch.manual_seed(trial.seed)
        model = torch.nn.Linear(3, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=trial.config["lr"], momentum=0.9)
        schedule = lr_scheduler.CosineAnnealingLR(optimizer, T_max=12)
        trial.track(model=model, optimizer=optimizer, schedule=schedule)
        if trial.step:
            [group] = optimizer.param_groups
            assert schedule.get_last_lr() == [pytest.approx(group["lr"])]
            momentum = optimizer.state[model.weight]["momentum_buffer"].clone()
            begun.append((trial.id, trial.step, trial.config["lr"], group["lr"], momentum))
        for step in trial.steps():
            optimizer.zero_grad()
            (model(torch.rand(8, 3)) - 1.0).square().mean().backward()
            optimizer.step()
            schedule.step()
            momenta[trial.id, step] = optimizer.state[model.weight]["momentum_buffer"].clone()
            trial.report(score=-trial.config["lr"])

    result = at.run(
        train,
        {"lr": at.loguniform(1e-3, 1e-1)},
        metric="score",
        mode="max",
        num_trials=4,
        slots="inline",
        scheduler=at.PBT(perturbation_interval=4, max_resource=12),
        run_dir=tmp_path / "run",
        progress=False,
        seed=1,
    )
    assert all(trial.state is TrialState.COMPLETED for trial in result.trials)
    exploits = {(trial.id, s.step): s for trial in result.trials for s in trial.lineage if s.donor is not None}
    assert {step for _, step in exploits} == {4, 8}
    assert len(begun) == 8, "each goes on after 4 and after 8 steps"
    for trial, step, lr, now, momentum in begun:
        exploit = exploits.get((trial, step))
        assert now == pytest.approx(lr * left[step], rel=1e-12)
        source = trial
        if exploit is not None:
            assert exploit.donor is not None
            assert exploit.config["lr"] == lr
            source = exploit.donor
        assert torch.equal(momentum, momenta[source, step])
