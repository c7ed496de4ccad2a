"""Slots on boxes with GPUs: the real calls, answered by a library that follows nvml.h (tests/nvml)."""

import re
import shutil
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from asynctune.slots.spec import THREAD_LIMITS
from tests.nvml import Box, libraries

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")

ONE, TWO, THREE = (f"GPU-{digit * 8}-{digit * 4}-{digit * 4}-{digit * 4}-{digit * 12}" for digit in "123")
MIG = [f"MIG-{digit * 8}-aaaa-bbbb-cccc-dddddddddddd" for digit in "789"]

ROOT = Path(__file__).parent.parent

H100 = "NVIDIA H100 80GB HBM3"
GIB = 2**30


def gpu(uuid: str, bus: int, *more: str, name: str = H100, used: int = GIB) -> str:
    lines = (f"gpu {uuid}", f"name {name}", f"memory {80 * GIB} {used}", f"pci 0 {bus:x} 0", *more, "")
    return "\n".join(lines)


def part(uuid: str, index: int, instance: str, used: int = GIB) -> str:
    lines = (f"part {uuid} {index} {instance}", f"name {H100} MIG 1g.10gb", f"memory {10 * GIB} {used}")
    return "\n".join(lines)


#: The second GPU is in MIG mode; its devices have numbers with gaps.
SLICED = (
    "driver 570.86.15\n"
    + gpu(ONE, 0x18, "mig disabled")
    + gpu(TWO, 0x3B, "mig enabled", part(MIG[0], 0, "7 0"), part(MIG[1], 2, "9 0", used=2 * GIB))
)

