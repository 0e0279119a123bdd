"""Turning a drawing into inline SVG or a PNG, and the colours that all figures share.

In: a function that paints axes. Out: the same bytes for the same drawing, with ids that no other figure of a page has.
Text stays text (searchable, small), and ink is `currentColor`, so that the page chooses between black on white and
white on black. Refuses to know: what is drawn, files, and pyplot's global figure.
"""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal, TypedDict

from matplotlib import style
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito (2008): distinguishable with any colour vision, and visible on white and on black.
BLUE, SKY, GREEN, ORANGE, VERMILION, PURPLE, GREY = (
    "#0072b2",
    "#56b4e9",
    "#009e73",
    "#e69f00",
    "#d55e00",
    "#cc79a7",
    "#8a8a8a",
)
INK = "#1b1c1e"
WIDTH_IN = 5.6
"""Narrow, so that text of 10 points is still 9 pixels high on a phone that is 390 wide."""
_CHARACTER_IN = 0.085  # average width of a character of the sans-serif fonts below at 10 points

_STYLE: dict[str, object] = {
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
_PNG_DPI = 150
_NO_METADATA: Mapping[str, None] = dict.fromkeys(("Date", "Creator", "Format", "Type"))
_REFERENCE = re.compile(r'( id="|url\(#|href="#)')


class Stroke(TypedDict, total=False):
    """How a line is drawn; widths and sizes in points."""

    linewidth: float
    linestyle: Literal["-"] | tuple[float, tuple[float, ...]]
    markersize: float


@dataclass(frozen=True)
class Drawing:
    """A figure with one set of axes."""

    name: str
    """Makes its ids unique within a page."""
    label: str
    """Read aloud by screen readers."""
    height_in: float
    """Inches; all figures are `WIDTH_IN` wide."""
    paint: Callable[[Axes], None]

    def svg(self) -> str:
        """The figure as an `<svg>` element for a page."""
        svg = self._save("svg", transparent=True, metadata=_NO_METADATA).decode()
        svg = _REFERENCE.sub(rf"\g<1>{self.name}-", svg[svg.index("<svg") :]).replace(INK, "currentColor")
        return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(self.label)}" ', 1)

    def png(self) -> bytes:
        """The figure as a PNG on white, for programs that cannot show SVG."""
        return self._save("png", dpi=_PNG_DPI, metadata={"Software": None})

    def _save(
        self,
        kind: str,
        metadata: Mapping[str, None],
        transparent: bool = False,
        dpi: float | Literal["figure"] = "figure",
    ) -> bytes:
        with style.context(["default", _STYLE | {"svg.hashsalt": self.name}]):
            figure = Figure(figsize=(WIDTH_IN, self.height_in), layout="constrained")
            self.paint(figure.add_subplot())
            out = io.BytesIO()
            figure.savefig(out, format=kind, metadata=metadata, transparent=transparent, dpi=dpi)
        return out.getvalue()


def on_paper(svg: str) -> bytes:
    """A figure's `<svg>` as a file of its own: always black on white."""
    return svg.replace("<svg ", '<svg style="background:#fff;color:#000" ', 1).encode()


def legend(axes: Axes, where: str, handles: Sequence[Artist]) -> None:
    """A legend outside the axes (`where`: `lower` or `upper`), in as many columns as fit."""
    widest_in = 0.6 + _CHARACTER_IN * max(len(str(h.get_label())) for h in handles)
    columns = max(1, min(len(handles), int(WIDTH_IN / widest_in)))
    axes.get_figure(root=True).legend(handles=handles, loc=f"outside {where} center", ncols=columns)  # pyright: ignore
