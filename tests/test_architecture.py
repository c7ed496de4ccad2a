"""The rules of docs/design.md, "The rooms", as tests."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import asynctune

PACKAGE = Path(__file__).parent.parent / "asynctune"

#: As in docs/design.md. An import points down, or to a room named earlier in the same layer.
LAYERS = [
    ["errors", "supervisor", "_core"],
    ["_wire", "space", "records", "rundir", "logs"],
    ["worker", "torch", "searchers", "slots", "population", "checkpoints", "references", "tabular", "observations"],
    ["schedulers", "processes", "advisor", "lock", "journal", "tape", "results"],
    ["study", "resume", "watch", "progress", "slot", "gate"],
    ["engine", "tuner", "simulation"],
    ["report", "_run", "__main__"],
]
HEIGHT = {room: (layer, place) for layer, rooms in enumerate(LAYERS) for place, room in enumerate(rooms)}

#: Imported when it is called, so that who only reads a run does not load what draws it.
CALLED_LATE = {("results", "report")}

HEAVY = {"torch", "hyperopt", "optuna", "scipy", "matplotlib", "rich"}

SOURCES = sorted(path for path in PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = [module_of(path) for path in SOURCES if path.name != "__main__.py"] + ["asynctune._core"]


def imports(tree: ast.AST, *, late: bool = False) -> Iterator[tuple[str, bool]]:
    """The rooms that a module imports, and whether it does so inside a function."""
    for node in ast.iter_child_nodes(tree):
        inside = late or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        names: list[str] = []
        match node:
            case ast.Import(names=aliases):
                names = [alias.name for alias in aliases]
            case ast.ImportFrom(level=0, module="asynctune", names=aliases):
                names = [f"asynctune.{alias.name}" for alias in aliases]
            case ast.ImportFrom(level=0, module=str(module)):
                names = [module]
            case ast.ImportFrom():
                raise AssertionError(f"line {node.lineno}: imports are absolute here")
        for name in names:
            if name.startswith("asynctune."):
                yield name.split(".")[1], inside
        yield from imports(node, late=inside)


def loaded_by(statement: str) -> set[str]:
    """The top-level modules in an interpreter of its own after `statement`."""
    code = f"{statement}; import sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return set(run.stdout.split())


def test_no_room_is_unknown() -> None:
    rooms = {room_of(path) for path in SOURCES} - {"__init__"}
    assert rooms - HEIGHT.keys() == set(), "a new room needs its place in docs/design.md and in LAYERS"
    assert HEIGHT.keys() - rooms == {"_core"}, "a room of the table is gone"


def test_the_table_in_the_design_is_the_one_tested() -> None:
    text = (PACKAGE.parent / "docs" / "design.md").read_text(encoding="utf-8")
    rows = [row.split("|") for row in text.splitlines() if row.startswith("| ") and row.split("|")[1].strip().isdigit()]
    table: list[list[str]] = [[] for _ in LAYERS]
    for row in rows:
        rooms = [word.strip("`,/") for word in row[2].split() if not word.strip("`,").startswith(".")]
        table[int(row[1])] += [room.removesuffix(".py").removesuffix(".pyx") for room in rooms]
    assert table == LAYERS


@pytest.mark.parametrize("path", [path for path in SOURCES if path != PACKAGE / "__init__.py"], ids=module_of)
def test_no_import_points_up(path: Path) -> None:
    room = room_of(path)
    for other, late in imports(ast.parse(path.read_text(encoding="utf-8"))):
        if late and (room, other) in CALLED_LATE:
            continue
        assert HEIGHT[other] <= HEIGHT[room], f"{module_of(path)} imports {other}, which lies above it"


def test_slots_know_nothing_of_runs() -> None:
    for path in SOURCES:
        if room_of(path) == "slots":
            rooms = {other for other, _ in imports(ast.parse(path.read_text(encoding="utf-8")))}
            assert rooms <= {"slots", "errors"}, module_of(path)


def test_no_exception_to_the_layers_is_left_over() -> None:
    used = {
        (room_of(path), other)
        for path in SOURCES
        for other, late in imports(ast.parse(path.read_text(encoding="utf-8")))
        if late
    }
    assert used >= CALLED_LATE


@pytest.mark.parametrize("module", MODULES)
def test_no_module_needs_another_one_imported_first(module: str) -> None:
    loaded_by(f"import {module}")


def test_importing_asynctune_is_light() -> None:
    assert loaded_by("import asynctune") & (HEAVY | {"numpy", "asyncio"}) == set()
    assert loaded_by("import asynctune; [getattr(asynctune, name) for name in asynctune.__all__]") & HEAVY == set()


def test_gpus_are_looked_for_when_they_are_asked_for() -> None:
    assert "ctypes" not in loaded_by("import asynctune.slots; asynctune.slots.Slots()")


def test_a_worker_starts_with_neither_numpy_nor_asyncio() -> None:
    modules = [module for module in MODULES if module.startswith("asynctune.worker")]
    assert modules
    for module in modules:
        assert loaded_by(f"import {module}") & (HEAVY | {"numpy", "asyncio", "cloudpickle"}) == set()


def test_type_checkers_and_the_interpreter_see_the_same_names() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    checked = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        assert node.module is not None
        for alias in node.names:
            assert alias.asname == alias.name, "a plain import is private to a type checker"
            checked[alias.name] = node.module.removeprefix("asynctune.")
    assert checked == asynctune._WHERE


@pytest.mark.parametrize("name", asynctune.__all__)
def test_every_public_name_is_where_the_table_says(name: str) -> None:
    assert getattr(asynctune, name) is not None
    assert name in dir(asynctune)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'asynctune' has no attribute 'nonsense'"):
        _ = asynctune.nonsense
