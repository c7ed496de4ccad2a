"""Visible devices: the variables that leave some of the GPUs to a process, read as the runtimes read them."""

import re
from collections.abc import Callable, Sequence
from typing import Literal

from asynctune.slots.gpu import Gpu

__all__ = ["CUDA", "by_number", "cuda", "pick"]

CUDA = "CUDA_VISIBLE_DEVICES"

NUMBER = re.compile(r"\s*([+-]?[0-9]+)")  # as strtoul reads it: "1gpu2" is 1


def pick(
    variable: str,
    text: str,
    gpus: Sequence[Gpu],
    meaning: Callable[[str], Gpu | str],
    twice: Literal["hides all", "is not valid", "is ignored"],
) -> tuple[list[Gpu], dict[str, str]]:
    """The GPUs that a variable leaves, in its order, and why each of the others is hidden, by their labels.

    An entry that is not valid hides itself and all that follow: so it is with CUDA, ROCr and HIP.

    Args:
        variable: its name.
        text: its value.
        gpus: those that there are.
        meaning: which GPU an entry means, or what is wrong with it.
        twice: what becomes of an entry that means a GPU which has come before.
    """
    setting = f"{variable}={text!r}"
    chosen: list[Gpu] = []
    behind: list[Gpu] = []  # an entry that is not valid
    stop = ""
    for place, entry in enumerate(text.split(","), start=1):
        meant = meaning(entry)
        if isinstance(meant, Gpu) and meant in chosen and not stop:
            if twice == "is ignored":
                continue
            if twice == "hides all":
                why = f"entry {place} of {setting} names {meant.label} again, which hides all"
                return [], {gpu.label: why for gpu in gpus}
            meant = f"names {meant.label} again"
        if isinstance(meant, str):
            stop = stop or f"entry {place} of {setting} {meant}, and hides those after it"
        elif stop:
            behind.append(meant)
        else:
            chosen.append(meant)
    others = [gpu for gpu in gpus if gpu not in chosen]
    return chosen, {gpu.label: stop if gpu in behind else f"{setting} does not name it" for gpu in others}


def by_number(text: str) -> bool:
    """Whether CUDA_VISIBLE_DEVICES names GPUs by numbers."""
    match = NUMBER.match(text)
    return match is not None and int(match[1]) >= 0


def cuda(text: str, gpus: Sequence[Gpu], numbered: Sequence[Gpu]) -> tuple[list[Gpu], dict[str, str]]:
    """What CUDA_VISIBLE_DEVICES leaves, as CUDA reads it (Programming Guide, "CUDA Environment Variables").

    The first entry says what all are: numbers, GPUs' UUIDs, or MIG devices' UUIDs. (The guide does not say so; torch
    and nvitop have found it to be.) UUIDs may be abbreviated. That a CUDA process sees one MIG device only is no matter
    here, where a worker gets one.

    Args:
        text: its value.
        gpus: those that there are; in MIG mode, with their MIG devices.
        numbered: what the numbers mean.

    Returns:
        The GPUs and MIG devices that are left, and why each of the others is hidden, by their labels.
    """
    usable = [part for gpu in gpus for part in gpu.usable]

    def number(entry: str) -> Gpu | str:
        match = NUMBER.match(entry)
        if match is None:
            return f"({entry!r}) is not a number"
        value = int(match[1])
        return (
            numbered[value] if 0 <= value < len(numbered) else f"({entry!r}) is none of the {len(numbered)} there are"
        )

    def uuid(entry: str) -> Gpu | str:
        return _only(entry, [gpu for gpu in gpus if gpu.uuid.startswith(entry.strip())], "GPU-")

    def part(entry: str) -> Gpu | str:
        owner, *instance = entry.strip().removeprefix("MIG-").split("/", 1)
        if instance:  # as drivers before R470 named them: MIG-<GPU's UUID>/<GPU instance>/<compute instance>
            owners = [gpu for gpu in gpus if gpu.uuid.startswith(owner)]
            parts = [part for gpu in owners for part in gpu.parts or () if part.instance == instance[0]]
        else:
            parts = [part for part in usable if part.is_part and part.uuid.startswith(entry.strip())]
        return _only(entry, parts, "MIG-")

    meanings = {"GPU-": uuid, "MIG-": part}
    return pick(CUDA, text, usable, meanings.get(text.lstrip()[:4], number), twice="hides all")


def _only(entry: str, matches: list[Gpu], prefix: str) -> Gpu | str:
    if not entry.strip().startswith(prefix):
        return f"({entry!r}) is of another kind than the first"
    if len(matches) != 1:
        return f"({entry!r}) matches " + ("several GPUs" if matches else "no GPU")
    [gpu] = matches
    return gpu if gpu.parts is None else f"({entry!r}) is in MIG mode, where only MIG devices can be used"
