"""Run directory: what gets in and out of it."""

import os
import stat
from pathlib import Path

import pytest

from asynctune.errors import InvalidArgument
from asynctune.rundir import CHECKPOINTS, TRIALS, check_no_links, checkpoint_path, make_directory


@pytest.mark.parametrize(
    "name",
    [
        "", ".", "..", "/etc", "../0-0-1", "0-0-1/..", "0-0-1/../../x", "0-0-1\0", "0-0-1\n", " 0-0-1", "0-0", "0-0-1-2", "-1-0-1",
        "0-0-x", "0-0-1.replaced", ".0-0-1", "٣-0-1", "0-0-" + "1" * 20, "~", "C:0-0-1", "0\u20110-1",
    ],
)  # fmt: skip
def test_a_name_that_is_none_becomes_a_path(name: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="must be trial-segment-step"):
        checkpoint_path(tmp_path, name)


def test_a_checkpoint_lies_in_its_directory(tmp_path: Path) -> None:
    assert checkpoint_path(tmp_path, "12-0-3400") == tmp_path / CHECKPOINTS / "12-0-3400"


@pytest.mark.parametrize(
    "place", ["slot-0.log", "journal.jsonl", CHECKPOINTS, TRIALS, f"{CHECKPOINTS}/0-0-1", f"{TRIALS}/0"]
)
@pytest.mark.parametrize("target", ["outside", "nowhere"])
def test_a_link_in_a_run_directory_is_overlooked(tmp_path: Path, place: str, target: str) -> None:
    run_dir = tmp_path / "run"
    (tmp_path / "outside").mkdir()
    (run_dir / place).parent.mkdir(parents=True)
    check_no_links(run_dir)
    (run_dir / place).symlink_to(tmp_path / target)
    with pytest.raises(InvalidArgument, match="must hold no symbolic links") as error:
        check_no_links(run_dir)
    assert place in str(error.value)


def test_a_run_directory_that_is_reached_by_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "latest").symlink_to(tmp_path / "run")
    check_no_links(tmp_path / "latest")


def test_a_directory_is_open_to_others(tmp_path: Path) -> None:
    make_directory(tmp_path / "new")
    make_directory(tmp_path / "new")
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700


@pytest.mark.parametrize("what", ["file", "pipe", "link", "dangling"])
def test_something_else_passes_for_a_directory(tmp_path: Path, what: str) -> None:
    path = tmp_path / "path"
    match what:
        case "file":
            path.touch()
        case "pipe":
            os.mkfifo(path)
        case "link":
            (tmp_path / "real").mkdir()
            path.symlink_to(tmp_path / "real")
        case "dangling":
            path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(InvalidArgument, match="'path' must be a directory"):
        make_directory(path)
