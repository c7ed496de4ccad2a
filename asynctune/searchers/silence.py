"""Silence: another library at work without its warnings."""

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["silence"]

_one_at_a_time = threading.Lock()  # warnings are silenced for all threads at once


@contextmanager
def silence() -> Iterator[None]:
    """No warnings within the block; one thread at a time is in one."""
    with _one_at_a_time, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
