"""The page of a comparison: learning curves with their intervals, and what each strategy saves.

In: the content of `compare.json`. Out: one self-contained HTML page. Refuses to know: runs, Ray, and how any number was
computed.
"""

from collections.abc import Sequence
from functools import partial

from markupsafe import Markup
from matplotlib.axes import Axes

from ka2l_ray.report.canvas import Drawing
from ka2l_ray.report.figures import learning_axes, styles_of
from ka2l_ray.report.headline import comparison_sentence
from ka2l_ray.report.templates import environment
from ka2l_ray.results_schema import ComparisonResults, StrategyResult
from ka2l_ray.schema import ACCURACY_OVER


def render(title: str, comparison: ComparisonResults) -> str:
    """The page. Everything that comes from a file is escaped; only our own SVG is not."""
    figure = learning_curves(comparison["strategies"])
    over = ACCURACY_OVER[comparison["eval_scope"]]
    template = environment().get_template("comparison.html")
    return template.render(
        comparison,
        title=title,
        sentence=comparison_sentence(comparison),
        accuracy_over=over,
        figure=figure and Markup(figure.svg()),
    )


def learning_curves(strategies: Sequence[StrategyResult]) -> Drawing | None:
    """Mean accuracy over seeds against annotations, with 95 % intervals as bands; None where no curve has a point."""
    drawn = [s for s in strategies if s["curve"]]
    if not drawn:
        return None
    return Drawing("comparison", "Accuracy against annotations by strategy", 4.4, partial(_paint, strategies=drawn))


def _paint(axes: Axes, strategies: Sequence[StrategyResult]) -> None:
    styles = styles_of([s["strategy"] for s in strategies])
    for entry in strategies:
        color, marker = styles[entry["strategy"]]
        counts, accuracies = zip(*((p["annotations"], p["accuracy"]) for p in entry["curve"]), strict=True)
        axes.plot(counts, accuracies, color=color, marker=marker, linewidth=2.0, markersize=5)
        if bands := [(p["annotations"], *p["ci"]) for p in entry["curve"] if p["ci"]]:
            counts, low, high = zip(*bands, strict=True)
            axes.fill_between(counts, low, high, color=color, alpha=0.15, linewidth=0)
    learning_axes(axes, "accuracy on eval questions", styles)
