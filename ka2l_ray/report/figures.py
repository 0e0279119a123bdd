"""Figures of a run's summary.

In: parts of results.json, counts of entropy values, the cells of heat.json. Out: a drawing, or None where there is nothing to draw.
Refuses to know: the run folder, tables, and HTML.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ka2l_ray.report.canvas import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, SKY, VERMILION, Drawing, legend
from ka2l_ray.report.curves import DrawnCurve, curves

GROUPS = {
    "known": BLUE,
    "rare": SKY,
    "misconception": ORANGE,
    "unseen": VERMILION,
    "right": GREEN,
    "wrong": PURPLE,
    "no gold": GREY,
}
OBJECTIVES = {"correctness": "wrong greedy answers", "entropy": "semantic entropy ≥ γ"}
ACCURACY_IS = {"pool": "pool facts", "other": "facts that no pool question asks"}
"""What `accuracy` is over in a legend, by `eval_scope`."""
_BIN_NATS = 0.1
_POSITIONS = {"last": BLUE, "mean": GREEN}
_STRATEGIES = {
    "ka2l": (BLUE, "o"),
    "random": (GREY, "s"),
    "oracle": (ORANGE, "^"),
    "decoded": (SKY, "X"),
    "ka2l_diverse": (BLUE, "D"),
    "entropy": (GREEN, "v"),
    "likelihood": (GREEN, "P"),
    "coreset": (PURPLE, "h"),
    "quadrant": (VERMILION, "*"),
}
_MAIN: dict[str, Any] = {"linewidth": 2.2, "markersize": 6}
_OTHERS = ((GREEN, "D"), (PURPLE, "v"), (VERMILION, "P"), (SKY, "X"))


def entropy_histogram(counts: Mapping[str, Mapping[float, int]], threshold_nats: float | None) -> Drawing | None:
    """Questions by semantic entropy, stacked by group: {group of `GROUPS`: {entropy: questions}}."""
    if not any(counts.values()):
        return None
    return Drawing(
        "entropy",
        "Histogram of semantic entropy",
        3.6,
        partial(_paint_entropy, counts=counts, threshold=threshold_nats),
    )


def _paint_entropy(axes: Axes, counts: Mapping[str, Mapping[float, int]], threshold: float | None) -> None:
    edges = _edges(max(v for values in counts.values() for v in values), threshold or 0.0)
    bottom = np.zeros(len(edges) - 1)
    for group in (g for g in GROUPS if counts.get(g)):
        height, _ = np.histogram(list(counts[group]), bins=edges, weights=list(counts[group].values()))
        axes.bar(edges[:-1], height, 0.92 * np.diff(edges), bottom, align="edge", color=GROUPS[group], label=group)
        bottom += height
    if threshold is not None:
        axes.axvline(threshold, color=INK, linewidth=1.2, linestyle="--")
        axes.text(
            threshold,
            1.02,
            f"known  ←  γ = {threshold:.2f}  →  unknown",
            transform=axes.get_xaxis_transform(),
            ha="center",
        )
    axes.set(xlabel="semantic entropy (nats)", ylabel="questions (number)")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    legend(axes, "lower", axes.get_legend_handles_labels()[0])


def _edges(highest: float, threshold: float) -> np.ndarray:
    """Bin edges from 0 with γ among them, so that no bar mixes known and unknown; the bins below γ share its length evenly."""
    below = np.linspace(0.0, threshold, max(1, round(threshold / _BIN_NATS)) + 1) if threshold > 0 else np.zeros(1)
    above = threshold + _BIN_NATS * np.arange(1, int(max(0.0, highest - threshold) / _BIN_NATS) + 2)
    return np.concatenate([below, above])


def auroc_by_layer(search: Mapping[str, Any] | None) -> Drawing | None:
    """AUROC of the best probe of every layer with its 95 % interval, and against the truth where that is known."""
    if search is None or all(entry["auroc"] is None for entry in search["layers"]):
        return None
    return Drawing("layers", "AUROC by layer", 3.6, partial(_paint_layers, search=search))


def _paint_layers(axes: Axes, search: Mapping[str, Any]) -> None:
    for position in sorted({e["position"] for e in search["layers"]}):
        color = _POSITIONS[position]
        entries = sorted((e for e in search["layers"] if e["position"] == position), key=lambda e: e["layer"])
        against = f"{position}: against {OBJECTIVES.get(search['objective'], search['objective'])}"
        axes.plot(*_column(entries, "auroc"), color=color, marker="o", markersize=4, label=against)
        for entry in (e for e in entries if e["auroc_ci"] is not None):
            axes.plot(
                [entry["layer"]] * 2, entry["auroc_ci"], color=color, linewidth=6, alpha=0.3, solid_capstyle="butt"
            )
        if (truth := _column(entries, "auroc_vs_truth"))[0]:
            axes.plot(
                *truth,
                color=color,
                marker="^",
                markersize=4,
                linewidth=1,
                linestyle=":",
                label=f"{position}: against the truth",
            )
    if search["auroc"] is not None:
        axes.plot(
            search["layer"],
            search["auroc"],
            "o",
            markersize=11,
            markerfacecolor="none",
            color=INK,
            label="chosen layer",
        )
    axes.axhline(0.5, color=GREY, linewidth=0.8, linestyle="--")
    axes.annotate(
        "chance", (1, 0.5), xycoords=("axes fraction", "data"), ha="right", va="bottom", color=GREY, fontsize=9
    )
    axes.set(xlabel="layer (0 is the input of block 1)", ylabel="AUROC")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend(axes, "lower", axes.get_legend_handles_labels()[0])


def _column(entries: Sequence[Mapping[str, Any]], name: str) -> tuple[list[int], list[float]]:
    kept = [e for e in entries if e[name] is not None]
    return [e["layer"] for e in kept], [e[name] for e in kept]


def layer_threshold_heat(cells: Sequence[Mapping[str, Any]] | None) -> Drawing | None:
    """Validation AUROC of every layer and threshold tried (the best regularisation of each); the best cell is outlined."""
    tried = [c for c in cells or () if c["auroc"] is not None]
    if not tried:
        return None
    rows = sorted({(c["position"], c["layer"]) for c in tried})
    thresholds = sorted({c["threshold_nats"] for c in tried})
    grid = np.full((len(rows), len(thresholds)), np.nan)
    for c in tried:
        at = rows.index((c["position"], c["layer"])), thresholds.index(c["threshold_nats"])
        grid[at] = np.fmax(grid[at], c["auroc"])
    height_in = min(9.0, 1.9 + 0.24 * len(rows))
    return Drawing(
        "heat",
        "AUROC by layer and threshold",
        height_in,
        partial(_paint_heat, grid=grid, rows=rows, thresholds=thresholds),
    )


def _paint_heat(axes: Axes, grid: np.ndarray, rows: list[tuple[str, int]], thresholds: list[float]) -> None:
    mesh = axes.pcolormesh(
        np.ma.masked_invalid(grid), cmap=colormaps["cividis"].resampled(48), linewidth=0.2, edgecolors="face"
    )
    row, column = (int(i) for i in np.unravel_index(np.nanargmax(grid), grid.shape))
    axes.add_patch(
        Rectangle((column, row), 1, 1, fill=False, edgecolor=VERMILION, linewidth=2.5, clip_on=False, zorder=3)
    )
    several = len({position for position, _ in rows}) > 1
    names = [f"{position} {layer}" if several else str(layer) for position, layer in rows]
    for axis, labels, most in ((axes.xaxis, [f"{t:.2f}" for t in thresholds], 14), (axes.yaxis, names, 34)):
        step = -(-len(labels) // most)
        axis.set_ticks(np.arange(0, len(labels), step) + 0.5, labels[::step])
    axes.set(xlabel="threshold on semantic entropy (nats)", ylabel="position and layer" if several else "layer")
    axes.set_title(
        f"best: {grid[row, column]:.3f} at {'' if several else 'layer '}{names[row]}, {thresholds[column]:.2f} nats",
        fontsize=10,
        loc="left",
    )
    axes.spines[:].set_visible(False)
    bar = axes.get_figure(root=True).colorbar(mesh, ax=axes, label="AUROC on validation questions", pad=0.02)  # pyright: ignore
    bar.outline.set_visible(False)  # pyright: ignore
    bar.solids.set_edgecolor("face")  # pyright: ignore


def accuracy_curves(rounds: Sequence[Mapping[str, Any]], eval_scope: str | None) -> Drawing | None:
    """Accuracy (thick), over the facts of `eval_scope`, and on the world's facts that no pool question asks (thin) against annotations
    bought."""
    labels = {
        "accuracy": ACCURACY_IS.get(eval_scope or "", "eval questions"),
        "domain_accuracy": "other facts of the domain",
    }
    return _learning("accuracy", "Accuracy against annotations", "accuracy on eval questions", rounds, labels)


def known_curves(rounds: Sequence[Mapping[str, Any]]) -> Drawing | None:
    """Accuracy on what the base model knew, never replayed (thick) and replayed (thin), against annotations bought."""
    labels = {"known_accuracy": "known before, never replayed", "replayed_accuracy": "replayed"}
    return _learning(
        "known", "Accuracy on questions known before", "accuracy on questions known before", rounds, labels
    )


def _learning(
    name: str, label: str, ylabel: str, rounds: Sequence[Mapping[str, Any]], labels: Mapping[str, str]
) -> Drawing | None:
    measures = {text: found for measure, text in labels.items() if (found := curves(rounds, measure))}
    if not measures:
        return None
    return Drawing(
        name, label, 4.0, partial(_paint_curves, measures=measures, ylabel=ylabel, thick=next(iter(labels.values())))
    )


def _paint_curves(axes: Axes, measures: Mapping[str, list[DrawnCurve]], ylabel: str, thick: str) -> None:
    looks = looks_of(list(dict.fromkeys(c.strategy for found in measures.values() for c in found)))
    side: dict[str, Any] = {"linewidth": 1.0, "linestyle": (0, (4, 2)), "markersize": 4}
    lines = {text: _MAIN if text == thick else side for text in measures}
    for text, found in measures.items():
        for curve in found:
            color, marker = looks[curve.strategy]
            axes.plot(*zip(*curve.mean, strict=True), color=color, marker=marker, **lines[text])
            for points in curve.draws if text == thick and len(curve.draws) > 1 else ():
                axes.plot(*zip(*points, strict=True), color=color, linewidth=0.7, alpha=0.7)
    learning_axes(axes, ylabel, looks)
    legend(axes, "upper", [Line2D([], [], color=INK, label=text, **line) for text, line in lines.items()])


def learning_axes(axes: Axes, ylabel: str, looks: Mapping[str, tuple[str, str]]) -> None:
    """Shares against annotations, with the strategies named below."""
    axes.set(xlabel="annotations bought (number)", ylabel=ylabel)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{round(100 * share, 6):g} %"))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", color=GREY, alpha=0.25, linewidth=0.6)
    legend(axes, "lower", [Line2D([], [], color=c, marker=m, label=s, **_MAIN) for s, (c, m) in looks.items()])


def looks_of(strategies: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of every strategy: the well-known ones have their own, others in turn."""
    others = iter(_OTHERS * len(strategies))
    return {s: _STRATEGIES[s] if s in _STRATEGIES else next(others) for s in strategies}


def stage_times(time_s: Mapping[str, float | None]) -> Drawing | None:
    """Seconds spent in every stage, first stage on top, in the order given."""
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
