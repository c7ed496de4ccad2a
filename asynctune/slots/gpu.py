"""Gpu: one GPU, whoever made it."""

from dataclasses import dataclass
from pathlib import Path

__all__ = ["Gpu", "numa_node"]


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU, or one MIG device, which is a GPU of its own to all who use it."""

    uuid: str  # "GPU-..." or "MIG-..."
    token: str  # what names it to a worker
    label: str  # for people: "GPU 0"; "MIG 0:3" is the MIG device 3 of GPU 0
    name: str  # "NVIDIA H100 80GB HBM3"
    memory: int | None = None  # bytes
    bus: str = ""  # PCI address, as in /sys/bus/pci/devices
    node: int | None = None  # NUMA node whose cores are the nearest
    parts: tuple["Gpu", ...] | None = None  # its MIG devices; None: it is not in MIG mode
    instance: str = ""  # of a MIG device: "<GPU instance>/<compute instance>"

    @property
    def is_part(self) -> bool:
        """Whether this is a MIG device."""
        return self.uuid.startswith("MIG-")

    @property
    def usable(self) -> tuple["Gpu", ...]:
        """What a process can use of it: in MIG mode its MIG devices only."""
        return (self,) if self.parts is None else self.parts


def numa_node(bus: str, root: Path) -> int | None:
    """The NUMA node of a PCI device; None: there is one only, or the firmware does not say."""
    try:
        node = int((root / "sys/bus/pci/devices" / bus / "numa_node").read_text())
    except (OSError, ValueError):
        return None
    return node if node >= 0 else None
