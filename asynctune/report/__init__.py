"""Report: a run as one page that stands alone, `render(result) -> str`.

The page loads nothing and runs nothing but the script below, whose hash its content security policy names. Every text
that comes from the run is escaped; none stands inside the script.
"""

from asynctune.report.page import render

__all__ = ["render"]
