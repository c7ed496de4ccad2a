"""Page: what a report says, and in which order."""

import base64
import functools
import hashlib
import math
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from asynctune.errors import AsynctuneError
from asynctune.records import TrialState
from asynctune.report.style import SCRIPT, STYLE
from asynctune.report.svg import Categories, Linear, Log, Plot, Scale, escape
from asynctune.results import Result, TrialResult, flat

__all__ = ["render"]

CURVES = 300  # trials that a figure draws at most: the best ones
POINTS = 200  # points of a curve at most, evenly spread, the first and the last among them
ROWS = 1000  # of the table at most: the best trials
SHADES = 7  # of the colour that says how good a trial is: classes .v0 (worst) to .v6 of the style sheet

Value = Any  # of a hyperparameter


def render(result: Result) -> str:
    """The page of `result`, as HTML. Every text of the run is escaped, nothing is loaded from elsewhere.

    Figures draw the 300 best trials with 200 points each at most, the table has the 1000 best; the page says so where
    that leaves something out.
    """
    view = _View(result)
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(result.metric)}: an asynctune run</title><style>{STYLE}</style></head><body><main>"
        + "".join(section(view) for section in (_summary, _curves, _hyperparameters, _moves, _table))
        + f"</main><script>{SCRIPT}</script></body></html>\n"
    )


class _View:
    """The run as its figures need it: the best trials, each with its shade; hyperparameters with their scales.

    Attributes:
        ranked: the ROWS best trials, from best to worst; those that failed come last.
        reported: the CURVES best of those with a value, `num_reported` in all.
        scored: the CURVES best of those with a finite value, and the value; `num_scored` in all.
    """

    def __init__(self, result: Result) -> None:
        self.result = result
        trials = result.trials
        self._sign = 1.0 if result.mode == "max" else -1.0
        scores = self._sign * np.asarray(trials.values)
        finite = np.isfinite(scores)
        order = np.lexsort((np.where(finite, -scores, np.inf), np.asarray(trials.states) == TrialState.FAILED))
        reported, scored = order[np.asarray(trials.valued)[order] == 1], order[finite[order]]
        trial = functools.cache(trials.__getitem__)  # one view of each, which reads the journal once
        self.ranked = [trial(number) for number in order[:ROWS].tolist()]
        self.reported = [trial(number) for number in reported[:CURVES].tolist()]
        self.scored = [(trial(number), trials.values[number]) for number in scored[:CURVES].tolist()]
        self.num_reported, self.num_scored = len(reported), len(scored)
        self._levels = np.sort(scores[finite])
        try:
            self.best: TrialResult | None = result.best
        except AsynctuneError as error:
            self.best = None
            self.why_no_best = str(error)

    def css(self, trial: TrialResult) -> str:
        """The class of a trial: its value's rank, so that one outlier does not make all others look alike."""
        if trial == self.best:
            return "best"
        if trial.value is None or not math.isfinite(trial.value):
            return "none"
        place = self._levels.searchsorted(self._sign * trial.value) / max(1, len(self._levels) - 1)
        return f"v{min(SHADES - 1, int(place * SHADES))}"

    def hyperparameters(self, *, moved: bool = False) -> dict[str, Scale]:
        """Those that took more than one value (`moved`: in one trial), each with the scale of its domain."""
        values: dict[str, dict[str, Value]] = {}  # name -> text -> value: options may be lists, which have no hash
        wanted: set[str] = set()
        for trial, _ in self.scored:
            own: set[tuple[str, str]] = set()
            for segment in trial.lineage:
                for name, value in flat(segment.config).items():
                    values.setdefault(name, {})[str(value)] = value
                    own.add((name, str(value)))
            wanted |= {name for name, count in Counter(name for name, _ in own).items() if count > 1}
        if not moved:
            wanted = {name for name, seen in values.items() if len(seen) > 1}
        space = self.result.header.space
        return {
            name: _scale(list(seen.values()), space.get(name, "")) for name, seen in values.items() if name in wanted
        }


