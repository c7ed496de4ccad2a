"""What docs/torch.md shows is run as it stands there."""

from pathlib import Path

import pytest

import asynctune as at
from tests.documents import blocks, read

CODE = blocks(read("docs/torch.md"))


@pytest.mark.slow
@pytest.mark.parametrize("code", CODE, ids=["distributed", "shared", "loader"])
def test_a_block_does_not_run_as_pasted(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    exec(code, names)
    result = names["result"]
    assert isinstance(result, at.Result)
    assert [trial.error for trial in result.trials] == [None] * len(result.trials)
