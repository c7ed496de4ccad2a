"""Discovery: the GPUs of this box, and which of them this process may use."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from asynctune.errors import InvalidArgument
from asynctune.slots import cuda, rocm, visible
from asynctune.slots.gpu import Gpu

__all__ = ["Found", "find", "installed_gpus", "used_memory", "visible_gpus"]


@dataclass(frozen=True, kw_only=True)
class Found:
    """What there is, and what may be used of it."""

    driver: str = ""  # "NVIDIA driver 570.86.15"; "": there is none
    trouble: tuple[str, ...] = ()  # what could not be found out
    gpus: tuple[Gpu, ...] = ()  # all, in PCI order, MIG devices within theirs
    visible: tuple[Gpu, ...] = ()  # in the order of the variable that names them; MIG devices each for itself
    hidden: Mapping[str, str] = field(default_factory=dict)  # why others are not, by their labels
    distances: Mapping[tuple[str, str], int] = field(default_factory=dict)  # by UUIDs, between visible ones; 0: nearest
    amd: bool = False  # whether they are AMD's
    amd_driver: bool = False  # whether there may be AMD's, used or not

    @property
    def usable(self) -> tuple[Gpu, ...]:
        """What would be visible without any variable."""
        return tuple(part for gpu in self.gpus for part in gpu.usable)


def find(environ: Mapping[str, str] = os.environ, root: Path = Path("/")) -> Found:
    """Look for GPUs: NVIDIA's, or, where there are none, AMD's.

    Args:
        environ: where the variables are that leave some to this process.
        root: where /sys and /opt are looked for.

    Raises:
        InvalidArgument: CUDA_VISIBLE_DEVICES has numbers, and nobody says what they mean.
    """
    from asynctune.slots import nvml  # ctypes

    survey = nvml.survey(root)
    amd_driver = rocm.there(root)
    if survey.gpus or not (amd_driver and rocm.wanted(environ, root)):
        text = environ.get(visible.CUDA)
        left, hidden = [part for gpu in survey.gpus for part in gpu.usable], dict[str, str]()
        if text is not None and survey.gpus:
            numbered = _numbered(survey.gpus, text, environ) if visible.by_number(text) else []
            left, hidden = visible.cuda(text, survey.gpus, numbered)
        return Found(
            driver=f"NVIDIA driver {survey.driver}" if survey.driver else "",
            trouble=survey.trouble,
            gpus=survey.gpus,
            visible=tuple(left),
            hidden=hidden,
            distances=nvml.distances([gpu.uuid for gpu in left if not gpu.is_part]),
            amd_driver=amd_driver,
        )
    gpus = rocm.gpus(root)
    left, hidden = rocm.select(environ, gpus)
    return Found(
        driver="AMD's kernel driver",
        gpus=tuple(gpus),
        visible=tuple(left),
        hidden=hidden,
        amd=True,
        amd_driver=True,
    )


def _numbered(gpus: tuple[Gpu, ...], text: str, environ: Mapping[str, str]) -> list[Gpu]:
    """What the numbers in CUDA_VISIBLE_DEVICES mean.

    CUDA counts whole GPUs, then the first MIG device of each that is in MIG mode. (That is not documented; Datadog's
    agent, which has to know what processes run on, found it so.)
    """
    whole = [gpu for gpu in gpus if gpu.parts is None]
    if environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID" and len({gpu.name for gpu in whole}) > 1:
        order = cuda.fastest_first(whole, environ)
        if order is None:
            raise InvalidArgument(
                "numbers in CUDA_VISIBLE_DEVICES need CUDA_DEVICE_ORDER=PCI_BUS_ID where GPUs differ, since CUDA does "
                f"not say which is the fastest; or write UUIDs, got {text!r}"
            )
        whole = order
    return [*whole, *(gpu.parts[0] for gpu in gpus if gpu.parts)]


def installed_gpus() -> list[Gpu]:
    """The GPUs of this box, MIG devices each for itself, whether or not they are visible."""
    return list(find().usable)


def visible_gpus() -> list[Gpu]:
    """The GPUs that this process may use, MIG devices each for itself, in the order of the variable that names them."""
    return list(find().visible)


def used_memory(uuids: Iterable[str]) -> dict[str, int]:
    """Bytes in use on each of these GPUs or MIG devices, by UUID; one that NVML has no answer for is left out."""
    from asynctune.slots import nvml  # ctypes

    return nvml.used_memory(uuids)
