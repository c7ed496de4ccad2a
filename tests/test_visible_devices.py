"""CUDA_VISIBLE_DEVICES and ROCm's variables: which GPUs they leave, rule by rule."""

import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asynctune.slots import Gpu, nvml
from asynctune.slots.discovery import find
from asynctune.slots.rocm import HIP, ROCR, there, wanted
from asynctune.slots.visible import CUDA, cuda


def gpu(index: int, uuid: str, parts: tuple[Gpu, ...] | None = None) -> Gpu:
    return Gpu(uuid=uuid, token=uuid, label=f"GPU {index}", name="H100", parts=parts)


def mig(index: int, number: int, uuid: str, instance: str) -> Gpu:
    return Gpu(uuid=uuid, token=uuid, label=f"MIG {index}:{number}", name="1g.10gb", instance=instance)


#: The first three are whole, the others in MIG mode; the last without a MIG device.
GPUS = [
    gpu(0, "GPU-11aa-1"),
    gpu(1, "GPU-11bb-2"),
    gpu(2, "GPU-22cc-3"),
    gpu(
        3,
        "GPU-33dd-4",
        (mig(3, 0, "MIG-71ee-5", "7/0"), mig(3, 1, "MIG-71ff-6", "7/1"), mig(3, 4, "MIG-80aa-7", "9/0")),
    ),
    gpu(4, "GPU-33ee-8", (mig(4, 0, "MIG-90bb-9", "9/0"),)),
    gpu(5, "GPU-44ff-0", ()),
]
USABLE = [part for gpu in GPUS for part in gpu.usable]
#: As CUDA counts: whole GPUs, then the first MIG device of each of the others.
NUMBERED = [*GPUS[:3], USABLE[3], USABLE[6]]


def left(text: str) -> list[str]:
    chosen, hidden = cuda(text, GPUS, NUMBERED)
    assert {gpu.label for gpu in chosen} ^ hidden.keys() == {gpu.label for gpu in USABLE}
    return [gpu.label for gpu in chosen]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # Numbers, in their order.
        ("0", ["GPU 0"]),
        ("2,0", ["GPU 2", "GPU 0"]),
        ("1gpu2,2ampere", ["GPU 1", "GPU 2"]),  # as strtoul reads them
        (" 2 , 1 ", ["GPU 2", "GPU 1"]),
        ("+1,-0", ["GPU 1", "GPU 0"]),
        ("3,4", ["MIG 3:0", "MIG 4:0"]),
        # None.
        ("", []),
        (" ", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("none", []),
        ("all", []),
        (",0", []),
        # What is not valid hides what follows.
        ("0,-1,1", ["GPU 0"]),
        ("0,2,-1,1", ["GPU 0", "GPU 2"]),  # the Programming Guide's example
        ("0,5,1", ["GPU 0"]),
        ("0,one,1", ["GPU 0"]),
        ("0,,1", ["GPU 0"]),
        ("0,", ["GPU 0"]),
        ("0,1,99999999999999999999", ["GPU 0", "GPU 1"]),
        ("0,\u0661", ["GPU 0"]),  # a digit, not to C
        # Twice hides all; not behind what is not valid.
        ("1,0,1", []),
        ("1,01", []),
        ("1,-1,1", ["GPU 1"]),
        # UUIDs, abbreviated or not.
        ("GPU-22cc-3,GPU-11aa-1", ["GPU 2", "GPU 0"]),
        ("GPU-2,GPU-11a", ["GPU 2", "GPU 0"]),
        ("GPU-2, GPU-11a", ["GPU 2", "GPU 0"]),
        ("GPU-2,GPU-11,GPU-11a", ["GPU 2"]),  # ambiguous
        ("GPU-", []),
        ("GPU-5,GPU-2", []),
        ("gpu-2", []),
        ("GPU-2,GPU-11b,GPU-22cc", []),  # twice, by two names
        ("GPU-2,GPU-33d,GPU-11a", ["GPU 2"]),  # in MIG mode
        ("GPU-2,GPU-44f", ["GPU 2"]),
        # MIG devices, by their own UUIDs and as drivers before R470 named them.
        ("MIG-71ee-5", ["MIG 3:0"]),
        ("MIG-80aa-7,MIG-71ff-6,MIG-90bb-9", ["MIG 3:4", "MIG 3:1", "MIG 4:0"]),
        ("MIG-8,MIG-71f", ["MIG 3:4", "MIG 3:1"]),
        ("MIG-8,MIG-71,MIG-9", ["MIG 3:4"]),  # ambiguous
        ("MIG-", []),
        ("MIG-GPU-33dd-4/7/1", ["MIG 3:1"]),
        ("MIG-GPU-33d/9/0,MIG-GPU-33e/9/0", ["MIG 3:4", "MIG 4:0"]),
        ("MIG-GPU-33/9/0", []),  # ambiguous
        ("MIG-GPU-33dd-4/7/1,MIG-71ff-6", []),  # twice, by two names
        ("MIG-8,MIG-GPU-33dd-4/8/1", ["MIG 3:4"]),
        ("MIG-8,MIG-GPU-11aa-1/7/0", ["MIG 3:4"]),
        ("MIG-8,MIG-GPU-33dd-4", ["MIG 3:4"]),
        # All are of the kind of the first.
        ("0,GPU-22cc-3", ["GPU 0"]),
        ("GPU-22cc-3,0", ["GPU 2"]),
        ("GPU-22cc-3,MIG-71ee-5", ["GPU 2"]),
        ("MIG-71ee-5,GPU-22cc-3", ["MIG 3:0"]),
        ("MIG-71ee-5,1", ["MIG 3:0"]),
    ],
)
def test_cuda_would_see_other_gpus(text: str, expected: list[str]) -> None:
    assert left(text) == expected


