"""NVML: what NVIDIA's driver says of its GPUs, without a CUDA context.

Structures, sizes and codes are those of nvml.h. The library is opened once and stays open: each initialisation may
wake the GPUs anew, which takes seconds where the driver does not stay loaded.
"""

import ctypes
import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from asynctune.slots.gpu import Gpu, numa_node

__all__ = ["Survey", "distances", "survey", "used_memory"]

LIBRARY = "libnvidia-ml.so.1"

NOT_SUPPORTED, NOT_FOUND, FUNCTION_NOT_FOUND = 3, 6, 13  # nvmlReturn_t
MIG_ENABLED = 1  # NVML_DEVICE_MIG_ENABLE
NVLINK = 2  # NVML_P2P_CAPS_INDEX_NVLINK
SYSTEM = 50  # NVML_TOPOLOGY_SYSTEM, the farthest
TEXT = 96  # NVML_DEVICE_NAME_V2_BUFFER_SIZE, NVML_DEVICE_UUID_V2_BUFFER_SIZE; no text of NVML's is longer

#: What lies between GPUs without NVLink, beyond NVML's levels of PCIe topology (0 to 50).
NO_NVLINK = 100


class PciInfo(ctypes.Structure):
    """nvmlPciInfo_t"""

    _fields_ = (
        ("busIdLegacy", ctypes.c_char * 16),
        ("domain", ctypes.c_uint),
        ("bus", ctypes.c_uint),
        ("device", ctypes.c_uint),
        ("pciDeviceId", ctypes.c_uint),
        ("pciSubSystemId", ctypes.c_uint),
        ("busId", ctypes.c_char * 32),
    )


class Unanswered(Exception):
    """NVML returned an error; `code` is its nvmlReturn_t."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class Nvml:
    """The open library."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        library.nvmlErrorString.restype = ctypes.c_char_p

    def ask(self, name: str, *arguments: Any) -> None:
        """Call a function. Raises `Unanswered` unless it returns NVML_SUCCESS."""
        function = getattr(self._library, name, None)
        code = FUNCTION_NOT_FOUND if function is None else function(*arguments)
        if code != 0:
            raise Unanswered(code, f"{name}: {self._library.nvmlErrorString(code).decode(errors='replace')}")

    def text(self, name: str, *device: ctypes.c_void_p) -> str:
        buffer = ctypes.create_string_buffer(TEXT)
        self.ask(name, *device, buffer, TEXT)
        return buffer.value.decode(errors="replace")

    def number(self, name: str, *arguments: Any) -> int:
        number = ctypes.c_uint()
        self.ask(name, *arguments, ctypes.byref(number))
        return number.value

    def handle(self, name: str, *arguments: Any) -> ctypes.c_void_p:
        handle = ctypes.c_void_p()
        self.ask(name, *arguments, ctypes.byref(handle))
        return handle

    def memory(self, device: ctypes.c_void_p) -> tuple[int, int]:
        """Bytes in all, and bytes in use."""
        total_free_used = (ctypes.c_ulonglong * 3)()  # nvmlMemory_t
        self.ask("nvmlDeviceGetMemoryInfo", device, total_free_used)
        return total_free_used[0], total_free_used[2]

    def bus(self, device: ctypes.c_void_p) -> str:
        """Its PCI address; "": it is not on such a bus, but part of a processor."""
        info = PciInfo()
        try:
            self.ask("nvmlDeviceGetPciInfo_v3", device, ctypes.byref(info))
        except Unanswered as error:
            if error.code == NOT_SUPPORTED:
                return ""
            raise
        return f"{info.domain:04x}:{info.bus:02x}:{info.device:02x}.0"


@dataclass(frozen=True)
class Survey:
    """What NVML said."""

    driver: str = ""  # version; "": there is none
    gpus: tuple[Gpu, ...] = ()  # in PCI order
    trouble: tuple[str, ...] = ()  # what it could not say


@functools.cache
def _nvml() -> Nvml | str:
    """The library, initialised; or why there is none."""
    try:
        nvml = Nvml(ctypes.CDLL(LIBRARY))
        nvml.ask("nvmlInit_v2")
    except (OSError, Unanswered) as error:
        return str(error)
    return nvml


