"""Tracking: what a trial has saved with every checkpoint, and gets back."""

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from asynctune._wire import Run
from asynctune.errors import InvalidArgument
from asynctune.worker import generators, state
from asynctune.worker.checkpoint import Draft
from asynctune.worker.hyperparameters import (
    Group,
    adopt,
    hyperparameters,
    is_optimizer,
    optimizer_of,
    rate_ratio,
    schedules,
    transplant,
)
from asynctune.worker.state import Snapshot

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Tracked"]

#: How to get the state of an object, and how to set it.
Accessors = tuple[Callable[[], Any], Callable[[Any], object]]

_METHODS = (("state_dict", "load_state_dict"), ("get_state", "set_state"))


class Tracked:
    """What one assignment tracks: the checkpoints that it makes, and the one that it begins with."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._objects: dict[str, Any] = {}
        self._accessors: dict[str, Accessors] = {}
        self._built: dict[str, tuple[str, list[Group]]] = {}  # of optimizers and schedulers, as in `Snapshot`
        self._callbacks: list[Callable[[Path], object]] = []
        self._restored: Snapshot | None = None
        self._last = ("", 0)  # name and size of the last checkpoint made
        name = os.path.basename(run.restore or "")
        self.goes_on = name.startswith(f"{run.trial}-{run.segment}-")  # from a checkpoint of its own

    @property
    def saveable(self) -> bool:
        """Whether there is anything to save."""
        return bool(self._objects or self._callbacks)

    def on_save(self, save: "Callable[[Path], object]") -> None:
        if not callable(save):
            raise InvalidArgument(f"on_save takes a function of the checkpoint's directory, got {save!r}")
        self._callbacks.append(save)

    def track(self, objects: dict[str, Any]) -> None:
        """Save `objects` from now on; restore them if the assignment begins with a checkpoint."""
        accessors = {name: _accessors(name, thing) for name, thing in objects.items()}
        for name in objects:
            if name in self._objects:
                raise InvalidArgument(f"{name!r} is tracked already")
        self._accessors |= accessors
        for name, thing in objects.items():
            self._objects[name] = thing
            if is_optimizer(thing):
                self._built[name] = (_class(thing), [hyperparameters(group) for group in thing.param_groups])
            elif optimizer_of(thing) is not None:
                self._built[name] = (_class(thing), [hyperparameters(vars(each)) for each in schedules(thing)])
        if self._run.restore is not None:
            snapshot = self._snapshot()
            for name in objects:
                self._restore(name, snapshot)

    def resume_generators(self) -> None:
        """Let random numbers go on as well, if this is where the trial goes on from a checkpoint of its own. Once.

        After an exploit they do not: the checkpoint is another trial's, and two trials with the same numbers to come are less than two.
        """
        if self.goes_on:
            self.goes_on = False
            generators.restore(self._snapshot().drawn)

    def _snapshot(self) -> Snapshot:
        """What the assignment begins with."""
        if self._restored is None:
            assert self._run.restore is not None
            self._restored = state.read(self._run.restore)
        return self._restored

    def _restore(self, name: str, snapshot: Snapshot) -> None:
        if name not in snapshot.state:
            found = ", ".join(map(repr, snapshot.state)) or "nothing"
            raise InvalidArgument(f"{name!r} is tracked, but the checkpoint holds {found}")
        thing = self._objects[name]
        value = snapshot.state.pop(name)  # a large model is not held twice for longer than it must be
        kind, new = self._built.get(name, ("", []))
        kind_then, old = snapshot.built.get(name, ("", []))
        if kind != kind_then:
            return  # the state of another kind of optimizer means nothing to this one: it begins anew
        # A module copies what it loads. Others may keep it, and would keep the file.
        torch = sys.modules.get("torch")
        module = torch is not None and isinstance(thing, torch.nn.Module)
        self._accessors[name][1](value if module else state.copied(value))
        if is_optimizer(thing):
            for group, then, now in zip(thing.param_groups, old, new, strict=True):
                transplant(group, then, now)
        elif kind:
            ratios = self._ratios(optimizer_of(thing), snapshot)
            for each, then, now in zip(schedules(thing), old, new, strict=False):
                adopt(each, then, now, ratios)

    def _ratios(self, optimizer: Any, snapshot: Snapshot) -> list[float]:
        """By how much the rates of an optimizer's groups are larger than the donor's; none where it is not tracked, or begins anew."""
        for name, (kind, new) in self._built.items():
            kind_then, old = snapshot.built.get(name, ("", []))
            if self._objects[name] is optimizer and kind == kind_then:
                return [rate_ratio(then, now) for then, now in zip(old, new, strict=True)]
        return []

    def prepare(self, step: int, *, later: bool) -> Callable[[], tuple[str, int]]:
        """Begin the checkpoint of the state after `step`: what is asked of user code is asked here.

        Args:
            step: the step.
            later: whether training goes on before the checkpoint is complete. Then the state is copied.

        Returns what completes it, in any thread, and returns its name and its size in bytes. It is there whole then, and on disk with
        `Run.durable`; or not at all. Both raise:
            DiskError: the disk is full or fails.
            InvalidArgument: torch would not load the state again, or something is neither a file nor a directory.
        """
        from pathlib import Path

        name = f"{self._run.trial}-{self._run.segment}-{step}"
        path = Path(self._run.save_to, name)
        if name == self._last[0] and path.exists():
            last = self._last
            return lambda: last
        draft = Draft(path, durable=self._run.durable)
        with draft:
            draft.make()
            for callback in self._callbacks:
                callback(draft.directory)
            tracked = {name: get() for name, (get, _) in self._accessors.items()}
            snapshot = Snapshot(state.copied(tracked) if later else tracked, dict(self._built), generators.drawn())

        def complete() -> tuple[str, int]:
            with draft:
                if snapshot.state or snapshot.drawn:
                    state.write(draft, snapshot)
                self._last = name, draft.commit()
            return self._last

        return complete


def _accessors(name: str, thing: Any) -> Accessors:
    known = generators.accessors(thing)
    if known is not None:
        return known
    for get, put in _METHODS:
        if callable(getattr(thing, get, None)) and callable(getattr(thing, put, None)):
            return getattr(thing, get), getattr(thing, put)
    raise InvalidArgument(
        f"track takes objects with state_dict and load_state_dict, and random number generators, got {name}={type(thing).__name__}; "
        "for others there is on_save"
    )


def _class(thing: Any) -> str:
    return f"{type(thing).__module__}.{type(thing).__qualname__}"
