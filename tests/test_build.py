"""Build: the variants of the extension find what they are for, and its hot loops are free of Python."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CORE = ROOT / "asynctune" / "_core.pyx"


def build(tree: Path, **environment: str) -> None:
    """Run setup.py of a tree."""
    environment = os.environ | {"ASYNCTUNE_DEBUG": "0", "ASYNCTUNE_SANITIZE": "0"} | environment
    command = [sys.executable, "setup.py", "--quiet", "build_ext"]
    run = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def cythonized(tree: Path) -> str:
    """The C that Cython makes of a tree's core. No compiler takes part."""
    build(tree, CC="true", LDSHARED="true")
    return (tree / "build" / "release" / "asynctune" / "_core.c").read_text(encoding="utf-8")


def tree_of(place: Path, source: str | None = None) -> Path:
    """What setup.py needs, with the core's source or another."""
    (place / "asynctune").mkdir(parents=True)
    shutil.copy(ROOT / "setup.py", place)
    if source is None:
        for path in (CORE, CORE.with_suffix(".pxd")):
            shutil.copy(path, place / "asynctune")
    else:
        (place / "asynctune" / "_core.pyx").write_text(source, encoding="utf-8")
    return place


# Hot loops.


def hot_lines(source: str) -> set[int]:
    """The numbers of the lines that run without the GIL: in `with nogil` blocks, and in functions declared `nogil`.

    Left out are errors, which may take the GIL: `raise`, with `with gil` around it or not.
    """
    hot: set[int] = set()
    lines = source.splitlines()
    without: int | None = None  # the indentation of what begins the region
    error: int | None = None  # that of a `raise`
    for number, line in enumerate(lines, 1):
        indent, text = len(line) - len(line.lstrip()), line.strip()
        if not text:
            continue
        if without is not None and indent <= without:
            without = None
        if error is not None and (indent < error or (indent == error and text not in (")", "]", "}"))):
            error = None
        if text.startswith("raise") and error is None:
            error = indent
        raises = error is not None or (text == "with gil:" and lines[number].strip().startswith("raise"))
        if without is not None and not raises:
            hot.add(number)
        if without is None and re.search(r"\bnogil:$", text):
            without = indent
    return hot


def python_in(source: str, name: str, c: str) -> list[str]:
    """The hot lines of a file whose C calls Python.

    Cython writes the place above what it makes of a line. The score in its annotation will not do: it leaves out the GIL
    that is taken after a call of a function without `noexcept`.
    """
    hot, lines = hot_lines(source), source.splitlines()
    found = set()
    _, *parts = re.split(r'/\* "([^"\n]+)":(\d+)\n.*?\*/', c, flags=re.DOTALL)
    for file, number, code in zip(parts[::3], map(int, parts[1::3]), parts[2::3], strict=True):
        if file == f"asynctune/{name}" and number in hot and re.search(r"\b(_?Py[A-Z]|__Pyx_)\w*\(", code):
            found.add(number)
    return [lines[number - 1].strip() for number in sorted(found)]


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> str:
    return cythonized(tree_of(tmp_path_factory.mktemp("core")))


@pytest.mark.parametrize("path", [CORE, CORE.with_suffix(".pxd")], ids=lambda path: path.name)
def test_python_in_a_hot_loop(path: Path, core: str) -> None:
    assert python_in(path.read_text(encoding="utf-8"), path.name, core) == []


def test_hot_loop_holds_the_gil() -> None:
    source = CORE.read_text(encoding="utf-8")
    functions = re.split(r"^(?=    def |    cdef |def |cdef )", source, flags=re.MULTILINE)
    named = {match[1]: bool(hot_lines(text)) for text in functions if (match := re.match(r" *def (\w+_many)\(", text))}
    assert named and all(named.values()), f"all of these should let the GIL go: {named}"


COLD = """
cdef double half(double x) nogil:
    return x / 2

cdef void note(double x) nogil:
    pass

def total(double x, list seen):
    cdef int i
    with nogil:
        for i in range(9):
            x += i
            x += half(x)
            note(x)
            if x < 0:
                with gil:
                    raise ValueError(
                        f"{x}"
                    )
            with gil:
                seen.append(x)
    return x
"""


