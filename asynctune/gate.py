"""Gate: whether the memory of GPUs is free again, before another process begins on them."""

import asyncio
from collections.abc import Callable, Iterable
from time import monotonic

from asynctune.slots import used_memory

__all__ = ["Gate"]

#: Bytes by which what is in use may differ: drivers and displays take more and less by themselves.
SLACK = 64 * 2**20

#: Seconds that it may take. By then it is somebody else's, who may have come since.
PATIENCE = 30.0

_LOOK_EVERY = 0.05  # seconds


class Gate:
    """Compares what is in use on each GPU with what was before the run had any process there.

    The driver gives back the memory of a process some time after it was reaped. Who begins before that finds less than there is. What
    counts is the device's account, not its list of processes: inside a container their ids mean nothing (NVIDIA/nvidia-docker #1483).

    Args:
        gpus: the UUIDs of the run's GPUs; without any, all passes.
    """

    def __init__(self, gpus: Iterable[str]) -> None:
        self._gpus = sorted(set(gpus))
        self._before: dict[str, int] = {}  # bytes

    async def measure(self) -> None:
        """Take note of what is in use before the run."""
        if self._gpus:
            self._before = await asyncio.to_thread(used_memory, self._gpus)

    async def passed(self, gpus: Iterable[str], matters: Callable[[], bool]) -> str | None:
        """Wait until no more is in use on these GPUs than before, while it `matters`. Return None, or after 30 s a phrase that says what is."""
        watched = [gpu for gpu in gpus if gpu in self._before]
        until = monotonic() + PATIENCE
        while watched and matters():
            used = await asyncio.to_thread(used_memory, watched)
            excess = {gpu: used.get(gpu, 0) - self._before[gpu] for gpu in watched}
            # What was in use before the run may have been somebody's who has left since.
            self._before |= {gpu: size for gpu, size in used.items() if size < self._before[gpu]}
            if max(excess.values()) <= SLACK:
                return None
            if monotonic() >= until:
                self._before |= used  # waited for once
                gpu = max(excess, key=excess.__getitem__)
                return f"{excess[gpu] >> 20} MiB more are in use on {gpu} than before the run, {PATIENCE:g} s after its process ended"
            await asyncio.sleep(_LOOK_EVERY)
        return None