def survey(root: Path = Path("/")) -> Survey:
    """The NVIDIA GPUs that this process may talk to. `root`: where /sys is looked for."""
    nvml = _nvml()
    if isinstance(nvml, str):
        return Survey(trouble=(nvml,))
    gpus: list[Gpu] = []
    trouble: list[str] = []
    try:
        driver = nvml.text("nvmlSystemGetDriverVersion")
        count = nvml.number("nvmlDeviceGetCount_v2")  # with those that we have no permission for, as in a container
    except Unanswered as error:
        return Survey(trouble=(str(error),))
    for index in range(count):
        try:
            device = nvml.handle("nvmlDeviceGetHandleByIndex_v2", index)
            bus = nvml.bus(device)
            gpu = _gpu(nvml, device, f"GPU {index}", bus, numa_node(bus, root))
            gpus.append(replace(gpu, parts=_parts(nvml, device, gpu, trouble)))
        except Unanswered as error:
            trouble.append(f"GPU {index} is left out: {error}")
    # By number: a domain may have more than four digits.
    gpus.sort(key=lambda gpu: [int(part, 16) for part in gpu.bus.removesuffix(".0").split(":") if part])
    return Survey(driver, tuple(gpus), tuple(trouble))


def _gpu(nvml: Nvml, device: ctypes.c_void_p, label: str, bus: str, node: int | None) -> Gpu:
    uuid, name = nvml.text("nvmlDeviceGetUUID", device), nvml.text("nvmlDeviceGetName", device)
    try:
        memory, _ = nvml.memory(device)
    except Unanswered:  # a GPU in MIG mode, without privileges
        memory = None
    return Gpu(uuid=uuid, token=uuid, label=label, name=name, memory=memory, bus=bus, node=node)


def _parts(nvml: Nvml, device: ctypes.c_void_p, gpu: Gpu, trouble: list[str]) -> tuple[Gpu, ...] | None:
    """The MIG devices of a GPU; None: it is not in MIG mode."""
    mode, pending = ctypes.c_uint(), ctypes.c_uint()
    try:
        nvml.ask("nvmlDeviceGetMigMode", device, ctypes.byref(mode), ctypes.byref(pending))
    except Unanswered as error:
        if error.code in (NOT_SUPPORTED, FUNCTION_NOT_FOUND):  # an older GPU, an older driver
            return None
        raise
    if mode.value != MIG_ENABLED:
        return None
    parts = []
    for number in range(nvml.number("nvmlDeviceGetMaxMigDeviceCount", device)):
        label = f"{gpu.label.replace('GPU', 'MIG')}:{number}"
        try:
            part = nvml.handle("nvmlDeviceGetMigDeviceHandleByIndex", device, number)
            instance = "/".join(str(nvml.number(f"nvmlDeviceGet{of}InstanceId", part)) for of in ("Gpu", "Compute"))
            parts.append(replace(_gpu(nvml, part, label, gpu.bus, gpu.node), instance=instance))
        except Unanswered as error:
            if error.code != NOT_FOUND:  # there may be fewer than the most that there can be, with gaps
                trouble.append(f"{label} is left out: {error}")
    return tuple(parts)


def distances(uuids: Sequence[str]) -> dict[tuple[str, str], int]:
    """How far GPUs are from each other, for each pair both ways; 0 is the nearest.

    NVLink comes first, then what PCIe has between them. What NVML does not answer is as far as can be.
    """
    nvml = _nvml()
    if isinstance(nvml, str):
        return {}
    found = {}
    for place, one in enumerate(uuids):
        for other in uuids[:place]:
            found[one, other] = found[other, one] = _distance(nvml, one, other)
    return found


def _distance(nvml: Nvml, one: str, other: str) -> int:
    level, apart = SYSTEM, NO_NVLINK
    try:
        pair = [nvml.handle("nvmlDeviceGetHandleByUUID", uuid.encode()) for uuid in (one, other)]
        level = nvml.number("nvmlDeviceGetTopologyCommonAncestor", *pair)
        if nvml.number("nvmlDeviceGetP2PStatus", *pair, NVLINK) == 0:  # NVML_P2P_STATUS_OK
            apart = 0
    except Unanswered:
        pass
    return level + apart


def used_memory(uuids: Iterable[str]) -> dict[str, int]:
    """Bytes in use on each of these GPUs or MIG devices, by UUID; one that NVML has no answer for is left out."""
    nvml = _nvml()
    used: dict[str, int] = {}
    if isinstance(nvml, str):
        return used
    for uuid in uuids:
        try:
            _, used[uuid] = nvml.memory(nvml.handle("nvmlDeviceGetHandleByUUID", uuid.encode()))
        except Unanswered:
            continue
    return used
