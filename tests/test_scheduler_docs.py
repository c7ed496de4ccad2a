"""What docs/schedulers.md shows is run as it stands there."""

import re
from pathlib import Path

import pytest

import asynctune as at
from asynctune.schedulers import Scheduler
from tests.documents import blocks, read

PAGE = read("docs/schedulers.md")
SECTIONS = re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
CODE = {title: blocks(text) for title, text in SECTIONS}


@pytest.mark.parametrize("title", CODE)
def test_a_block_does_not_run_as_pasted(
    title: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    [code] = CODE[title]
    exec(code, {"__name__": "__main__"})
    printed = capsys.readouterr().out
    assert printed
    for said in re.findall(r"print\(.*\)  # (.*)", code):
        assert said in printed


def test_a_scheduler_has_no_section() -> None:
    public = {name: getattr(at, name) for name in at.__all__}
    schedulers = {name for name, what in public.items() if isinstance(what, type) and issubclass(what, Scheduler)}
    assert "Hyperband" in schedulers
    assert schedulers - set(re.findall(r"`at\.(\w+)", PAGE)) == set()


@pytest.mark.parametrize(("title", "text"), SECTIONS, ids=CODE)
def test_a_section_does_not_say_rule_source_and_when(title: str, text: str) -> None:
    assert all(f"*{word}.*" in text for word in ("Rule", "Source", "When"))
