"""Logs: what is kept of a flood, and what reading one may cost."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from asynctune.errors import InvalidArgument
from asynctune.logs import cap, read

MB = 2**20


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "slot-0.log"


def on_disk(path: Path) -> int:
    return path.stat().st_blocks * 512


def numbered(size: int) -> bytes:
    """Lines of 16 bytes that say where they begin."""
    return b"".join(b"%15d\n" % place for place in range(0, size, 16))


def needs_holes(directory: Path) -> None:
    path = directory / "probe"
    path.write_bytes(bytes(b"x" * MB))
    cap(path, 0, cap=64)
    if on_disk(path) > MB // 2:
        pytest.skip("this file system knows no holes")
    path.unlink()


def test_a_flood_of_prints_fills_the_disk(log: Path) -> None:
    needs_holes(log.parent)
    size, limit = 300 * MB, 4 * MB
    flood = f"line = b'x' * 1023 + b'\\n'\nfor _ in range({size} // 2**16): os.write(1, line * 64)"
    with open(log, "ab") as file:
        file.write(b"of another start\n")
        file.flush()
        process = subprocess.Popen([sys.executable, "-c", f"import os\n{flood}\nprint('the end')"], stdout=file)
        while process.poll() is None:
            cap(log, 17, cap=limit)
    assert process.returncode == 0
    cap(log, 17, cap=limit)
    assert log.stat().st_size == 17 + size + 8, "a place in the log means another one now"
    assert on_disk(log) <= limit + MB
    text = read(log, 17, log.stat().st_size, cap=limit)
    assert len(text) < limit + 100
    line = f"\n… {size + 8 - limit:,} bytes dropped …\n".encode()
    assert text[limit // 2 :].startswith(line)
    assert text.endswith(b"x\nthe end\n")
    assert text.replace(line, b"").strip(b"x\nthe end") == b""
    assert log.read_bytes()[17 + limit // 2 :].startswith(line), "who reads the file itself is not told"
    assert read(log, 0, 17) == b"of another start\n"


def test_what_is_kept_is_moved_or_changed(log: Path) -> None:
    needs_holes(log.parent)
    whole = numbered(MB)
    log.write_bytes(whole + b"next\n")
    half = 2**17
    cap(log, 0, MB, cap=2 * half)
    left = log.read_bytes()
    assert left[:half] == whole[:half]
    assert left[MB - half :] == whole[MB - half :] + b"next\n"
    assert left[half : MB - half].strip(b"\0").decode() == f"\n… {MB - 2 * half:,} bytes dropped …\n"
    assert read(log, 0, MB, cap=2 * half) == whole[:half] + left[half : MB - half].strip(b"\0") + whole[MB - half :]
    assert read(log, MB, MB + 5) == b"next\n"


def test_a_log_that_goes_on_growing_is_capped_anew(log: Path) -> None:
    needs_holes(log.parent)
    text = b""
    with open(log, "ab", buffering=0) as file:
        for _ in range(50):
            file.write(numbered(2**16))
            text += numbered(2**16)
            cap(log, 0, cap=2**17)
            assert on_disk(log) <= 2**18
    assert read(log, 0, len(text), cap=2**17) == (
        text[: 2**16] + f"\n… {len(text) - 2**17:,} bytes dropped …\n".encode() + text[-(2**16) :]
    )


@pytest.mark.parametrize("size", [0, 100, 2**17, 2**17 + 4095])
def test_a_small_log_is_touched(log: Path, size: int) -> None:
    log.write_bytes(b"x" * size)
    before = log.stat()
    cap(log, 0, cap=2**17)
    assert log.read_bytes() == b"x" * size
    assert log.stat().st_mtime_ns == before.st_mtime_ns


def test_where_there_are_no_holes_a_flood_is_damaged(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asynctune.logs._punch", lambda *arguments: False)
    log.write_bytes(b"x" * MB)
    cap(log, 0, cap=2**17)
    assert log.read_bytes() == b"x" * MB
    assert len(read(log, 0, MB, cap=2**17)) < 2**17 + 100


def test_capping_what_is_not_there_ends_the_run(log: Path) -> None:
    cap(log, 0)
    log.mkdir()
    cap(log, -MB * 100)


@pytest.mark.parametrize(
    ("first", "last", "expected"),
    [(0, 5, b"hello"), (-5, 3, b"hel"), (3, 10**30, b"lo"), (4, 2, b""), (10**30, 10**31, b""), (-(10**30), -1, b"")],
)
def test_a_place_that_is_none_is_read(log: Path, first: int, last: int, expected: bytes) -> None:
    log.write_bytes(b"hello")
    assert read(log, first, last) == expected


def test_reading_a_flood_fills_the_memory(log: Path) -> None:
    log.write_bytes(b"begin")
    os.truncate(log, 2**42)
    with open(log, "ab") as file:
        file.write(b"end")
    text = read(log, 0, 2**42 + 3, cap=MB)
    assert text.startswith(b"begin\n")
    assert text.endswith(b"dropped \xe2\x80\xa6\nend")
    assert len(text) < 100


def test_a_log_that_is_not_there_was_empty(log: Path) -> None:
    assert read(log, 0, 100) == b""


def test_a_link_leads_a_log_out_of_the_run_directory(log: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"x" * MB)
    log.symlink_to(secret)
    with pytest.raises(InvalidArgument, match="must hold no symbolic links"):
        read(log, 0, 100)
    cap(log, 0, MB, cap=2**17)
    assert secret.read_bytes() == b"x" * MB


@pytest.mark.timeout(20)
def test_a_pipe_in_place_of_a_log_is_waited_for(log: Path) -> None:
    os.mkfifo(log)
    with pytest.raises(InvalidArgument, match="must be a regular file"):
        read(log, 0, 100)
    cap(log, 0, MB, cap=2**17)
