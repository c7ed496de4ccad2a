"""Vmap population: PBT over 1,024 networks that are trained at once, in one process, against two controls at equal compute.

    python examples/vmap_population.py --plot population.png    # a minute or two on CPU; takes a GPU if there is one

Each network learns scikit-learn's 8x8 digits from 500 training images, a fifth of which have a label drawn at random. All arms begin with
the same networks and hyperparameters, see the same batches, and train every member for all steps:

- pbt: after each generation `at.Population.step` says who takes over from whom; weights and momentum are gathered on the device.
- random search: every member keeps the hyperparameters that it drew. It is the same population without PBT.
- random schedules: hyperparameters change as often as under PBT and in the same way, but by luck; weights stay where they are.

Selection, by PBT and of the best member, sees the validation images only; the table is of the test images.
"""

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn import functional

import asynctune as at

SPACE = {
    "lr": at.loguniform(1e-3, 1.0),
    "momentum": at.uniform(0.0, 0.99),
    "weight_decay": at.loguniform(1e-6, 1e-1),
    "label_smoothing": at.uniform(0.0, 0.5),
}
ARMS = ["pbt", "random search", "random schedules"]
BATCH = 32

Stack = dict[str, Tensor]  # one tensor (size, ...) for each parameter, a row for each member


class Images(NamedTuple):
    """Images (n, 64) float32 in [-1, 1] and their labels (n,) int64 in 0..9."""

    pixels: Tensor
    labels: Tensor


class Outcome(NamedTuple):
    """What one arm came to with one seed; losses are cross-entropies in nats, "best" is by validation loss."""

    arm: str
    scores: list[float]  # the best validation loss after each generation
    schedule: list[float]  # by generation, the learning rate of the last best, and of those that its weights come from
    best_loss: float  # on the test images, as all below
    best_accuracy: float
    median_loss: float  # of all members; a mean would tell of the one that diverged most
    mean_accuracy: float


def digits(seed: int, device: str) -> tuple[Images, Images, Images]:
    """Training, validation and test images: 500, 500 and 797, split by the seed."""
    rng = torch.Generator().manual_seed(seed)
    pixels, labels = load_digits(return_X_y=True)
    shuffled = torch.randperm(len(labels), generator=rng)
    pixels = torch.tensor(pixels, dtype=torch.float32)[shuffled] / 8 - 1  # they are 0..16
    labels = torch.tensor(labels, dtype=torch.int64)[shuffled]
    noisy = labels.where(torch.rand(len(labels), generator=rng) > 0.2, torch.randint(10, labels.shape, generator=rng))
    parts = [(pixels[:500], noisy[:500]), (pixels[500:1000], labels[500:1000]), (pixels[1000:], labels[1000:])]
    train, validation, test = (Images(x.to(device), y.to(device)) for x, y in parts)
    return train, validation, test


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))


STRUCTURE = network()  # functional_call puts each member's weights in place of its own


def smoothed_loss(weights: Stack, label_smoothing: Tensor, pixels: Tensor, labels: Tensor) -> Tensor:
    """One member's loss. `functional.cross_entropy` smooths too, but by a float, which vmap cannot vary."""
    log_probabilities = functional.log_softmax(functional_call(STRUCTURE, weights, (pixels,)), dim=1)
    hit = log_probabilities.gather(1, labels.unsqueeze(1)).mean()
    return -torch.lerp(hit, log_probabilities.mean(), label_smoothing)


