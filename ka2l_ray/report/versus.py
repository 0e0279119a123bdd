"""The page that compares runs: what differs in their configurations, their key figures side by side, their learning curves.

In: run folders. Out: report/compare.html in the first one's folder. Refuses to know: Ray, tables, and how any number was made.
Runs are called A, B, C … on the page, for several may have the same name.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from ka2l_ray.config import differing_fields
from ka2l_ray.dataflow.runs import Run
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.report.canvas import INK, Drawing, legend
from ka2l_ray.report.curves import DrawnCurve, curves
from ka2l_ray.report.figures import learning_axes, looks_of
from ka2l_ray.report.page import DECODE_MEASURES, STAGES, in_order, stored_results
from ka2l_ray.report.summary import savings
from ka2l_ray.report.templates import FORMATS, environment
from ka2l_ray.schema import ACCURACY_OVER

Results = Mapping[str, Any]
_LABEL = {
    "questions": ("probe questions", "count"),
    "unknown_fraction": ("share unknown", "percent"),
    "threshold_nats": ("γ (nats)", "nats"),
    "entropy_auroc_vs_incorrect": ("AUROC of semantic entropy, against wrong greedy answers", "decimal"),
    "entropy_auroc_vs_truth": ("AUROC of semantic entropy, against the truth", "decimal"),
}
_SEARCH = {
    "position": ("position", "text"),
    "layer": ("layer", "text"),
    "objective": ("objective", "text"),
    "graded": ("probe questions with gold", "count"),
    "auroc": ("AUROC", "decimal"),
    "auroc_ci": ("its 95 % interval", "interval"),
    "auroc_vs_truth": ("AUROC against the truth", "decimal"),
}
_ROUND = {
    "annotations": ("annotations", "count"),
    "cost": ("cost", "amount"),
    "accuracy": ("accuracy", "percent"),
    "domain_accuracy": ("domain accuracy", "percent"),
    "known_accuracy": ("accuracy on known, never replayed", "percent"),
    "replayed_accuracy": ("accuracy on replayed", "percent"),
}


@dataclass(frozen=True)
class Line:
    """One figure of all runs, as text."""

    name: str
    values: list[str]


def write_versus(runs: Sequence[Run], command: str) -> Folder:
    """Write the page into the first run's report folder; returns the file."""
    page = runs[0].folder / "report/compare.html"
    page.write_bytes(render(runs, command).encode())
    return page


def render(runs: Sequence[Run], command: str) -> str:
    """The page. Everything that comes from a file is escaped; only our own SVG is trusted."""
    stored = dict(zip(letters(len(runs)), map(stored_results, runs), strict=True))
    figure = versus_curves({letter: results["rounds"] for letter, results in stored.items()})
    return (
        environment()
        .get_template("versus.html")
        .render(
            command=command,
            runs=dict(zip(stored, runs, strict=True)),
            stored=stored,
            differences={
                n: differing_fields(runs[0].config, run.config) for n, run in list(zip(stored, runs, strict=True))[1:]
            },
            parts=key_figures(list(stored.values())),
            figure=figure and Markup(figure.svg()),
        )
    )