MakeBox = Callable[..., Box]


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return libraries(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def box(built: Path, tmp_path: Path) -> MakeBox:
    return lambda text, **settings: Box(built, tmp_path, text, **settings)


def labels(gpus: list[dict[str, Any]]) -> list[str]:
    return [gpu["label"] for gpu in gpus]


def without_amd(output: str) -> str:
    """Where the kernel has AMD's driver, its GPUs are hidden from NVIDIA's slots."""
    return re.sub(r"\n +HIP_VISIBLE_DEVICES=-1", "", output)


def test_a_structure_has_another_layout_than_the_driver_writes(box: MakeBox) -> None:
    theirs = 'ctypes.c_int.in_dll(ctypes.CDLL(nvml.LIBRARY), "sizeof_{}").value'
    for name, ours in (("nvmlPciInfo_t", "nvml.PciInfo"), ("nvmlMemory_t", "ctypes.c_ulonglong * 3")):
        sizes = box("").ask(f"[{theirs.format(name)}, ctypes.sizeof({ours})]")
        assert sizes[0] == sizes[1], name


def test_something_of_a_gpu_is_read_wrongly(box: MakeBox, tmp_path: Path) -> None:
    device = tmp_path / "sys/bus/pci/devices/0001:af:1c.0"
    device.mkdir(parents=True)
    (device / "numa_node").write_text("1\n")
    text = f"driver 570.86.15\ngpu {ONE}\nname {H100}\nmemory {80 * GIB} 5\npci 1 af 1c\n"
    survey = box(text).ask(f"nvml.survey(pathlib.Path({str(tmp_path)!r}))")
    assert survey == {
        "driver": "570.86.15",
        "trouble": [],
        "gpus": [
            {
                "uuid": ONE,
                "token": ONE,
                "label": "GPU 0",
                "name": H100,
                "memory": 80 * GIB,
                "bus": "0001:af:1c.0",
                "node": 1,
                "parts": None,  # NVML_ERROR_NOT_SUPPORTED: it has no MIG mode
                "instance": "",
            }
        ],
    }


def test_looking_for_gpus_opens_cuda_or_prints(box: MakeBox) -> None:
    found = box(SLICED).ask("[len(slots.visible_gpus()), 'libcuda' in open('/proc/self/maps').read()]")
    assert found == [3, False]


def test_gpus_come_in_another_order_than_on_the_bus(box: MakeBox) -> None:
    text = gpu(ONE, 0xB0) + gpu(TWO, 0x18) + gpu(THREE, 0x100).replace("pci 0 100", "pci 10000 1")
    assert labels(box(text).ask("slots.visible_gpus()")) == ["GPU 1", "GPU 0", "GPU 2"]


def test_mig_devices_are_missed_or_invented(box: MakeBox) -> None:
    [whole, sliced] = box(SLICED).ask("nvml.survey().gpus")
    assert whole["parts"] is None
    assert [(part["uuid"], part["label"], part["instance"], part["memory"]) for part in sliced["parts"]] == [
        (MIG[0], "MIG 1:0", "7/0", 10 * GIB),
        (MIG[1], "MIG 1:2", "9/0", 10 * GIB),
    ]
    assert {part["bus"] for part in sliced["parts"]} == {sliced["bus"]}


@pytest.mark.parametrize(
    ("text", "left", "trouble"),
    [
        (
            gpu(ONE, 1, "fails nvmlDeviceGetHandleByIndex_v2 15") + gpu(TWO, 2),
            ["GPU 1"],
            ["GPU 0 is left out: nvmlDeviceGetHandleByIndex_v2: GPU is lost"],
        ),
        (
            gpu(ONE, 1, "fails nvmlDeviceGetHandleByIndex_v2 4") + gpu(TWO, 2, "fails nvmlDeviceGetMigMode 13"),
            ["GPU 1"],
            ["GPU 0 is left out: nvmlDeviceGetHandleByIndex_v2: Insufficient Permissions"],
        ),
        (gpu("GPU-" + "1" * 91, 1), ["GPU 0"], []),  # 95 characters and an end
        (gpu("GPU-" + "1" * 92, 1), [], ["GPU 0 is left out: nvmlDeviceGetUUID: Insufficient Size"]),
        (gpu(ONE, 1, "mig enabled", "fails nvmlDeviceGetMemoryInfo 4"), [], []),  # no MIG device, no privileges
        (
            gpu(ONE, 1, "mig enabled", part(MIG[0], 0, "1 0") + "\nfails nvmlDeviceGetUUID 4", part(MIG[1], 1, "2 0")),
            ["MIG 0:1"],
            ["MIG 0:0 is left out: nvmlDeviceGetUUID: Insufficient Permissions"],
        ),
        (gpu(ONE, 1) + gpu(TWO, 2, "fails nvmlDeviceGetPciInfo_v3 3"), ["GPU 1", "GPU 0"], []),  # part of a processor
        ("init 9", [], ["nvmlInit_v2: Driver Not Loaded"]),
    ],
)
def test_one_gpu_in_trouble_takes_the_others_with_it(
    box: MakeBox, text: str, left: list[str], trouble: list[str]
) -> None:
    visible, told = box(text).ask("[(found := discovery.find()).visible, found.trouble]")
    assert (labels(visible), told) == (left, trouble)


def test_memory_is_that_of_another_gpu_or_of_none(box: MakeBox) -> None:
    text = SLICED + "\n" + gpu(THREE, 0x90, "fails nvmlDeviceGetMemoryInfo 15")
    asked = [MIG[1], ONE, THREE, "GPU-unknown", MIG[0]]
    assert box(text).ask(f"slots.used_memory({asked})") == {MIG[1]: 2 * GIB, ONE: GIB, MIG[0]: GIB}
    assert box("init 9").ask(f"slots.used_memory({asked})") == {}


def test_far_gpus_pass_for_near_ones(box: MakeBox) -> None:
    text = (
        "".join(gpu(uuid, bus) for bus, uuid in enumerate((ONE, TWO, THREE))) + "level 0 1 10\nlevel 0 2 50\nnvlink 0 2"
    )
    pairs = box(text).ask(f"[[*pair, far] for pair, far in nvml.distances({[ONE, TWO, THREE]}).items()]")
    assert {(one, other): far for one, other, far in pairs} == {
        **dict.fromkeys([(ONE, TWO), (TWO, ONE)], 110),
        **dict.fromkeys([(ONE, THREE), (THREE, ONE)], 50),  # NVLink before any PCIe
        **dict.fromkeys([(TWO, THREE), (THREE, TWO)], 150),  # not answered
    }


MIXED = gpu(ONE, 1, name="NVIDIA T4") + gpu(TWO, 2) + gpu(THREE, 3, name="NVIDIA A30")
FASTEST = " ".join(uuid.removeprefix("GPU-") for uuid in (TWO, THREE, ONE))


@pytest.mark.parametrize(
    ("text", "settings", "expected"),
    [
        (MIXED, {"CUDA_VISIBLE_DEVICES": "0,2", "FAKE_CUDA": FASTEST}, [TWO, ONE]),
        (
            MIXED,
            {"CUDA_VISIBLE_DEVICES": "0,2", "FAKE_CUDA": FASTEST, "CUDA_DEVICE_ORDER": "FASTEST_FIRST"},
            [TWO, ONE],
        ),
        # CUDA is not asked, and could not answer, where it need not be:
        (MIXED, {"CUDA_VISIBLE_DEVICES": "0,2", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, [ONE, THREE]),
        (MIXED, {"CUDA_VISIBLE_DEVICES": f"{THREE[:9]},{ONE[:9]}"}, [THREE, ONE]),
        (MIXED, {}, [ONE, TWO, THREE]),
        (MIXED, {"CUDA_VISIBLE_DEVICES": "-1"}, []),
        (MIXED, {"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, []),
        (gpu(ONE, 2) + gpu(TWO, 1), {"CUDA_VISIBLE_DEVICES": "0"}, [TWO]),
        # Whole GPUs, then the first MIG device of each of the others; the first has none.
        (gpu(THREE, 1, "mig enabled") + SLICED, {"CUDA_VISIBLE_DEVICES": "1,0"}, [MIG[0], ONE]),
    ],
)
def test_numbers_mean_other_gpus_than_to_cuda(
    box: MakeBox, text: str, settings: dict[str, str], expected: list[str]
) -> None:
    assert [gpu["uuid"] for gpu in box(text, **settings).ask("slots.visible_gpus()")] == expected


@pytest.mark.parametrize("known", [None, FASTEST.split()[0]])
def test_numbers_that_nobody_can_explain_are_guessed(box: MakeBox, known: str | None) -> None:
    settings = {} if known is None else {"FAKE_CUDA": known}
    status, output, errors = box(MIXED, CUDA_VISIBLE_DEVICES="1", **settings).run("-m", "asynctune", "slots")
    assert (status, output) == (1, "")
    assert errors == (
        "asynctune: numbers in CUDA_VISIBLE_DEVICES need CUDA_DEVICE_ORDER=PCI_BUS_ID where GPUs differ, since CUDA does "
        "not say which is the fastest; or write UUIDs, got '1'\n"
    )


def test_the_slots_of_a_box_are_shown_without_the_reason(box: MakeBox) -> None:
    text = SLICED + "\n" + gpu(THREE, 0x90, "fails nvmlDeviceGetHandleByIndex_v2 15")
    shown = box(text, CUDA_VISIBLE_DEVICES=f"{MIG[1][:8]},MIG-0", OMP_NUM_THREADS="7")
    status, output, errors = shown.run("-m", "asynctune", "slots", "--cpus-per-trial", "1")
    assert (status, errors) == (0, "")
    gpus, rest = without_amd(output).split("CPU\n")
    why = f"CUDA_VISIBLE_DEVICES='{MIG[1][:8]},MIG-0'"
    assert gpus == (
        "GPUs: NVIDIA driver 570.86.15\n"
        "  GPU 2 is left out: nvmlDeviceGetHandleByIndex_v2: GPU is lost\n"
        f"  GPU 0: {H100}, 80.0 GiB, {ONE}\n"
        f"    hidden: {why} does not name it\n"
        f"  GPU 1: {H100}, 80.0 GiB, {TWO}\n"
        "    in MIG mode: its 2 MIG devices are used, not the GPU itself\n"
        f"    MIG 1:0: {H100} MIG 1g.10gb, 10.0 GiB, {MIG[0]}\n"
        f"      hidden: {why} does not name it\n"
        f"    MIG 1:2: {H100} MIG 1g.10gb, 10.0 GiB, {MIG[1]}\n"
        "      visible\n"
    )
    assert rest.endswith(
        "Environment, which is composed with or left alone\n"
        f"  CUDA_VISIBLE_DEVICES={MIG[1][:8]},MIG-0\n"
        "  OMP_NUM_THREADS=7\n"
        "Slots: 1\n"
        f"  slot 0: MIG 1:2 ({H100} MIG 1g.10gb)\n"
        f"    CUDA_VISIBLE_DEVICES={MIG[1]}\n"
        "    MKL_NUM_THREADS=1\n"
        "    OPENBLAS_NUM_THREADS=1\n"
        "    CUDA_DEVICE_ORDER=PCI_BUS_ID\n"
    )


def test_the_guide_shows_what_is_not_printed(box: MakeBox) -> None:
    uuids = [f"MIG-{start}-aaaa-bbbb-cccc-dddddddddddd" for start in ("71111111", "72222222", "83333333")]
    devices = [part(uuid, place, f"{place} 0") for uuid, place in zip(uuids, (0, 1, 4), strict=True)]
    text = "driver 570.86.15\n" + gpu(ONE, 1) + gpu(TWO, 2, "mig enabled", *devices) + gpu(THREE, 3)
    shape = ("--trials-per-gpu", "2", "--count", "3")
    settings = {"CUDA_VISIBLE_DEVICES": "MIG-8,MIG-71", **dict.fromkeys(THREAD_LIMITS, "4")}
    status, output, errors = box(text, **settings).run("-m", "asynctune", "slots", *shape)
    assert (status, errors) == (0, "")
    gpus, rest = without_amd(output).split("CPU\n")
    expected = gpus + rest[rest.index("Environment") :]
    guide = (ROOT / "docs/gpu.md").read_text(encoding="utf-8")
    command = f"    $ CUDA_VISIBLE_DEVICES=MIG-8,MIG-71 python -m asynctune slots {' '.join(shape)}\n"
    assert command + textwrap.indent(expected, "    ") in guide


def test_a_refused_shape_leaves_no_trace_of_what_there_is(box: MakeBox) -> None:
    status, output, errors = box(SLICED).run("-m", "asynctune", "slots", "--gpus-per-trial", "2")
    assert status == 1
    assert output.startswith("GPUs: NVIDIA driver 570.86.15\n")
    assert "Slots" not in output
    assert errors == (
        "asynctune: gpus_per_trial=2 needs whole GPUs, since CUDA shows a process one MIG device at most and no GPU "
        "beside it, found MIG 1:0, MIG 1:2\n"
    )


#: Trials that wait for each other, so that both slots have one.
RUN = """
import os, pathlib, time
import asynctune as at

def train(trial):
    (HERE / f"{os.environ['CUDA_VISIBLE_DEVICES']} {trial.device}").touch()
    while len(list(HERE.iterdir())) < 2:
        time.sleep(0.01)
    return 1.0

HERE = pathlib.Path(os.environ["HERE"])
if __name__ == "__main__":
    at.run(train, {"x": at.uniform(0, 1)}, metric="x", mode="max", num_trials=2, trial_timeout=30, progress=False)
"""


def test_a_worker_gets_another_gpu_than_its_slot(box: MakeBox, tmp_path: Path) -> None:
    (tmp_path / "seen").mkdir()
    (tmp_path / "program.py").write_text(RUN)
    visible = f"{MIG[1][:9]},{MIG[0][:9]}"
    shown = box(SLICED, CUDA_VISIBLE_DEVICES=visible, HERE=str(tmp_path / "seen")).run(str(tmp_path / "program.py"))
    assert shown == (0, "", "")
    assert {path.name for path in (tmp_path / "seen").iterdir()} == {f"{MIG[0]} cuda:0", f"{MIG[1]} cuda:0"}
