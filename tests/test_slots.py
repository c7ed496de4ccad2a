"""Slots: how a box is divided, and what each slot gets."""

import os
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asynctune import slots as room
from asynctune.errors import InvalidArgument
from asynctune.slots import Gpu, Slots, SlotSpec, resolve, usable_cores
from asynctune.slots.discovery import Found
from asynctune.slots.groups import groups
from asynctune.slots.spec import SETTINGS, THREAD_LIMITS, divide


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*SETTINGS, *THREAD_LIMITS):
        monkeypatch.delenv(name, raising=False)


def gpus(number: int, node: int | None = None) -> tuple[Gpu, ...]:
    uuids = (f"GPU-{index}{index}ab" for index in range(number))
    return tuple(Gpu(uuid=u, token=u, label=f"GPU {i}", name="H100", node=node) for i, u in enumerate(uuids))


def parts(number: int) -> tuple[Gpu, ...]:
    uuids = (f"MIG-{index}{index}cd" for index in range(number))
    return tuple(Gpu(uuid=u, token=u, label=f"MIG 7:{i}", name="1g.10gb") for i, u in enumerate(uuids))


def slots_of(
    slots: Slots, visible: tuple[Gpu, ...], usable: int = 64, environ: Mapping[str, str] | None = None
) -> list[SlotSpec]:
    return divide(slots, Found(gpus=visible, visible=visible), usable, {-1: range(usable)}, environ or {})


def cuda(specs: list[SlotSpec]) -> list[str]:
    return [spec.environment["CUDA_VISIBLE_DEVICES"] for spec in specs]


def short(tokens: str) -> str:
    """ "GPU-00ab,MIG-11cd" as "0,m1"."""
    return tokens.replace("GPU-", "").replace("MIG-", "m").translate(str.maketrans("", "", "abcd"))


@pytest.mark.parametrize(
    ("visible", "slots", "expected"),
    [
        # One GPU.
        (gpus(1), Slots(), ["00"]),
        (gpus(1), Slots(trials_per_gpu=3), ["00", "00", "00"]),
        (gpus(1), Slots(trials_per_gpu=3, count=2), ["00", "00"]),
        (gpus(1), Slots(gpus_per_trial=0, count=2), ["", ""]),
        # Two.
        (gpus(2), Slots(), ["00", "11"]),
        (gpus(2), Slots(trials_per_gpu=2), ["00", "11", "00", "11"]),  # spread before pack
        (gpus(2), Slots(trials_per_gpu=2, count=3), ["00", "11", "00"]),
        (gpus(2), Slots(gpus_per_trial=2), ["00,11"]),
        (gpus(2)[::-1], Slots(), ["11", "00"]),  # in the order of the variable
        # Eight.
        (gpus(8), Slots(), [f"{i}{i}" for i in range(8)]),
        (gpus(8), Slots(count=3), ["00", "11", "22"]),
        (gpus(8), Slots(trials_per_gpu=2), [f"{i % 8}{i % 8}" for i in range(16)]),
        (gpus(8), Slots(gpus_per_trial=2), ["00,11", "22,33", "44,55", "66,77"]),
        (gpus(8), Slots(gpus_per_trial=3), ["00,11,22", "33,44,55"]),
        (gpus(8), Slots(gpus_per_trial=4), ["00,11,22,33", "44,55,66,77"]),
        (gpus(8), Slots(gpus_per_trial=8), ["00,11,22,33,44,55,66,77"]),
        (gpus(8), Slots(gpus_per_trial=2, cpus_per_trial=20), ["00,11", "22,33", "44,55"]),
        # MIG devices, alone and beside whole GPUs.
        (parts(7), Slots(), [f"m{i}{i}" for i in range(7)]),
        (parts(2), Slots(trials_per_gpu=2), ["m00", "m11", "m00", "m11"]),
        (gpus(1) + parts(2), Slots(), ["00", "m00", "m11"]),
        # None.
        ((), Slots(gpus_per_trial=0, count=2), ["", ""]),
        ((), Slots(gpus_per_trial=0, cpus_per_trial=16), ["", "", "", ""]),
    ],
)
def test_a_slot_gets_other_gpus(visible: tuple[Gpu, ...], slots: Slots, expected: list[str]) -> None:
    specs = slots_of(slots, visible)
    assert list(map(short, cuda(specs))) == expected
    assert [",".join(spec.gpus) for spec in specs] == cuda(specs)
    assert [spec.index for spec in specs] == list(range(len(specs)))
    assert {spec.device for spec in specs} == {"cuda:0" if slots.gpus_per_trial else "cpu"}


