"""Digest: the whole state of an object as plain text, and a hash of it.

Structural: equal for objects that hold equal things, whatever their addresses, the seed of hashes, the history of their dicts and
the room that their arrays have to spare. So a study that replayed a journal can be held against the one that wrote it, in
this process or another.
"""

import enum
import functools
import hashlib
import json
import types
from array import array
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np

from asynctune._core import Generations, Ladder, Parzen

__all__ = ["digest", "state"]


def digest(thing: object) -> str:
    """32 hexadecimal digits that say in which state `thing` is."""
    return hashlib.blake2b(json.dumps(state(thing)).encode(), digest_size=16).hexdigest()


def state(thing: object) -> Any:
    """All that `thing` holds, as what JSON can hold: equal if and only if the states are.

    Raises:
        TypeError: something in it is of a kind that this module does not know.
    """
    return _state(thing, ())


def _state(thing: Any, above: tuple[int, ...]) -> Any:
    if thing is None or isinstance(thing, bool | int | str) and not isinstance(thing, enum.Enum):
        return thing
    if isinstance(thing, float):
        return {"float": float(thing).hex()}
    if id(thing) in above:
        return {"above": len(above) - above.index(id(thing))}
    above = (*above, id(thing))
    inner = functools.partial(_state, above=above)
    kind = type(thing).__name__
    match thing:
        case enum.Enum():
            return {kind: thing.name}
        case bytes() | bytearray():
            return {kind: thing.hex()}
        case np.ndarray() | np.generic():
            return {kind: [str(thing.dtype), list(np.shape(thing)), np.ascontiguousarray(thing).tobytes().hex()]}
        case array():
            return {kind: [thing.typecode, thing.tobytes().hex()]}
        case OrderedDict():
            return {kind: [[inner(key), inner(value)] for key, value in thing.items()]}
        case Mapping():
            return {kind: sorted(([inner(key), inner(value)] for key, value in thing.items()), key=json.dumps)}
        case AbstractSet():
            return {kind: sorted(map(inner, thing), key=json.dumps)}
        case Sequence() | deque():
            return {kind: [inner(each) for each in thing]}
        case Ladder() | Generations() | Parzen():
            return {kind: inner(thing.state())}
        case functools.partial():
            return {kind: [inner(thing.func), inner(thing.args), inner(thing.keywords)]}
        case types.MethodType():
            return {
                kind: thing.__func__.__qualname__
            }  # bound to something that holds it, or it would be no state of this
        case types.FunctionType() | types.BuiltinFunctionType() | type():
            return {"named": f"{thing.__module__}.{thing.__qualname__}"}
    if getattr(type(thing), "__reduce__", None) is not object.__reduce__:  # it says by itself what it is made of
        return {kind: inner(thing.__reduce__()[1:])}
    names = getattr(thing, "__struct_fields__", None) or [*_slots(thing), *getattr(thing, "__dict__", ())]
    if not names and type(thing).__flags__ & _HEAP_TYPE == 0:
        raise TypeError(f"no digest of {thing!r}: its state is not to be seen")
    return {kind: [[name, inner(getattr(thing, name))] for name in sorted(names) if hasattr(thing, name)]}


#: Set for classes made by a `class` statement: one without fields has no state.
_HEAP_TYPE = 1 << 9


def _slots(thing: object) -> list[str]:
    names: list[str] = []
    for cls in type(thing).__mro__:
        slots = cls.__dict__.get("__slots__", ())
        names += [slots] if isinstance(slots, str) else slots
    return [name for name in names if name not in ("__dict__", "__weakref__")]
