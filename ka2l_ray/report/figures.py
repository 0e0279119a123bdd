"""Figures of a run's summary.

In: parts of results.json, counts of entropy values, the cells of heat.json. Out: a drawing, or None where there is
nothing to draw. Refuses to know: the run folder, tables, and HTML.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Literal

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ka2l_ray.report.canvas import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, SKY, VERMILION, Drawing, Stroke, legend
from ka2l_ray.report.curves import DrawnCurve, curves
from ka2l_ray.results_schema import HeatCell, LayerResult, Measure, RoundResult, SearchResult

GROUPS = {
    "known": BLUE,
    "rare": SKY,
    "misconception": ORANGE,
    "unseen": VERMILION,
    "right": GREEN,
    "wrong": PURPLE,
    "no gold": GREY,
    "abstains": ORANGE,
}
OBJECTIVES = {"correctness": "wrong greedy answers", "entropy": "semantic entropy ≥ γ"}
ACCURACY_IS = {
    "pool": "pool facts",
    "same": "pool facts in the same words",
    "other": "facts that no pool question asks",
}
"""What `accuracy` is over, as legends say it, by `eval_scope`."""
Style = tuple[str, str]
"""(colour, marker) of a strategy."""
_BIN_NATS = 0.1
_POSITIONS = {"last": BLUE, "mean": GREEN}
_STRATEGIES = {
    "ka2l": (BLUE, "o"),
    "random": (GREY, "s"),
    "oracle": (ORANGE, "^"),
    "oracle_wrong": (ORANGE, "<"),
    "decoded": (SKY, "X"),
    "ka2l_diverse": (BLUE, "D"),
    "entropy": (GREEN, "v"),
    "likelihood": (GREEN, "P"),
    "coreset": (PURPLE, "h"),
    "quadrant": (VERMILION, "*"),
}
_MAIN: Stroke = {"linewidth": 2.2, "markersize": 6}
_OTHERS = ((GREEN, "D"), (PURPLE, "v"), (VERMILION, "P"), (SKY, "X"))


def entropy_histogram(counts: Mapping[str, Mapping[float, int]], threshold_nats: float | None) -> Drawing | None:
    """Questions by semantic entropy, stacked by group, with γ. `counts`: {group of `GROUPS`: {nats: questions}}."""
    if not any(counts.values()):
        return None
    paint = partial(_paint_entropy, counts=counts, threshold=threshold_nats)
    return Drawing("entropy", "Histogram of semantic entropy", 3.6, paint)


def _paint_entropy(axes: Axes, counts: Mapping[str, Mapping[float, int]], threshold: float | None) -> None:
    edges = _edges(max(v for values in counts.values() for v in values), threshold or 0.0)
    bottom = np.zeros(len(edges) - 1)
    for group in (g for g in GROUPS if counts.get(g)):
        height, _ = np.histogram(list(counts[group]), bins=edges, weights=list(counts[group].values()))
        axes.bar(edges[:-1], height, 0.92 * np.diff(edges), bottom, align="edge", color=GROUPS[group], label=group)
        bottom += height
    if threshold is not None:
        axes.axvline(threshold, color=INK, linewidth=1.2, linestyle="--")
        text = f"known  ←  γ = {threshold:.2f}  →  unknown"
        axes.text(threshold, 1.02, text, transform=axes.get_xaxis_transform(), ha="center")
    axes.set(xlabel="semantic entropy (nats)", ylabel="questions (number)")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    legend(axes, "lower", axes.get_legend_handles_labels()[0])


def _edges(highest: float, threshold: float) -> np.ndarray:
    """Bin edges (nats) from 0 with γ among them, so that no bar mixes known and unknown; bins below γ are equal."""
    below = np.linspace(0.0, threshold, max(1, round(threshold / _BIN_NATS)) + 1) if threshold > 0 else np.zeros(1)
    above = threshold + _BIN_NATS * np.arange(1, int(max(0.0, highest - threshold) / _BIN_NATS) + 2)
    return np.concatenate([below, above])


def auroc_by_layer(search: SearchResult | None) -> Drawing | None:
    """AUROC of the best probe of every layer with its 95 % interval, and against the truth where that is known."""
    if search is None or all(entry["auroc"] is None for entry in search["layers"]):
        return None
    return Drawing("layers", "AUROC by layer", 3.6, partial(_paint_layers, search=search))


def _paint_layers(axes: Axes, search: SearchResult) -> None:
    for position in sorted({e["position"] for e in search["layers"]}):
        color = _POSITIONS[position]
        entries = sorted((e for e in search["layers"] if e["position"] == position), key=lambda e: e["layer"])
        against = f"{position}: against {OBJECTIVES.get(search['objective'], search['objective'])}"
        axes.plot(*_column(entries, "auroc"), color=color, marker="o", markersize=4, label=against)
        for layer, interval in ((e["layer"], e["auroc_ci"]) for e in entries if e["auroc_ci"] is not None):
            axes.plot([layer] * 2, interval, color=color, linewidth=6, alpha=0.3, solid_capstyle="butt")
        if (truth := _column(entries, "auroc_vs_truth"))[0]:
            label = f"{position}: against the truth"
            axes.plot(*truth, color=color, marker="^", markersize=4, linewidth=1, linestyle=":", label=label)
    if search["auroc"] is not None:
        chosen = (search["layer"], search["auroc"])
        axes.plot(*chosen, "o", markersize=11, markerfacecolor="none", color=INK, label="chosen layer")
    axes.axhline(0.5, color=GREY, linewidth=0.8, linestyle="--")
    right = axes.get_yaxis_transform()
    axes.text(1, 0.5, "chance", transform=right, ha="right", va="bottom")
    axes.set(xlabel="layer (0 is the input of block 1)", ylabel="AUROC")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend(axes, "lower", axes.get_legend_handles_labels()[0])


def _column(entries: Sequence[LayerResult], name: Literal["auroc", "auroc_vs_truth"]) -> tuple[list[int], list[float]]:
    """(layers, values) of the entries that have the value."""
    kept = [(e["layer"], value) for e in entries if (value := e[name]) is not None]
    return [layer for layer, _ in kept], [value for _, value in kept]


def layer_threshold_heat(cells: Sequence[HeatCell] | None) -> Drawing | None:
    """Validation AUROC by layer and threshold, of the best regularisation of each; the best cell is outlined."""
    tried = [
        ((c["position"], c["layer"]), c["threshold_nats"], a) for c in cells or () if (a := c["auroc"]) is not None
    ]
    if not tried:
        return None
    rows, thresholds = sorted({row for row, _, _ in tried}), sorted({threshold for _, threshold, _ in tried})
    grid = np.full((len(rows), len(thresholds)), np.nan)
    for row, threshold, auroc in tried:
        cell = rows.index(row), thresholds.index(threshold)
        grid[cell] = np.fmax(grid[cell], auroc)
    paint = partial(_paint_heat, grid=grid, rows=rows, thresholds=thresholds)
    return Drawing("heat", "AUROC by layer and threshold", min(9.0, 1.9 + 0.24 * len(rows)), paint)


def _paint_heat(axes: Axes, grid: np.ndarray, rows: list[tuple[str, int]], thresholds: list[float]) -> None:
    cmap = colormaps["cividis"].resampled(48)
    mesh = axes.pcolormesh(np.ma.masked_invalid(grid), cmap=cmap, linewidth=0.2, edgecolors="face")
    row, column = (int(i) for i in np.unravel_index(np.nanargmax(grid), grid.shape))
    outline = Rectangle((column, row), 1, 1, fill=False, edgecolor=VERMILION, linewidth=2.5, clip_on=False, zorder=3)
    axes.add_patch(outline)
    several = len({position for position, _ in rows}) > 1
    names = [f"{position} {layer}" if several else str(layer) for position, layer in rows]
    for axis, labels, most in ((axes.xaxis, [f"{t:.2f}" for t in thresholds], 10), (axes.yaxis, names, 34)):
        step = -(-len(labels) // most)
        axis.set_ticks(np.arange(0, len(labels), step) + 0.5, labels[::step])
    axes.set(xlabel="threshold on semantic entropy (nats)", ylabel="position and layer" if several else "layer")
    best = f"{'' if several else 'layer '}{names[row]}, {thresholds[column]:.2f} nats"
    axes.set_title(f"best: {grid[row, column]:.3f} at {best}", fontsize=10, loc="left")
    axes.spines[:].set_visible(False)
    bar = axes.get_figure(root=True).colorbar(mesh, ax=axes, label="AUROC on validation questions", pad=0.02)  # pyright: ignore
    bar.outline.set_visible(False)  # pyright: ignore
    bar.solids.set_edgecolor("face")  # pyright: ignore


def accuracy_curves(rounds: Sequence[RoundResult], eval_scope: str | None) -> Drawing | None:
    """Accuracy over the facts of `eval_scope` (thick) against annotations.

    On the world also accuracy over facts that no pool question asks (thin).
    """
    labels: dict[Measure, str] = {
        "accuracy": ACCURACY_IS.get(eval_scope or "", "eval questions"),
        "domain_accuracy": "other facts of the domain",
    }
    return _learning("accuracy", "Accuracy against annotations", "accuracy on eval questions", rounds, labels)


def known_curves(rounds: Sequence[RoundResult]) -> Drawing | None:
    """Accuracy on what the base model knew, never replayed (thick) and replayed (thin), against annotations."""
    labels: dict[Measure, str] = {"known_accuracy": "known before, never replayed", "replayed_accuracy": "replayed"}
    ylabel = "accuracy on questions known before"
    return _learning("known", ylabel.capitalize(), ylabel, rounds, labels)


def _learning(
    name: str, label: str, ylabel: str, rounds: Sequence[RoundResult], labels: Mapping[Measure, str]
) -> Drawing | None:
    """Curves of several measures, the first of them thick."""
    measures = {text: found for measure, text in labels.items() if (found := curves(rounds, measure))}
    if not measures:
        return None
    paint = partial(_paint_curves, measures=measures, ylabel=ylabel, thick=next(iter(labels.values())))
    return Drawing(name, label, 4.2, paint)


def _paint_curves(axes: Axes, measures: Mapping[str, list[DrawnCurve]], ylabel: str, thick: str) -> None:
    styles = styles_of([c.strategy for found in measures.values() for c in found])
    side: Stroke = {"linewidth": 1.0, "linestyle": (0, (4, 2)), "markersize": 4}
    lines = {text: _MAIN if text == thick else side for text in measures}
    for text, found in measures.items():
        for curve in found:
            color, marker = styles[curve.strategy]
            axes.plot(*zip(*curve.mean, strict=True), color=color, marker=marker, **lines[text])
            for points in curve.draws if text == thick and len(curve.draws) > 1 else ():
                axes.plot(*zip(*points, strict=True), color=color, linewidth=0.7, alpha=0.7)
    learning_axes(axes, ylabel, styles)
    legend(axes, "upper", [Line2D([], [], color=INK, label=text, **line) for text, line in lines.items()])


def learning_axes(axes: Axes, ylabel: str, styles: Mapping[str, Style]) -> None:
    """Format axes of shares against annotations, with a legend of the strategies below."""
    axes.set(xlabel="annotations bought (number)", ylabel=ylabel)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{round(100 * share, 6):g} %"))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", color=GREY, alpha=0.25, linewidth=0.6)
    legend(axes, "lower", [Line2D([], [], color=c, marker=m, label=s, **_MAIN) for s, (c, m) in styles.items()])


def styles_of(strategies: Sequence[str]) -> dict[str, Style]:
    """The style of every strategy: those of this package have their own, others take turns."""
    others = iter(_OTHERS * len(strategies))
    return {s: _STRATEGIES[s] if s in _STRATEGIES else next(others) for s in dict.fromkeys(strategies)}


def stage_times(time_s: Mapping[str, float | None]) -> Drawing | None:
    """Seconds spent in every stage, in the order given, the first on top; None where none was timed."""
    timed = {stage: seconds for stage, seconds in time_s.items() if seconds is not None}
    if not timed:
        return None
    return Drawing("times", "Time by stage", 0.9 + 0.28 * len(timed), partial(_paint_times, timed=timed))


def _paint_times(axes: Axes, timed: Mapping[str, float]) -> None:
    bars = axes.barh(list(timed), list(timed.values()), height=0.7, color=BLUE)
    axes.bar_label(bars, [f"{s:,.1f}" if s < 100 else f"{s:,.0f}" for s in timed.values()], padding=4)
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.tick_params(axis="y", length=0)
    axes.set(xlabel="time (s)")
