"""The two calls that people type: `run`, which blocks, and `tune`, which is awaited. Both make a `Tuner` and wait for it.

Not named `run.py`: a submodule of that name would hide the function `asynctune.run`.
"""

import asyncio
import contextlib
import functools
import inspect
import os
import signal
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

from asynctune.results import Result
from asynctune.tuner import Tuner

__all__ = ["run", "tune"]

P = ParamSpec("P")
R = TypeVar("R")


def _takes_arguments_of(make: Callable[P, Tuner]) -> Callable[[Callable[[Tuner], R]], Callable[P, R]]:
    """One list of arguments for `run`, `tune` and `Tuner`, written and documented once."""

    def decorate(wait: Callable[[Tuner], R]) -> Callable[P, R]:
        @functools.wraps(wait)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            return wait(make(*args, **kwargs))

        signature = inspect.signature(make).replace(return_annotation=inspect.signature(wait).return_annotation)
        call.__signature__ = signature  # type: ignore[attr-defined]
        return call

    return decorate


@_takes_arguments_of(Tuner)
def tune(tuner: Tuner) -> Coroutine[Any, Any, Result]:
    """Run to the end and return the `Result`, in a program that has a loop: `await at.tune(train, space, ...)`.

    The arguments are those of `Tuner`, checked before the coroutine begins. Cancelling it kills the workers and closes the journal.
    """
    return _wait(tuner)


@_takes_arguments_of(Tuner)
def run(tuner: Tuner) -> Result:
    """Run to the end and return the `Result`; blocks. The arguments are those of `Tuner`.

    Also inside a running loop (a notebook's): the run then has a thread with a loop of its own. The first Ctrl-C lets
    what runs save at its next report and pause, the second kills the workers and closes the journal, the third ends the
    process; after the first two `KeyboardInterrupt` is raised.
    """
    keyboard = _Keyboard(tuner)
    if not _in_a_loop():
        here = threading.current_thread() is threading.main_thread()
        return asyncio.run(keyboard.session(handle=here))
    with ThreadPoolExecutor(1, thread_name_prefix="asynctune") as thread:
        future = thread.submit(asyncio.run, keyboard.session(handle=False))
        while True:
            try:
                return future.result()
            except KeyboardInterrupt:
                if future.done():
                    raise
                keyboard.press_from_thread()


def _in_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


async def _wait(tuner: Tuner) -> Result:
    async with tuner:
        return await tuner.result()


class _Keyboard:
    """What Ctrl-C does to a run: the first time, the second, the third."""

    def __init__(self, tuner: Tuner) -> None:
        self._tuner = tuner
        self._pressed = 0

    async def session(self, *, handle: bool) -> Result:
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        try:
            with self._handled() if handle else contextlib.nullcontext():
                result = await _wait(self._tuner)
        except asyncio.CancelledError:
            if self._pressed:
                raise KeyboardInterrupt from None
            raise
        if self._pressed or self._tuner.interrupted:
            raise KeyboardInterrupt
        return result

    @contextlib.contextmanager
    def _handled(self) -> Iterator[None]:
        if self._tuner.inline:
            # User code runs in this thread: a plain KeyboardInterrupt is what a debugger wants.
            before = signal.signal(signal.SIGINT, signal.default_int_handler)
            try:
                yield
            finally:
                signal.signal(signal.SIGINT, before)
            return
        self._loop.add_signal_handler(signal.SIGINT, self._press)
        try:
            yield
        finally:
            self._loop.remove_signal_handler(signal.SIGINT)

    def press_from_thread(self) -> None:
        self._loop.call_soon_threadsafe(self._press)

    def _press(self) -> None:
        self._pressed += 1
        if self._pressed == 1:
            sys.stderr.write("\nCtrl-C: trials save at their next report and pause; once more kills them\n")
            self._tuner.interrupt()
        elif self._pressed == 2:
            assert self._task is not None
            self._task.cancel()
        else:
            os._exit(130)
