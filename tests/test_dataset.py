"""Data sets that processes share, by real processes and real files."""

import errno
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from asynctune.errors import InvalidArgument
from asynctune.torch import shared


def never() -> dict[str, Any]:
    raise AssertionError


def script(path: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run code in an interpreter of its own, where `path` is a data set's."""
    return subprocess.run(
        [sys.executable, "-c", f"path = {str(path)!r}\n{code}"], capture_output=True, text=True, check=False, timeout=60
    )


SHARING = """
import fcntl, json, os, time
import torch
from asynctune.torch import shared

COUNT, SIZE = 3, 32 * 2**20

def note(what):
    with open(f"{path}.{what}", "a") as file:
        file.write(f"{os.getpid()}\\n")

def wait_for(what):
    while not os.path.exists(f"{path}.{what}") or len(open(f"{path}.{what}").readlines()) < COUNT:
        time.sleep(0.01)

def build():
    note("built")
    wait_for("came")  # the others are here, and must wait
    return {"x": torch.ones(SIZE, dtype=torch.uint8)}

def memory():
    sizes, inside = {}, False
    for line in open("/proc/self/smaps"):
        if "-" in line.split()[0]:
            inside = line.rstrip().endswith(path)
        elif inside and line.startswith(("Rss:", "Pss:")):
            sizes[line[:3]] = sizes.get(line[:3], 0) + int(line.split()[1]) * 1024
    return sizes

for _ in range(COUNT):
    if os.fork() == 0:
        note("came")
        data = shared(path, build)
        assert data["x"].sum(dtype=torch.int64) == SIZE  # all of it is in memory now
        note("read")
        wait_for("read")
        sizes = memory()
        note("measured")
        wait_for("measured")
        with open(f"{path}.sizes", "a") as file:
            file.write(json.dumps(sizes) + "\\n")
        os._exit(0)
for _ in range(COUNT):
    assert os.wait()[1] == 0
"""


def test_each_process_has_a_copy_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "data"
    run = script(path, SHARING)
    assert run.returncode == 0, run.stderr
    assert len((tmp_path / "data.built").read_text().splitlines()) == 1
    sizes = [json.loads(line) for line in (tmp_path / "data.sizes").read_text().splitlines()]
    assert len(sizes) == 3
    for size in sizes:
        assert size["Rss"] >= 32 * 2**20
        assert size["Pss"] < 0.4 * size["Rss"]  # a third: each page counts for each of three


KILLED = """
import os, signal
import torch
from asynctune.torch import shared

def die(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)

def build():
    return {"x": torch.ones(1000)}

os.fsync = die  # all is written
for what, call in (("building", die), ("writing", build)):
    if os.fork() == 0:
        shared(f"{path}-{what}", call)
    assert os.wait()[1] == signal.SIGKILL
"""


def test_one_who_dies_at_it_is_in_the_way_of_the_next(tmp_path: Path) -> None:
    run = script(tmp_path / "data", KILLED)
    assert run.returncode == 0, run.stderr
    assert sorted(os.listdir(tmp_path)) == ["data-building.lock", "data-writing.lock", "data-writing.part"]
    for what in ("building", "writing"):
        assert shared(tmp_path / f"data-{what}", lambda: {"x": torch.zeros(3)})["x"].tolist() == [0, 0, 0]
    assert not (tmp_path / "data-writing.part").exists()


def test_of_a_full_disk_is_said_something_else(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))  # to whom writes, the same, by another number
    try:
        with pytest.raises(OSError, match="File too large") as raised:
            shared(tmp_path / "data", lambda: {"x": torch.ones(10**6)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (raised.value.errno, raised.value.filename) == (errno.EFBIG, str(tmp_path / "data"))
    assert os.listdir(tmp_path) == ["data.lock"]


def test_what_is_there_is_built_again(tmp_path: Path) -> None:
    built = {"x": torch.arange(6.0).view(2, 3), "names": ["a", ("b", None)], "sizes": {"n": 3, "p": 0.5, "even": True}}
    for build in (lambda: built, never):
        data = shared(tmp_path / "data", build)
        assert torch.equal(data.pop("x"), built["x"])  # type: ignore[arg-type]
        assert data == {"names": ["a", ("b", None)], "sizes": {"n": 3, "p": 0.5, "even": True}}
    assert (tmp_path / "data").stat().st_mode & 0o777 == 0o600


def test_what_one_writes_others_see(tmp_path: Path) -> None:
    mine, theirs = (shared(tmp_path / "data", lambda: {"x": torch.zeros(3)})["x"] for _ in range(2))
    mine[0] = 1
    assert mine.tolist() == [1, 0, 0]
    assert theirs.tolist() == shared(str(tmp_path / "data"), never)["x"].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: [torch.ones(1)], "build must return a dict of tensors, got list"),
        (lambda: {"x": [torch.ones(1), Path()]}, r"but build\(\)\['x'\]\[1\] is of the class PosixPath"),
        (lambda: {"x": {"y": torch.ones(1).numpy()}}, r"but build\(\)\['x'\]\['y'\] is of the class ndarray"),
    ],
    ids=["list", "path", "array"],
)
def test_what_does_not_come_back_is_written(tmp_path: Path, build: Callable[[], Any], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        shared(tmp_path / "data", build)
    assert os.listdir(tmp_path) == ["data.lock"]


def test_another_file_is_taken_for_a_data_set(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("of somebody else")
    with pytest.raises(InvalidArgument, match="path must be a file that shared has made, or none, got '.*/data'"):
        shared(tmp_path / "data", never)
    with pytest.raises(FileNotFoundError):
        shared(tmp_path / "missing" / "data", never)
