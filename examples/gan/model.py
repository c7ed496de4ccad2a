"""DCGAN: generator, discriminator, and one iteration of the game between them (Radford et al., arXiv:1511.06434)."""

import torch
import torch._dynamo  # torch's optimizers import it, for seconds, when first used: here that is part of a worker's start-up
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["BATCH", "GAN", "MINIBATCHES", "discriminator", "generator"]

BATCH = 64
MINIBATCHES = 5  # in one iteration, as in the article's code


def generator(size: int) -> nn.Sequential:
    """Noise (n, nz, 1, 1) to images (n, 1, size, size) in [-1, 1]; size is 8 (nz 32) or 32 (nz 100)."""
    if size == 8:
        return _initialised(*_up(32, 64, 1, 0), _up(64, 1)[0], nn.Tanh())
    return _initialised(*_up(100, 128, 1, 0), *_up(128, 64), *_up(64, 32), _up(32, 1)[0], nn.Tanh())


def discriminator(size: int) -> nn.Sequential:
    """Images (n, 1, size, size) to the probabilities (n, 1, 1, 1) that they are real; size is 8 or 32."""
    first = (nn.Conv2d(1, 32, 4, 2, 1, bias=False), nn.LeakyReLU(0.2))
    if size == 8:
        return _initialised(*first, nn.Conv2d(32, 1, 4, bias=False), nn.Sigmoid())
    return _initialised(*first, *_down(32, 64), *_down(64, 128), nn.Conv2d(128, 1, 4, bias=False), nn.Sigmoid())


def _up(channels: int, to: int, stride: int = 2, padding: int = 1) -> list[nn.Module]:
    return [nn.ConvTranspose2d(channels, to, 4, stride, padding, bias=False), _norm(to), nn.ReLU()]


def _down(channels: int, to: int) -> list[nn.Module]:
    return [nn.Conv2d(channels, to, 4, 2, 1, bias=False), _norm(to), nn.LeakyReLU(0.2)]


def _norm(channels: int) -> nn.Module:
    # Statistics of the batch, in training and when scored: there are no running ones to keep.
    return nn.BatchNorm2d(channels, track_running_stats=False)


def _initialised(*layers: nn.Module) -> nn.Sequential:
    for layer in layers:
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(layer.weight, 0.0, 0.02)
    return nn.Sequential(*layers)


class GAN:
    """Two networks and their Adams. The initial weights come from torch's global generator."""

    def __init__(self, size: int, device: str, *, netG_lr: float, netD_lr: float, beta1: float) -> None:
        self.generator = generator(size).to(device)
        self.discriminator = discriminator(size).to(device)
        self.generator_adam = torch.optim.Adam(self.generator.parameters(), netG_lr, (beta1, 0.999))
        self.discriminator_adam = torch.optim.Adam(self.discriminator.parameters(), netD_lr, (beta1, 0.999))

    def iterate(self, images: Tensor, rng: torch.Generator) -> None:
        """Train both on `MINIBATCHES` batches that `rng` draws from `images` (n, 1, size, size); both are on one device."""
        nz = next(self.generator.parameters()).shape[0]
        real = torch.ones(BATCH, 1, 1, 1, device=images.device)
        for _ in range(MINIBATCHES):
            batch = images[torch.randint(len(images), (BATCH,), generator=rng, device=images.device)]
            generated = self.generator(torch.randn(BATCH, nz, 1, 1, generator=rng, device=images.device))

            self.discriminator_adam.zero_grad()
            functional.binary_cross_entropy(self.discriminator(batch), real).backward()
            functional.binary_cross_entropy(self.discriminator(generated.detach()), 1 - real).backward()
            self.discriminator_adam.step()

            self.generator_adam.zero_grad()
            functional.binary_cross_entropy(self.discriminator(generated), real).backward()
            self.generator_adam.step()
