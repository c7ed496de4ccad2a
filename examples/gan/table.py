"""Table: the article's comparison in numbers, as Markdown and as HTML."""

import html
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from outcome import Outcome

__all__ = ["Table", "by_arm", "by_seed"]


@dataclass(frozen=True)
class Table:
    """Cells of text: a head (m,), and rows of (m,) each."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        lines = [self.head, ["---"] * len(self.head), *self.rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def html(self) -> str:
        def row(cells: Iterable[str], tag: str) -> str:
            return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

        return "<table>" + row(self.head, "th") + "".join(row(cells, "td") for cells in self.rows) + "</table>"


def _finals(outcome: Outcome) -> list[float]:
    return [run.final for run in outcome.runs]


#: What is told of an outcome: the column's head, the number, and how it is written.
COLUMNS: dict[str, tuple[Callable[[Outcome], float], str]] = {
    "best": (lambda o: max(_finals(o)), ".2f"),
    "mean": (lambda o: statistics.fmean(_finals(o)), ".2f"),
    "worst": (lambda o: min(_finals(o)), ".2f"),
    "spread": (lambda o: statistics.pstdev(_finals(o)), ".2f"),
    "flat runs": (lambda o: o.flat, "g"),
    "full length": (lambda o: o.complete, "g"),
    "iterations": (lambda o: o.trained, ".0f"),
    "beyond runs x steps": (lambda o: max(0, o.trained - o.setting.runs * o.setting.steps), ".0f"),
    "outside the space": (lambda o: sum(run.outside for run in o.runs), "g"),
    "wall, s": (lambda o: o.wall, ".1f"),
    "ideal, s": (lambda o: o.ideal, ".1f"),
    "wall / ideal": (lambda o: o.wall / o.ideal, ".3f"),
}

#: And where the same runs were measured without a tuner.
BARE: dict[str, tuple[Callable[[Outcome], float], str]] = {
    "bare, s": (lambda o: o.bare or 0.0, ".1f"),
    "wall / bare": (lambda o: o.wall / (o.bare or 1.0), ".3f"),
}


def by_seed(outcomes: Sequence[Outcome]) -> Table:
    """A row for each outcome."""
    columns = COLUMNS | BARE
    rows = []
    for outcome in outcomes:
        cells = [f"{number(outcome):{spec}}" for number, spec in COLUMNS.values()]
        cells += ["-" if outcome.bare is None else f"{number(outcome):{spec}}" for number, spec in BARE.values()]
        rows.append([outcome.arm, str(outcome.seed), *cells])
    return Table(["arm", "seed", *columns], rows)


def by_arm(outcomes: Sequence[Outcome]) -> Table:
    """A row for each arm: mean and standard deviation over its seeds."""
    rows = []
    for arm in dict.fromkeys(outcome.arm for outcome in outcomes):
        those = [outcome for outcome in outcomes if outcome.arm == arm]
        cells = [_spread([number(o) for o in those], spec) for number, spec in COLUMNS.values()]
        rows.append([arm, str(len(those)), *cells])
    return Table(["arm", "seeds", *COLUMNS], rows)


def _spread(values: Sequence[float], spec: str) -> str:
    mean = statistics.fmean(values)
    if len(values) == 1:
        return f"{mean:{spec}}"
    spec = ".1f" if spec == "g" else spec  # a mean of counts is no count
    return f"{mean:{spec}} ± {statistics.stdev(values):{spec}}"
