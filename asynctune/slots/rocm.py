"""ROCm: AMD's GPUs, as the kernel lists them, and those that ROCr and HIP leave to this process."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from asynctune.slots.gpu import Gpu, numa_node
from asynctune.slots.visible import CUDA, pick

__all__ = ["HIP", "ROCR", "gpus", "select", "there", "wanted"]

ROCR, HIP = "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"

KFD = "sys/class/kfd/kfd/topology/nodes"

VRAM = (1, 2)  # HSA_HEAPTYPE_FRAME_BUFFER_PUBLIC, _PRIVATE


def there(root: Path = Path("/")) -> bool:
    """Whether the kernel has a driver for them."""
    return (root / KFD).is_dir()


def wanted(environ: Mapping[str, str], root: Path = Path("/")) -> bool:
    """Whether ROCm is in use here: many a desktop has such a GPU for its screen, and no ROCm."""
    return ROCR in environ or HIP in environ or (root / environ.get("ROCM_PATH", "/opt/rocm").lstrip("/")).is_dir()


def gpus(root: Path = Path("/")) -> list[Gpu]:
    """AMD's GPUs, in the order in which ROCr numbers them."""
    try:
        nodes = sorted(map(int, os.listdir(root / KFD)))
    except OSError:
        return []
    found: list[Gpu] = []
    for node in nodes:
        directory = root / KFD / str(node)
        properties = _properties(directory)
        if not properties.get("simd_count"):  # a processor; or one that this container must not see
            continue
        banks = map(_properties, sorted((directory / "mem_banks").glob("*")))
        place = properties["location_id"]
        bus = f"{properties.get('domain', 0):04x}:{place >> 8 & 0xFF:02x}:{place >> 3 & 0x1F:02x}.{place & 7:x}"
        number = properties.get("unique_id", 0)  # consumers' cards have none
        gpu = Gpu(
            uuid=f"GPU-{number:016x}" if number else bus,
            token=str(len(found)),
            label=f"GPU {len(found)}",
            name=_read(directory / "name").strip() or "AMD GPU",
            memory=sum(bank["size_in_bytes"] for bank in banks if bank.get("heap_type") in VRAM),
            bus=bus,
            node=numa_node(bus, root),
        )
        found.append(gpu)
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _properties(directory: Path) -> dict[str, int]:
    lines = (line.split() for line in _read(directory / "properties").splitlines())
    return {name: int(value) for name, value in lines}


def select(environ: Mapping[str, str], gpus: Sequence[Gpu]) -> tuple[list[Gpu], dict[str, str]]:
    """The GPUs that are left, and why each of the others is hidden, by their labels.

    ROCR_VISIBLE_DEVICES comes first (ROCr, amd_filter_device.cpp). HIP counts what it leaves, and reads
    HIP_VISIBLE_DEVICES or, if that is empty, CUDA_VISIBLE_DEVICES (clr, rocdevice.cpp); an empty one hides nothing.
    What is left has HIP's numbers as tokens.
    """

    def of_rocr(entry: str) -> Gpu | str:
        entry = entry.strip().upper()
        if entry.startswith("G"):
            matches = [gpu for gpu in gpus if gpu.uuid.upper().startswith(entry)]
            return matches[0] if len(matches) == 1 and len(entry) > 4 else f"({entry!r}) does not match one GPU"
        return gpus[int(entry)] if entry.isdecimal() and int(entry) < len(gpus) else f"({entry!r}) is not valid"

    left, hidden = list(gpus), dict[str, str]()
    if ROCR in environ:
        left, hidden = pick(ROCR, environ[ROCR], gpus, of_rocr, twice="is not valid")
    left = [replace(gpu, token=str(place)) for place, gpu in enumerate(left)]

    def of_hip(entry: str) -> Gpu | str:
        if entry.startswith("GPU-"):
            matches = [gpu for gpu in left if entry in gpu.uuid]
        else:
            matches = [gpu for gpu in left if entry == gpu.token]  # to the letter: neither "01" nor " 1"
        return matches[0] if matches else f"({entry!r}) is not valid"

    for variable in (HIP, CUDA):
        if text := environ.get(variable):
            left, more = pick(variable, text, left, of_hip, twice="is ignored")
            return left, hidden | more
    return left, hidden
