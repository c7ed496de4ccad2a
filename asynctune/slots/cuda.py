"""CUDA's own order of GPUs, where it is not that of NVML."""

import sys
from collections.abc import Mapping, Sequence

from asynctune.slots.gpu import Gpu

__all__ = ["fastest_first"]

# cuInit makes a process unfit to fork, and what it found cannot be undone: hence a process of its own.
_ASK = """
import ctypes, uuid
cuda = ctypes.CDLL("libcuda.so.1")
number, device, octets = ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(16)
assert cuda.cuInit(0) == 0
assert cuda.cuDeviceGetCount(ctypes.byref(number)) == 0
for ordinal in range(number.value):
    assert cuda.cuDeviceGet(ctypes.byref(device), ordinal) == 0
    assert cuda.cuDeviceGetUuid(octets, device) == 0
    print(f"GPU-{uuid.UUID(bytes=octets.raw)}")
"""


def fastest_first(gpus: Sequence[Gpu], environ: Mapping[str, str]) -> list[Gpu] | None:
    """GPUs as CUDA numbers them, from the fastest to the slowest by a heuristic of its own; None: it does not say."""
    import subprocess

    environment = {name: value for name, value in environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    command = [sys.executable, "-I", "-S", "-c", _ASK]
    try:
        run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    named = {gpu.uuid: gpu for gpu in gpus}
    order = run.stdout.split()
    return [named[uuid] for uuid in order] if run.returncode == 0 and sorted(order) == sorted(named) else None
