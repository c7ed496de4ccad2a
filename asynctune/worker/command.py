"""Command: the line that starts a worker process."""

import sys

import asynctune

__all__ = ["command"]

# The package comes from where this process has it, which may be nowhere that a new interpreter looks; all that it imports is
# looked for in the usual places first. `-P` keeps the current directory out of these: a `random.py` in it is no module of ours.
_BOOTSTRAP = """\
import sys
root, *descriptors = sys.argv[1:]
del sys.argv[1:]
sys.path.insert(0, root)
import asynctune
sys.path.append(sys.path.pop(0))
from asynctune.worker.__main__ import main
main(*map(int, descriptors))
"""


def command(connection: int, beats: int) -> list[str]:
    """A worker's arguments: its interpreter, and the descriptors that it inherits, as `worker.__main__.main` has them."""
    [package] = asynctune.__path__
    root = package.rpartition("/")[0]
    return [sys.executable, "-P", "-c", _BOOTSTRAP, root, str(connection), str(beats)]
