"""Slots: the hardware. Which devices there are, and what each slot gets, the place where one trial runs at a time.

`gpu` is one GPU. `nvml`, `cuda` and `rocm` ask the drivers, `visible` reads the variables, `discovery` does both.
`groups` and `cores` share out, `spec` is what a user writes and what comes of it, `describe` says so in words.
"""

from asynctune.slots.cores import usable_cores
from asynctune.slots.discovery import installed_gpus, used_memory, visible_gpus
from asynctune.slots.gpu import Gpu
from asynctune.slots.spec import Slots, SlotSpec, resolve

__all__ = ["Gpu", "SlotSpec", "Slots", "installed_gpus", "resolve", "usable_cores", "used_memory", "visible_gpus"]