@pytest.mark.parametrize(
    ("text", "label", "why"),
    [
        ("1", "GPU 0", "CUDA_VISIBLE_DEVICES='1' does not name it"),
        ("", "GPU 0", "CUDA_VISIBLE_DEVICES='' does not name it"),
        ("1,x,0", "GPU 0", "entry 2 of CUDA_VISIBLE_DEVICES='1,x,0' ('x') is not a number, and hides those after it"),
        (
            "7,0",
            "GPU 0",
            "entry 1 of CUDA_VISIBLE_DEVICES='7,0' ('7') is none of the 5 there are, and hides those after it",
        ),
        ("1,1", "GPU 1", "entry 2 of CUDA_VISIBLE_DEVICES='1,1' names GPU 1 again, which hides all"),
        ("1,1", "MIG 3:4", "entry 2 of CUDA_VISIBLE_DEVICES='1,1' names GPU 1 again, which hides all"),
        (
            "GPU-3,GPU-2",
            "GPU 2",
            "entry 1 of CUDA_VISIBLE_DEVICES='GPU-3,GPU-2' ('GPU-3') matches several GPUs, and hides those after it",
        ),
        (
            "GPU-9,GPU-2",
            "GPU 2",
            "entry 1 of CUDA_VISIBLE_DEVICES='GPU-9,GPU-2' ('GPU-9') matches no GPU, and hides those after it",
        ),
        (
            "GPU-33d,GPU-2",
            "GPU 2",
            (
                "entry 1 of CUDA_VISIBLE_DEVICES='GPU-33d,GPU-2' ('GPU-33d') is in MIG mode, where only MIG devices can be "
                "used, and hides those after it"
            ),
        ),
    ],
)
def test_a_hidden_gpu_has_another_reason(text: str, label: str, why: str) -> None:
    assert cuda(text, GPUS, NUMBERED)[1][label] == why


ENTRIES = st.sampled_from(
    ["0", "1", "2", "4", "5", "-1", "", " 1", "GPU-2", "GPU-11", "GPU-33d", "MIG-8", "MIG-71", "MIG-GPU-33d/9/0", "x"]
)


@given(entries=st.lists(ENTRIES, max_size=5))
def test_some_text_breaks_the_parser(entries: list[str]) -> None:
    text = ",".join(entries)
    labels = left(text)
    assert len(set(labels)) == len(labels)
    assert left(f"{text},x") == labels  # what is not valid hides nothing before it


def node(root: Path, number: int, **properties: int) -> Path:
    directory = root / f"sys/class/kfd/kfd/topology/nodes/{number}"
    (directory / "mem_banks/0").mkdir(parents=True)
    (directory / "properties").write_text("".join(f"{name} {value}\n" for name, value in properties.items()))
    return directory


