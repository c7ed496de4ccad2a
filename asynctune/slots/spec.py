"""Slots: how the box is divided, and what each part gets."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from asynctune.errors import InvalidArgument
from asynctune.slots import rocm
from asynctune.slots.cores import affinity, by_node, pinned, usable_cores
from asynctune.slots.discovery import Found, find
from asynctune.slots.gpu import Gpu
from asynctune.slots.groups import groups
from asynctune.slots.visible import CUDA

__all__ = ["THREAD_LIMITS", "SlotSpec", "Slots", "divide", "resolve"]

#: What numerical libraries read, once, when they start, for the number of their threads.
THREAD_LIMITS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")

SETTINGS = (CUDA, "CUDA_DEVICE_ORDER", rocm.ROCR, rocm.HIP)


@dataclass(frozen=True, kw_only=True)
class Slots:
    """How to divide the box.

    Args:
        gpus_per_trial: GPUs that a trial gets for itself, >= 0; 0: none, it runs on CPU cores. Several are near each
            other.
        trials_per_gpu: trials that share one GPU, >= 1. They share its memory too, with nothing to keep them apart.
        cpus_per_trial: CPU cores for each trial, >= 1; default: 1 without GPUs, else an equal share.
        count: how many slots, >= 1; default: as many as there is room for.
        fresh: whether each trial gets a fresh process; else one process runs trial after trial, and keeps what was
            imported.
        pin: whether each slot is bound to cores of its own, near its GPUs where the system says which are. Linux only.
        preload: names of modules that a worker imports before its first trial, as in `("torch",)`.

    Raises:
        InvalidArgument: a value is out of its range, or GPUs are shared and taken several at a time.
    """

    gpus_per_trial: int = 1
    trials_per_gpu: int = 1
    cpus_per_trial: int | None = None
    count: int | None = None
    fresh: bool = False
    pin: bool = False
    preload: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, least in (("gpus_per_trial", 0), ("trials_per_gpu", 1), ("cpus_per_trial", 1), ("count", 1)):
            value = getattr(self, name)
            if value is None and name in ("cpus_per_trial", "count"):
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                hint = "; trials share a GPU with trials_per_gpu" if name == "gpus_per_trial" else ""
                raise InvalidArgument(f"{name} must be an integer >= {least}, got {value!r}{hint}")
        if self.trials_per_gpu > 1 and self.gpus_per_trial != 1:
            raise InvalidArgument(
                f"trials_per_gpu > 1 needs gpus_per_trial=1, got trials_per_gpu={self.trials_per_gpu}, "
                f"gpus_per_trial={self.gpus_per_trial}"
            )
        for name in ("fresh", "pin"):
            if not isinstance(getattr(self, name), bool):
                raise InvalidArgument(f"{name} must be True or False, got {getattr(self, name)!r}")
        if not isinstance(self.preload, tuple) or not all(map(_names_a_module, self.preload)):
            raise InvalidArgument(f"preload must be a tuple of names of modules, got {self.preload!r}")


def _names_a_module(name: object) -> bool:
    return isinstance(name, str) and all(part.isidentifier() for part in name.split("."))


@dataclass(frozen=True)
class SlotSpec:
    """One slot."""

    index: int
    environment: dict[str, str]  # beyond the driver's own
    device: str  # "cuda:0" or "cpu": how a trial in this slot names its (first) device
    devices: str  # the same for people
    gpus: tuple[str, ...] = ()  # their UUIDs; () for CPU
    cpus: tuple[int, ...] = ()  # the cores it is pinned to; () for none


def resolve(slots: Slots | int | str | None) -> list[SlotSpec]:
    """The slots that there are on this machine, for this process.

    Args:
        slots: None for one slot per visible GPU, or without any, per usable core; an integer for that many CPU slots.
            Text, which a caller may have a meaning for, is refused like all else.

    Raises:
        InvalidArgument: `slots` is none of these, or asks for more than there is.
    """
    if isinstance(slots, int):
        if isinstance(slots, bool) or slots < 1:
            raise InvalidArgument(f"slots must be at least 1, got {slots!r}")
        slots = Slots(gpus_per_trial=0, count=slots)
    elif slots is not None and not isinstance(slots, Slots):
        raise InvalidArgument(f'slots must be an integer, Slots(...), "inline" or None, got {slots!r}')
    found = find() if slots is None or slots.gpus_per_trial else Found(amd_driver=rocm.there())
    if slots is None:
        slots = Slots(gpus_per_trial=1 if found.visible else 0)
    if slots.pin and not hasattr(os, "sched_setaffinity"):
        raise InvalidArgument(f"pin=True needs Linux, got {slots}")
    return divide(slots, found, usable_cores(), by_node(affinity()) if slots.pin else {}, os.environ)


def divide(
    slots: Slots, found: Found, usable: int, cores: Mapping[int, Sequence[int]], environ: Mapping[str, str]
) -> list[SlotSpec]:
    """The slots on the machine described.

    Args:
        slots: how to divide it.
        found: its GPUs.
        usable: how many cores can be used, >= 1.
        cores: which, by NUMA node (see `cores.by_node`); matters with `pin` only.
        environ: the driver's environment.

    Raises:
        InvalidArgument: `slots` asks for more than there is.
    """
    # A count of CPU slots is taken at its word: more slots than cores may well be meant.
    shares = _shares(slots, found, usable, environ) if slots.gpus_per_trial else [[]] * (slots.count or usable)
    if slots.cpus_per_trial is not None:
        shares = shares[: usable // slots.cpus_per_trial]
    count = slots.count or len(shares)
    if not 1 <= count <= len(shares):
        there = f"{usable} usable CPU cores" + (f", {len(found.visible)} visible GPUs" if slots.gpus_per_trial else "")
        raise InvalidArgument(f"{slots} needs more than there is: {there}, enough for {len(shares)} slots")
    shares = shares[:count]
    threads = slots.cpus_per_trial or max(1, usable // count)
    bound: list[tuple[int, ...]] = [()] * count
    if slots.pin:
        bound = pinned([gpus[0].node if gpus else None for gpus in shares], slots.cpus_per_trial, threads, cores)
        threads = len(bound[0])
    limits = {name: str(threads) for name in THREAD_LIMITS if name not in environ}
    if not found.amd and "CUDA_DEVICE_ORDER" not in environ and slots.gpus_per_trial:
        limits["CUDA_DEVICE_ORDER"] = (
            "PCI_BUS_ID"  # the order of NVML, and of nvidia-smi; CUDA's own is the fastest first
        )
    return [
        _spec(index, gpus, cpus, found, limits) for index, (gpus, cpus) in enumerate(zip(shares, bound, strict=True))
    ]


def _shares(slots: Slots, found: Found, usable: int, environ: Mapping[str, str]) -> list[list[Gpu]]:
    """The GPUs of each slot that has room: those of a slot near each other, and every GPU once before any is shared."""
    size, gpus = slots.gpus_per_trial, found.visible
    if len(gpus) < size:
        there = "no GPU"
        if found.gpus:
            settings = ", ".join(f"{name}={environ[name]!r}" for name in SETTINGS if name in environ)
            there = f"{len(gpus)} of {len(found.usable)} visible ({settings or 'no variable hides any'})"
        raise InvalidArgument(
            f"gpus_per_trial={size} needs as many GPUs, found {there}; for CPU slots write slots={usable} or gpus_per_trial=0"
        )
    if size > 1 and (parts := [gpu.label for gpu in gpus if gpu.is_part]):
        raise InvalidArgument(
            f"gpus_per_trial={size} needs whole GPUs, since CUDA shows a process one MIG device at most and no GPU "
            f"beside it, found {', '.join(parts)}"
        )
    return groups(gpus, size, found.distances) * slots.trials_per_gpu


def _spec(
    index: int, gpus: Sequence[Gpu], cpus: tuple[int, ...], found: Found, settings: Mapping[str, str]
) -> SlotSpec:
    tokens = ",".join(gpu.token for gpu in gpus)
    environment = {CUDA: tokens, **settings}
    if found.amd_driver:
        environment[rocm.HIP] = (tokens if found.amd else "") or "-1"  # an empty one hides nothing
    if not gpus:
        return SlotSpec(index, environment, "cpu", "CPU", (), cpus)
    devices = ", ".join(f"{gpu.label} ({gpu.name})" for gpu in gpus)
    return SlotSpec(index, environment, "cuda:0", devices, tuple(gpu.uuid for gpu in gpus), cpus)
