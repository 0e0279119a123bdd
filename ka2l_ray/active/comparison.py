"""The figures of a comparison: learning curves with intervals, area under them, saving, ceiling, forgetting, compute
saving.

In: results.json of one run per seed, each with the same strategies and budgets. Out: the content of `compare.json`.
Refuses to know: runs, Ray, files. Seeds are the independent units: draws of one seed are averaged before anything else,
and every interval is Student's t over seeds (None for a single one).
"""

from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean
from typing import Any, cast

from ka2l_ray.active.saving import LearningCurve, annotations_to_reach, at_shared_counts, curves, mean_curve
from ka2l_ray.active.strategies import STRATEGIES, ceiling_of
from ka2l_ray.config import Strategy
from ka2l_ray.results_schema import Results, StrategyResult
from ka2l_ray.stats import interval

ROUND_STEPS = ("acquire", "annotate", "finetune")


def compare_strategies(results: Sequence[Results]) -> dict[str, Any]:
    """The fields of `ComparisonResults` but command and seeds, strategies in the order of the configuration. `over`
    gives the number of seeds behind each mean: a seed without the figure is left out of it."""
    strategies = list(dict.fromkeys(r["strategy"] for r in results[0]["rounds"]))
    ends = [curve[-1][0] if (curve := seed_curve(one, name)) else 0 for one in results for name in strategies]
    entries = [_strategy(name, results, min(ends)) for name in strategies]
    oracle = next((e for e in entries if e["strategy"] == ceiling_of(strategies)), None)
    return {
        "eval_scope": results[0]["eval_scope"],
        "random_budget": max((n for one in results for n, _ in seed_curve(one, "random")), default=0),
        "area_up_to": min(ends),
        "ceiling": oracle and oracle["saving"],
        "ceiling_over": oracle["over"]["saving"] if oracle else 0,
        "strategies": entries,
    }


def _strategy(name: str, results: Sequence[Results], shared: int) -> StrategyResult:
    by_seed = [seed_curve(r, name) for r in results]
    savings = [next((s for s in r["saving"] if s["strategy"] == name), None) for r in results]
    figures = {
        "saving": [s and s["saving"] for s in savings],
        "of_oracle": [s and s["of_oracle"] for s in savings],
        "compute_saving": [compute_saving(r, name) for r in results],
        "area": [area_under(c, shared) for c in by_seed],
        "known_accuracy": [_final_known_accuracy(r, name) for r in results],
    }
    found = {figure: [v for v in values if v is not None] for figure, values in figures.items()}
    mean = {figure: fmean(values) if values else None for figure, values in found.items()}
    return {
        "strategy": name,
        "curve": [
            {"annotations": n, "accuracy": fmean(values), "ci": interval(values), "seeds": len(values)}
            for n, values in at_shared_counts(by_seed).items()
        ],
        "saving": mean["saving"],
        "saving_ci": interval(found["saving"]),
        "savings": figures["saving"],
        "reached": len(found["saving"]),
        "of_oracle": mean["of_oracle"],
        "of_oracle_lowest": min(found["of_oracle"], default=None),
        "compute_saving": mean["compute_saving"],
        "compute_savings": found["compute_saving"],
        "area": mean["area"],
        "area_ci": interval(found["area"]),
        "known_accuracy": mean["known_accuracy"],
        "over": {figure: len(values) for figure, values in found.items()},
    }


def seed_curve(results: Results, strategy: str) -> LearningCurve:
    """One seed's learning curve: the mean of its draws at every annotation count they share."""
    return mean_curve(list(curves(results["rounds"], strategy).values()))


def area_under(curve: LearningCurve, up_to: int) -> float | None:
    """Mean accuracy over annotations 0 … `up_to` (trapezoids, cut at `up_to`); None for a curve that ends before."""
    if not curve or up_to <= 0 or curve[-1][0] < up_to:
        return None
    total = 0.0
    for (n0, a0), (n1, a1) in pairwise(curve):
        right = min(n1, up_to)
        if right > n0:
            end = a0 + (a1 - a0) * (right - n0) / (n1 - n0)
            total += (a0 + end) / 2 * (right - n0)
    return total / up_to


def compute_saving(results: Results, strategy: str) -> float | None:
    """1 - seconds of a strategy until it reaches random's final accuracy / seconds of random's rounds; None where it
    never does, or where random ends no higher than the base model.

    Seconds are wall-clock as measured, of every stage that the strategy needs; evaluation is left out on both sides.
    The round in which the accuracy is reached counts whole.
    """
    baseline = seed_curve(results, "random")
    if strategy == "random" or len(baseline) < 2 or baseline[-1][1] <= baseline[0][1]:
        return None
    if (reached := annotations_to_reach(seed_curve(results, strategy), baseline[-1][1])) is None:
        return None
    spent = _seconds_until(results, strategy, reached)
    whole = _seconds_until(results, "random", baseline[-1][0])
    return None if spent is None or not whole else 1 - spent / whole


def _seconds_until(results: Results, strategy: str, annotations: float) -> float | None:
    """Seconds spent, mean over draws, up to the round after which a strategy has so many annotations; None where it
    never has."""
    times = results["time_s"]
    total = sum(times.get(stage) or 0.0 for stage in (*STRATEGIES[cast(Strategy, strategy)].steps, "replay"))
    own = [r for r in results["rounds"] if r["strategy"] == strategy]
    for number in sorted({r["round"] for r in own} - {0}):
        played = [r for r in own if r["round"] == number]
        total += fmean(sum(r["seconds"].get(step, 0.0) for step in ROUND_STEPS) for r in played)
        if played[0]["annotations"] >= annotations:
            return total
    return None


def _final_known_accuracy(results: Results, strategy: str) -> float | None:
    """Mean over draws of the accuracy on what was known, after each draw's own last round."""
    last = {r["seed"]: r for r in sorted(results["rounds"], key=lambda r: r["round"]) if r["strategy"] == strategy}
    values = [v for r in last.values() if (v := r["known_accuracy"]) is not None]
    return fmean(values) if values else None
