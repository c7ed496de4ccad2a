"""Pickler: how what the user's script defines is sent to other processes, which cannot import it: by value.

To a worker as to all that a worker starts. Left to itself, multiprocessing sends the classes and functions of a script by their names in
`__main__`, of which a worker has none: no DataLoader worker that is spawned would start, and a batch of a forked one never arrive.
"""

import pickle
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any, ClassVar

__all__ = ["dumps", "install"]

_WHERE = "multiprocessing.reduction"


def dumps(thing: object) -> bytes:
    """A function or class pickled by cloudpickle, which `pickle.loads` takes. Raises what cloudpickle does."""
    import io

    buffer = io.BytesIO()
    _by_value()(buffer).dump(thing)
    return buffer.getvalue()


def _by_value() -> Any:
    import cloudpickle

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
        def reducer_override(self, thing: object) -> Any:
            # Modules of classes of their own, of which cloudpickle knows nothing, go by name as others do. It comes upon
            # `torch.distributed.config`, for one, in a function that uses `torch.distributed` and `trial.config`.
            if isinstance(thing, ModuleType) and type(thing) is not ModuleType:
                return import_module, (thing.__name__,)
            return super().reducer_override(thing)

    return Pickler


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

    by_value: Any = _by_value()

    class Pickler(reduction.ForkingPickler, by_value):  # type: ignore[misc]
        # ForkingPickler's own sets `dispatch_table` when it is too late for one that a class has, as cloudpickle's does.
        __init__ = by_value.__init__
        dispatch_table: ClassVar[Any] = ChainMap(reduction.ForkingPickler._extra_reducers, by_value.dispatch_table)

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
