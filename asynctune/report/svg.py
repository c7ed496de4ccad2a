"""SVG: plots as text, drawn by the few rules that a report needs. All text that comes in is escaped here."""

import html
import math
import sys
from collections.abc import Iterable, Sequence
from typing import Protocol

from asynctune.results import printable

__all__ = ["Categories", "Linear", "Log", "Plot", "Scale", "escape"]

LEFT, RIGHT, TOP, BOTTOM = 58, 14, 10, 40  # margins around the plotting area, in the units of the view box


def escape(text: object) -> str:
    """Text for a page, in an element or in a quoted attribute; no markup, no control characters."""
    return html.escape(printable(str(text)))


class Scale(Protocol):
    """Maps values to [0, 1]."""

    def at(self, value: object) -> float: ...
    def ticks(self) -> Sequence[tuple[float, str]]:
        """Where in [0, 1], and what to write there."""
        ...


class Linear:
    """From low to high, with some room at both ends; `whole`: only integers are worth a tick."""

    def __init__(self, low: float, high: float, *, whole: bool = False) -> None:
        self._finest = 1.0 if whole else 0.0
        low, high = max(low, -1e300), min(high, 1e300)  # the span of all that is finite is not
        room = 0.04 * (high - low)
        if room <= 1e-13 * max(abs(low), abs(high), 1e-280):  # one value, but for rounding
            room = 0.5 * max(abs(low), 1.0)
        self._low, self._span = low - room, high - low + 2 * room

    def at(self, value: object) -> float:
        assert isinstance(value, int | float)
        value = min(max(value, -sys.float_info.max), sys.float_info.max)  # an integer may be beyond
        return min(max((value - self._low) / self._span, -9.0), 10.0)  # far outside is far enough

    def ticks(self) -> Sequence[tuple[float, str]]:
        raw = max(self._span / 6.5, self._finest)
        decade = 10.0 ** math.floor(math.log10(raw))
        step = next(decade * factor for factor in (1, 2, 5, 10) if decade * factor >= raw)
        first = math.ceil(self._low / step)
        last = math.floor((self._low + self._span) / step)
        return [(self.at(i * step), f"{i * step:.6g}") for i in range(first, last + 1)]


class Log:
    """Logarithmic from low to high, 0 < low <= high."""

    def __init__(self, low: float, high: float) -> None:
        self._inner = Linear(math.log10(low), math.log10(high))
        self._decades = math.log10(high / low)
        self._low, self._high = low, high

    def at(self, value: object) -> float:
        assert isinstance(value, int | float)
        return self._inner.at(math.log10(value))

    def ticks(self) -> Sequence[tuple[float, str]]:
        every = max(1, round(self._decades / 5))
        factors = (1,) if self._decades > 2 else (1, 2, 5)
        first, last = math.floor(math.log10(self._low)), math.ceil(math.log10(self._high))
        marks = ((self.at(m * 10.0**e), f"{m * 10.0**e:g}") for e in range(first, last + 1, every) for m in factors)
        return [mark for mark in marks if 0 <= mark[0] <= 1]


class Categories:
    """Values side by side, in the order given."""

    def __init__(self, values: Iterable[object]) -> None:
        self._names = [str(value) for value in values]
        self._places = {name: (i + 0.5) / len(self._names) for i, name in enumerate(self._names)}

    def at(self, value: object) -> float:
        return self._places[str(value)]

    def ticks(self) -> Sequence[tuple[float, str]]:
        length = max(4, 48 // len(self._names))
        return [(self._places[name], name if len(name) <= length else name[: length - 1] + "…") for name in self._names]


class Plot:
    """One set of axes. Marks are added in the order in which they cover each other; `str` makes the SVG element.

    `css` is a class of the page's style sheet; `title` is what a mouse over the mark shows.
    """

    def __init__(self, x: Scale, y: Scale, x_label: str, y_label: str, *, width: int, height: int) -> None:
        self._x, self._y = x, y
        self._labels = x_label, y_label
        self._width, self._height = width, height
        self._marks: list[str] = []

    def line(self, points: Iterable[tuple[object, object]], css: str, title: str) -> None:
        """Straight from point to point."""
        path = " ".join(f"{self._left(x):.1f},{self._top(y):.1f}" for x, y in points)
        self._marks.append(f'<polyline class="{css}" points="{path}"><title>{escape(title)}</title></polyline>')

    def dot(self, x: object, y: object, css: str, title: str, *, radius: float = 3.5) -> None:
        self._marks.append(
            f'<circle class="{css}" cx="{self._left(x):.1f}" cy="{self._top(y):.1f}" r="{radius}">'
            f"<title>{escape(title)}</title></circle>"
        )

    def __str__(self) -> str:
        width, height = self._width, self._height
        right, bottom = width - RIGHT, height - BOTTOM
        grid, texts = [], []
        for place, name in self._y.ticks():
            y = bottom - place * (bottom - TOP)
            grid.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
            texts.append(f'<text x="{LEFT - 7}" y="{y + 3.5:.1f}" text-anchor="end">{escape(name)}</text>')
        for place, name in self._x.ticks():
            x = LEFT + place * (right - LEFT)
            texts.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{escape(name)}</text>')
        middle = (TOP + bottom) / 2
        x_label, y_label = map(escape, self._labels)
        texts.append(
            f'<text class="label" x="{(LEFT + right) / 2}" y="{height - 6}" text-anchor="middle">{x_label}</text>'
        )
        texts.append(
            f'<text class="label" x="12" y="{middle}" text-anchor="middle" transform="rotate(-90 12 {middle})">'
            f"{y_label}</text>"
        )
        return (
            f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{y_label} against {x_label}">{"".join(grid)}'
            f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>'
            f'<svg class="area" x="{LEFT}" y="{TOP}" width="{right - LEFT}" height="{bottom - TOP}" '
            f'viewBox="{LEFT} {TOP} {right - LEFT} {bottom - TOP}">{"".join(self._marks)}</svg>{"".join(texts)}</svg>'
        )

    def _left(self, value: object) -> float:
        return LEFT + self._x.at(value) * (self._width - RIGHT - LEFT)

    def _top(self, value: object) -> float:
        bottom = self._height - BOTTOM
        return bottom - self._y.at(value) * (bottom - TOP)
