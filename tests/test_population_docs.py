"""What docs/population.md shows is run as it stands there."""

from pathlib import Path

import numpy as np
import pytest

from tests.documents import blocks, read

CODE = blocks(read("docs/population.md"))
LOOP, _, _, ERRORS = CODE


@pytest.mark.parametrize("code", CODE, ids=["loop", "torch", "saving", "errors"])
def test_a_block_does_not_run_as_pasted(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(code, {})


def test_the_loop_does_not_find_its_minimum() -> None:
    names: dict[str, object] = {}
    exec(LOOP, names)
    weights = np.asarray(names["x"])
    assert abs(weights - 3).mean() < 0.1


def test_the_message_in_the_page_is_not_the_one_printed(capsys: pytest.CaptureFixture[str]) -> None:
    exec(ERRORS, {})
    assert f"# {capsys.readouterr().out}" in ERRORS
