"""Checkpoints: which of those on disk stay, and what a sweep takes."""

import asyncio
import errno
import os
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asynctune.checkpoints import Store
from asynctune.errors import InvalidArgument, RunFailed
from asynctune.rundir import CHECKPOINTS

Name = int | str


def make(run_dir: Path, name: Name, size: int = 100) -> str:
    """A checkpoint of two files."""
    path = run_dir / CHECKPOINTS / (f"0-0-{name}" if isinstance(name, int) else name)
    (path / "sub").mkdir(parents=True)
    (path / "large").write_bytes(bytes(size - size // 2))
    (path / "sub" / "small").write_bytes(bytes(size // 2))
    return path.name


def there(run_dir: Path) -> set[str]:
    return {path.name for path in (run_dir / CHECKPOINTS).iterdir()}


def names(*numbers: int) -> set[str]:
    return {f"0-0-{number}" for number in numbers}


def driver(act: Callable[[Store], Awaitable[object]], run_dir: Path, keep: int = 0) -> set[str]:
    """What lies there after a driver did what `act` does, and closed."""

    async def drive() -> None:
        store = Store(run_dir, keep)
        await act(store)
        await store.close()

    asyncio.run(drive())
    return there(run_dir)


def test_a_checkpoint_that_nothing_needs_stays(tmp_path: Path) -> None:
    async def act(store: Store) -> None:
        store.create()
        for number in range(3):
            store.saved(make(tmp_path, number), 100)
        let_go = store.release("0-0-1")
        assert there(tmp_path) == names(0, 1, 2), "it goes before that is written"
        let_go()
        assert not (tmp_path / CHECKPOINTS / "0-0-1").exists(), "it still has its name"

    assert driver(act, tmp_path) == names(0, 2)


def test_a_budget_removes_what_a_record_needs(tmp_path: Path) -> None:
    async def act(store: Store) -> None:
        store.create()
        for number in range(6):
            store.saved(make(tmp_path, number), 100)

    assert driver(act, tmp_path, keep=150) == names(0, 1, 2, 3, 4, 5)


def test_the_newest_goes_first(tmp_path: Path) -> None:
    async def act(store: Store) -> None:
        store.create()
        for number in range(6):
            store.saved(make(tmp_path, number), 100)
        for number in (3, 1, 4, 0):
            store.release(f"0-0-{number}")()
        assert names(2, 5) < there(tmp_path)
        assert there(tmp_path) & names(0, 1, 3, 4) == names(0, 4)
        store.saved(make(tmp_path, 6), 150)
        assert there(tmp_path) & names(0, 1, 3, 4) == set(), "one more than there is room for"

    assert driver(act, tmp_path, keep=400) == names(2, 5, 6)


def test_a_checkpoint_made_anew_goes_with_the_old_one(tmp_path: Path) -> None:
    async def act(store: Store) -> None:
        store.create()
        name = make(tmp_path, 1)
        store.saved(name, 100)
        late = store.release(name)
        store.saved(name, 100)  # before it was on disk that nothing needs it
        late()
        assert there(tmp_path) == names(1)
        store.release(name)()
        make(tmp_path, 1)  # while the old one is being removed
        store.saved(name, 100)

    assert driver(act, tmp_path) == names(1)


def test_a_released_checkpoint_that_is_needed_again_is_removed(tmp_path: Path) -> None:
    async def act(store: Store) -> None:
        store.create()
        for number in (1, 2):
            store.saved(make(tmp_path, number), 100)
        store.release("0-0-1")()
        store.saved("0-0-1", 100)
        store.saved(make(tmp_path, 3), 100)
        store.release("0-0-2")()

    assert driver(act, tmp_path, keep=250) == names(1, 3)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    keep=st.integers(0, 500),
    acts=st.lists(st.tuples(st.sampled_from(["saved", "release", "let go"]), st.integers(0, 4)), max_size=40),
)
def test_any_order_of_calls_removes_what_is_needed_or_keeps_too_much(
    tmp_path_factory: pytest.TempPathFactory, keep: int, acts: list[tuple[str, int]]
) -> None:
    run_dir = tmp_path_factory.mktemp("run")
    needed: set[str] = set()
    pending: list[tuple[str, Callable[[], None]]] = []

    async def act(store: Store) -> None:
        store.create()
        for what, number in acts:
            name = f"0-0-{number}"
            match what:
                case "saved":
                    if not (run_dir / CHECKPOINTS / name).exists():
                        make(run_dir, number)
                    store.saved(name, 100)
                    needed.add(name)
                case "release" if name in needed:
                    needed.remove(name)
                    pending.append((name, store.release(name)))
                case "let go" if pending:
                    pending.pop(0)[1]()
            here = {name for name in there(run_dir) if not name.startswith(".")}
            assert needed <= here
            waiting = {name for name, _ in pending}
            assert here - needed - waiting == set() or 100 * len(here) <= keep
        while pending:
            pending.pop(0)[1]()

    left = driver(act, run_dir, keep)
    assert needed <= left
    assert left == needed or 100 * len(left) <= keep


def test_a_sweep_takes_what_is_needed_or_leaves_what_is_not(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        make(tmp_path, number)
    for name in (".0-0-4.123", ".0-0-1.0", "0-0-9.replaced", "x"):
        make(tmp_path, name)
    (tmp_path / CHECKPOINTS / "file").touch()
    (tmp_path / CHECKPOINTS / "0-0-8").touch()
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").touch()
    (tmp_path / CHECKPOINTS / "0-0-7").symlink_to(outside)
    (tmp_path / CHECKPOINTS / "0-0-1" / "link").symlink_to(outside)

    async def act(store: Store) -> None:
        await store.sweep(["0-0-2", "0-0-5"])  # one of them is missing

    assert driver(act, tmp_path) == names(2)
    assert (outside / "precious").exists()


def test_what_an_earlier_driver_kept_counts_as_nothing(tmp_path: Path) -> None:
    for number, age in ((1, 30), (2, 50), (3, 10), (4, 20)):
        os.utime(tmp_path / CHECKPOINTS / make(tmp_path, number), ns=(0, 10**15 - age * 10**9))

    async def act(store: Store) -> None:
        await store.sweep(["0-0-1"])
        assert there(tmp_path) & names(1, 2, 3, 4) == names(1, 3, 4), "the oldest is no longer kept"
        store.saved(make(tmp_path, 5), 100)

    assert driver(act, tmp_path, keep=320) == names(1, 3, 5)


@pytest.mark.parametrize("name", ["../outside", "/etc", "", "0-0-1/..", "0-0-1\0"])
def test_a_name_from_a_journal_leads_out_of_the_directory(tmp_path: Path, name: str) -> None:
    async def act(store: Store) -> None:
        with pytest.raises(InvalidArgument, match="must be trial-segment-step"):
            await store.sweep([name])

    make(tmp_path, 1)
    assert driver(act, tmp_path) == names(1), "nothing goes when something is wrong"


def test_a_directory_with_something_in_it_is_taken_for_a_new_runs(tmp_path: Path) -> None:
    (tmp_path / CHECKPOINTS).mkdir()
    Store(tmp_path).create()
    (tmp_path / CHECKPOINTS / "precious").touch()
    with pytest.raises(InvalidArgument, match="must hold no checkpoints before its run"):
        Store(tmp_path).create()


def test_a_link_is_taken_for_the_directory(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").touch()
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / CHECKPOINTS).symlink_to(outside)
    with pytest.raises(InvalidArgument, match="'checkpoints' must be a directory"):
        Store(run_dir).create()
    with pytest.raises(InvalidArgument, match="'checkpoints' must be a directory"):
        asyncio.run(Store(run_dir).sweep([]))
    assert (outside / "precious").exists()


def test_the_directory_is_open_to_others(tmp_path: Path) -> None:
    Store(tmp_path).create()
    assert stat.S_IMODE((tmp_path / CHECKPOINTS).stat().st_mode) == 0o700


def test_a_checkpoint_that_is_gone_or_cannot_be_removed_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def act(store: Store) -> None:
        store.create()
        for number in (1, 2):
            store.saved(make(tmp_path, number), 100)
        monkeypatch.setattr("os.unlink", refuse)
        store.release("0-0-1")()
        store.saved("0-0-3", 100)
        store.release("0-0-3")()

    def refuse(*arguments: object, **more: object) -> None:
        raise PermissionError(1, "not permitted")

    left = driver(act, tmp_path)
    assert "0-0-2" in left
    assert names(1, 3).isdisjoint(left)


def test_closing_leaves_what_was_half_made(tmp_path: Path) -> None:
    async def act(store: Store) -> None:
        store.create()
        store.saved(make(tmp_path, 1), 100)
        for name in (".0-0-2.4711", ".0-0-1.4711.replaced"):
            make(tmp_path, name)

    assert driver(act, tmp_path) == names(1)


def test_closing_a_run_that_has_not_begun_fails(tmp_path: Path) -> None:
    asyncio.run(Store(tmp_path / "nowhere").close())


def test_what_is_gone_or_was_not_saved_here_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: set[str] = set()
    really = os.fsync

    def fsync(descriptor: int) -> None:
        synced.add(os.path.relpath(os.readlink(f"/proc/self/fd/{descriptor}"), tmp_path / CHECKPOINTS))
        really(descriptor)

    async def act(store: Store) -> None:
        make(tmp_path, 0)
        os.mkfifo(tmp_path / CHECKPOINTS / "0-0-0" / "pipe")  # somebody else's: to open it would take forever
        await store.sweep(["0-0-0"])
        await store.sync()
        assert synced == set()
        for number in (1, 2, 3):
            store.saved(make(tmp_path, number), 100)
        store.release("0-0-1")()
        store.saved("0-0-4", 100)  # somebody removed it
        monkeypatch.setattr(os, "fsync", fsync)
        await store.sync()

    driver(act, tmp_path)
    assert synced == {".", *(f"0-0-{n}{file}" for n in (2, 3) for file in ("", "/large", "/sub", "/sub/small"))}


def test_a_checkpoint_that_cannot_be_synced_goes_unnoticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    async def act(store: Store) -> None:
        store.create()
        store.saved(make(tmp_path, 1), 100)
        monkeypatch.setattr(os, "fsync", refuse)
        with pytest.raises(RunFailed, match="checkpoints: Input/output error"):
            await store.sync()

    assert driver(act, tmp_path) == names(1)
