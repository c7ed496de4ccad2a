"""Residue: what trials leave behind in their process, and whether another one may begin in it."""

import gc
import math
import os
import sys
from _thread import _count as count_threads
from contextlib import suppress
from time import monotonic, sleep
from typing import Any

from asynctune.worker.faults import breaks_process

__all__ = ["Residue"]

#: Bytes by which a process may grow from trial to trial; the number is loky's (_MAX_MEMORY_LEAK_SIZE).
HOST_LEAK = 300 * 2**20

#: Bytes that may stay allocated on a device between two trials: libraries keep workspaces (cuBLAS: 32 MiB a handle on an H100).
DEVICE_LEAK = 128 * 2**20

#: Seconds in which threads and children that are about to end may do so.
PATIENCE = 0.2

#: What is in the command lines of children that a library keeps from trial to trial.
_KEPT_CHILDREN = (
    b"multiprocessing.resource_tracker",
    b"multiprocessing.forkserver",
    b"torch/_inductor/compile_worker",
    b"loky.backend",  # scikit-learn's and joblib's pool
)

#: Whose threads are the same.
_KEPT_THREADS = frozenset({"asynctune", "joblib", "loky", "torch", "tqdm"})
_KEPT_NAMES = frozenset({"fsspecIO"})  # whose function is asyncio's

_PAGE = os.sysconf("SC_PAGE_SIZE")


class Residue:
    """What is looked at between two trials of one process; make it before the first, once the trainable is there.

    Objects that are alive by then are left out of garbage collection (`gc.freeze`): after `import torch` a collection takes 0.4 s,
    without them microseconds, and there is one between any two trials, since whatever is in a cycle keeps its memory until then.
    """

    def __init__(self) -> None:
        gc.freeze()
        self._threads = count_threads()
        self._modules = 0
        self._least = math.inf  # bytes of this process at the best of times between trials, with all that they import
        self._begun = False  # there was a trial
        self._cause: str | None = None

    def left(self, error: BaseException | None) -> str | None:
        """After a trial, with `error` if it raised one: why no other may begin in this process, in a phrase; None: nothing is in the way."""
        self._begun = True
        self._cause = None if error is None else breaks_process(error)
        if self._cause is None and (count_threads() > self._threads or _has_children()):
            # Not collected before: torch's loaders, when they go as part of a circle, wait 5 s for each of their workers. A new process is
            # there sooner.
            self._cause = _threads_left() or _children_left()
        return self._cause

    def clear(self) -> str | None:
        """Ahead of the next trial, when nothing refers to the last one any more: collect what is left of it. Returns as `left` does."""
        if dynamo := sys.modules.get("torch._dynamo"):
            dynamo.reset()  # what was compiled for other trials counts toward a limit of eight, after which nothing is compiled any more
        gc.collect()
        if len(sys.modules) != self._modules:
            gc.freeze()
            self._modules = len(sys.modules)
            self._least = math.inf
        return self._cause or (self._device_memory_left() or self._host_memory_left() if self._begun else None)

    def _device_memory_left(self) -> str | None:
        torch = sys.modules.get("torch")
        if torch is None or not torch.cuda.is_initialized():
            return None
        try:
            torch.cuda.empty_cache()
            held = max(map(torch.cuda.memory_allocated, range(torch.cuda.device_count())))
        except RuntimeError as error:  # a kernel's failure comes out at some later call
            return breaks_process(error) or f"its device does not answer: {error}"
        return f"{held >> 20} MiB of its device were left allocated" if held > DEVICE_LEAK else None

    def _host_memory_left(self) -> str | None:
        size = _own_memory()
        if size - self._least > HOST_LEAK:
            _give_back()
            size = _own_memory()
        grown = size - self._least
        self._least = min(size, self._least)
        return f"it has grown by {int(grown) >> 20} MiB over its trials" if grown > HOST_LEAK else None


def _threads_left() -> str | None:
    threading = sys.modules.get("threading")
    if threading is None:
        return None
    until = monotonic() + PATIENCE
    left = [thread for thread in threading.enumerate() if _is_foreign(thread, threading)]
    for thread in left:
        thread.join(max(0.0, until - monotonic()))
    names = [thread.name for thread in left if thread.is_alive()]
    return f"threads were left running in it: {', '.join(names)[:200]}" if names else None


def _children_left() -> str | None:
    if processes := sys.modules.get("multiprocessing.process"):
        processes.active_children()  # waits for those that have ended
    until = monotonic() + PATIENCE
    while (left := _foreign_children()) and monotonic() < until:
        sleep(0.01)
    return f"it was left with child processes: {', '.join(map(str, left))[:200]}" if left else None


def _own_memory() -> float:
    """Bytes in memory that are this process's alone: without files that it maps, which others may share."""
    try:
        with open("/proc/self/statm", "rb", buffering=0) as file:
            _, resident, shared, *_ = map(int, file.read().split())
    except OSError:  # no /proc
        return math.nan
    return (resident - shared) * _PAGE


def _give_back() -> None:
    """Have malloc give back what it keeps for later."""
    import ctypes

    with suppress(AttributeError, OSError):  # not glibc's
        ctypes.CDLL(None).malloc_trim(0)


def _is_foreign(thread: Any, threading: Any) -> bool:
    if thread is threading.main_thread() or isinstance(thread, threading._DummyThread) or thread.name in _KEPT_NAMES:
        return False
    runs = getattr(thread, "_target", None) or type(thread)
    return str(getattr(runs, "__module__", "")).partition(".")[0] not in _KEPT_THREADS


def _has_children() -> bool:
    """One system call: nearly always, there are none."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _foreign_children() -> list[int]:
    """The process ids of children that no library is known to keep; one that has ended, and that nobody has waited for, is among them."""
    children: list[int] = []
    for task in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{task}/children", "rb") as file:
                children += map(int, file.read().split())
        except FileNotFoundError:  # the thread has ended, or a kernel without CONFIG_PROC_CHILDREN
            pass
    return [child for child in children if not any(kept in _command(child) for kept in _KEPT_CHILDREN)]


def _command(pid: int) -> bytes:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read()
    except OSError:
        return b""