def letters(count: int) -> list[str]:
    """A, B … Z, then A2, B2 …"""
    return [chr(ord("A") + n % 26) + (str(n // 26 + 1) if n >= 26 else "") for n in range(count)]


def key_figures(stored: Sequence[Results]) -> dict[str, list[Line]]:
    """{part: its figures of every run}; lines that no run has are left out."""
    decode = {name: (text, "measure") for name, text in DECODE_MEASURES.items()}
    parts = {
        "Labels": _lines([r["label"] for r in stored], _LABEL),
        "Probe": _lines([r["search"] for r in stored], _SEARCH),
        "What accuracy and savings are over": _accuracy(stored),
        "Decoded questions": _lines([r["decode"] for r in stored], decode),
        **{
            f"Last round of {name}": _lines([_last_round(r, name) for r in stored], _ROUND)
            for name in _strategies(stored)
        },
        "Annotations saved against random": _saved(stored),
        "Seconds": _seconds(stored),
    }
    return {name: lines for name, lines in parts.items() if lines}


def _lines(parts: Sequence[Mapping[str, Any] | None], shown: Mapping[str, tuple[str, str]]) -> list[Line]:
    """One line for each name in `shown`, {name: (text, format)}, that any run has a value for."""
    found = {name: [(part or {}).get(name) for part in parts] for name in shown}
    return [
        _line(shown[name][0], values, FORMATS[shown[name][1]])
        for name, values in found.items()
        if any(v is not None for v in values)
    ]


def _accuracy(stored: Sequence[Results]) -> list[Line]:
    over = [ACCURACY_OVER.get(results["eval_scope"]) if results["rounds"] else None for results in stored]
    return [_line("accuracy is over", over, FORMATS["text"])] if any(over) else []


def _line(name: str, values: Sequence[Any], written: Callable[[Any], str]) -> Line:
    return Line(name, [written(v) for v in values])


def _strategies(stored: Sequence[Results]) -> list[str]:
    return list(dict.fromkeys(r["strategy"] for results in stored for r in results["rounds"]))


def _last_round(results: Results, strategy: str) -> dict[str, float]:
    """Each measure at the last round that all draws of the strategy have, as their mean."""
    own = [r for r in results["rounds"] if r["strategy"] == strategy]
    return {measure: curve.mean[-1][1] for measure in _ROUND for curve in curves(own, measure) if curve.mean}


def _saved(stored: Sequence[Results]) -> list[Line]:
    by_run = [{s.strategy: s.saving for s in savings(results["saving"])} for results in stored]
    names = dict.fromkeys(name for found in by_run for name in found)
    return [_line(name, [found.get(name) for found in by_run], FORMATS["percent"]) for name in names]


def _seconds(stored: Sequence[Results]) -> list[Line]:
    timed = [results["time_s"] for results in stored]
    stages = in_order(dict.fromkeys(stage for found in timed for stage in found), STAGES)
    totals = [sum(s for s in found.values() if s is not None) if found else None for found in timed]
    lines = [_line(stage, [found.get(stage) for found in timed], FORMATS["seconds"]) for stage in stages]
    return [*lines, _line("together", totals, FORMATS["seconds"])] if lines else []


def versus_curves(rounds: Mapping[str, Sequence[Mapping[str, Any]]]) -> Drawing | None:
    """Accuracy of every run and strategy against annotations, a dash pattern for each run; None where no curve has a point."""
    found = {name: [c for c in curves(own, "accuracy") if c.mean] for name, own in rounds.items()}
    if not any(found.values()):
        return None
    return Drawing("versus", "Accuracy against annotations by run and strategy", 4.4, partial(_paint, found=found))


def _paint(axes: Axes, found: Mapping[str, list[DrawnCurve]]) -> None:
    looks = looks_of(list(dict.fromkeys(c.strategy for own in found.values() for c in own)))
    dashes = {name: _dashes(n) for n, name in enumerate(found)}
    for name, own in found.items():
        for curve in own:
            color, marker = looks[curve.strategy]
            axes.plot(
                *zip(*curve.mean, strict=True),
                color=color,
                marker=marker,
                markersize=5,
                linewidth=1.8,
                linestyle=dashes[name],
            )
    learning_axes(axes, "accuracy on eval questions", looks)
    legend(
        axes,
        "upper",
        [Line2D([], [], color=INK, linewidth=1.8, linestyle=d, label=f"run {name}") for name, d in dashes.items()],
    )


def _dashes(n: int) -> Any:
    """Solid for the first run; a dash with one dot less than its number for the others, so that any number of runs differ."""
    return "-" if n == 0 else (0, (6, 2, *(1, 2) * (n - 1)))