def _scale(values: Sequence[Value], domain: str) -> Scale:
    numbers = all(type(value) in (int, float) and abs(value) <= sys.float_info.max for value in values)
    if not numbers or domain.startswith(("choice", "ordinal")):
        return Categories(sorted(values) if numbers else values)
    low, high = min(values), max(values)
    return (
        Log(low, high)
        if domain.startswith(("log", "qlog")) and low > 0
        else Linear(low, high, whole=all(type(value) is int for value in values))
    )


def _value_scale(values: Iterable[float], keep: Iterable[float]) -> tuple[Linear, bool]:
    """A scale for scores, and whether it leaves some out: the outer 2 % where they would flatten all the others."""
    finite = sorted(value for value in values if math.isfinite(value))
    if not finite:
        return Linear(0.0, 1.0), False
    low, high = finite[len(finite) // 50], finite[-1 - len(finite) // 50]
    low, high = min([low, *keep]), max([high, *keep])
    if finite[-1] - finite[0] <= 5 * (high - low):
        return Linear(finite[0], finite[-1]), False
    return Linear(low, high), True


# ---------------------------------------------------------------------------------------------- sections


def _summary(view: _View) -> str:
    result = view.result
    best = view.best
    tiles = [
        ("best " + result.metric, "none" if best is None else f"{best.value:.5g}"),
        ("trials", str(len(result.trials))),
        ("wall time", _seconds(result.wall)),
    ]
    if result.startup is not None:
        tiles.append(("to the first step of user code", _seconds(result.startup)))
    if result.wall > 0 and result.header.slots > 0:
        busy = sum(result.trials.busy) / (result.wall * result.header.slots)
        tiles.append((f"of {result.header.slots} slots' time in user code", f"{busy:.0%}"))
    facts = [
        ("searcher", result.header.searcher),
        ("scheduler", result.header.scheduler),
        ("seed", result.header.seed),
        ("metric", f"{result.metric}, {result.mode}"),
        ("trials", result.ending()),
        ("run directory", "none, it was simulated" if result.run_dir is None else result.run_dir),
    ]
    if result.stopping is not None:
        facts.append(("ended early", result.stopping))
    if best is None:
        chosen = f"<p>{escape(view.why_no_best)}</p>"
    else:
        chosen = f"<h3>Trial {best.id}, the best, at step {best.step}</h3>" + _facts(flat(best.config).items())
    return (
        f"<h1>{escape(result.metric)}: an asynctune run</h1>"
        f'<div class="tiles">{"".join(f"<div><b>{escape(v)}</b>{escape(k)}</div>" for k, v in tiles)}</div>'
        f'<div class="columns"><section>{chosen}</section><section><h3>The run</h3>{_facts(facts)}</section></div>'
    )


def _curves(view: _View) -> str:
    metric = view.result.metric
    curves = [(trial, _curve(trial, metric)) for trial in view.reported]
    points = [point for _, curve in curves for point in curve]
    if not points:
        return ""
    y, clipped = _value_scale((value for _, value in points), (value for _, value in view.scored[:1]))
    x = Linear(min(step for step, _ in points), max(step for step, _ in points), whole=True)
    plot = Plot(x, y, "step", metric, width=900, height=380)
    for trial, curve in reversed(curves):  # the best on top
        css = view.css(trial)
        title = f"trial {trial.id}, {trial.state.name.lower()}: {trial.value:.5g} at step {trial.step}"
        for piece in _finite_pieces(curve):
            plot.line(piece, f"curve {css}", title)
            plot.dot(*piece[-1], f"dot {css}", title, radius=2.5)
    notes = [
        _left_out(view.num_reported),
        f"longer curves are thinned to {POINTS} points" if any(len(curve) == POINTS for _, curve in curves) else "",
        "the outer 2 % of values lie outside" if clipped else "",
    ]
    return _figures("Scores", [plot], notes, css="figure")


def _hyperparameters(view: _View) -> str:
    drawn = view.scored
    y, clipped = _value_scale((value for _, value in drawn), (value for _, value in drawn[:1]))
    plots = []
    for name, x in view.hyperparameters().items():
        plot = Plot(x, y, name, view.result.metric, width=420, height=260)
        for trial, value in reversed(drawn):
            config = flat(trial.config)
            if name in config:
                title = f"trial {trial.id}: {name} = {_text(config[name])}, {value:.5g}"
                plot.dot(config[name], value, f"dot {view.css(trial)}", title)
        plots.append(plot)
    notes = [_left_out(view.num_scored), "the outer 2 % of values lie outside" if clipped else ""]
    return _figures("Hyperparameters and final value", plots, notes)


def _moves(view: _View) -> str:
    """How exploit and explore moved each hyperparameter: what population-based training leaves to look at."""
    drawn = view.scored
    plots = []
    for name, y in view.hyperparameters(moved=True).items():
        x = Linear(0, max(trial.step for trial, _ in drawn), whole=True)
        plot = Plot(x, y, "step", name, width=420, height=260)
        for trial, value in reversed(drawn):
            ends = [segment.step for segment in trial.lineage[1:]] + [max(trial.step, trial.lineage[-1].step)]
            points: list[tuple[object, object]] = []
            for segment, end in zip(trial.lineage, ends, strict=True):
                config = flat(segment.config)
                if name in config:
                    points += [(segment.step, config[name]), (end, config[name])]
            plot.line(points, f"curve {view.css(trial)}", f"trial {trial.id}: {value:.5g}")
        plots.append(plot)
    notes = [_left_out(view.num_scored), "each line is a trial, coloured by its final value"]
    return _figures("How the hyperparameters moved", plots, notes)


def _table(view: _View) -> str:
    rows = view.ranked
    configs = [flat(trial.config) for trial in rows]
    names = list(dict.fromkeys(name for config in configs for name in config))
    failed = any(trial.error for trial in rows)
    head = ["trial", "state", view.result.metric, "step", "busy", *names, *(["error"] if failed else [])]
    body = []
    for trial, config in zip(rows, configs, strict=True):
        cells: list[object] = [trial.id, trial.state.name.lower(), trial.value, trial.step, _seconds(trial.busy)]
        cells += [config.get(name, "") for name in names]
        cells += [trial.error or ""] if failed else []
        css = ' class="best"' if trial == view.best else ""
        body.append(f"<tr{css}>{''.join(f'<td>{escape(_text(cell))}</td>' for cell in cells)}</tr>")
    num_trials = len(view.result.trials)
    note = f"<p>The {ROWS} best of {num_trials} trials.</p>" if num_trials > ROWS else ""
    return (
        f'<h2>Trials</h2>{note}<div class="scroll"><table id="trials"><thead><tr>'
        f"{''.join(f'<th>{escape(name)}</th>' for name in head)}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


# ---------------------------------------------------------------------------------------------- parts


def _left_out(num_trials: int) -> str:
    return f"the {CURVES} best of {num_trials} trials" if num_trials > CURVES else ""


def _curve(trial: TrialResult, metric: str) -> list[tuple[float, float]]:
    """(step, value) of a trial's reports, thinned to POINTS."""
    points = [(report["step"], report[metric]) for report in trial.reports if metric in report]
    if len(points) <= POINTS:
        return points
    return [points[round(i * (len(points) - 1) / (POINTS - 1))] for i in range(POINTS)]


def _finite_pieces(points: Sequence[tuple[float, float]]) -> list[list[tuple[float, float]]]:
    """The stretches of a curve between values that are not finite."""
    gaps = [-1, *(i for i, (_, value) in enumerate(points) if not math.isfinite(value)), len(points)]
    return [list(points[start + 1 : stop]) for start, stop in pairwise(gaps) if stop - start > 1]


def _figures(title: str, plots: Sequence[Plot], notes: Iterable[str], *, css: str = "figures") -> str:
    if not plots:
        return ""
    caption = "; ".join(filter(None, notes))
    shades = "".join(f'<i class="v{shade}"></i>' for shade in range(SHADES))
    legend = f'<span class="legend">worse {shades} better <i class="best"></i>the best</span>'
    return (
        f'<h2>{title}</h2><div class="{css}">{"".join(f"<figure>{plot}</figure>" for plot in plots)}</div>'
        f'<p class="caption">{legend}{escape(caption)}</p>'
    )


def _facts(pairs: Iterable[tuple[str, object]]) -> str:
    return f"<dl>{''.join(f'<dt>{escape(name)}</dt><dd>{escape(_text(value))}</dd>' for name, value in pairs)}</dl>"


def _text(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _seconds(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds < 600 else f"{seconds / 3600:.2g} h"
