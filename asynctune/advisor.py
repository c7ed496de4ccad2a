"""Advisor: a process of its own for a searcher whose suggestions take long, so that neither its import nor its work stops the loop."""

import asyncio
import os
import pickle
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from asynctune import _wire as wire
from asynctune.errors import RunFailed, WorkerDied
from asynctune.processes import Supervisor, Worker
from asynctune.searchers.base import Row, Suggestion

__all__ = ["Advisor"]


class Advisor:
    """Answers one question at a time.

    Args:
        log: the file that gets what the searcher's library prints.
        preload: the first call in the process, ahead of any question.
        supervisor: the run's, which ends the process with the driver.
    """

    def __init__(self, log: Path, preload: Callable[[], object], supervisor: Supervisor) -> None:
        self._log = log
        self._preload = preload
        self._supervisor = supervisor
        self._worker: Worker | None = None
        self._answer: asyncio.Future[Row] | None = None
        self._job = 0

    async def start(self) -> None:
        """Start the process; does not wait for it to be ready. Raises `RunFailed` if it cannot be started."""
        environment = {"CUDA_VISIBLE_DEVICES": ""}
        try:
            self._worker = await Worker.spawn(environment, self._log, self._received, self._died, self._supervisor)
        except WorkerDied as error:
            raise RunFailed(f"the searcher's process {error}") from error
        self._worker.send(wire.Load(b"", sys.path, os.getcwd()))
        self._call(self._preload)

    async def ask(self, call: Suggestion) -> Row:
        """The row that `call` returns, computed in the other process.

        Raises:
            RunFailed: the call raised, or its process died.
        """
        if self._worker is None:
            await self.start()
        self._answer = asyncio.get_running_loop().create_future()
        self._call(call)
        return await self._answer

    def kill(self) -> None:
        """End the process at once; a question under way fails."""
        if self._worker is not None:
            self._worker.kill()

    async def close(self, grace: float) -> None:
        if self._worker is not None:
            await self._worker.close(grace)

    def _call(self, call: Callable[[], object]) -> None:
        assert self._worker is not None
        self._job += 1
        self._worker.send(wire.Call(self._job, pickle.dumps(call)))

    def _received(self, frames: Sequence[wire.FromWorker]) -> None:
        for frame in frames:
            match frame:
                case wire.Returned(job, payload) if (
                    job == self._job and self._answer is not None and not self._answer.done()
                ):
                    self._answer.set_result(pickle.loads(payload))
                case wire.Error():
                    self._fail(f"the searcher failed: {frame.error}")

    def _died(self, cause: str) -> None:
        self._worker = None
        self._fail(f"the searcher's process {cause}")

    def _fail(self, reason: str) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(RunFailed(reason))
