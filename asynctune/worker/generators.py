"""Generators: the random numbers to come, as text.

All code in a process shares Python's `random`, numpy's global generator, torch's, and torch's of each CUDA device. The text is JSON: it
holds integers of 128 bits, as numpy's states have, and torch can be asked to load it without unpickling anything.
"""

import sys
from collections.abc import Callable
from typing import Any

import msgspec

__all__ = ["accessors", "drawn", "restore"]


class _States(msgspec.Struct, omit_defaults=True):
    python: Any = None
    numpy: Any = None
    torch: bytes | None = None
    cuda: list[bytes] = []


def drawn() -> str:
    """How far the shared generators that are loaded have been drawn from, for `restore`; empty: none is loaded."""
    states = _States()
    if random := sys.modules.get("random"):
        states.python = random.getstate()
    if numpy := sys.modules.get("numpy.random"):
        states.numpy = numpy.get_state(legacy=False)
    if torch := sys.modules.get("torch"):
        states.torch = torch.get_rng_state().numpy().tobytes()
        if torch.cuda.is_initialized():
            states.cuda = [state.numpy().tobytes() for state in torch.cuda.get_rng_state_all()]
    return "" if states == _States() else _encode(states).decode()


def restore(drawn: str) -> None:
    """Let the shared generators go on from where they were."""
    if not drawn:
        return
    states = msgspec.json.decode(drawn, type=_States)
    if states.python is not None:
        import random

        random.setstate(_nested(states.python))
    if states.numpy is not None:
        import numpy.random

        numpy.random.set_state(states.numpy)
    if states.torch is not None:
        import torch

        torch.set_rng_state(torch.frombuffer(bytearray(states.torch), dtype=torch.uint8))
        for device, state in enumerate(states.cuda[: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(torch.frombuffer(bytearray(state), dtype=torch.uint8), device)


def accessors(thing: Any) -> tuple[Callable[[], str], Callable[[str], object]] | None:
    """How to get the state of a generator of Python's or numpy's as text, and how to set it; None: it is no such generator."""
    random, numpy = sys.modules.get("random"), sys.modules.get("numpy.random")
    if random is not None and isinstance(thing, random.Random) and not isinstance(thing, random.SystemRandom):
        return lambda: _encode(thing.getstate()).decode(), lambda text: thing.setstate(_nested(_decode(text)))
    if numpy is not None and isinstance(thing, numpy.RandomState):
        return lambda: _encode(thing.get_state(legacy=False)).decode(), lambda text: thing.set_state(_decode(text))
    if numpy is not None and isinstance(thing, numpy.Generator):
        bits = thing.bit_generator
        return lambda: _encode(bits.state).decode(), lambda text: setattr(bits, "state", _decode(text))
    return None


def _nested(state: list[Any]) -> tuple[Any, ...]:
    """A state of Python's, of whose tuples JSON made lists."""
    version, numbers, gauss = state
    return version, tuple(numbers), gauss


def _listed(value: Any) -> Any:
    """An array of numpy's as a list."""
    return value.tolist()


_encode = msgspec.json.Encoder(enc_hook=_listed).encode
_decode = msgspec.json.decode
