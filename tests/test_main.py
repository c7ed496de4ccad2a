import os
import subprocess
import sys
from itertools import count
from pathlib import Path

import pytest

from asynctune.journal import encode, read
from asynctune.records import Header, Reported
from asynctune.rundir import JOURNAL
from asynctune.slots import Slots, resolve, usable_cores

RECORDS = [
    Header(metric="loss", mode="min", num_trials=2, seed=0, space={}, searcher="", scheduler="", slots=1),
    *(Reported(trial=0, segment=0, step=step, metrics={"loss": 1 / step}) for step in range(1, 7)),
]
LINES = list(map(encode, RECORDS, count()))


def command(*words: object) -> tuple[int, str, str]:
    """Status, output and errors of the command line."""
    run = subprocess.run(
        [sys.executable, "-W", "error", "-m", "asynctune", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return run.returncode, run.stdout, run.stderr


def test_a_damaged_journal_is_repaired_without_a_word_on_what_was_lost(tmp_path: Path) -> None:
    (tmp_path / JOURNAL).write_bytes(b"".join([*LINES[:3], *LINES[4:]]))
    status, output, errors = command("repair", tmp_path)
    assert (status, errors) == (0, "")
    good, bad = b"".join(LINES[:3]), b"".join(LINES[4:])
    [aside] = tmp_path.glob("journal.damaged-*")
    assert output == (
        f"kept: 3 records, the {len(good)} bytes before the damage\n"
        f"lost: {len(bad)} bytes from byte {len(good)} on, with 3 records that were good\n"
        f"set aside in: {aside}\n"
    )
    assert aside.read_bytes() == bad
    assert list(read(tmp_path / JOURNAL)) == RECORDS[:3]
    assert command("repair", tmp_path) == (0, f"nothing to repair: 3 records, {len(good)} bytes\n", "")


HOLDER = """
import asyncio, sys
from asynctune.journal import Journal

async def main():
    async with Journal(sys.argv[1], resume=True):
        print(flush=True)
        await asyncio.to_thread(sys.stdin.read)

asyncio.run(main())
"""


def test_a_run_in_use_is_repaired(tmp_path: Path) -> None:
    data = b"".join([*LINES[:3], *LINES[4:]])
    (tmp_path / JOURNAL).write_bytes(data)
    holder = [sys.executable, "-c", HOLDER, str(tmp_path / JOURNAL)]
    with subprocess.Popen(holder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "\n"
        by = f"process {first.pid} on {os.uname().nodename}"
        assert command("repair", tmp_path) == (1, "", f"asynctune: run_dir is in use by {by}, got {str(tmp_path)!r}\n")
        assert first.stdin is not None
        first.stdin.close()
    assert (tmp_path / JOURNAL).read_bytes() == data


def test_what_cannot_be_repaired_ends_in_a_traceback(tmp_path: Path) -> None:
    status, output, errors = command("repair", tmp_path / "missing")
    assert (status, output) == (1, "")
    assert errors == f"asynctune: cannot repair {tmp_path / 'missing' / JOURNAL}: No such file or directory\n"
    (tmp_path / JOURNAL).write_text("step,loss\n")
    assert command("repair", tmp_path) == (1, "", f"asynctune: {tmp_path / JOURNAL}: not a journal\n")


def test_code_in_a_run_directory_is_executed(tmp_path: Path) -> None:
    (tmp_path / JOURNAL).write_bytes(b"".join(LINES))
    for name in ("argparse", "msgspec", "asynctune", "sitecustomize", "conftest"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\n")
    assert command("repair", tmp_path)[0] == 0
    assert not (tmp_path / "executed").exists()


def test_the_slots_of_a_run_are_not_those_shown() -> None:
    status, output, errors = command("slots", "--gpus-per-trial", 0, "--count", 2, "--cpus-per-trial", 1)
    if usable_cores() < 2:
        assert (status, errors[:30]) == (1, "asynctune: Slots(gpus_per_tria")
        return
    assert (status, errors) == (0, "")
    lines = output.splitlines()
    assert lines[0].startswith("GPUs: ")
    assert f"  usable: {usable_cores()}" in lines
    specs = resolve(Slots(gpus_per_trial=0, count=2, cpus_per_trial=1))
    settings = [[f"    {name}={value}" for name, value in spec.environment.items()] for spec in specs]
    assert lines[lines.index("Slots: 2") :] == [
        "Slots: 2",
        "  slot 0: CPU",
        *settings[0],
        "  slot 1: CPU",
        *settings[1],
    ]


def test_wrong_slots_end_in_a_traceback() -> None:
    status, _, errors = command("slots", "--count", 0)
    assert (status, errors) == (1, "asynctune: count must be an integer >= 1, got 0\n")


@pytest.mark.parametrize(
    "words", [["slots", "--count", "few"], ["slots", "4"], [], ["mend"], ["repair"], ["repair", "a", "b"]]
)
def test_a_wrong_command_does_something(words: list[str]) -> None:
    status, output, errors = command(*words)
    assert (status, output) == (2, "")
    assert errors.startswith("usage: python -m asynctune")
