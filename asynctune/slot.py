"""Slot: a place where one trial runs at a time: its worker, and the job that this one has."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from asynctune import _wire as wire
from asynctune.errors import RunFailed, WorkerDied
from asynctune.logs import note
from asynctune.processes import InlineWorker, Supervisor, Worker
from asynctune.records import Started
from asynctune.rundir import log_file
from asynctune.slots import SlotSpec

__all__ = ["Slot", "reject", "resolve"]


class Slot:
    """A slot's worker and the job it has: the start of a trial that it runs, or holds warm (`parked`)."""

    def __init__(self, spec: SlotSpec, run_dir: Path) -> None:
        self.spec = spec
        self.log = run_dir / log_file(spec.index)
        self.neighbours: list[Slot] = []  # that share a GPU with it
        self.alone = False  # it runs a trial that they have to leave the GPU to, or is about to
        self.worker: Worker | InlineWorker | None = None
        self.worn: str | None = None  # why the worker is to be replaced
        self.started: Started | None = None  # the job, of a worker that has had one
        self.job = 0
        self.trial = -1
        self.segment = 0
        self.active = False  # user code of `job` runs, and what it sends counts
        self.handed_back = False  # or rather is to run in another worker, since this one is not fit for it
        self.parked = False
        self.began = 0.0  # when the job did
        self.log_start = 0  # bytes in the log before what it prints
        self.jobs: dict[int, tuple[int, int]] = {}  # job -> (trial, segment), of those that may still send frames
        self.idle: asyncio.Future[None] | None = None  # nothing runs, and nothing can be started at once
        self.holds: int | None = None  # the ended trial that the worker could still save
        self.kept: asyncio.Future[None] | None = None  # that was asked for, and is done
        self._loaded: asyncio.Future[None] | None = None  # the worker has the trainable

    def runs(self, job: int) -> bool:
        return self.active and job == self.job

    def log_size(self) -> int:
        return self.log.stat().st_size if self.log.exists() else 0

    # Its worker.

    @property
    def loading(self) -> bool:
        """Whether the worker is still to get ready."""
        return self._loaded is not None and not self._loaded.done()

    async def hire(
        self,
        load: wire.Load,
        supervisor: Supervisor | None,
        on_frames: Callable[[Sequence[wire.FromWorker]], None],
        on_death: Callable[[str], None],
    ) -> None:
        """Get a worker that has the trainable.

        Raises `RunFailed` if it does not start, or cannot load it.
        """
        self._loaded = asyncio.get_running_loop().create_future()
        try:
            self.worker = await Worker.spawn(self.spec.environment, self.log, on_frames, on_death, supervisor)
        except WorkerDied as error:
            raise RunFailed(f"the worker of slot {self.spec.index} {error}") from error
        self.worker.send(msgspec.structs.replace(load, cpus=list(self.spec.cpus)))
        await self._loaded
        self.log_start = self.log_size()

    def hired(self, error: RunFailed | None = None) -> None:
        """The worker has the trainable, or will not have it."""
        if error is None:
            resolve(self._loaded)
        else:
            reject(self._loaded, error)

    def wear(self, cause: str) -> None:
        """The worker is not to begin another job."""
        if self.worker is not None and self.worn is None:
            self.worn = cause

    async def retire(self, grace: float) -> None:
        """End a worker that is worn."""
        if self.worker is not None:
            await self.worker.close(grace)
            note(self.log, f"the worker was replaced: {self.worn}")
        self.gone()

    def gone(self) -> None:
        """There is no worker any more. A job that it handed back stays, for the next one."""
        self.worker = self.worn = self.holds = None
        self.parked = False
        if not self.handed_back:
            self.jobs.clear()
            self.started = None


def resolve(future: asyncio.Future[None] | None) -> None:
    if future is not None and not future.done():
        future.set_result(None)


def reject(future: asyncio.Future[None] | None, error: BaseException) -> None:
    if future is not None and not future.done():
        future.set_exception(error)
