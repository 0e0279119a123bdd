"""Learning curves: the rounds of a run, by strategy, one line per draw and their mean.

In: the `rounds` of results.json. Out: points (annotations, value). Refuses to know: figures, what a measure means.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from ka2l_ray.results_schema import Measure, RoundResult

Point = tuple[float, float]
"""(annotations, value of the measure)."""


@dataclass(frozen=True)
class DrawnCurve:
    """One strategy's curve: every draw (seed) separately, and the mean at the rounds that all draws have."""

    strategy: str
    draws: list[list[Point]]
    mean: list[Point]


def curves(rounds: Sequence[RoundResult], measure: Measure) -> list[DrawnCurve]:
    """One curve per strategy, in order of appearance; strategies without any value are left out."""
    by_strategy: dict[str, dict[int, dict[int, Point]]] = {}
    for entry in rounds:
        points = by_strategy.setdefault(entry["strategy"], {}).setdefault(entry["seed"], {})
        if (value := entry.get(measure)) is not None:
            points[entry["round"]] = (entry["annotations"], value)
    found = [_curve(strategy, list(draws.values())) for strategy, draws in by_strategy.items()]
    return [curve for curve in found if any(curve.draws)]


def _curve(strategy: str, draws: list[dict[int, Point]]) -> DrawnCurve:
    shared = sorted(set.intersection(*(set(d) for d in draws)))
    mean = [(fmean(d[r][0] for d in draws), fmean(d[r][1] for d in draws)) for r in shared]
    return DrawnCurve(strategy, [[d[r] for r in sorted(d)] for d in draws], mean)
