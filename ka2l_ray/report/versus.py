"""The page that compares runs: the differences of their configurations, their key figures and their learning curves.

In: runs. Out: report/compare.html in the first one's folder, where they are called A, B, C …, since several may have
the same name. Refuses to know: Ray, tables, and how any number was computed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from ka2l_ray.config import differing_fields
from ka2l_ray.dataflow.runs import Run
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.report.canvas import INK, Drawing, Stroke, legend
from ka2l_ray.report.curves import DrawnCurve, curves
from ka2l_ray.report.figures import learning_axes, styles_of
from ka2l_ray.report.headline import result_sentence
from ka2l_ray.report.page import DECODE_MEASURES, STAGES, in_order, plan_of, stored_results
from ka2l_ray.report.summary import savings
from ka2l_ray.report.templates import FORMATS, environment
from ka2l_ray.results_schema import Measure, Results, RoundResult
from ka2l_ray.schema import ACCURACY_OVER

Name = TypeVar("Name", bound=str)
_LABEL = {
    "questions": ("probe questions", "count"),
    "unknown_fraction": ("share unknown", "percent"),
    "abstains": ("questions that the model abstains from", "count"),
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
_ROUND: dict[Measure, tuple[str, str]] = {
    "annotations": ("annotations", "count"),
    "cost": ("cost", "amount"),
    "accuracy": ("accuracy", "percent"),
    "domain_accuracy": ("domain accuracy", "percent"),
    "known_accuracy": ("accuracy on known, never replayed", "percent"),
    "replayed_accuracy": ("accuracy on replayed", "percent"),
}


@dataclass(frozen=True)
class Line:
    """A row of the table: a number of every run, formatted."""

    name: str
    values: list[str]


def write_versus(runs: Sequence[Run], command: str) -> Folder:
    """Write the page into the first run's report folder; returns the file. `command` is what the user typed."""
    page = runs[0].folder / "report/compare.html"
    page.write_bytes(render(runs, command).encode())
    return page


def render(runs: Sequence[Run], command: str) -> str:
    """The page. Everything that comes from a file is escaped; only our own SVG is not."""
    named = dict(zip(letters(len(runs)), runs, strict=True))
    stored = {letter: stored_results(run) for letter, run in named.items()}
    figure = versus_curves({letter: results["rounds"] for letter, results in stored.items()})
    return (
        environment()
        .get_template("versus.html")
        .render(
            command=command,
            runs=named,
            stored=stored,
            sentences={letter: result_sentence(stored[letter], plan_of(run)) for letter, run in named.items()},
            differences={n: differing_fields(runs[0].config, run.config) for n, run in named.items() if n != "A"},
            parts=key_figures(list(stored.values())),
            figure=figure and Markup(figure.svg()),
        )
    )


def letters(count: int) -> list[str]:
    """A, B … Z, then A2, B2 …"""
    return [chr(ord("A") + n % 26) + (str(n // 26 + 1) if n >= 26 else "") for n in range(count)]


def key_figures(stored: Sequence[Results]) -> dict[str, list[Line]]:
    """{part of the table: its lines}; without lines that no run has a number for."""
    decode = {name: (text, "measure") for name, text in DECODE_MEASURES.items()}
    strategies = dict.fromkeys(r["strategy"] for results in stored for r in results["rounds"])
    parts = {
        "Labels": _lines([r["label"] for r in stored], _LABEL),
        "Probe": _lines([r["search"] for r in stored], _SEARCH),
        "What accuracy and savings are over": _accuracy(stored),
        "Decoded questions": _lines([r["decode"] for r in stored], decode),
        **{f"Last round of {s}": _lines([_last_round(r, s) for r in stored], _ROUND) for s in strategies},
        "Annotations saved against random": _saved(stored),
        "Seconds": _seconds(stored),
    }
    return {name: lines for name, lines in parts.items() if lines}


def _lines(parts: Sequence[Mapping[Name, object] | None], shown: Mapping[Name, tuple[str, str]]) -> list[Line]:
    """A line for each name in `shown`, {name: (text, format)}, that any run has a value for."""
    found = {shown[name]: [(part or {}).get(name) for part in parts] for name in shown}
    return [_line(*which, values) for which, values in found.items() if any(v is not None for v in values)]


def _accuracy(stored: Sequence[Results]) -> list[Line]:
    over = [ACCURACY_OVER.get(results["eval_scope"] or "") if results["rounds"] else None for results in stored]
    return [_line("accuracy is over", "text", over)] if any(over) else []


def _line(name: str, written: str, values: Sequence[object]) -> Line:
    return Line(name, [FORMATS[written](v) for v in values])


def _last_round(results: Results, strategy: str) -> dict[Measure, float]:
    """The mean of each measure over draws, at the last round that all draws of the strategy have."""
    own = [r for r in results["rounds"] if r["strategy"] == strategy]
    return {measure: curve.mean[-1][1] for measure in _ROUND for curve in curves(own, measure) if curve.mean}


def _saved(stored: Sequence[Results]) -> list[Line]:
    by_run = [{s.strategy: s.saving for s in savings(results["saving"])} for results in stored]
    names = dict.fromkeys(name for found in by_run for name in found)
    return [_line(name, "percent", [found.get(name) for found in by_run]) for name in names]


def _seconds(stored: Sequence[Results]) -> list[Line]:
    timed = [results["time_s"] for results in stored]
    stages = in_order(dict.fromkeys(stage for found in timed for stage in found), STAGES)
    totals = [sum(s for s in found.values() if s is not None) if found else None for found in timed]
    lines = [_line(stage, "seconds", [found.get(stage) for found in timed]) for stage in stages]
    return [*lines, _line("total", "seconds", totals)] if lines else []


def versus_curves(rounds: Mapping[str, Sequence[RoundResult]]) -> Drawing | None:
    """Accuracy of every run and strategy against annotations, with a dash pattern for each run.

    None where no curve has a point.
    """
    found = {name: [c for c in curves(own, "accuracy") if c.mean] for name, own in rounds.items()}
    if not any(found.values()):
        return None
    return Drawing("versus", "Accuracy against annotations by run and strategy", 4.4, partial(_paint, found=found))


def _paint(axes: Axes, found: Mapping[str, list[DrawnCurve]]) -> None:
    strokes = {name: _stroke(n) for n, name in enumerate(found)}
    styles = styles_of([c.strategy for own in found.values() for c in own])
    for name, own in found.items():
        for curve in own:
            color, marker = styles[curve.strategy]
            axes.plot(*zip(*curve.mean, strict=True), color=color, marker=marker, **strokes[name])
    learning_axes(axes, "accuracy on eval questions", styles)
    legend(axes, "upper", [Line2D([], [], color=INK, label=f"run {name}", **line) for name, line in strokes.items()])


def _stroke(n: int) -> Stroke:
    """The line of run `n`: solid for the first, a dash with n - 1 dots for the others, so that all differ."""
    return {"linewidth": 1.8, "markersize": 5, "linestyle": "-" if n == 0 else (0, (6, 2, *(1, 2) * (n - 1)))}
