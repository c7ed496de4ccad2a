"""Style: the look of the page, and the one script that it runs. Constants; nothing of a run gets in here."""

__all__ = ["SCRIPT", "STYLE"]

STYLE = """
:root { color-scheme: light dark; --page: #fbfbfa; --card: #fff; --ink: #1c1c1a; --soft: #5f5e5a; --rule: #e3e2de;
  --best: #d9480f; --v0: #b9cfe9; --v1: #93b8e3; --v2: #6b9fdb; --v3: #4787d0; --v4: #2c6db9; --v5: #1d5298; --v6: #103871; }
@media (prefers-color-scheme: dark) { :root { --page: #161615; --card: #1f1f1d; --ink: #ecebe6; --soft: #a5a39b;
  --rule: #3a3936; --best: #ff922b; --v0: #304b6f; --v1: #376095; --v2: #3f77b9; --v3: #5390d6; --v4: #77abe6;
  --v5: #a1c7f2; --v6: #d0e4fb; } }
@media print { :root { color-scheme: light; --page: #fff; --card: #fff; --ink: #000; --soft: #444; --rule: #ccc;
  --best: #d9480f; --v0: #b9cfe9; --v1: #93b8e3; --v2: #6b9fdb; --v3: #4787d0; --v4: #2c6db9; --v5: #1d5298;
  --v6: #103871; } .scroll { overflow: visible !important; } figure, .tiles div, tr { break-inside: avoid; }
  h2 { break-after: avoid; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1060px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 25px; margin: 0 0 18px; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 38px 0 10px; }
h3 { font-size: 15px; margin: 0 0 8px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 10px; }
.tiles div, figure, .columns section { background: var(--card); border: 1px solid var(--rule); border-radius: 8px; }
.tiles div { padding: 12px 14px; color: var(--soft); font-size: 13px; line-height: 1.35; overflow-wrap: anywhere; }
.tiles b { display: block; color: var(--ink); font-size: 22px; font-weight: 600; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(320px, 1fr)); gap: 10px; margin-top: 10px; }
.columns section { padding: 14px; }
dl { display: grid; grid-template-columns: minmax(80px, max-content) 1fr; gap: 3px 16px; margin: 0; font-size: 14px; }
dt { color: var(--soft); overflow-wrap: anywhere; }
dd { margin: 0; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
figure { margin: 0; padding: 10px; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(320px, 1fr)); gap: 10px; }
svg { display: block; width: 100%; height: auto; }
svg.area { overflow: hidden; }
svg text { fill: var(--soft); font-size: 11px; font-variant-numeric: tabular-nums; }
svg .label { fill: var(--ink); font-size: 12px; }
.grid { stroke: var(--rule); stroke-width: 1; }
.axis { stroke: var(--soft); stroke-width: 1; }
.curve { fill: none; stroke-width: 1.4; stroke-linejoin: round; }
.curve:hover { stroke-width: 3; }
.dot { stroke-width: 0.8; }
.none { stroke: var(--soft); stroke-dasharray: 4 3; }
.dot.none { fill: var(--soft); }
.v0 { stroke: var(--v0); } .v1 { stroke: var(--v1); } .v2 { stroke: var(--v2); } .v3 { stroke: var(--v3); }
.v4 { stroke: var(--v4); } .v5 { stroke: var(--v5); } .v6 { stroke: var(--v6); }
.dot.v0 { fill: var(--v0); } .dot.v1 { fill: var(--v1); } .dot.v2 { fill: var(--v2); } .dot.v3 { fill: var(--v3); }
.dot.v4 { fill: var(--v4); } .dot.v5 { fill: var(--v5); } .dot.v6 { fill: var(--v6); }
svg .dot { stroke: var(--card); stroke-dasharray: none; }
.curve.best { stroke: var(--best); stroke-width: 2.4; }
.dot.best { fill: var(--best); }
.caption { color: var(--soft); font-size: 13px; margin: 8px 2px 0; }
.legend { margin-right: 18px; white-space: nowrap; }
.legend i { display: inline-block; width: 16px; height: 9px; border-bottom: 9px solid; }
.legend i:first-of-type { margin-left: 6px; }
.legend .v0 { color: var(--v0); } .legend .v1 { color: var(--v1); } .legend .v2 { color: var(--v2); }
.legend .v3 { color: var(--v3); } .legend .v4 { color: var(--v4); } .legend .v5 { color: var(--v5); }
.legend .v6 { color: var(--v6); } .legend .best { color: var(--best); margin: 0 6px 0 14px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 5px 10px; border-bottom: 1px solid var(--rule); white-space: nowrap; }
td:last-child { white-space: normal; }
th { color: var(--soft); font-weight: 500; cursor: pointer; user-select: none; }
th:hover { color: var(--ink); }
tr.best td { color: var(--best); font-weight: 600; }
"""

SCRIPT = """
document.querySelectorAll("#trials th").forEach((head, column) => {
  let direction = 1;
  head.addEventListener("click", () => {
    const body = document.querySelector("#trials tbody");
    const text = row => row.cells[column].textContent;
    const order = (a, b) => {
      const x = Number.parseFloat(a), y = Number.parseFloat(b);
      return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b) : x - y;
    };
    body.append(...[...body.rows].sort((a, b) => direction * order(text(a), text(b))));
    direction = -direction;
  });
});
"""
