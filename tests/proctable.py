"""The process table, as Linux shows it in /proc: who carries a marker, who descends from whom, who listens."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

__all__ = ["family", "listening", "marked", "state"]

_PROC = Path("/proc")


def marked(*markers: str) -> set[int]:
    """The processes that were started with one of these ("NAME=value") in their environment, or forked by one that was."""
    wanted = {marker.encode() for marker in markers}
    found = set()
    for pid in _pids():
        try:
            environment = (_PROC / str(pid) / "environ").read_bytes()
        except OSError:  # ended meanwhile, or other people's
            continue
        if wanted.intersection(environment.split(b"\0")):
            found.add(pid)
    return found


def family(pid: int) -> set[int]:
    """A process and all its descendants that have not been orphaned."""
    parents = {child: int(status[1]) for child in _pids() if (status := _status(child))}
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def state(pid: int) -> str | None:
    """ "R", "S", "D", "T", "Z", as ps has it; None: there is no such process."""
    status = _status(pid)
    return status[0] if status else None


def listening(pids: Iterable[int]) -> list[str]:
    """What others could connect or send to in these processes, a line of the kernel's tables each: TCP, UDP and Unix sockets."""
    inodes = {inode for pid in pids for inode in _sockets(pid)}
    found = []
    for table in ("tcp", "tcp6", "udp", "udp6"):
        for line in _lines(table):
            fields = line.split()
            if fields[9] in inodes and fields[3] in ("0A", "07"):  # LISTEN; a UDP socket that is not connected
                found.append(f"{table} {line}")
    for line in _lines("unix"):
        fields = line.split()
        if fields[6] in inodes and int(fields[3], 16) & 0x10000:  # __SO_ACCEPTCON
            found.append(f"unix {line}")
    return found


def _pids() -> list[int]:
    return [int(name) for name in os.listdir(_PROC) if name.isdigit()]


def _status(pid: int) -> list[str]:
    """State, parent's pid, and what follows in `stat`."""
    try:
        return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _sockets(pid: int) -> Iterator[str]:
    try:
        descriptors = list((_PROC / str(pid) / "fd").iterdir())
    except OSError:
        return
    for descriptor in descriptors:
        try:
            target = os.readlink(descriptor)
        except OSError:
            continue
        if target.startswith("socket:["):
            yield target[8:-1]


def _lines(table: str) -> list[str]:
    try:
        return (_PROC / "net" / table).read_text().splitlines()[1:]
    except OSError:  # no IPv6
        return []
