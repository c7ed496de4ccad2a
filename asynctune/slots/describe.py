"""What there is and what would be used of it, in words."""

import math
import os
from collections.abc import Iterator, Sequence

from asynctune.slots.cores import affinity, by_node, quota, span, usable_cores
from asynctune.slots.discovery import Found
from asynctune.slots.gpu import Gpu
from asynctune.slots.spec import SETTINGS, THREAD_LIMITS, SlotSpec

__all__ = ["describe_found", "describe_slots"]


def describe_found(found: Found) -> Iterator[str]:
    """What there is, line by line."""
    yield f"GPUs: {found.driver or 'no driver'}"
    for line in found.trouble:
        yield f"  {line}"
    for gpu in found.gpus:
        yield from _gpu(gpu, found)
    yield "CPU"
    nodes = by_node(affinity())
    for node, cores in nodes.items():
        where = f" on NUMA node {node}" if node >= 0 and len(nodes) > 1 else ""
        yield f"  this process is bound to {len(cores)} cores{where}: {span(cores)}"
    limit = quota()
    allowed = "have no quota" if limit == math.inf else f"allow it the time of {limit:g} cores"
    yield f"  its control groups {allowed}"
    yield f"  usable: {usable_cores()}"
    settings = [name for name in (*SETTINGS, *THREAD_LIMITS) if name in os.environ]
    if settings:
        yield "Environment, which is composed with or left alone"
        yield from (f"  {name}={os.environ[name]}" for name in settings)


def _gpu(gpu: Gpu, found: Found, indent: str = "  ") -> Iterator[str]:
    memory = "" if gpu.memory is None else f", {gpu.memory / 2**30:.1f} GiB"
    node = "" if gpu.node is None else f", NUMA node {gpu.node}"
    yield f"{indent}{gpu.label}: {gpu.name}{memory}{node}, {gpu.uuid}"
    if gpu.parts is not None:
        devices = f"its {len(gpu.parts)} MIG devices are used" if gpu.parts else "there is no MIG device"
        yield f"{indent}  in MIG mode: {devices}, not the GPU itself"
        for part in gpu.parts:
            yield from _gpu(part, found, indent + "  ")
    else:
        yield f"{indent}  {'hidden: ' + found.hidden[gpu.label] if gpu.label in found.hidden else 'visible'}"


def describe_slots(specs: Sequence[SlotSpec]) -> Iterator[str]:
    """What would be used, line by line."""
    yield f"Slots: {len(specs)}"
    for spec in specs:
        yield f"  slot {spec.index}: {spec.devices}" + (f", pinned to {span(spec.cpus)}" if spec.cpus else "")
        yield from (f"    {name}={value}" for name, value in spec.environment.items())
