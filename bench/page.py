"""The figures of docs/benchmarks.md and docs/quality.md, put there from the JSON that the benchmarks wrote.

    python bench/page.py build/bench docs/benchmarks.md
    python bench/page.py build/quality docs/quality.md

FOLDER holds core.json, report.json and so on; in PAGE the text between `<!-- core -->` and `<!-- /core -->` becomes the table of
core.json, and so on, beneath what text that has of its own. All else in the page is written by hand, and stays. Plots (FOLDER's PNGs) go to images/ beside the page.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from measure import quantity


def table(document: dict[str, Any]) -> str:
    """A benchmark's rows as Markdown, with the machine beneath."""
    lines = ["| what | median | p99 | beside it | ratio | budget | of the budget |", "|---|---|---|---|---|---|---|"]
    for row in document["rows"]:
        unit = row["unit"]
        used = "" if row["used"] is None else f"{row['used']:.2f}"
        cells = (
            row["what"],
            quantity(row["median"], unit),
            "" if row["p99"] is None else quantity(row["p99"], unit),
            "" if row["floor"] is None else f"{row['beside']}, {quantity(row['floor'], unit)}",
            "" if row["ratio"] is None else f"{row['ratio']:.2f}",
            row["rule"].replace("<=", "≤").replace(">=", "≥"),
            f"**{used}, missed**" if row["used"] is not None and row["used"] > 1 else used,
        )
        lines.append("| " + " | ".join(cells) + " |")
    missed = [
        f"- {row['what']}: {row['missed']}"
        for row in document["rows"]
        if row["used"] is not None and row["used"] > 1 and row["missed"]
    ]
    if missed:
        lines += ["", "What the missed rows would take:", "", *missed]
    if document["note"]:
        lines += ["", document["note"]]
    machine = document["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    lines += ["", f"{machine['processor']}, {machine['cores']} cores, Python {machine['python']}, {versions}."]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("page", type=Path)
    given = parser.parse_args()
    text = given.page.read_text(encoding="utf-8")
    for path in sorted(given.folder.glob("*.json")):
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["quick"]:
            parser.error(f"{path} comes from a --quick run, which shows nothing")
        begin, end = f"<!-- {path.stem} -->", f"<!-- /{path.stem} -->"
        before, begun, rest = text.partition(begin)
        _, ended, after = rest.partition(end)
        if not (begun and ended):
            parser.error(f"{given.page} has no place for {path.stem}: it needs {begin} and {end}")
        figures = "\n\n".join([*document.get("text", []), table(document)])
        text = f"{before}{begin}\n{figures}\n{end}{after}"
    given.page.write_text(text, encoding="utf-8")
    for plot in sorted(given.folder.glob("*.png")):
        shutil.copy(plot, given.page.parent / "images")


if __name__ == "__main__":
    main()
