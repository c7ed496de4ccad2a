"""What docs/searchers.md shows is run as it stands there."""

import re
from pathlib import Path

import pytest

import asynctune as at
from asynctune.searchers import Searcher
from tests.methods import SEARCHERS

TEXT = (Path(__file__).parent.parent / "docs" / "searchers.md").read_text(encoding="utf-8")
INTRODUCTION, *SECTIONS = TEXT.split("\n## ")
BEGINNING, *_ = re.findall(r"```python\n(.*?)```", INTRODUCTION, re.DOTALL)
BY_NAME = {section.partition("\n")[0]: section for section in SECTIONS}


@pytest.mark.parametrize("name", BY_NAME)
def test_an_example_does_not_run_as_pasted(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    [code] = re.findall(r"```python\n(.*?)```", BY_NAME[name], re.DOTALL)
    names: dict[str, object] = {"__name__": "__main__"}
    exec(BEGINNING, names)
    exec(code, names)
    assert isinstance(names["result"], at.Result)


def test_a_searcher_has_no_section() -> None:
    names = BY_NAME.keys() - {"What is known already"}
    assert {name.lower() for name in names} == SEARCHERS.keys()
    assert all(issubclass(getattr(at, name), Searcher) for name in names)
