"""P6: reading, reporting on or restoring from a run directory executes nothing from it and touches nothing outside of it.

A hostile directory is read in a process of its own, under an audit hook that ends it at anything but reading: the interpreter reports
there what it executes, imports, unpickles, starts, connects to, writes, renames and removes.
"""

import io
import os
import pickle
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from asynctune.errors import InvalidArgument
from asynctune.progress import Board
from asynctune.records import (
    Action,
    Decided,
    Failed,
    Finished,
    Header,
    Left,
    Record,
    Reported,
    Saved,
    Started,
    Stopping,
    Suggested,
    TrialState,
)
from asynctune.results import Result
from asynctune.rundir import CHECKPOINTS, JOURNAL, TRIALS, log_file
from asynctune.worker.checkpoint import damage, seal
from tests.pages import inert
from tests.runs import write_journal

#: Markup, an ANSI escape, line ends, marks of direction, formulas: whatever it is shown by is to take it for text.
EVIL = (
    "=cmd|' /C calc'!A0\t</script><script>alert(1)</script></title></style><img src=x onerror=alert(1)>\"'`onload=alert(1) "
    "<!--<svg/onload=alert(1)>--> ]]> &lt; ${1} {{1}} %s %n \x1b[2J\x1b]0;title\x07\x9b31m\r\n\x00\u2028\u2029\u202e\u2066\ufeff ../../x"
)
NAMES = [
    "../../outside",
    "/etc/passwd",
    "0-0-1/../../../outside",
    "0-0-1\0",
    "",
    ".",
    "~/x",
    "0-0-1\n",
]  # of checkpoints


def records(checkpoints: Iterable[str]) -> list[Record]:
    """A run in which every text is hostile, and each of `checkpoints` belongs to a trial."""
    header = Header(
        metric=EVIL, mode="max", num_trials=None, seed=0, space={EVIL: EVIL, "lr": "loguniform(1e-05, 0.1)"}, searcher=EVIL, scheduler=EVIL,
        slots=0,
    )  # fmt: skip
    run: list[Record] = [header]
    for trial, name in enumerate(checkpoints):
        config = {
            EVIL: EVIL,
            "lr": 10.0**-trial,
            "nested": {EVIL: [EVIL, {"$float": 1}, 10**18]},
            "__class__": "os.system",
        }
        run += [
            Suggested(trial=trial, config=config),
            Started(trial=trial, segment=0, step=0, until=1, slot=trial, checkpoint=name, how=EVIL),
            Reported(trial=trial, segment=0, step=1, metrics={EVIL: trial / 10, "__import__('os')": 1.0}),
            Reported(trial=trial, segment=0, step=10**18, metrics={EVIL: trial / 9}),
            Saved(trial=trial, segment=0, step=10**18, checkpoint=name),
            Decided(trial=trial, segment=0, step=10**18, action=Action.PAUSE),
            Left(trial=trial, segment=0, slot=trial, busy=-1e308, log=(-5, 2**62)),
            Started(trial=trial, segment=1, step=10**18, until=-5, slot=-1, donor=-7, config={EVIL: EVIL + "2", "lr": 0.5}, checkpoint=name, how=EVIL),
            Left(trial=trial, segment=1, slot=-1, busy=0.0, log=(2**62, -2**62)),
        ]  # fmt: skip
        if trial % 3 == 0:
            run.append(Failed(trial=trial, error=EVIL, traceback=EVIL, retry=False))
        elif trial % 3 == 1:
            run.append(Finished(trial=trial, state=TrialState.COMPLETED))
    return [*run, Stopping(reason=EVIL, failed=True)]


