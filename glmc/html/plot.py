"""Plots by matplotlib as SVG that a page can hold: text stays text, and colours are the page's own, light or dark."""

from __future__ import annotations

import importlib.util
import io
import re
from typing import TYPE_CHECKING, Any

from glmc.errors import MissingPackage
from glmc.html.page import SERIES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, LINE, FAINT = "#010101", "#020202", "#030303"
COLOURS = tuple(f"#0a000{number}" for number in range(len(SERIES)))
"""What a plot is drawn with: each stands for a colour that the page's style names."""
_NAMED = {INK: "--ink", LINE: "--line", FAINT: "--faint", **dict(zip(COLOURS, SERIES, strict=True))}
MARKS = "osD^vP"
"""Contenders differ by mark too, for those who do not see their colours."""
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none", "svg.hashsalt": "glmc", "font.family": "sans-serif", "font.size": 11.0, "text.color": INK,
    "axes.labelcolor": INK, "axes.edgecolor": FAINT, "xtick.color": FAINT, "ytick.color": FAINT, "xtick.labelcolor": INK,
    "ytick.labelcolor": INK, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": LINE,
    "axes.axisbelow": True, "legend.frameon": False, "figure.facecolor": "none", "axes.facecolor": "none",
    "lines.linewidth": 1.8}


def there() -> None:
    """Raises MissingPackage where matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingPackage("a page with plots needs matplotlib", field="matplotlib", hint="pip install 'glmc[bench]'")


def drawn(paint: Any, columns: int = 1, rows: int = 1, width: float = 9.0, height: float = 4.0) -> str:
    """`paint(axes, ...)` with columns * rows axes, as SVG."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_SETTINGS):
        figure: Figure = Figure(figsize=(width, height), layout="constrained")
        paint(*figure.subplots(rows, columns, squeeze=False).flatten())
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    svg = re.sub(r"font:[^;\"]*?(\d+(?:\.\d+)?)px[^;\"]*", r"font: \1px system-ui, sans-serif", out.getvalue())
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    return re.sub("|".join(_NAMED), lambda found: f"var({_NAMED[found[0]]})", svg)


def legend_below(axes: Axes, columns: int = 3) -> None:
    """A legend under a whole plot, so that it hides nothing; a label that comes twice is told once."""
    handles, labels = axes.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    axes.figure.legend(once.values(), once.keys(), loc="outside lower center", ncols=columns)
