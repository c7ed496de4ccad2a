"""Documents: the examples that they show."""

import re
from pathlib import Path

__all__ = ["ROOT", "blocks", "read"]

ROOT = Path(__file__).parent.parent


def read(name: str) -> str:
    """A document's text, by its path in the project."""
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(text: str) -> list[str]:
    """Its blocks of Python, in order."""
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)