def test_python_in_a_hot_loop_goes_unseen(tmp_path: Path) -> None:
    c = cythonized(tree_of(tmp_path, COLD))
    assert python_in(COLD, CORE.name, c) == ["x += half(x)", "note(x)", "with gil:", "seen.append(x)"]


# Variants.

CARELESS = """
cdef class Box:
    cdef int size

def element(const double[::1] array, Py_ssize_t i):
    return array[i]

def of_none(Box box):
    return box.size

def unset(bint never):
    cdef double[::1] array
    if never:
        array = None
    return array[0]
"""

UNDEFINED = """
from libc.stdlib cimport malloc

cdef char *room = <char *> malloc(8)

def beyond(Py_ssize_t i):
    room[i] = 1

def overflow(int x):
    return x + 1

def cast(double x):
    return <int> x
"""


@pytest.fixture(scope="module")
def debug(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tree = tree_of(tmp_path_factory.mktemp("debug"), CARELESS)
    build(tree, ASYNCTUNE_DEBUG="1")
    return tree


@pytest.fixture(scope="module")
def libasan() -> str:
    """The runtime that must be loaded before everything else, since no Python is built with it."""
    if not shutil.which("gcc"):
        pytest.skip("needs gcc")
    found = subprocess.run(["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True).stdout
    if not Path(found).is_absolute():
        pytest.skip("needs libasan")
    return found.strip()


@pytest.fixture(scope="module")
def sanitized(libasan: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    tree = tree_of(tmp_path_factory.mktemp("sanitized"), UNDEFINED)
    build(tree, ASYNCTUNE_SANITIZE="1")
    return tree


def failure(library: Path, statement: str, **environment: str) -> str:
    """What a statement that must not go well prints on stderr, in a process of its own."""
    code = f"import array, sys; from asynctune import _core; {statement}"
    environment = os.environ | {"PYTHONPATH": str(library)} | environment
    command = [sys.executable, "-P", "-c", code]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode, f"{statement} went well"
    return run.stderr


@pytest.mark.parametrize(
    ("statement", "error"),
    [
        ("_core.element(array.array('d', [1, 2]), 2)", "IndexError"),
        ("_core.of_none(None)", "AttributeError"),
        ("_core.unset(False)", "UnboundLocalError"),
        ("sys.settrace(lambda frame, *_: sys.exit(frame.f_code.co_filename)); _core.of_none(None)", "_core.pyx"),
    ],
)
def test_debug_build_overlooks_what_it_is_for(debug: Path, statement: str, error: str) -> None:
    assert error in failure(debug / "build" / "debug" / "lib", statement)


@pytest.mark.parametrize(
    ("statement", "error"),
    [
        ("_core.beyond(8)", "heap-buffer-overflow"),
        ("_core.beyond(-1)", "heap-buffer-overflow"),
        ("_core.overflow(2**31 - 1)", "signed integer overflow"),
        ("_core.cast(1e300)", "outside the range of representable values"),
    ],
)
def test_sanitizers_overlook_what_they_are_for(sanitized: Path, libasan: str, statement: str, error: str) -> None:
    library = sanitized / "build" / "asan" / "lib"
    assert error in failure(library, statement, LD_PRELOAD=libasan, ASAN_OPTIONS="detect_leaks=0")


def test_release_is_made_of_the_debug_builds_c(debug: Path) -> None:
    checked = (debug / "build" / "debug" / "asynctune" / "_core.c").read_text(encoding="utf-8")
    assert "__Pyx_RaiseBufferIndexError(" in checked
    assert "__Pyx_RaiseBufferIndexError(" not in cythonized(debug)


def test_free_threading_is_declared_before_it_is_tested(core: str) -> None:
    # Once, for an option of the C compiler that nobody sets.
    assert core.count("Py_MOD_GIL_NOT_USED") == 1
    assert "Free Threading" not in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
