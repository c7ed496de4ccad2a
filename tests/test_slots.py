"""Slots: discovery, the rules of CUDA_VISIBLE_DEVICES, one environment per slot."""

import os
from pathlib import Path

import pytest

from asynctune import slots as room
from asynctune.errors import InvalidArgument
from asynctune.slots import Gpu, Slots, resolve, usable_cores, visible_gpus


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", *room.THREAD_LIMITS):
        monkeypatch.delenv(name, raising=False)


def box(monkeypatch: pytest.MonkeyPatch, *, gpus: int, cores: int = 8, visible: str | None = None) -> None:
    found = [Gpu(str(index), f"GPU-{index}{index}ab-cd", "H100") for index in range(gpus)]
    monkeypatch.setattr(room, "installed_gpus", lambda: found)
    monkeypatch.setattr(room, "usable_cores", lambda: cores)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)


def cuda(slots: Slots | int | None) -> list[str]:
    return [spec.environment["CUDA_VISIBLE_DEVICES"] for spec in resolve(slots)]


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, ["0", "1", "2"]),
        ("", []),
        ("2,0", ["2", "0"]),
        ("1gpu2", ["1"]),  # strtoul
        (" 2 , 1 ", ["2", "1"]),
        ("0,-1,1", ["0"]),
        ("0,7,1", ["0"]),
        ("0,one,1", ["0"]),
        ("NoDevFiles", []),
        ("1,0,1", []),
        ("GPU-22ab-cd,GPU-0", ["2", "0"]),
        ("GPU-,0", []),  # ambiguous
        ("0,GPU-00ab-cd", []),  # the same one twice
    ],
)
def test_visible_devices_follow_the_rules_of_cuda(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, expected: list[str]
) -> None:
    box(monkeypatch, gpus=3, visible=visible)
    assert [room.installed_gpus().index(Gpu(g.uuid[4], g.uuid, g.name)) for g in visible_gpus()] == list(
        map(int, expected)
    )


def test_uuids_reach_the_worker_as_they_were_written(monkeypatch: pytest.MonkeyPatch) -> None:
    box(monkeypatch, gpus=3, visible="GPU-2,MIG-1234")
    assert cuda(None) == ["GPU-2", "MIG-1234"]


def test_a_variable_set_without_a_driver_makes_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    box(monkeypatch, gpus=0, cores=2, visible="0")
    assert cuda(None) == ["", ""]


def test_default_is_every_visible_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    box(monkeypatch, gpus=4, cores=9, visible="3,1")
    first, second = resolve(None)
    assert first.environment == {
        "CUDA_VISIBLE_DEVICES": "3",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "OMP_NUM_THREADS": "4",
        "MKL_NUM_THREADS": "4",
        "OPENBLAS_NUM_THREADS": "4",
    }
    assert (second.index, second.device, second.devices) == (1, "cuda:0", "GPU 1 (H100)")


def test_default_without_gpus_is_every_core(monkeypatch: pytest.MonkeyPatch) -> None:
    box(monkeypatch, gpus=0, cores=3)
    specs = resolve(None)
    assert len(specs) == 3
    assert (specs[2].device, specs[2].environment["CUDA_VISIBLE_DEVICES"]) == ("cpu", "")


def test_an_int_is_cpu_slots_even_where_there_are_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    box(monkeypatch, gpus=2, cores=2)
    assert cuda(5) == [""] * 5


def test_trials_spread_before_they_pack(monkeypatch: pytest.MonkeyPatch) -> None:
    box(monkeypatch, gpus=2)
    assert cuda(Slots(trials_per_gpu=2)) == ["0", "1", "0", "1"]
    assert cuda(Slots(trials_per_gpu=2, count=3)) == ["0", "1", "0"]


def test_several_gpus_per_trial_are_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    box(monkeypatch, gpus=5)
    assert cuda(Slots(gpus_per_trial=2)) == ["0,1", "2,3"]


def test_cores_per_trial_limit_slots_and_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    box(monkeypatch, gpus=4, cores=8)
    specs = resolve(Slots(cpus_per_trial=3))
    assert [spec.environment["OMP_NUM_THREADS"] for spec in specs] == ["3", "3"]


def test_settings_of_the_user_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    box(monkeypatch, gpus=1)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    assert resolve(None)[0].environment.keys().isdisjoint({"OMP_NUM_THREADS", "CUDA_DEVICE_ORDER"})


def test_a_gpu_that_is_not_there_is_named_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    box(monkeypatch, gpus=0, cores=4)
    with pytest.raises(InvalidArgument, match="found no NVIDIA GPU; for CPU slots write slots=4"):
        resolve(Slots(gpus_per_trial=1))
    box(monkeypatch, gpus=2, visible="-1")
    with pytest.raises(InvalidArgument, match=r"found 0 of 2 visible \(CUDA_VISIBLE_DEVICES='-1'\)"):
        resolve(Slots(gpus_per_trial=1))


@pytest.mark.parametrize(
    "slots",
    [
        Slots(count=3),
        Slots(gpus_per_trial=3),
        Slots(cpus_per_trial=5),
        Slots(gpus_per_trial=0, cpus_per_trial=2, count=3),
    ],
)
def test_more_than_there_is_is_refused(monkeypatch: pytest.MonkeyPatch, slots: Slots) -> None:
    box(monkeypatch, gpus=2, cores=4)
    with pytest.raises(InvalidArgument, match="2 visible GPUs|found 2 of 2|4 usable CPU cores"):
        resolve(slots)


@pytest.mark.parametrize("slots", [0, -1, True, "two", 1.5])
def test_what_is_no_number_of_slots_is_refused(slots: int) -> None:
    with pytest.raises(InvalidArgument, match="slots must be"):
        resolve(slots)


@pytest.mark.parametrize(
    "arguments",
    [
        {"gpus_per_trial": 0.5},
        {"gpus_per_trial": -1},
        {"trials_per_gpu": 0},
        {"cpus_per_trial": 0},
        {"count": 0},
        {"count": True},
        {"trials_per_gpu": 2, "gpus_per_trial": 2},
        {"trials_per_gpu": 2, "gpus_per_trial": 0},
    ],
)
def test_a_wrong_slots_is_refused_when_made(arguments: dict[str, int]) -> None:
    with pytest.raises(InvalidArgument, match=r"must be an integer|needs gpus_per_trial=1"):
        Slots(**arguments)


@pytest.mark.parametrize(
    ("cgroup", "files", "cores"),
    [
        ("0::/", {"cpu.max": "max 100000"}, None),
        ("0::/", {"cpu.max": "100000 100000"}, 1),
        ("0::/a/b", {"a/cpu.max": "50000 100000", "a/b/cpu.max": "max 100000"}, 1),  # the parent's limit
        ("0::/of/the/host", {"cpu.max": "100000 100000"}, 1),
        ("4:cpu,cpuacct:/", {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, 1),
        ("4:cpu,cpuacct:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ("3:memory:/", {}, None),
    ],
)
def test_cores_beyond_the_quota_of_the_container_are_not_used(
    tmp_path: Path, cgroup: str, files: dict[str, str], cores: int | None
) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(cgroup + "\n")
    for name, text in files.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    assert usable_cores(tmp_path) == (cores or len(os.sched_getaffinity(0)))


def test_discovery_works_on_this_machine() -> None:
    assert all(gpu.uuid.startswith("GPU-") for gpu in room.installed_gpus())
    assert usable_cores() >= 1
