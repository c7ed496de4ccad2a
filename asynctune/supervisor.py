"""The supervisor of a run: a small process that ends all others of the run once the driver has ended, however it did.

    python -I -S supervisor.py DRIVER RUN    DRIVER: its parent's pid. RUN: the token that the run's processes are marked with

Its stdin is the driver's lifeline, on which it is told, in lines:

    began GROUP           there is a worker, the leader of this process group
    ended GROUP WORKER    it was reaped: whatever carries the worker's token is to go too

A process carries a token if it was started with `ASYNCTUNE_RUN=<token>` (or `ASYNCTUNE_WORKER=<token>`) in its environment, or forked by one
that was: no setsid and no second fork gets rid of it. Nothing else is ever killed, but what is left in a worker's own process group.

Run by its path, so that neither the package nor the user's modules are loaded: it lives beside the run for as long as that lasts. It has no
marker itself. Where the journal's lock was handed to it, it holds that too, for as long as anything of the run lives.
"""

# What is beneath `signal`, which makes enums of it first: 6 of 25 ms, 0.8 of 9.5 MB.
import _signal as signal  # type: ignore[import-not-found]
import os
import sys
import time
from select import POLLIN, poll

__all__ = ["RUN", "WORKER", "main"]

#: The names of the markers.
RUN = "ASYNCTUNE_RUN"
WORKER = "ASYNCTUNE_WORKER"

#: Seconds from one look for the driver to the next, should a process that it forked hold the lifeline open.
LOOK_EVERY = 0.5

#: Seconds between two passes over the process table, doubled from the first of these up to the second: what a pass has killed
#: may take long to end (a GPU to tidy up, a file system that does not answer).
PAUSES = (0.001, 1.0)

#: Passes in a row that must find nobody. In one, a process can fork and end between the listing and the look at it.
CLEAN = 2


def main(driver: int, run: str) -> None:
    """Return once `driver` has ended and nothing of `run` is left."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    os.chdir("/")  # the run's file system can be unmounted
    groups: dict[int, bytes | None] = {}  # leader -> when it started
    hunt = Hunt()
    lifeline = poll()
    lifeline.register(0, POLLIN)
    rest = b""
    while os.getppid() == driver:
        data = b""
        if lifeline.poll(1000 * (hunt.pause if hunt.markers else LOOK_EVERY)):
            data = os.read(0, 2**16)
            if not data:
                break
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            match line.split():
                case [b"began", group]:
                    groups[int(group)] = _started(int(group))
                case [b"ended", group, token]:
                    groups.pop(int(group), None)
                    hunt.add(WORKER.encode() + b"=" + token)
        hunt.go()
    for leader, started in groups.items():
        _end_group(leader, started)
    hunt.add(f"{RUN}={run}".encode())
    hunt.go()
    while hunt.markers:
        time.sleep(hunt.pause)
        hunt.go()


class Hunt:
    """A search for processes that carry one of some markers, pass by pass, until no more is found. Without /proc none ever is."""

    def __init__(self) -> None:
        self.markers: dict[bytes, int] = {}  # those that are searched for -> passes in a row that found none
        self.pause = 0.0  # seconds until the next pass

    def add(self, marker: bytes) -> None:
        self.markers[marker] = 0
        self.pause = PAUSES[0]

    def go(self) -> None:
        """One pass: SIGKILL to all that carry a marker."""
        wanted = set(self.markers)
        found: set[bytes] = set()
        for pid in _processes() if wanted else ():
            if (carried := _carried(pid, wanted)) and _kill(pid, carried):
                found |= carried
        for marker in wanted:
            self.markers[marker] = 0 if marker in found else self.markers[marker] + 1
            if self.markers[marker] == CLEAN:
                del self.markers[marker]
        self.pause = min(2 * self.pause, PAUSES[1])


def _end_group(leader: int, started: bytes | None) -> None:
    """Kill what is left of the process group whose leader started then."""
    if _started(leader) in (started, None):  # a leader's number goes to nobody else while its group has members
        try:
            os.killpg(leader, signal.SIGKILL)
        except OSError:  # none is left, or only zombies (macOS)
            pass


def _processes() -> list[int]:
    try:
        return [int(name) for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return []


def _carried(pid: int, markers: set[bytes]) -> set[bytes]:
    """Which of the markers stand in the environment that a process was started with."""
    environment = _read(f"/proc/{pid}/environ")  # nothing of a zombie, an error for other people's processes
    if environment is None or not any(marker in environment for marker in markers):
        return set()
    return set(environment.split(b"\0")).intersection(markers)


def _kill(pid: int, markers: set[bytes]) -> bool:
    """Kill the process of that number, if it carries a marker (still: the number may be another's by now)."""
    # What is signalled is the process that is held, whose number cannot change hands after the look.
    try:
        held = os.pidfd_open(pid)
    except (AttributeError, OSError):  # an old kernel, or it has ended: then it carries nothing
        held = None
    try:
        if not _carried(pid, markers):
            return False
        if held is None:
            os.kill(pid, signal.SIGKILL)
        else:
            signal.pidfd_send_signal(held, signal.SIGKILL)
        return True
    except OSError:
        return False
    finally:
        if held is not None:
            os.close(held)


def _started(pid: int) -> bytes | None:
    """When a process started, in ticks since boot, which tells it from another of the same number. None: there is none."""
    status = _read(f"/proc/{pid}/stat")
    return None if status is None else status.rpartition(b")")[2].split()[19]


def _read(path: str) -> bytes | None:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read()
    except OSError:
        return None


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
    os._exit(0)  # there is nothing to tidy up