@pytest.fixture
def amd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A processor, and four GPUs, of which the last has no UUID; node 11 comes after node 2."""
    monkeypatch.setattr(nvml, "_nvml", lambda: "no NVIDIA driver")
    node(tmp_path, 0, cpu_cores_count=64, simd_count=0)
    for number, unique in ((1, 0xA1B2C3D4E5F60718), (2, 0xA1B2000000000002), (3, 0x0042), (11, 0)):
        directory = node(tmp_path, number, simd_count=440, location_id=number << 8, domain=0, unique_id=unique)
        (directory / "name").write_text("aqua_vanjaram\n")
        (directory / "mem_banks/0/properties").write_text(f"heap_type 1\nsize_in_bytes {192 << 30}\nflags 0\n")
        device = tmp_path / f"sys/bus/pci/devices/0000:{number:02x}:00.0"
        device.mkdir(parents=True)
        (device / "numa_node").write_text(f"{number // 2 - 1}\n")
    (tmp_path / "opt/rocm").mkdir(parents=True)
    return tmp_path


def test_an_amd_gpu_is_missed_or_invented(amd: Path) -> None:
    found = find({}, amd)
    assert [(gpu.label, gpu.uuid, gpu.bus, gpu.node) for gpu in found.visible] == [
        ("GPU 0", "GPU-a1b2c3d4e5f60718", "0000:01:00.0", None),
        ("GPU 1", "GPU-a1b2000000000002", "0000:02:00.0", 0),
        ("GPU 2", "GPU-0000000000000042", "0000:03:00.0", 0),
        ("GPU 3", "0000:0b:00.0", "0000:0b:00.0", 4),
    ]
    assert {(gpu.name, gpu.memory) for gpu in found.gpus} == {("aqua_vanjaram", 192 << 30)}
    assert found.amd


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # ROCr: what is not valid, or comes twice, hides itself and what follows.
        ({ROCR: "2,0"}, ["GPU 2", "GPU 0"]),
        ({ROCR: ""}, []),
        ({ROCR: " 1 , 0"}, ["GPU 1", "GPU 0"]),
        ({ROCR: "1,4,0"}, ["GPU 1"]),
        ({ROCR: "1,0,1,2"}, ["GPU 1", "GPU 0"]),
        ({ROCR: "1,2x,0"}, ["GPU 1"]),
        ({ROCR: "gpu-A1B2c,GPU-0000000000000042"}, ["GPU 0", "GPU 2"]),
        ({ROCR: "3,GPU-a1b2"}, ["GPU 3"]),  # ambiguous
        ({ROCR: "3,GPU-,0"}, ["GPU 3"]),
        ({ROCR: "GPU-00000000000000"}, ["GPU 2"]),  # the other's UUID is none
        # HIP: numbers to the letter, and what comes twice is ignored; an empty value is none.
        ({HIP: "1,0"}, ["GPU 1", "GPU 0"]),
        ({HIP: ""}, ["GPU 0", "GPU 1", "GPU 2", "GPU 3"]),
        ({HIP: "1, 0"}, ["GPU 1"]),
        ({HIP: "01"}, []),
        ({HIP: "-1"}, []),
        ({HIP: "1,1,0"}, ["GPU 1", "GPU 0"]),
        ({HIP: "GPU-a1b20,0"}, ["GPU 1", "GPU 0"]),
        # HIP's own variable, before the one that it shares with CUDA.
        ({CUDA: "3"}, ["GPU 3"]),
        ({CUDA: ""}, ["GPU 0", "GPU 1", "GPU 2", "GPU 3"]),
        ({HIP: "2", CUDA: "3"}, ["GPU 2"]),
        ({HIP: "", CUDA: "3"}, ["GPU 3"]),
        # HIP counts what ROCr leaves.
        ({ROCR: "3,1", HIP: "1"}, ["GPU 1"]),
        ({ROCR: "3,1", CUDA: "1,0"}, ["GPU 1", "GPU 3"]),
        ({ROCR: "3,1", HIP: "2"}, []),
    ],
)
def test_rocm_would_see_other_gpus(amd: Path, settings: dict[str, str], expected: list[str]) -> None:
    found = find(settings, amd)
    assert [gpu.label for gpu in found.visible] == expected
    assert set(expected) ^ found.hidden.keys() == {gpu.label for gpu in found.gpus}
    # A worker inherits ROCR_VISIBLE_DEVICES, so that its numbers count what that leaves.
    behind = find({ROCR: settings[ROCR]} if ROCR in settings else {}, amd).visible
    assert [behind[int(gpu.token)].label for gpu in found.visible] == expected


def test_an_abbreviation_of_nothing_names_an_amd_gpu(amd: Path) -> None:
    for node in ("2", "3", "11"):
        shutil.rmtree(amd / "sys/class/kfd/kfd/topology/nodes" / node)
    assert len(find({ROCR: "GPU-A"}, amd).visible) == 1
    assert find({ROCR: "GPU-"}, amd).visible == ()


def test_a_screens_gpu_is_taken_where_nobody_has_rocm(amd: Path) -> None:
    assert (there(amd), wanted({}, amd)) == (True, True)
    (amd / "opt/rocm").rmdir()
    assert find({}, amd).visible == ()
    assert len(find({HIP: "0"}, amd).visible) == 1
    assert not there(amd / "elsewhere")
    assert find({HIP: "0"}, amd / "elsewhere").visible == ()
