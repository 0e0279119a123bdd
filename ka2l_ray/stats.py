"""AUROC and its interval.

In: scores (N,), binary targets (N,), and the entity of each row. Out: numbers, None where one class is missing.
Refuses to know: probes, tables. Intervals resample entities, not rows, because rows of one entity are not independent.
"""

from collections.abc import Sequence
from statistics import fmean, stdev

import numpy as np
from scipy.stats import rankdata
from scipy.stats import t as student


def auroc(target: np.ndarray, score: np.ndarray) -> float | None:
    """Area under the ROC curve, ties counted half (the Mann-Whitney statistic); None where only one class occurs.

    By ranks: the bootstrap calls it a thousand times a layer, where scikit-learn's checks of its input cost more than the figure.
    """
    positive = np.asarray(target, dtype=bool)
    ones, zeros = int(positive.sum()), int((~positive).sum())
    if not ones or not zeros:
        return None
    return float((rankdata(score)[positive].sum() - ones * (ones + 1) / 2) / (ones * zeros))


def auroc_interval(
    target: np.ndarray, score: np.ndarray, entity: np.ndarray, resamples: int, seed: int
) -> tuple[float, float] | None:
    """95 % percentile bootstrap interval over entities; None where AUROC is undefined."""
    if auroc(target, score) is None:
        return None
    rng = np.random.default_rng(seed)
    _, codes = np.unique(entity, return_inverse=True)
    members = np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1])
    drawn = []
    for _ in range(resamples):
        rows = np.concatenate([members[i] for i in rng.integers(len(members), size=len(members))])
        if (value := auroc(target[rows], score[rows])) is not None:
            drawn.append(value)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(low), float(high)


def interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float] | None:
    """Student's t interval of a mean; None for fewer than two values."""
    if len(values) < 2:
        return None
    half = float(student.ppf((1 + confidence) / 2, len(values) - 1)) * stdev(values) / len(values) ** 0.5
    return fmean(values) - half, fmean(values) + half
