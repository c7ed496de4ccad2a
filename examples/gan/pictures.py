"""Pictures: each run's scores, how PBT moved each hyperparameter, and one page with all of it."""

import base64
import html
from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import Any

import matplotlib
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from outcome import Outcome
from table import Table

__all__ = ["curves", "moves", "page"]

_PAGE = Template("""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>$title</title>
<style>
  body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; color: #222 }
  table { border-collapse: collapse; margin: 1rem 0 } td, th { padding: .2rem .6rem; text-align: right }
  td:first-child, th:first-child { text-align: left } tr { border-bottom: 1px solid #ddd } img { max-width: 100% }
</style>
<h1>$title</h1>
$body
</html>
""")


def curves(outcomes: Sequence[Outcome], file: Path) -> None:
    """Draw the scores of every run of each outcome, one panel each, and what counts as flat."""
    figure = Figure((4 * len(outcomes), 3.6), layout="constrained")
    axes = figure.subplots(1, len(outcomes), sharey=True, squeeze=False)[0]
    for axis, outcome in zip(axes, outcomes, strict=True):
        setting = outcome.setting
        for run, colour in _coloured(outcome):
            axis.plot(run.steps, run.scores, color=colour, linewidth=1)
        axis.axhline(setting.untrained + 0.1 * (setting.real - setting.untrained), color="0.6", linestyle=":")
        axis.set(title=outcome.arm, xlabel="iteration", xlim=(0, setting.steps))
    axes[0].set_ylabel("inception score")
    figure.savefig(file, dpi=110)


def moves(outcome: Outcome, file: Path) -> None:
    """Draw the hyperparameters of every run over time, one panel each, coloured by final score."""
    names = list(outcome.runs[0].lineage[0][1])
    figure = Figure((4.6 * len(names), 3.6), layout="constrained")
    axes = figure.subplots(1, len(names), squeeze=False)[0]
    for axis, name in zip(axes, names, strict=True):
        for run, colour in _coloured(outcome):
            starts, configs = zip(*run.lineage, strict=True)
            values = [config[name] for config in configs]
            end = max(run.steps, default=0)
            axis.step([*starts, end], [*values, values[-1]], where="post", color=colour, linewidth=1)
        if name.endswith("lr") and outcome.setting.lr_scale == "log":
            axis.set_yscale("log")
        axis.set(title=name, xlabel="iteration", xlim=(0, outcome.setting.steps))
    finals = [run.final for run in outcome.runs]
    scale = ScalarMappable(Normalize(min(finals), max(finals)), "viridis")
    figure.colorbar(scale, ax=axes.tolist(), label="final inception score")
    figure.savefig(file, dpi=110)


def _coloured(outcome: Outcome) -> list[tuple[Any, Any]]:
    """The runs, the best last so that it lies on top, each with the colour of its final score."""
    runs = sorted(outcome.runs, key=lambda run: run.final)
    scale = Normalize(runs[0].final, runs[-1].final)
    return [(run, matplotlib.colormaps["viridis"](scale(run.final))) for run in runs]


def page(title: str, paragraphs: Sequence[str], tables: Sequence[Table], images: Sequence[Path], file: Path) -> None:
    """Write one self-contained page."""
    body = [f"<p>{html.escape(paragraph)}</p>" for paragraph in paragraphs]
    body += [table.html() for table in tables]
    for image in images:
        content = base64.b64encode(image.read_bytes()).decode()
        body.append(f'<h2>{html.escape(image.stem)}</h2><img alt="" src="data:image/png;base64,{content}">')
    file.write_text(_PAGE.substitute(title=html.escape(title), body="\n".join(body)), encoding="utf-8")
