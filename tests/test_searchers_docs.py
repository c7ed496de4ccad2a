"""What docs/searchers.md shows is run as it stands there."""

from pathlib import Path

import pytest

import asynctune as at
from asynctune.searchers import Searcher
from tests.documents import blocks, read
from tests.methods import SEARCHERS

TEXT = read("docs/searchers.md")
INTRODUCTION, *SECTIONS = TEXT.split("\n## ")
BEGINNING, *_ = blocks(INTRODUCTION)
BY_NAME = {section.partition("\n")[0]: section for section in SECTIONS}


@pytest.mark.parametrize("name", BY_NAME)
def test_an_example_does_not_run_as_pasted(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    [code] = blocks(BY_NAME[name])
    names: dict[str, object] = {"__name__": "__main__"}
    exec(BEGINNING, names)
    exec(code, names)
    assert isinstance(names["result"], at.Result)


def test_a_searcher_has_no_section() -> None:
    names = BY_NAME.keys() - {"What is known already"}
    assert {name.lower() for name in names} == SEARCHERS.keys()
    assert all(issubclass(getattr(at, name), Searcher) for name in names)
