"""The figures of a comparison: learning curves with intervals, area under them, saving, ceiling, forgetting, compute
saving.

In: results.json of one run per seed, each with the same strategies and budgets. Out: the content of `compare.json`.
Refuses to know: runs, Ray, files. Seeds are the independent units: draws of one seed are averaged before anything else,
and every interval is Student's t over seeds (None for a single one).
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import fmean
from typing import Any, cast

from ka2l_ray.active.saving import LearningCurve, annotations_to_reach, curves, mean_curve
from ka2l_ray.active.strategies import STRATEGIES
from ka2l_ray.config import Strategy
from ka2l_ray.stats import interval

Results = Mapping[str, Any]
ROUND_STEPS = ("acquire", "annotate", "finetune")


def compare_strategies(results: Sequence[Results]) -> dict[str, Any]:
    """The content of `compare.json` without command and seeds, strategies in the order of the configuration. `over`
    gives the number of seeds behind each mean: a seed without the figure is left out of it."""
    strategies = list(dict.fromkeys(r["strategy"] for r in results[0]["rounds"]))
    budget = max((n for one in results for n, _ in seed_curve(one, "random")), default=0)
    ends = [curve[-1][0] if (curve := seed_curve(one, name)) else 0 for one in results for name in strategies]
    shared = min(ends)
    entries = [_strategy(name, results, shared) for name in strategies]
    ceiling = next((e["saving"] for e in entries if e["strategy"] == "oracle"), None)
    reached = next((e["over"]["saving"] for e in entries if e["strategy"] == "oracle"), 0)
    facts = {"eval_scope": results[0]["eval_scope"], "random_budget": budget, "area_up_to": shared}
    return facts | {"ceiling": ceiling, "ceiling_over": reached, "strategies": entries}


def _strategy(name: str, results: Sequence[Results], shared: int) -> dict[str, Any]:
    by_seed = [seed_curve(r, name) for r in results]
    found = [next((s for s in r["saving"] if s["strategy"] == name), None) for r in results]
    savings = [s["saving"] for s in found if s and s["saving"] is not None]
    ratios = [s["of_oracle"] for s in found if s and s["of_oracle"] is not None]
    compute = [c for r in results if (c := compute_saving(r, name)) is not None]
    known = [k for r in results if (k := _final(r, name, "known_accuracy")) is not None]
    areas = [a for c in by_seed if (a := area_under(c, shared)) is not None]
    return {
        "strategy": name,
        "curve": _with_intervals(by_seed),
        "saving": fmean(savings) if savings else None,
        "saving_ci": interval(savings),
        "savings": [s["saving"] if s else None for s in found],
        "reached": len(savings),
        "of_oracle": fmean(ratios) if ratios else None,
        "of_oracle_lowest": min(ratios, default=None),
        "compute_saving": fmean(compute) if compute else None,
        "compute_savings": compute,
        "area": fmean(areas) if areas else None,
        "area_ci": interval(areas),
        "known_accuracy": fmean(known) if known else None,
        "over": {
            "saving": len(savings),
            "of_oracle": len(ratios),
            "compute_saving": len(compute),
            "area": len(areas),
            "known_accuracy": len(known),
        },
    }


def seed_curve(results: Results, strategy: str) -> LearningCurve:
    """One seed's learning curve: the mean of its draws at every annotation count they share."""
    return mean_curve(list(curves(results["rounds"], strategy).values()))


def _with_intervals(by_seed: Sequence[LearningCurve]) -> list[dict[str, Any]]:
    """Mean accuracy over seeds with its interval, at every annotation count that all seeds share."""
    shared = sorted(set.intersection(*({n for n, _ in c} for c in by_seed)))
    found = []
    for n in shared:
        values = [dict(c)[n] for c in by_seed]
        found.append({"annotations": n, "accuracy": fmean(values), "ci": interval(values), "seeds": len(values)})
    return found


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
    reached = annotations_to_reach(seed_curve(results, strategy), baseline[-1][1])
    spent, random = _seconds(results, strategy), _seconds(results, "random")
    if reached is None or not random:
        return None
    until, whole = (
        next((s for n, s in steps if n >= goal), None) for steps, goal in ((spent, reached), (random, baseline[-1][0]))
    )
    return None if until is None or not whole else 1 - until / whole


def _seconds(results: Results, strategy: str) -> list[tuple[int, float]]:
    """(annotations, seconds spent up to there), mean over draws, round by round."""
    times = results["time_s"]
    base = sum(times.get(stage, 0.0) for stage in (*STRATEGIES[cast(Strategy, strategy)].steps, "replay"))
    own = [r for r in results["rounds"] if r["strategy"] == strategy]
    found, total = [], base
    for number in sorted({r["round"] for r in own} - {0}):
        played = [r for r in own if r["round"] == number]
        total += fmean(sum(r["seconds"].get(step, 0.0) for step in ROUND_STEPS) for r in played)
        found.append((played[0]["annotations"], total))
    return found


def _final(results: Results, strategy: str, measure: str) -> float | None:
    """Mean over draws of a measure after each draw's own last round."""
    last = {r["seed"]: r for r in sorted(results["rounds"], key=lambda r: r["round"]) if r["strategy"] == strategy}
    values = [r[measure] for r in last.values() if r[measure] is not None]
    return fmean(values) if values else None