def test_a_slot_is_told_something_else() -> None:
    [first, second] = slots_of(Slots(gpus_per_trial=2), gpus(4), usable=9)
    assert first == SlotSpec(
        index=0,
        environment={
            "CUDA_VISIBLE_DEVICES": "GPU-00ab,GPU-11ab",  # never abbreviated, never numbers
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
            "OMP_NUM_THREADS": "4",
            "MKL_NUM_THREADS": "4",
            "OPENBLAS_NUM_THREADS": "4",
        },
        device="cuda:0",
        devices="GPU 0 (H100), GPU 1 (H100)",
        gpus=("GPU-00ab", "GPU-11ab"),
        cpus=(),
    )
    assert (second.index, second.gpus) == (1, ("GPU-22ab", "GPU-33ab"))
    [spec] = slots_of(Slots(gpus_per_trial=0, count=1), gpus(4), usable=9)
    assert spec == SlotSpec(0, {"CUDA_VISIBLE_DEVICES": "", **dict.fromkeys(THREAD_LIMITS, "9")}, "cpu", "CPU", (), ())


def test_a_setting_of_the_user_is_changed() -> None:
    environ = {"OMP_NUM_THREADS": "7", "CUDA_DEVICE_ORDER": "FASTEST_FIRST"}
    [spec] = slots_of(Slots(), gpus(1), environ=environ)
    assert spec.environment.keys() & environ.keys() == set()
    assert spec.environment["MKL_NUM_THREADS"] == "64"


def test_cores_are_taken_twice_by_number() -> None:
    specs = slots_of(Slots(cpus_per_trial=3), gpus(4), usable=8)
    assert [spec.environment["OMP_NUM_THREADS"] for spec in specs] == ["3", "3"]


def test_amd_gpus_are_named_as_cuda_does() -> None:
    two = tuple(Gpu(uuid=f"GPU-{i:016x}", token=str(i), label=f"GPU {i}", name="MI300X") for i in range(2))
    found = Found(gpus=two, visible=two, amd=True, amd_driver=True)
    [spec] = divide(Slots(gpus_per_trial=2), found, 4, {}, {})
    assert spec.environment.keys() - set(THREAD_LIMITS) == {"CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"}
    assert (spec.environment["CUDA_VISIBLE_DEVICES"], spec.environment["HIP_VISIBLE_DEVICES"]) == ("0,1", "0,1")
    assert (spec.device, spec.gpus) == ("cuda:0", ("GPU-0000000000000000", "GPU-0000000000000001"))
    for there, slots in ((found, Slots(gpus_per_trial=0, count=1)), (Found(visible=gpus(1), amd_driver=True), Slots())):
        [spec] = divide(slots, there, 4, {}, {})
        assert spec.environment["HIP_VISIBLE_DEVICES"] == "-1"  # to HIP an empty value hides nothing


#: Two boards with two GPUs each, which come crosswise, and one GPU alone.
BOARDS = {("GPU-00ab", "GPU-22ab"), ("GPU-11ab", "GPU-33ab")}


def far(gpus: tuple[Gpu, ...]) -> dict[tuple[str, str], int]:
    pairs = [(one.uuid, other.uuid) for one in gpus for other in gpus if one != other]
    return {pair: 10 if pair in BOARDS or pair[::-1] in BOARDS else 150 for pair in pairs}


