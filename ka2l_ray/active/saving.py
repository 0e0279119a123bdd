"""How many annotations a strategy saves compared with random choice.

In: learning curves (annotations, accuracy). Out: saving = 1 - n_s / n_r, None where random's accuracy is never reached.
Refuses to know: runs, files. n_r is random's full budget, n_s where the strategy's interpolated curve first reaches
random's mean accuracy there.
"""

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from ka2l_ray.active.strategies import ceiling_of
from ka2l_ray.results_schema import RoundResult, SavingResult

LearningCurve = list[tuple[int, float]]


def curves(rounds: Sequence[RoundResult], strategy: str) -> dict[int, LearningCurve]:
    """Learning curves of a strategy by seed, ordered by annotations."""
    found: dict[int, LearningCurve] = defaultdict(list)
    for r in rounds:
        if r["strategy"] == strategy and r["accuracy"] is not None:
            found[r["seed"]].append((r["annotations"], r["accuracy"]))
    return {seed: sorted(points) for seed, points in found.items()}


def at_shared_counts(many: Sequence[LearningCurve]) -> dict[int, list[float]]:
    """The accuracies of all curves at each annotation count that every curve has."""
    shared = set.intersection(*({n for n, _ in c} for c in many)) if many else set()
    return {n: [dict(c)[n] for c in many] for n in sorted(shared)}


def mean_curve(many: Sequence[LearningCurve]) -> LearningCurve:
    """Mean accuracy at each annotation count that every curve has."""
    return [(n, float(np.mean(accuracies))) for n, accuracies in at_shared_counts(many).items()]


def annotations_to_reach(curve: LearningCurve, accuracy: float) -> float | None:
    """Annotations at which the linearly interpolated curve first reaches an accuracy; None if never."""
    for (n0, a0), (n1, a1) in pairwise(curve):
        if a0 >= accuracy:
            return float(n0)
        if a1 >= accuracy:
            return n0 + (n1 - n0) * (accuracy - a0) / (a1 - a0)
    return float(curve[-1][0]) if curve and curve[-1][1] >= accuracy else None


def savings(rounds: Sequence[RoundResult]) -> list[SavingResult]:
    """The `saving` part of results.json: one entry per strategy and seed, empty without a `random` curve.

    Null where a strategy never reaches random's final accuracy, and everywhere where random ends no higher than the
    base model.
    """
    baseline = mean_curve(list(curves(rounds, "random").values()))
    if len(baseline) < 2:
        return []
    (_, base), (budget, target) = baseline[0], baseline[-1]
    found: dict[tuple[str, int], float | None] = {}
    for strategy in dict.fromkeys(r["strategy"] for r in rounds if r["strategy"] != "random"):
        for seed, curve in curves(rounds, strategy).items():
            reached = annotations_to_reach(curve, target) if target > base else None
            found[strategy, seed] = None if reached is None else 1 - reached / budget
    best_strategy = ceiling_of(strategy for strategy, _ in found)
    ceiling = [saving for (strategy, _), saving in found.items() if strategy == best_strategy and saving]
    best = float(np.mean(ceiling)) if ceiling else None
    return [
        SavingResult(
            strategy=strategy,
            seed=seed,
            saving=saving,
            of_oracle=None if best is None or saving is None else saving / best,
        )
        for (strategy, seed), saving in found.items()
    ]
