"""Slots: the hardware. Which devices there are, and one environment for each slot, the place where one trial runs at a time."""

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from asynctune.errors import InvalidArgument

__all__ = ["Gpu", "SlotSpec", "Slots", "installed_gpus", "resolve", "usable_cores", "visible_gpus"]

#: What numerical libraries read, once, when they start, for the number of their threads.
THREAD_LIMITS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True, kw_only=True)
class Slots:
    """How to divide the box.

    Args:
        gpus_per_trial: GPUs that a trial gets for itself, >= 0; 0: none, it runs on CPU cores.
        trials_per_gpu: trials that share one GPU, >= 1. They share its memory too, with nothing to keep them apart.
        cpus_per_trial: CPU cores for each trial, >= 1; default: 1 without GPUs, else an equal share.
        count: how many slots, >= 1; default: as many as there is room for.

    Raises:
        InvalidArgument: a value is out of its range, or GPUs are shared and taken several at a time.
    """

    gpus_per_trial: int = 1
    trials_per_gpu: int = 1
    cpus_per_trial: int | None = None
    count: int | None = None
    fresh: bool = False
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


@dataclass(frozen=True)
class Gpu:
    """One GPU."""

    token: str  # what names it in CUDA_VISIBLE_DEVICES: its index, or a UUID
    uuid: str
    name: str


@dataclass(frozen=True)
class SlotSpec:
    """One slot."""

    index: int
    environment: dict[str, str]  # beyond the driver's own
    device: str  # "cuda:0" or "cpu": how a trial in this slot names its (first) device
    devices: str  # the same for people
    gpus: tuple[str, ...] = ()
    cpus: tuple[int, ...] = ()