def test_a_trial_gets_gpus_far_from_each_other() -> None:
    found = Found(gpus=gpus(5), visible=gpus(5), distances=far(gpus(5)))
    assert list(map(short, cuda(divide(Slots(gpus_per_trial=2), found, 8, {}, {})))) == ["00,22", "11,33"]
    # The one alone is left out, wherever it comes.
    last = gpus(5)[4:] + gpus(5)[:4]
    found = Found(gpus=last, visible=last, distances=far(last))
    assert list(map(short, cuda(divide(Slots(gpus_per_trial=2), found, 8, {}, {})))) == ["00,22", "11,33"]
    assert list(map(short, cuda(divide(Slots(gpus_per_trial=4), found, 8, {}, {})))) == ["00,11,22,33"]


@given(number=st.integers(0, 9), size=st.integers(1, 5), data=st.data())
def test_a_gpu_is_given_twice_or_to_no_one(number: int, size: int, data: st.DataObject) -> None:
    there = gpus(number)
    levels = st.sampled_from([10, 50, 150])
    distances: dict[tuple[str, str], int] = {}
    for place, one in enumerate(there):
        for other in there[:place]:
            distances[one.uuid, other.uuid] = distances[other.uuid, one.uuid] = data.draw(levels)
    found = groups(there, size, distances)
    assert len(found) == number // size
    assert {len(group) for group in found} <= {size}
    taken = [gpu for group in found for gpu in group]
    assert len(set(taken)) == len(taken)
    assert groups(there, size, distances) == found
    if size == 2 and found:  # the nearest pair is together
        nearest = min(distances.values())
        assert any(distances[one.uuid, other.uuid] == nearest for one, other in found)


def test_default_is_not_every_visible_gpu_or_every_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asynctune.slots.spec.find", lambda: Found(gpus=gpus(3), visible=gpus(2)))
    assert list(map(short, cuda(resolve(None)))) == ["00", "11"]
    monkeypatch.setattr("asynctune.slots.spec.find", Found)
    assert cuda(resolve(None)) == [""] * usable_cores()


def test_an_integer_is_not_that_many_cpu_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asynctune.slots.spec.find", None)  # GPUs are not even looked for
    assert cuda(resolve(5)) == [""] * 5
    assert len(resolve(Slots(gpus_per_trial=0, count=3))) == 3


def test_a_gpu_that_is_not_there_is_refused_without_a_way_out() -> None:
    with pytest.raises(InvalidArgument, match=r"found no GPU; for CPU slots write slots=4 or gpus_per_trial=0"):
        slots_of(Slots(), (), usable=4)
    found = Found(gpus=gpus(2))
    for environ, why in (
        ({"CUDA_VISIBLE_DEVICES": "-1"}, r"found 0 of 2 visible \(CUDA_VISIBLE_DEVICES='-1'\)"),
        ({}, r"found 0 of 2 visible \(no variable hides any\)"),
    ):
        with pytest.raises(InvalidArgument, match=why):
            divide(Slots(), found, 4, {}, environ)


def test_several_mig_devices_are_given_to_one_process() -> None:
    for visible in (parts(4), gpus(4) + parts(1)):
        with pytest.raises(InvalidArgument, match=r"gpus_per_trial=2 needs whole GPUs, since CUDA .* found MIG 7:0"):
            slots_of(Slots(gpus_per_trial=2), visible)


@pytest.mark.parametrize(
    "slots",
    [
        Slots(count=3),
        Slots(gpus_per_trial=3),
        Slots(cpus_per_trial=5),
        Slots(gpus_per_trial=0, cpus_per_trial=2, count=3),
        Slots(gpus_per_trial=0, count=5, pin=True),
        Slots(trials_per_gpu=3, pin=True),
    ],
)
def test_more_than_there_is_is_given(slots: Slots) -> None:
    with pytest.raises(InvalidArgument, match="2 visible GPUs|found 2 of 2|4 usable CPU cores|slots of 1, 4 cores"):
        slots_of(slots, gpus(2), usable=4)


