"""Record the learning curves that come with asynctune, at.Tabular.digits(): 600 small networks, trained for real.

    python bench/record.py [--configs 600] [--out asynctune/recorded/digits.npz]

scikit-learn's 8 x 8 digits, 600 of them to train on, a fifth of those with a wrong label, so that it matters when training ends and what
holds it back; accuracy is of the other 1197, clean, after each epoch. Configurations are drawn from the space by chance. A network's
seconds are the median epoch's processor time on one core, times the epoch: real, but free of what else the machine did. Some ten minutes.
"""

import os

os.environ["OPENBLAS_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import statistics
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_digits

from asynctune._core import SAMPLE, Stream
from asynctune.space import Space
from asynctune.tabular import DIGITS, DIGITS_FILE

EPOCHS = 50
TRAINING = 600
WRONG = TRAINING // 5

Array = npt.NDArray[np.float32]


class Data:
    """Images (n, 64) in -1..1 and labels (n,), to train on and to score."""

    def __init__(self) -> None:
        digits = load_digits()
        chance = np.random.default_rng(0)
        order = chance.permutation(len(digits.target))
        images = (digits.data[order] / 8 - 1).astype(np.float32)
        labels = digits.target[order]
        self.images, self.labels = images[:TRAINING], labels[:TRAINING].copy()
        self.labels[:WRONG] = (self.labels[:WRONG] + chance.integers(1, 10, WRONG)) % 10
        self.scored_images, self.scored_labels = images[TRAINING:], labels[TRAINING:]


class Network:
    """A perceptron with dropout and weight decay, trained by SGD with momentum or by Adam."""

    def __init__(self, config: dict[str, Any], seed: int) -> None:
        self.config = config
        self.chance = np.random.default_rng(seed)
        sizes = [64, *[config["width"]] * config["layers"], 10]
        self.weights = [
            (self.chance.standard_normal((n, m)) * np.sqrt(2 / n)).astype(np.float32) for n, m in pairwise(sizes)
        ]
        self.weights += [np.zeros(m, np.float32) for m in sizes[1:]]
        self.first = [np.zeros_like(w) for w in self.weights]
        self.second = [np.zeros_like(w) for w in self.weights]
        self.steps = 0

    def outputs(self, images: Array, training: bool) -> list[Array]:
        """What each layer puts out, (n, width) each, the images first."""
        depth = len(self.weights) // 2
        outputs = [images]
        for layer in range(depth):
            x = outputs[-1] @ self.weights[layer] + self.weights[depth + layer]
            if layer < depth - 1:
                x = np.maximum(x, 0) if self.config["activation"] == "relu" else np.tanh(x)
                if training:
                    kept = 1 - self.config["dropout"]
                    x *= (self.chance.random(x.shape, np.float32) < kept) / np.float32(kept)
            outputs.append(x)
        return outputs

    def gradients(self, images: Array, labels: npt.NDArray[np.int64]) -> list[Array]:
        """Of the cross entropy, by weight."""
        depth = len(self.weights) // 2
        outputs = self.outputs(images, training=True)
        scores = np.exp(outputs[-1] - outputs[-1].max(axis=1, keepdims=True))
        delta = scores / scores.sum(axis=1, keepdims=True)
        delta[np.arange(len(labels)), labels] -= 1
        delta /= len(labels)
        found: list[Array] = [delta] * len(self.weights)
        kept = 1 - self.config["dropout"]
        for layer in reversed(range(depth)):
            found[layer], found[depth + layer] = outputs[layer].T @ delta, delta.sum(axis=0)
            if layer:
                x = outputs[layer]
                slope = (
                    (x > 0) / kept if self.config["activation"] == "relu" else (1 - (x * kept) ** 2) * (x != 0) / kept
                )
                delta = (delta @ self.weights[layer].T * slope).astype(np.float32)
        return found

    def train(self, images: Array, labels: npt.NDArray[np.int64]) -> None:
        """One step on a batch."""
        config, optimizer = self.config, self.config["optimizer"]
        self.steps += 1
        for w, gradient, first, second in zip(
            self.weights, self.gradients(images, labels), self.first, self.second, strict=True
        ):
            if optimizer["name"] == "sgd":
                first *= optimizer["momentum"]
                first += gradient
                change = first
            else:
                beta = optimizer["beta1"]
                first += (1 - beta) * (gradient - first)
                second += 0.001 * (gradient**2 - second)
                change = first / (1 - beta**self.steps) / (np.sqrt(second / (1 - 0.999**self.steps)) + 1e-8)
            w -= config["lr"] * (change + config["weight_decay"] * w)


def curve(config: dict[str, Any], seed: int, data: Data) -> tuple[list[int], float]:
    """The accuracy after each epoch, (EPOCHS,) in hundredths of a percent, and the seconds of one."""
    network = Network(config, seed)
    accuracies, seconds = [], []
    for _ in range(EPOCHS):
        began = time.process_time()
        for batch in np.array_split(network.chance.permutation(TRAINING), -(-TRAINING // config["batch_size"])):
            network.train(data.images[batch], data.labels[batch])
        right = network.outputs(data.scored_images, training=False)[-1].argmax(axis=1) == data.scored_labels
        seconds.append(time.process_time() - began)
        accuracies.append(round(10_000 * float(right.mean())))
    return accuracies, statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", type=int, default=600, help="default %(default)s")
    parser.add_argument("--out", type=Path, default=DIGITS_FILE, help="default %(default)s")
    given = parser.parse_args()
    space = Space(DIGITS)
    data = Data()
    rows = [space.table.sample(Stream(0, SAMPLE, number)) for number in range(given.configs)]
    curves = []
    with np.errstate(all="ignore"):  # some of them diverge
        for number, row in enumerate(rows):
            curves.append(curve(space.decode(row), number, data))
            if number % 50 == 0:
                print(f"{number}: {curves[-1][0][-1] / 100} %, {curves[-1][1] * 1e3:.2f} ms an epoch", flush=True)
    given.out.parent.mkdir(exist_ok=True)
    np.savez_compressed(
        given.out,
        rows=np.array(rows),
        accuracy=np.array([accuracies for accuracies, _ in curves], np.uint16),
        seconds=np.array([seconds for _, seconds in curves], np.float32),
    )


if __name__ == "__main__":
    main()