def loss_and_accuracy(weights: Stack, pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    logits = functional_call(STRUCTURE, weights, (pixels,))
    return functional.cross_entropy(logits, labels), (logits.argmax(1) == labels).float().mean()


gradients = vmap(grad(smoothed_loss), in_dims=(0, 0, None, None))  # all members see the same batch
evaluate = vmap(loss_and_accuracy, in_dims=(0, None, None))


def train(weights: Stack, momentum: Stack, values: Stack, images: Images, batches: Tensor) -> None:
    """Train all members in place by SGD, a step for each row of `batches` (steps, BATCH), with their own `values`."""
    for batch in batches:
        gradient = gradients(weights, values["label_smoothing"], images.pixels[batch], images.labels[batch])
        for name, weight in weights.items():
            lr, decay, keep = (
                values[key].view(-1, *[1] * (weight.ndim - 1)) for key in ("lr", "weight_decay", "momentum")
            )
            momentum[name].mul_(keep).add_(gradient[name]).addcmul_(weight, decay)
            weight.addcmul_(momentum[name], lr, value=-1)


def gather(stack: Stack, donor: Tensor) -> Stack:
    """Give each member the row of its donor (size,) int64, on the device."""
    return {name: rows.index_select(0, donor) for name, rows in stack.items()}


def run(arm: str, seed: int, size: int, generations: int, steps: int, device: str) -> Outcome:
    """Train a population of `size` for `generations` of `steps` steps."""
    training, validation, test = digits(seed, device)
    torch.manual_seed(seed)
    stacked, _ = stack_module_state([network() for _ in range(size)])
    weights = {name: rows.detach().to(device) for name, rows in stacked.items()}
    momentum = {name: torch.zeros_like(rows) for name, rows in weights.items()}
    population = at.Population(SPACE, size, mode="min", seed=seed)
    luck = np.random.default_rng(seed)
    scores: list[float] = []
    history: Stack = {"lr": torch.empty(size, 0, device=device)}  # gathered like weights, so a row is one lineage
    for generation in range(1, generations + 1):
        values = {
            name: torch.tensor(rows, dtype=torch.float32, device=device) for name, rows in population.values.items()
        }
        history["lr"] = torch.column_stack([history["lr"], values["lr"]])
        batches = torch.randint(len(training.labels), (steps, BATCH)).to(device)
        train(weights, momentum, values, training, batches)
        losses = evaluate(weights, *validation)[0].nan_to_num(torch.inf)
        scores.append(losses.min().item())
        if generation == generations:
            break  # who changes now would not be trained any more
        if arm == "pbt":
            donor = torch.from_numpy(population.step(losses.cpu())).to(device)
            weights, momentum, history = (gather(stack, donor) for stack in (weights, momentum, history))
        elif arm == "random schedules":
            population.step(luck.random(size))
    best = losses.argmin()
    test_losses, accuracies = evaluate(weights, *test)
    return Outcome(
        arm,
        scores,
        history["lr"][best].tolist(),
        best_loss=test_losses[best].item(),
        best_accuracy=accuracies[best].item(),
        median_loss=test_losses.nan_to_num(torch.inf).median().item(),
        mean_accuracy=accuracies.mean().item(),
    )


def table(outcomes: Sequence[Outcome]) -> str:
    """Markdown, a row for each arm: mean and standard deviation over its seeds."""

    def row(arm: str) -> list[str]:
        those = [outcome for outcome in outcomes if outcome.arm == arm]
        columns = [[o.best_loss, o.median_loss, 100 * o.best_accuracy, 100 * o.mean_accuracy] for o in those]
        specs = [".3f", ".3f", ".1f", ".1f"]
        return [
            f"{statistics.fmean(column):{spec}} ± {statistics.stdev(column) if len(those) > 1 else 0:{spec}}"
            for column, spec in zip(zip(*columns, strict=True), specs, strict=True)
        ]

    head = ["test images", "best, loss", "median, loss", "best, % right", "mean, % right"]
    rows = [head, ["---"] * len(head), *([arm, *row(arm)] for arm in ARMS)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def plot(outcomes: Sequence[Outcome], file: Path) -> None:
    """Draw the best validation loss over the generations, and the learning rate that led to PBT's best; a line per seed."""
    from matplotlib.figure import Figure  # here: the example runs without it

    figure = Figure((9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for outcome in outcomes:
        generations = range(1, len(outcome.scores) + 1)
        colour = f"C{ARMS.index(outcome.arm)}"
        left.plot(generations, outcome.scores, colour, label=outcome.arm)
        if outcome.arm == "pbt":
            right.step(generations, outcome.schedule, colour, where="mid")
    handles, labels = left.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    left.legend(unique.values(), unique.keys())
    left.set(title="validation loss of the best member", xlabel="generation", yscale="log")
    right.set(title="lr along the lineage of PBT's best", xlabel="generation", yscale="log")
    figure.savefig(file, dpi=110)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1024, help="members (default: %(default)s)")
    parser.add_argument("--generations", type=int, default=20, help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=10, help="in a generation (default: %(default)s)")
    parser.add_argument("--seeds", default="0,1,2", help="default: %(default)s")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: %(default)s")
    parser.add_argument("--plot", type=Path, help="a file for the figure")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)  # tensors this small are as quick on one core, and far quicker where others want the cores
    outcomes = []
    for seed in map(int, args.seeds.split(",")):
        for arm in ARMS:
            outcomes.append(run(arm, seed, args.size, args.generations, args.steps, args.device))
            best = outcomes[-1]
            print(f"{arm}, seed {seed}: loss {best.best_loss:.3f}, {best.best_accuracy:.1%} right", flush=True)
    print(f"\n{table(outcomes)}")
    if args.plot:
        plot(outcomes, args.plot)


if __name__ == "__main__":
    main()