def test_slots_are_pinned_to_cores_of_others() -> None:
    specs = slots_of(Slots(pin=True), gpus(3), usable=8)
    assert [spec.cpus for spec in specs] == [(0, 1), (2, 3), (4, 5)]
    assert {spec.environment["OMP_NUM_THREADS"] for spec in specs} == {"2"}
    assert [spec.cpus for spec in slots_of(Slots(), gpus(3), usable=8)] == [(), (), ()]


def test_threads_of_a_pinned_slot_exceed_its_cores() -> None:
    """All GPUs are on the node 1, which has 4 of 12 cores."""
    found = Found(visible=gpus(2, node=1))
    specs = divide(Slots(pin=True), found, 12, {0: range(8), 1: range(8, 12)}, {})
    assert [(spec.cpus, spec.environment["OMP_NUM_THREADS"]) for spec in specs] == [((8, 9), "2"), ((10, 11), "2")]
    specs = divide(Slots(pin=True, cpus_per_trial=4), found, 12, {0: range(8), 1: range(8, 12)}, {})
    assert [spec.cpus for spec in specs] == [(8, 9, 10, 11), (0, 1, 2, 3)]


def test_pinning_is_to_cores_that_this_process_has_not() -> None:
    specs = resolve(Slots(gpus_per_trial=0, count=1, pin=True))
    assert set(specs[0].cpus) <= os.sched_getaffinity(0)
    assert len(specs[0].cpus) == usable_cores()


@pytest.mark.parametrize("slots", [0, -1, True, "two", 1.5])
def test_what_is_no_number_of_slots_is_taken(slots: int) -> None:
    with pytest.raises(InvalidArgument, match="slots must be"):
        resolve(slots)


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        ({"gpus_per_trial": 0.5}, "gpus_per_trial must be an integer >= 0, got 0.5; trials share a GPU with"),
        ({"gpus_per_trial": -1}, "must be an integer >= 0"),
        ({"trials_per_gpu": 0}, "must be an integer >= 1"),
        ({"cpus_per_trial": 0}, "must be an integer >= 1"),
        ({"count": 0}, "must be an integer >= 1"),
        ({"count": True}, "must be an integer >= 1, got True"),
        ({"trials_per_gpu": 2, "gpus_per_trial": 2}, "needs gpus_per_trial=1"),
        ({"trials_per_gpu": 2, "gpus_per_trial": 0}, "needs gpus_per_trial=1"),
        ({"fresh": 1}, "fresh must be True or False, got 1"),
        ({"pin": "cores"}, "pin must be True or False, got 'cores'"),
        ({"preload": "torch"}, "preload must be a tuple of names of modules, got 'torch'"),
        ({"preload": ["torch"]}, "must be a tuple of names of modules"),
        ({"preload": ("torch", "")}, "must be a tuple of names of modules"),
        ({"preload": ("torch.",)}, "must be a tuple of names of modules"),
        ({"preload": ("my-module",)}, "must be a tuple of names of modules"),
        ({"preload": (os,)}, "must be a tuple of names of modules"),
    ],
)
def test_a_wrong_slots_can_be_made(arguments: dict[str, Any], rule: str) -> None:
    with pytest.raises(InvalidArgument, match=rule):
        Slots(**arguments)


def test_the_repr_of_slots_cannot_be_pasted() -> None:
    slots = Slots(gpus_per_trial=2, cpus_per_trial=4, fresh=True, pin=True, preload=("torch", "torchvision.models"))
    assert eval(repr(slots)) == slots


def test_discovery_fails_on_this_machine() -> None:
    assert all(gpu.uuid.startswith(("GPU-", "MIG-")) for gpu in room.installed_gpus())
    assert {gpu.label for gpu in room.visible_gpus()} <= {gpu.label for gpu in room.installed_gpus()}
    assert room.used_memory(["GPU-of-nobody"]) == {}
