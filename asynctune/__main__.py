"""Command line: what can be done without the program that makes a run. Nothing in a run directory is executed."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from asynctune.errors import AsynctuneError
from asynctune.journal import Repaired, repair
from asynctune.rundir import JOURNAL

REPAIR = f"""Keep what is good of a damaged {JOURNAL}: all before the first damage. What comes after is set aside in a file beside
it. The run then goes on from there with resume=True. It is refused while the run is in use."""

SLOTS = """Show what there is on this machine, what of it may be used and why not the rest, and the slots that a run would
get here. Without options: those of slots=None."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m asynctune", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("repair", help=f"keep what is good of a damaged {JOURNAL}", description=REPAIR)
    command.add_argument("run", type=Path, metavar="RUN", help="the run directory")
    command.set_defaults(lines=repaired)
    command = commands.add_parser("slots", help="show the slots that a run would get here", description=SLOTS)
    for name in ("gpus-per-trial", "trials-per-gpu", "cpus-per-trial", "count"):
        command.add_argument(f"--{name}", type=int, metavar="N", help=f"as in Slots({name.replace('-', '_')}=N)")
    command.add_argument("--pin", action="store_true", help="as in Slots(pin=True)")
    command.set_defaults(lines=slots)
    given = parser.parse_args()
    try:
        for line in given.lines(given):
            sys.stdout.write(f"{line}\n")
    except AsynctuneError as error:
        sys.stdout.flush()
        sys.stderr.write(f"asynctune: {error}\n")
        return 1
    return 0


def repaired(given: argparse.Namespace) -> Iterator[str]:
    yield from describe(repair(given.run / JOURNAL))


def describe(repaired: Repaired) -> Iterator[str]:
    """What was kept and what was lost, line by line."""
    kept, offset, size, intact, aside = repaired
    if aside is None:
        yield f"nothing to repair: {kept} records, {offset} bytes"
        return
    yield f"kept: {kept} records, the {offset} bytes before the damage"
    yield f"lost: {size} bytes from byte {offset} on, with {intact} records that were good"
    yield f"set aside in: {aside}"


def slots(given: argparse.Namespace) -> Iterator[str]:
    """What there is, and the slots, line by line."""
    from asynctune.slots.describe import describe_found, describe_slots
    from asynctune.slots.discovery import find
    from asynctune.slots.spec import Slots, resolve

    found = find()
    yield from describe_found(found)
    shape = {name: value for name, value in vars(given).items() if name != "lines" and value is not None}
    default = 1 if found.visible or given.trials_per_gpu else 0
    yield from describe_slots(resolve(Slots(**{"gpus_per_trial": default, **shape})))


if __name__ == "__main__":
    sys.exit(main())
