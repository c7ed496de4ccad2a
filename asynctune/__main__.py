"""Command line: what can be done to a run without the program that made it. Nothing in its directory is executed."""

import argparse
import sys
from pathlib import Path

from asynctune.errors import AsynctuneError
from asynctune.journal import Repaired, repair
from asynctune.rundir import JOURNAL

REPAIR = f"""Keep what is good of a damaged {JOURNAL}: all before the first damage. What comes after is set aside in a file beside
it. The run then goes on from there with resume=True. It is refused while the run is in use."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m asynctune", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("repair", help=f"keep what is good of a damaged {JOURNAL}", description=REPAIR)
    command.add_argument("run", type=Path, metavar="RUN", help="the run directory")
    given = parser.parse_args()
    try:
        text = describe(repair(given.run / JOURNAL))
    except AsynctuneError as error:
        sys.stderr.write(f"asynctune: {error}\n")
        return 1
    sys.stdout.write(text)
    return 0


def describe(repaired: Repaired) -> str:
    """What was kept and what was lost, in words."""
    kept, offset, size, intact, aside = repaired
    if aside is None:
        return f"nothing to repair: {kept} records, {offset} bytes\n"
    return (
        f"kept: {kept} records, the {offset} bytes before the damage\n"
        f"lost: {size} bytes from byte {offset} on, with {intact} records that were good\n"
        f"set aside in: {aside}\n"
    )


if __name__ == "__main__":
    sys.exit(main())