def resolve(slots: Slots | int | str | None) -> list[SlotSpec]:
    """The slots that there are on this machine, for this process.

    Args:
        slots: None for one slot per visible GPU, or without any, per usable core; an integer for that many CPU slots. Text, which
            a caller may have a meaning for, is refused like all else.

    Raises:
        InvalidArgument: `slots` is none of these, or asks for more than there is.
    """
    if slots is None:
        slots = Slots() if visible_gpus() else Slots(gpus_per_trial=0)
    elif isinstance(slots, int):
        if isinstance(slots, bool) or slots < 1:
            raise InvalidArgument(f"slots must be at least 1, got {slots!r}")
        slots = Slots(gpus_per_trial=0, count=slots)
    elif not isinstance(slots, Slots):
        raise InvalidArgument(f'slots must be an integer, Slots(...), "inline" or None, got {slots!r}')

    cores = usable_cores()
    # A count of CPU slots is taken at its word: more slots than cores may well be meant.
    shares = _gpu_shares(slots) if slots.gpus_per_trial else [[]] * (slots.count or cores)
    if slots.cpus_per_trial is not None:
        shares = shares[: cores // slots.cpus_per_trial]
    count = slots.count or len(shares)
    if not 1 <= count <= len(shares):
        found = f"{cores} usable CPU cores" + (f", {len(visible_gpus())} visible GPUs" if slots.gpus_per_trial else "")
        raise InvalidArgument(f"{slots} needs more than there is: {found}, enough for {len(shares)} slots")
    threads = str(slots.cpus_per_trial or max(1, cores // count))
    limits = {name: threads for name in THREAD_LIMITS if name not in os.environ}
    return [_spec(index, gpus, limits) for index, gpus in enumerate(shares[:count])]


def _gpu_shares(slots: Slots) -> list[list[Gpu]]:
    """The GPUs of each slot that has room: neighbours together, and every GPU once before any is shared."""
    gpus = visible_gpus()
    if len(gpus) < slots.gpus_per_trial:
        if installed := len(installed_gpus()):
            found = (
                f"{len(gpus)} of {installed} visible (CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES')!r})"
            )
        else:
            found = "no NVIDIA GPU"
        raise InvalidArgument(
            f"gpus_per_trial={slots.gpus_per_trial} needs as many GPUs, found {found}; for CPU slots write slots={usable_cores()}"
        )
    size = slots.gpus_per_trial
    groups = [gpus[start : start + size] for start in range(0, len(gpus) - size + 1, size)]
    return groups * slots.trials_per_gpu


def _spec(index: int, gpus: list[Gpu], limits: Mapping[str, str]) -> SlotSpec:
    environment = {"CUDA_VISIBLE_DEVICES": ",".join(gpu.token for gpu in gpus), **limits}
    if not gpus:
        return SlotSpec(index, environment, "cpu", "CPU")
    if "CUDA_DEVICE_ORDER" not in os.environ:
        environment["CUDA_DEVICE_ORDER"] = (
            "PCI_BUS_ID"  # the order of NVML, and of nvidia-smi; CUDA's own is the fastest first
        )
    return SlotSpec(index, environment, "cuda:0", ", ".join(f"GPU {gpu.token} ({gpu.name})" for gpu in gpus))


def visible_gpus() -> list[Gpu]:
    """The GPUs that CUDA_VISIBLE_DEVICES leaves to this process, in its order.

    The rules are CUDA's (Programming Guide, "CUDA Environment Variables"): an entry that is not valid hides all that follow, one
    that comes twice hides all. Entries keep their form, so that UUIDs stay UUIDs; MIG devices are taken at their word.
    """
    installed = installed_gpus()
    text = os.environ.get("CUDA_VISIBLE_DEVICES")
    if text is None or not installed:
        return installed
    gpus: list[Gpu] = []
    for entry in map(str.strip, text.split(",")):
        gpu = _named(entry, installed)
        if gpu is None:
            break
        gpus.append(gpu)
    return gpus if len({gpu.uuid for gpu in gpus}) == len(gpus) else []


def _named(entry: str, installed: list[Gpu]) -> Gpu | None:
    """The GPU that one entry of CUDA_VISIBLE_DEVICES means, if any."""
    if entry.startswith("MIG-"):
        return Gpu(entry, entry, "MIG device")
    if entry.startswith("GPU-"):
        matches = [gpu for gpu in installed if gpu.uuid.startswith(entry)]  # may be abbreviated
        return Gpu(entry, matches[0].uuid, matches[0].name) if len(matches) == 1 else None
    number = re.match(r"\+?\d+", entry)  # as strtoul reads it: "1gpu2" is 1
    index = int(number[0]) if number else -1
    return installed[index] if 0 <= index < len(installed) else None


def installed_gpus() -> list[Gpu]:
    """The NVIDIA GPUs that the driver knows, in PCI order, found without initialising CUDA (NVML, through ctypes)."""
    import ctypes

    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return []
    if nvml.nvmlInit_v2() != 0:
        return []
    try:
        count = ctypes.c_uint()
        nvml.nvmlDeviceGetCount_v2(ctypes.byref(count))
        gpus = []
        for index in range(count.value):
            handle = ctypes.c_void_p()
            name, uuid = ctypes.create_string_buffer(96), ctypes.create_string_buffer(96)
            if nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)) == 0:
                nvml.nvmlDeviceGetName(handle, name, 96)
                nvml.nvmlDeviceGetUUID(handle, uuid, 96)
                gpus.append(Gpu(str(index), uuid.value.decode(), name.value.decode()))
        return gpus
    finally:
        nvml.nvmlShutdown()


def usable_cores(root: Path = Path("/")) -> int:
    """The CPU cores that this process may use: those it is bound to, or what its cgroup's quota comes to if that is less, >= 1."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        cores = os.cpu_count() or 1
    quota = _quota(root)
    return cores if quota >= cores else max(1, math.ceil(quota))


def _quota(root: Path) -> float:
    """CPU time over time, as the cgroups of this process allow; a limit holds for all below it."""
    quota = math.inf
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return quota
    for line in lines:  # "0::/path" (version 2), "4:cpu,cpuacct:/path" (version 1)
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mount = root / "sys/fs/cgroup"
        elif "cpu" in controllers.split(","):
            mount = root / "sys/fs/cgroup/cpu"
        else:
            continue
        # In a container the path may be the host's, and only the mount's own files be there.
        group = mount / path.strip("/")
        for directory in (group, *group.parents):
            if directory.is_relative_to(mount):
                quota = min(quota, _limit(directory, version=2 if controllers == "" else 1))
    return quota


def _limit(directory: Path, *, version: int) -> float:
    try:
        if version == 2:
            allowed, period = (directory / "cpu.max").read_text().split()
        else:
            allowed, period = ((directory / f"cpu.cfs_{what}_us").read_text().strip() for what in ("quota", "period"))
    except (OSError, ValueError):
        return math.inf
    return math.inf if allowed in ("max", "-1") else int(allowed) / int(period)
