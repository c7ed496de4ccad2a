"""What docs/simulation.md shows is run as it stands there."""

from pathlib import Path

import pytest

from tests.documents import blocks, read

CODE = blocks(read("docs/simulation.md"))


@pytest.mark.parametrize("code", CODE, ids=range(len(CODE)))
def test_a_block_does_not_run_as_pasted(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(code, {"__name__": "__main__"})


def test_blocks_are_not_found() -> None:
    assert len(CODE) == 4
