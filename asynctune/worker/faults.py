"""Faults: what an exception says of the device and the process that it came from.

Read off its texts, which are the driver's and the libraries' own, so that it holds for torch, JAX and CuPy, and imports none of them.
"""

from collections.abc import Iterator

__all__ = ["breaks_process", "is_out_of_memory"]

_OUT_OF_MEMORY = (
    "CUDA out of memory",
    "CUDA error: out of memory",
    "HIP out of memory",
    "HIP error: out of memory",
    "CUDA driver error: out of memory",
    "CUDA_ERROR_OUT_OF_MEMORY",
    "cudaErrorMemoryAllocation",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUSOLVER_STATUS_ALLOC_FAILED",
    "CUFFT_ALLOC_FAILED",
    "Cuda failure 'out of memory'",  # NCCL's
    "Cannot allocate memory",  # ENOMEM
    "RESOURCE_EXHAUSTED: Out of memory",
    "DefaultCPUAllocator: can't allocate memory",
)

# After an assertion (710), a launch failure (719) or an illegal address (700) every further call fails: "the process must be
# terminated and relaunched" (CUDA Runtime API, cudaError_t). Which error was one of these, later calls may hide; so any ends it.
_DEVICE = (
    "CUDA error",
    "CUDA driver error",
    "CUDA_ERROR_",
    "cudaError",
    "CUBLAS_STATUS_",
    "CUSOLVER_STATUS_",
    "CUDNN_STATUS_",
    "cuDNN error",
    "NCCL error",
    "HIP error",
    "hipError",
    "device-side assert",
    "illegal memory access",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the memory of a device, or of the host, did not suffice."""
    return any(
        isinstance(each, MemoryError)
        or type(each).__name__ == "OutOfMemoryError"
        or getattr(each, "out_of_memory", False)  # as of a trial's other ranks
        or _holds(each, _OUT_OF_MEMORY)
        for each in _chain(error)
    )


def breaks_process(error: BaseException) -> str | None:
    """Why the process is not fit for another trial, in a phrase; None: it may be."""
    if is_out_of_memory(error):
        return "it was out of memory"
    return "a device failed in it" if any(_holds(each, _DEVICE) for each in _chain(error)) else None


def _holds(error: BaseException, texts: tuple[str, ...]) -> bool:
    try:
        said = str(error)[:10_000]
    except Exception:  # noqa: BLE001 - a __str__ of the user's
        return False
    return any(text in said for text in texts)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, and what it was raised after."""
    each: BaseException | None = error
    for _ in range(100):  # a chain may be a circle
        if each is None:
            return
        yield each
        each = each.__cause__ or each.__context__
