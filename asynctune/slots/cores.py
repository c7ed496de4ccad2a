"""Cores: the CPU cores that this process may use, and those that each slot is pinned to."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from asynctune.errors import InvalidArgument

__all__ = ["affinity", "by_node", "pinned", "quota", "span", "usable_cores"]


def usable_cores(root: Path = Path("/")) -> int:
    """The CPU cores that this process may use, >= 1: those it is bound to, or its cgroup's quota if that is less."""
    cores = len(affinity())
    allowed = quota(root)
    return cores if allowed >= cores else max(1, math.ceil(allowed))


def affinity() -> list[int]:
    """The cores that this process is bound to."""
    try:
        return sorted(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        return list(range(os.cpu_count() or 1))


def quota(root: Path = Path("/")) -> float:
    """CPU time over time, as the cgroups of this process allow; a limit holds for all below it."""
    allowed = math.inf
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return allowed
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
                allowed = min(allowed, _limit(directory, version=2 if controllers == "" else 1))
    return allowed


def _limit(directory: Path, *, version: int) -> float:
    try:
        if version == 2:
            allowed, period = (directory / "cpu.max").read_text().split()
        else:
            allowed, period = ((directory / f"cpu.cfs_{what}_us").read_text().strip() for what in ("quota", "period"))
    except (OSError, ValueError):
        return math.inf
    return math.inf if allowed in ("max", "-1") else int(allowed) / int(period)


def by_node(cores: Sequence[int], root: Path = Path("/")) -> dict[int, list[int]]:
    """Cores by NUMA node, those that are threads of one physical core next to each other; -1: not known."""
    node_of: dict[int, int] = {}
    for directory in (root / "sys/devices/system/node").glob("node[0-9]*"):
        node_of |= dict.fromkeys(_listed(directory / "cpulist"), int(directory.name.removeprefix("node")))
    first_thread = {
        core: min(_listed(root / f"sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list"), default=core)
        for core in cores
    }
    nodes: dict[int, list[int]] = {}
    for core in sorted(cores, key=lambda core: (node_of.get(core, -1), first_thread[core], core)):
        nodes.setdefault(node_of.get(core, -1), []).append(core)
    return nodes


def _listed(path: Path) -> list[int]:
    """The numbers of a kernel's list, "0-3,8"."""
    try:
        ranges = [part.partition("-") for part in path.read_text().strip().split(",") if part]
    except OSError:
        return []
    return [core for first, _, last in ranges for core in range(int(first), int(last or first) + 1)]


def pinned(
    nodes: Sequence[int | None], each: int | None, most: int, cores: Mapping[int, Sequence[int]]
) -> list[tuple[int, ...]]:
    """Cores for each slot of its own.

    They are of the NUMA node that its GPU is on, while there are any; else all of one node; only then of several.

    Args:
        nodes: of each slot's GPU; None: it is not known, or there is no GPU.
        each: how many cores a slot gets; None: an equal share of at most `most`, and of its node's cores.
        most: see `each`.
        cores: by node, neighbours next to each other.

    Raises:
        InvalidArgument: there are not enough.
    """
    left = {node: list(of_node) for node, of_node in cores.items()}
    if each is None:
        shares = [len(left[node]) // nodes.count(node) for node in set(nodes) if node is not None and node in left]
        each = max(1, min([most, *shares]))
    total = sum(map(len, left.values()))
    if each * len(nodes) > total:
        raise InvalidArgument(
            f"pin=True needs cores of its own for each slot, got {len(nodes)} slots of {each}, {total} cores"
        )
    found: dict[int, tuple[int, ...]] = {}

    def take(slot: int, *from_nodes: list[int]) -> None:
        found[slot] = tuple(core for of_node in from_nodes for core in of_node)[:each]
        for of_node in from_nodes:
            of_node[:] = [core for core in of_node if core not in found[slot]]

    for slot, node in enumerate(nodes):
        if node is not None and len(left.get(node, ())) >= each:
            take(slot, left[node])
    for slot in range(len(nodes)):
        if slot not in found:
            widest = max(left.values(), key=len)
            take(slot, *([widest] if len(widest) >= each else left.values()))
    return [found[slot] for slot in range(len(nodes))]


def span(cores: Sequence[int]) -> str:
    """Cores for people: "0-3, 8"."""
    parts: list[list[int]] = []
    for core in sorted(cores):
        if parts and core == parts[-1][-1] + 1:
            parts[-1].append(core)
        else:
            parts.append([core])
    return ", ".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)
