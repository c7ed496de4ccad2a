"""A run's page as a browser takes it apart, and what every such page must be: inert."""

import base64
import hashlib
import re
from html.parser import HTMLParser

from asynctune.report.style import SCRIPT

__all__ = ["Page", "inert"]

ELEMENTS = re.compile(
    r"html|head|meta|title|style|body|main|h[123]|div|b|p|section|dl|dt|dd|figure|svg|line|text|polyline|circle|span|i"
    r"|table|thead|tbody|tr|th|td|script"
)


class Page(HTMLParser):
    """The elements of a page, each with its attributes, its text and its script."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.script = ""
        self._inside = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.script += data
        elif self._inside != "style":
            self.words.append(data)

    def handle_comment(self, data: str) -> None:
        raise AssertionError("a comment that nobody wrote")

    @property
    def text(self) -> str:
        return " ".join(self.words)


def inert(page: str) -> Page:
    """The page, of which nothing runs but its own script, and which loads nothing."""
    parsed = Page(page)
    for tag, attributes in parsed.elements:
        assert ELEMENTS.fullmatch(tag)
        assert not any(name.startswith("on") for name in attributes)
        assert {"href", "src", "srcdoc", "style", "action", "xlink:href"}.isdisjoint(attributes)
    assert [tag for tag, _ in parsed.elements].count("script") == 1
    assert parsed.script == SCRIPT
    [policy] = [attributes["content"] or "" for _, attributes in parsed.elements if "http-equiv" in attributes]
    assert dict(rule.strip().split(" ", 1) for rule in policy.split(";")) == {
        "default-src": "'none'",
        "script-src": f"'sha256-{base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()}'",
        "style-src": "'unsafe-inline'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    assert "url(" not in page
    assert page.replace("\n", "").isprintable()
    return parsed
