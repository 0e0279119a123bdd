"""How many annotations a strategy saves compared with random choice.

In: learning curves (annotations, accuracy). Out: saving = 1 - n_s / n_r, None where random's accuracy is never reached.
Refuses to know: runs, files. n_r is random's full budget, n_s where the strategy's interpolated curve first reaches
random's mean accuracy there.
"""

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

LearningCurve = list[tuple[int, float]]


def curves(rounds: Sequence[dict[str, Any]], strategy: str) -> dict[int, LearningCurve]:
    """Learning curves of a strategy by seed, ordered by annotations."""
    found: dict[int, LearningCurve] = defaultdict(list)
    for r in rounds:
        if r["strategy"] == strategy and r["accuracy"] is not None:
            found[r["seed"]].append((r["annotations"], r["accuracy"]))
    return {seed: sorted(points) for seed, points in found.items()}


def mean_curve(many: Sequence[LearningCurve]) -> LearningCurve:
    """Mean accuracy at each annotation count that every curve has."""
    shared = set.intersection(*({n for n, _ in c} for c in many)) if many else set()
    return [(n, float(np.mean([dict(c)[n] for c in many]))) for n in sorted(shared)]


def annotations_to_reach(curve: LearningCurve, accuracy: float) -> float | None:
    """Annotations at which the linearly interpolated curve first reaches an accuracy; None if never."""
    for (n0, a0), (n1, a1) in pairwise(curve):
        if a0 >= accuracy:
            return float(n0)
        if a1 >= accuracy:
            return n0 + (n1 - n0) * (accuracy - a0) / (a1 - a0)
    return float(curve[-1][0]) if curve and curve[-1][1] >= accuracy else None


def savings(rounds: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The `saving` part of results.json: one entry per strategy and seed, empty without a `random` curve.

    Null where a strategy never reaches random's final accuracy, and everywhere where random ends no higher than the
    base model.
    """
    baseline = mean_curve(list(curves(rounds, "random").values()))
    if len(baseline) < 2:
        return []
    budget, target = baseline[-1]
    gained = target > baseline[0][1]
    found = []
    for strategy in dict.fromkeys(r["strategy"] for r in rounds if r["strategy"] != "random"):
        for seed, curve in curves(rounds, strategy).items():
            reached = annotations_to_reach(curve, target) if gained else None
            found.append(
                {"strategy": strategy, "seed": seed, "saving": None if reached is None else 1 - reached / budget}
            )
    ceiling = [f["saving"] for f in found if f["strategy"] == "oracle" and f["saving"]]
    best = float(np.mean(ceiling)) if ceiling else None
    return [f | {"of_oracle": None if best is None or f["saving"] is None else f["saving"] / best} for f in found]
