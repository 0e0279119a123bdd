"""The page of a comparison: learning curves with their intervals, and what each strategy saves.

In: the content of `compare.json`. Out: one self-contained HTML page. Refuses to know: runs, Ray, and how any number was made.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ka2l_ray.report.canvas import GREY, draw, legend
from ka2l_ray.report.figures import looks_of
from ka2l_ray.report.page import environment


def render(title: str, comparison: Mapping[str, Any]) -> str:
    """The page. Everything that comes from a file is escaped; only our own SVG is trusted."""
    figure = learning_curves(comparison["strategies"])
    return environment().get_template("comparison.html").render(comparison, title=title, figure=figure and Markup(figure))


def learning_curves(strategies: Sequence[Mapping[str, Any]]) -> str | None:
    """Mean accuracy over seeds against annotations, a band for the 95 % interval; None where no curve has a point."""
    drawn = [s for s in strategies if s["curve"]]
    if not drawn:
        return None
    return draw("comparison", "Accuracy against annotations by strategy", 4.4, partial(_paint, strategies=drawn))


def _paint(axes: Axes, strategies: Sequence[Mapping[str, Any]]) -> None:
    looks = looks_of([s["strategy"] for s in strategies])
    for entry in strategies:
        color, marker = looks[entry["strategy"]]
        counts = [p["annotations"] for p in entry["curve"]]
        axes.plot(counts, [p["accuracy"] for p in entry["curve"]], color=color, marker=marker, linewidth=2.0, markersize=5)
        bands = [(p["annotations"], *p["ci"]) for p in entry["curve"] if p["ci"]]
        if bands:
            n, low, high = zip(*bands, strict=True)
            axes.fill_between(n, low, high, color=color, alpha=0.15, linewidth=0)
    axes.set(xlabel="annotations bought (number)", ylabel="accuracy on eval questions")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{round(100 * share, 6):g} %"))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", color=GREY, alpha=0.25, linewidth=0.6)
    legend(axes, "lower", [Line2D([], [], color=c, marker=m, label=s, linewidth=2.0) for s, (c, m) in looks.items()])
