"""Data: labelled images from their sources, scikit-learn's 8x8 digits or MNIST at 32x32."""

import gzip
import struct
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["Data", "read"]


class Data(NamedTuple):
    """Images (n, 1, size, size) float32 in [-1, 1] and their labels (n,) int64 in 0..9, and as much held out."""

    images: Tensor
    labels: Tensor
    held_out_images: Tensor
    held_out_labels: Tensor


def read(name: str, data_dir: str | None = None) -> Data:
    """Read `"digits"`, which come with scikit-learn, or `"mnist"`, four idx gzip files in `data_dir`.

    Raises `FileNotFoundError` where a file or the folder is missing.
    """
    if name == "digits":
        return _digits()
    if data_dir is None:
        raise FileNotFoundError("MNIST needs --data-dir, a folder with its four idx gzip files")
    return Data(*_mnist(Path(data_dir), "train"), *_mnist(Path(data_dir), "t10k"))


def _digits() -> Data:
    from sklearn.datasets import load_digits  # here: it takes seconds, and workers do without

    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 8 - 1  # pixels are 0..16
    labels = torch.tensor(digits.target, dtype=torch.int64)
    shuffled = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))  # they lie writer by writer
    held_out, kept = shuffled[:360], shuffled[360:]
    return Data(images[kept], labels[kept], images[held_out], labels[held_out])


def _mnist(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    pixels = _idx(folder / f"{part}-images-idx3-ubyte.gz").unsqueeze(1) / 127.5 - 1
    # From 28x28, as in the article: three doublings of 4x4.
    images = functional.interpolate(pixels, size=32, mode="bilinear", align_corners=False)
    return images, _idx(folder / f"{part}-labels-idx1-ubyte.gz").long()


def _idx(path: Path) -> Tensor:
    """Read an idx file: a magic number that ends in the number of dimensions, the sizes, the bytes (big-endian)."""
    content = bytearray(gzip.decompress(path.read_bytes()))
    dimensions = content[3]
    shape = struct.unpack_from(f">{dimensions}I", content, 4)
    return torch.frombuffer(content, dtype=torch.uint8, offset=4 + 4 * dimensions).reshape(shape)
