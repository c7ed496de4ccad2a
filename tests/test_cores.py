"""Cores: how many may be used, and which slot is pinned to which."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asynctune.errors import InvalidArgument
from asynctune.slots import usable_cores
from asynctune.slots.cores import by_node, pinned, span


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")


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
def test_cores_beyond_the_quota_of_the_container_are_used(
    tmp_path: Path, cgroup: str, files: dict[str, str], cores: int | None
) -> None:
    write(tmp_path / "proc/self/cgroup", cgroup)
    for name, text in files.items():
        write(tmp_path / "sys/fs/cgroup" / name, text)
    assert usable_cores(tmp_path) == (cores or len(os.sched_getaffinity(0)))


def test_threads_of_a_core_are_torn_apart(tmp_path: Path) -> None:
    """Eight cores on two nodes, with two threads each: n and n + 8; this process has not all of them."""
    write(tmp_path / "sys/devices/system/node/node0/cpulist", "0-3,8-11")
    write(tmp_path / "sys/devices/system/node/node1/cpulist", "4-7,12-15")
    for core in range(16):
        write(
            tmp_path / f"sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list", f"{core % 8},{core % 8 + 8}"
        )
    assert by_node([0, 1, 2, 8, 10, 9, 5, 13, 14], tmp_path) == {0: [0, 8, 1, 9, 2, 10], 1: [5, 13, 14]}


def test_a_machine_that_tells_nothing_has_no_cores(tmp_path: Path) -> None:
    assert by_node([2, 0, 1], tmp_path) == {-1: [0, 1, 2]}
    nodes = by_node(sorted(os.sched_getaffinity(0)))
    assert sorted(core for cores in nodes.values() for core in cores) == sorted(os.sched_getaffinity(0))


TWO_NODES = {0: [0, 4, 1, 5], 1: [2, 6, 3, 7]}


@pytest.mark.parametrize(
    ("nodes", "each", "most", "expected"),
    [
        ([1, 0], None, 4, [(2, 6, 3, 7), (0, 4, 1, 5)]),
        ([1, 1, 0, 0], None, 2, [(2, 6), (3, 7), (0, 4), (1, 5)]),
        ([1, 1], None, 4, [(2, 6), (3, 7)]),  # rather fewer than far
        ([1, 1], 4, 4, [(2, 6, 3, 7), (0, 4, 1, 5)]),  # so many were asked for
        ([1, 1, 1], 3, 3, None),
        ([None, None], None, 4, [(0, 4, 1, 5), (2, 6, 3, 7)]),
        ([None, 1], 3, 3, [(0, 4, 1), (2, 6, 3)]),  # who knows its node comes first
        ([None, None], 3, 3, [(0, 4, 1), (2, 6, 3)]),
        ([None, None], None, 1, [(0,), (2,)]),  # a quota leaves fewer
        ([None], 5, 5, [(0, 4, 1, 5, 2)]),  # of two nodes, if need be
        ([9], None, 2, [(0, 4)]),  # of a node with no core for us
        ([0] * 9, None, 1, None),
    ],
)
def test_a_slot_is_pinned_far_from_its_gpu(
    nodes: list[int | None], each: int | None, most: int, expected: list[tuple[int, ...]] | None
) -> None:
    if expected is None:
        with pytest.raises(
            InvalidArgument, match=r"pin=True needs cores of its own for each slot, got \d slots of \d, 8"
        ):
            pinned(nodes, each, most, TWO_NODES)
    else:
        assert pinned(nodes, each, most, TWO_NODES) == expected


@given(
    sizes=st.lists(st.integers(1, 8), min_size=1, max_size=4),
    nodes=st.lists(st.none() | st.integers(0, 3), min_size=1, max_size=8),
    each=st.none() | st.integers(1, 8),
)
def test_a_core_is_given_to_two_slots(sizes: list[int], nodes: list[int | None], each: int | None) -> None:
    first = [sum(sizes[:place]) for place in range(len(sizes))]
    cores = {node: range(start, start + size) for node, (start, size) in enumerate(zip(first, sizes, strict=True))}
    total = sum(sizes)
    try:
        found = pinned(nodes, each, max(1, total // len(nodes)), cores)
    except InvalidArgument:
        assert (each or 1) * len(nodes) > total
        return
    taken = [core for slot in found for core in slot]
    assert len(set(taken)) == len(taken)
    assert set(taken) <= set(range(total))
    assert len({len(slot) for slot in found}) == 1
    assert each in (None, len(found[0]))
    if each is None:  # then all that know their node are on it, while there is a core for each
        for slot, node in zip(found, nodes, strict=True):
            assert node not in cores or nodes.count(node) > len(cores[node]) or set(slot) <= set(cores[node])


@pytest.mark.parametrize(("cores", "text"), [([], ""), ([3], "3"), ([0, 1, 2, 5, 7, 6], "0-2, 5-7")])
def test_cores_are_told_wrongly(cores: list[int], text: str) -> None:
    assert span(cores) == text