class Payload:
    """Unpickled, it leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.mark}'",)


def states(mark: Path) -> dict[str, dict[str, bytes]]:
    """Checkpoints, by what is wrong with their files."""
    import torch

    pickled = pickle.dumps({"state": {"counter": Payload(mark)}, "built": {}})
    saved, archive, tar, array = io.BytesIO(), io.BytesIO(), io.BytesIO(), io.BytesIO()
    torch.save({"state": {"counter": Payload(mark)}, "built": {}}, saved)
    with zipfile.ZipFile(archive, "w") as file:
        for member, data in (
            ("data.pkl", pickled),
            ("version", b"3"),
            ("constants.pkl", pickled),
            ("code/x.py", b"import os; os.abort()"),
        ):
            file.writestr(f"../../archive/{member}", data)
    with tarfile.open(fileobj=tar, mode="w") as file:
        for member in ("pickle", "storages", "tensors", "../../outside/new"):
            entry = tarfile.TarInfo(member)
            entry.size = len(pickled)
            file.addfile(entry, io.BytesIO(pickled))
    np.save(array, np.array([Payload(mark)], dtype=object), allow_pickle=True)
    packed = {"state": {"counter": msgspec.msgpack.Ext(1, array.getvalue())}, "built": {}}
    strange = {"state": {"counter": msgspec.msgpack.Ext(1, pickled)}, "built": {}}
    return {
        "0-0-1": {"state.pt": pickled},
        "1-0-1": {"state.pt": saved.getvalue()},
        "2-0-1": {"state.pt": archive.getvalue()},
        "3-0-1": {"state.pt": tar.getvalue()},
        "4-0-1": {"state.msgpack": pickled},
        "5-0-1": {"state.msgpack": msgspec.msgpack.encode(packed)},
        "6-0-1": {"state.msgpack": msgspec.msgpack.encode(strange)},
        "7-0-1": {"state.pt": b"", "__init__.py": b"import os; os.abort()", "conftest.py": b"import os; os.abort()"},
    }


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A run directory that somebody else made; beside it `outside`, which nothing may touch."""
    run_dir = tmp_path / "run"
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("secret")
    checkpoints = run_dir / CHECKPOINTS
    checkpoints.mkdir(parents=True)
    sound = states(tmp_path / "mark")
    for name, files in sound.items():
        (checkpoints / name).mkdir()
        for file, data in files.items():
            (checkpoints / name / file).write_bytes(data)
        seal(checkpoints / name, durable=False)
        assert damage(str(checkpoints / name)) is None
    (checkpoints / "8-0-1").symlink_to(outside)
    (checkpoints / "9-0-1").mkdir()
    (checkpoints / "9-0-1" / "state.pt").symlink_to(outside / "precious")
    (run_dir / TRIALS).symlink_to(outside)
    (run_dir / log_file(0)).symlink_to(outside / "precious")
    os.mkfifo(run_dir / log_file(1))
    (run_dir / log_file(2)).write_text(EVIL)
    (run_dir / "searcher.log").symlink_to(outside / "precious")
    for module in ("sitecustomize", "torch", "msgspec", "json", "asynctune"):
        (run_dir / f"{module}.py").write_text("import os; os.abort()")
    write_journal(run_dir, records([*sound, "8-0-1", "9-0-1", *NAMES]))
    return run_dir


