"""Learning curves: the rounds of a run, by strategy, one line per draw and their mean.

In: the `rounds` of results.json. Out: points (annotations, value). Refuses to know: figures, what a measure means.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class DrawnCurve:
    """One strategy's curve: every draw (seed) by itself, and the mean where all draws have a value."""

    strategy: str
    draws: list[Points]
    mean: Points


def curves(rounds: Sequence[Mapping[str, Any]], measure: str) -> list[DrawnCurve]:
    """One curve per strategy, in order of appearance; strategies without any value are left out."""
    by_strategy: dict[str, dict[int, dict[int, tuple[float, float]]]] = {}
    for entry in rounds:
        draws = by_strategy.setdefault(entry["strategy"], {})
        points = draws.setdefault(entry["seed"], {})
        if entry[measure] is not None:
            points[entry["round"]] = (entry["annotations"], entry[measure])
    found = [_curve(strategy, list(draws.values())) for strategy, draws in by_strategy.items()]
    return [curve for curve in found if any(curve.draws)]


def _curve(strategy: str, draws: list[dict[int, tuple[float, float]]]) -> DrawnCurve:
    shared = sorted(set.intersection(*(set(d) for d in draws)))
    mean = [(fmean(d[r][0] for d in draws), fmean(d[r][1] for d in draws)) for r in shared]
    return DrawnCurve(strategy, [[d[r] for r in sorted(d)] for d in draws], mean)
