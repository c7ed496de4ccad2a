"""Watch: who has been silent, or at work, for too long.

It has no clock: it is told the time, in seconds of a monotonic one. A slot is the number of one.
"""

import math

__all__ = ["LATE", "SILENCE", "TICK", "Watch"]

#: Seconds without a sign of life after which a worker counts as hung. Long, since a thread gives it: code in C that holds the
#: interpreter's lock for minutes exists (a kernel that compiles, a table that is read), and is at work.
SILENCE = 300.0

#: Seconds from one call of `overdue` to the next.
TICK = 1.0

#: Seconds between two calls of `overdue` above which the time between them counts for nobody. The driver was suspended, and
#: maybe the workers with it (a laptop's lid, a frozen container), or it was blocked and has heard nothing.
LATE = 2.0


class Watch:
    """Deadlines of all slots of a run.

    Args:
        now: the time.
        report_timeout: seconds that a trial may take from its start to a report, and from one report to the next; None: any.
        trial_timeout: seconds that a trial may take from its start in a slot; None: any.

    Whoever is overdue is named once, and then no longer watched: it is to be killed.
    """

    def __init__(self, now: float, *, report_timeout: float | None = None, trial_timeout: float | None = None) -> None:
        self._looked = now
        self._heard = 0.0  # seconds until then that counted
        self._life = _Rule(SILENCE, "hung: gave no sign of life for {:g} s")
        self._report = _Rule(report_timeout, "sent no report for {:g} s (report_timeout)")
        self._trial = _Rule(trial_timeout, "ran for {:g} s (trial_timeout)")

    def spawned(self, slot: int, now: float) -> None:
        """A slot has a new worker, which need not have given a sign of life to be missed."""
        self._life.since[slot] = self._time(now)

    def alive(self, slot: int, now: float) -> None:
        """The slot's worker gave a sign of life."""
        if slot in self._life.since:
            self._life.since[slot] = self._time(now)

    def gone(self, slot: int) -> None:
        """The slot's worker has ended, or is to end."""
        self._life.since.pop(slot, None)
        self.ended(slot)

    def began(self, slot: int, now: float) -> None:
        """A trial starts, or goes on, in the slot."""
        self._report.since[slot] = self._trial.since[slot] = self._time(now)

    def reported(self, slot: int, now: float) -> None:
        """The slot's trial reported, or is kept from it by the driver."""
        if slot in self._report.since:
            self._report.since[slot] = self._time(now)

    def ended(self, slot: int) -> None:
        """The slot's trial has ended, or is paused."""
        self._report.since.pop(slot, None)
        self._trial.since.pop(slot, None)

    def overdue(self, now: float) -> list[tuple[int, str]]:
        """The slots whose time is up, each with a phrase that says why, as in "sent no report for 600 s (report_timeout)"."""
        self._heard = self._time(now)
        self._looked = now
        causes: dict[int, str] = {}
        for rule in (self._life, self._trial, self._report):
            for slot, since in rule.since.items():
                if self._heard - since >= rule.limit:
                    causes.setdefault(slot, rule.cause)
        for slot in causes:
            self.gone(slot)
        return list(causes.items())

    def _time(self, now: float) -> float:
        """`now` on a clock that stands still while nobody looks."""
        passed = now - self._looked
        return self._heard + (passed if passed <= LATE else 0.0)


class _Rule:
    """What may last for `limit` seconds; `cause` is what to say when it has."""

    def __init__(self, limit: float | None, cause: str) -> None:
        self.limit = math.inf if limit is None else limit
        self.cause = cause.format(self.limit)
        self.since: dict[int, float] = {}  # slot -> when it began, on the watch's clock