READ = """
import contextlib, os, pickle, sys
from pathlib import Path

run_dir, out, outside, tests = map(Path, sys.argv[1:])
sys.path.insert(0, str(tests))
sys.dont_write_bytecode = True

import torch
import test_reading_a_run_executes_nothing as these
from asynctune import _wire as wire
from asynctune.errors import AsynctuneError
from asynctune.journal import read
from asynctune.results import Result
from asynctune.rundir import CHECKPOINTS, JOURNAL
from asynctune.worker.job import run_job

class Pandas:
    DataFrame = staticmethod(list)

sys.modules["pandas"] = Pandas

class Counter:
    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass

class Channel:
    def __init__(self):
        self.sent = []

    def send(self, *frames):
        self.sent += frames

    def poll(self):
        return None

def look(run_dir, out):
    result = Result.load(run_dir)
    texts = [str(result), repr(result), result.summary(), repr(result.trials)]
    board = these.Board(result.header, run_dir)
    for record in list(read(run_dir / JOURNAL))[1:]:
        if getattr(record, "slot", 0) >= 0:
            board.apply(record)
            texts += [*board.slots(), board.status(1.0)]
    texts += [text for _, text in board.lines]
    result.report(out / "report.html")
    result.to_dataframe()
    for trial in result.trials:
        for name in dir(trial):
            with contextlib.suppress(AsynctuneError):
                value = getattr(trial, name)
                if callable(value) and not name.startswith("_"):
                    value()
        with contextlib.suppress(AsynctuneError):
            hash(trial), repr(trial), trial == trial
    return texts

def restore(run_dir):
    frames = []
    for place in sorted((run_dir / CHECKPOINTS).iterdir()):
        channel = Channel()
        run = wire.Run(1, 0, 0, 0, pickle.dumps({}), "loss", 1, None, None, str(place), str(run_dir / CHECKPOINTS), None, "cpu")
        run_job(lambda trial: trial.track(counter=Counter()), run, channel)
        frames += channel.sent
    return frames

def strict(event, arguments):
    def end(why):
        os.write(2, f"{why}: {event} {arguments!r}\\n".encode("ascii", "replace"))
        os._exit(99)

    def inside(path, *directories):
        return any(os.path.abspath(os.fsdecode(path)).startswith(str(directory) + os.sep) for directory in directories)

    if event == "open":
        path, mode, flags = arguments
        writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        if isinstance(path, int):
            return
        if writes and not inside(path, out):
            end("writes")
        if inside(os.path.realpath(os.fsdecode(path)), outside):
            end("reads outside")
    elif event == "os.mkdir" and arguments[0] == os.fspath(out):
        pass  # of a report's place, which is there
    elif event == "compile":
        if arguments[1] != "<unknown>":  # ast.literal_eval, of the header of an array
            end("compiles")
    elif event.partition(".")[0] in {
        "exec", "import", "pickle", "marshal", "subprocess", "socket", "ctypes", "shutil", "tempfile", "mmap", "webbrowser", "urllib",
        "pty", "code", "fcntl", "signal", "syslog", "resource",
    } or event in {
        "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "os.spawn", "os.kill", "os.killpg", "os.remove", "os.rename",
        "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.chmod", "os.chown", "os.truncate", "os.utime", "os.putenv", "os.chdir",
        "os.setxattr", "os.mkfifo",
    }:
        end("does")

look(run_dir, out)  # once without the hook: what is imported late is there
restore(run_dir)
(out / "report.html").unlink()
sys.addaudithook(strict)
texts = look(run_dir, out)
frames = restore(run_dir)
print(these.msgspec.json.encode([texts, [[type(frame).__name__, frame.error] for frame in frames]]).decode())
"""


def everything(directory: Path) -> dict[str, Any]:
    """What lies in a directory and below, and when it was changed."""
    return {str(path): (path.lstat().st_mtime_ns, path.lstat().st_size) for path in sorted(directory.rglob("*"))}


def test_a_hostile_run_directory_executes_something_or_is_left(hostile: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    before = everything(hostile) | everything(tmp_path / "outside")
    reader = subprocess.run(
        [sys.executable, "-c", READ, *map(str, (hostile, out, tmp_path / "outside", Path(__file__).parent))],
        cwd=hostile, env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent), "PYTHONSAFEPATH": "1"},
        capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip
    assert reader.returncode == 0, reader.stderr[-5000:]
    assert everything(hostile) | everything(tmp_path / "outside") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "outside", "run"], "something has left its mark"
    assert [path.name for path in out.iterdir()] == ["report.html"]
    texts, frames = msgspec.json.decode(reader.stdout)
    for text in texts:
        assert text.replace("\n", "").isprintable(), f"this steers a terminal: {text!r}"
    assert [kind for kind, _ in frames] == ["Error"] * 8 + ["Lost"] * 2
    assert frames[8][1] == "it is a link"
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "alert(1)" in page, "the hostile text is not there at all"
    inert(page)


def test_a_pipe_in_place_of_the_journal_is_waited_for(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    os.mkfifo(tmp_path / "run" / JOURNAL)
    with pytest.raises(InvalidArgument, match="run_dir must hold a run"):
        Result.load(tmp_path / "run")


def test_a_report_into_a_hostile_directory_overwrites_what_a_link_leads_to(hostile: Path, tmp_path: Path) -> None:
    (hostile / "report.html").symlink_to(tmp_path / "outside" / "precious")
    with pytest.raises(InvalidArgument, match="must not be a symbolic link"):
        Result.load(hostile).report(hostile / "report.html")
    assert (tmp_path / "outside" / "precious").read_text() == "secret"


def test_a_board_is_steered_by_what_it_shows(tmp_path: Path) -> None:
    header, *rest = records(["0-0-1", "1-0-1"])
    assert isinstance(header, Header)
    board = Board(header, tmp_path)
    for record in rest:
        if getattr(record, "slot", 0) >= 0:
            board.apply(record)
        assert board.status(3.0).isprintable()
        assert all(text.isprintable() for _, text in board.lines)
        assert all(text.isprintable() for text in board.slots())
