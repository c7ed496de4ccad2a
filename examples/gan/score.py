"""Score: how good a generator is, by the inception score (Salimans et al., arXiv:1606.03498).

What judges is a small convolutional network that was trained once on the same data. It is kept in a file together with the
images: whoever asks first makes the file, all others read it.
"""

import functools
import itertools
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

import data

__all__ = ["IMAGES", "Bench", "bench", "inception_score"]

IMAGES = 1000  # in one score, always from the same noise


def inception_score(probabilities: Tensor) -> float:
    """Return `exp(mean KL(p(y|x) || p(y)))` of rows p(y|x), (n, classes): from 1 to the number of classes."""
    conditional = probabilities.double()
    marginal = conditional.mean(0)
    divergence = (torch.xlogy(conditional, conditional) - torch.xlogy(conditional, marginal)).sum(1)
    return float(divergence.mean().exp())


@dataclass(frozen=True)
class Bench:
    """What GANs are trained on and judged by: real images (n, 1, size, size) in [-1, 1], and their classifier."""

    images: Tensor
    classifier: nn.Module

    @property
    def size(self) -> int:
        return self.images.shape[-1]

    def score(self, generator: nn.Sequential) -> float:
        """The inception score of `IMAGES` images, from noise that is the same for every generator."""
        nz = next(generator.parameters()).shape[0]
        with torch.inference_mode():
            return self.score_images(generator(_noise(nz, self.images.device)))

    def score_images(self, images: Tensor) -> float:
        """The inception score of images (n, 1, size, size)."""
        with torch.inference_mode():
            return inception_score(functional.softmax(self.classifier(images), dim=1))


@functools.cache
def _noise(nz: int, device: torch.device) -> Tensor:
    return torch.randn(IMAGES, nz, 1, 1, generator=torch.Generator().manual_seed(0)).to(device)


@functools.cache
def bench(name: str, data_dir: str | None, cache: str, device: str = "cpu") -> Bench:
    """Return the bench of a data set (see `data.read`), from its file in the folder `cache`; once per process."""
    file = Path(cache, f"{name}.pt")
    if not file.exists():
        _make(file, data.read(name, data_dir))
    # Mapped: all processes share the images' pages.
    contents = torch.load(file, weights_only=True, mmap=True)
    classifier = _network(contents["images"].shape[-1])
    classifier.load_state_dict(contents["classifier"])
    return Bench(contents["images"].to(device), classifier.requires_grad_(False).to(device))


def _make(file: Path, source: data.Data) -> None:
    """Train the classifier and write the file; several processes may do so at once, since it gets its name when complete."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        classifier = _network(source.images.shape[-1])
    accuracy = _train(classifier, source)
    print(f"{file.stem}: the classifier is right on {accuracy:.1%} of the held-out images", flush=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=file.parent, prefix=f".{file.name}.", delete=False) as temporary:
        torch.save({"images": source.images, "classifier": classifier.state_dict()}, temporary)
    os.replace(temporary.name, file)


def _network(size: int) -> nn.Sequential:
    """Strided convolutions down to 2x2, and a linear layer."""
    widths = [1, 16, 32] if size == 8 else [1, 16, 32, 64, 64]
    layers: list[nn.Module] = []
    for channels, to in itertools.pairwise(widths):
        layers += [nn.Conv2d(channels, to, 3, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * widths[-1], 10))


def _train(classifier: nn.Sequential, source: data.Data) -> float:
    """Train on the kept images; return the accuracy on those held out."""
    rng = torch.Generator().manual_seed(0)
    adam = torch.optim.Adam(classifier.parameters(), 2e-3)
    for _ in range(1200):
        batch = torch.randint(len(source.images), (64,), generator=rng)
        adam.zero_grad()
        functional.cross_entropy(classifier(source.images[batch]), source.labels[batch]).backward()
        adam.step()
    with torch.inference_mode():
        right = classifier(source.held_out_images).argmax(1) == source.held_out_labels
    return float(right.float().mean())
