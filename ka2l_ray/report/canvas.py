"""One way to turn a drawing into inline SVG, and the colours that all figures share.

In: a function that paints axes. Out: an SVG string, the same bytes for the same drawing, with ids that no other figure of the page has.
Refuses to know: what is drawn, files, and pyplot's global figure.
Text stays text (searchable, small), and ink is `currentColor`, so a page decides between black on white and white on black.
"""

import io
import re
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from matplotlib import style
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito (2008): told apart with any colour vision, and visible on white and on black.
BLUE, SKY, GREEN, ORANGE, VERMILION, PURPLE, GREY = "#0072b2", "#56b4e9", "#009e73", "#e69f00", "#d55e00", "#cc79a7", "#8a8a8a"
INK = "#1b1c1e"
WIDTH_IN = 7.2
_CHARACTER_IN = 0.085  # of the sans-serif below at 10 points, on average

_STYLE: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Helvetica", "Arial"],
    "font.size": 10,
    "text.parse_math": False,
    "svg.fonttype": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "hatch.linewidth": 0.6,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}
_NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))
_REFERENCE = re.compile(r'( id="|url\(#|href="#)')


def draw(name: str, label: str, height_in: float, paint: Callable[[Axes], None]) -> str:
    """Paint one set of axes and return it as `<svg>`; `name` makes its ids unique, `label` is read to those who cannot see it."""
    with style.context(["default", _STYLE | {"svg.hashsalt": name}]):
        figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
        paint(figure.add_subplot())
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata=_NO_METADATA)
    svg = out.getvalue()
    svg = _REFERENCE.sub(rf"\g<1>{name}-", svg[svg.index("<svg") :]).replace(INK, "currentColor")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(label)}" ', 1)


def legend(axes: Axes, where: str, handles: Sequence[Artist]) -> None:
    """A legend outside the axes (`lower` or `upper`), where it can cover no data, in as many columns as fit."""
    widest_in = 0.6 + _CHARACTER_IN * max(len(str(h.get_label())) for h in handles)
    columns = max(1, min(len(handles), int(WIDTH_IN / widest_in)))
    axes.get_figure(root=True).legend(handles=handles, loc=f"outside {where} center", ncols=columns)  # pyright: ignore
