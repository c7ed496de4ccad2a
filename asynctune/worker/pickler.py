"""Pickler: how multiprocessing sends what the user's script defines, from a worker to the processes that it starts, and back.

Classes and functions of a script reached the worker by cloudpickle: its own `__main__` has none of them. Left to itself, multiprocessing
sends them by their names there; then no DataLoader worker that is spawned starts, and a batch of a forked one never arrives.
"""

import pickle
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any, ClassVar

__all__ = ["install"]

_WHERE = "multiprocessing.reduction"


def install() -> None:
    """Have multiprocessing pickle as cloudpickle does, in this process and in all that it starts, once it is imported."""
    if _WHERE in sys.modules:
        _replace(sys.modules[_WHERE])
    else:
        sys.meta_path.insert(0, _Finder())


class _Finder:
    """Finds `multiprocessing.reduction`: imported for the sake of all, it would make every worker start later."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != _WHERE:
            return None
        spec = PathFinder.find_spec(name, path, target)
        assert spec is not None and spec.loader is not None
        execute = spec.loader.exec_module

        def execute_and_replace(module: ModuleType) -> None:
            sys.meta_path.remove(self)
            execute(module)
            _replace(module)

        setattr(spec.loader, "exec_module", execute_and_replace)  # noqa: B010 - to mypy, a method cannot be assigned to
        return spec


def _replace(reduction: Any) -> None:
    """Make cloudpickle's pickler wherever a ForkingPickler is asked for, under whatever name it has been imported."""
    from collections import ChainMap
    from multiprocessing.process import BaseProcess

    import cloudpickle

    class Pickler(reduction.ForkingPickler, cloudpickle.Pickler):  # type: ignore[misc]
        # ForkingPickler's own sets `dispatch_table` when it is too late for one that a class has, as cloudpickle's does.
        __init__ = cloudpickle.Pickler.__init__
        dispatch_table: ClassVar[Any] = ChainMap(
            reduction.ForkingPickler._extra_reducers, cloudpickle.Pickler.dispatch_table
        )

        def dump(self, thing: object) -> None:
            super().dump(_Sent(thing) if isinstance(thing, BaseProcess) else thing)

    def new(cls: type, *arguments: object) -> Any:
        return pickle.Pickler.__new__(Pickler if cls is reduction.ForkingPickler else cls)

    reduction.ForkingPickler.__new__ = new


class _Sent:
    """A process object, whose arrival in the interpreter that it is sent to goes by `_received`."""

    def __init__(self, process: object) -> None:
        self._process = process

    def __reduce__(self) -> tuple[object, ...]:
        return _received, (self._process,)


def _received(process: object) -> object:
    install()  # what this process sends back, it sends alike
    return process
