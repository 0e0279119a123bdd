"""AUROC with a bootstrap interval, and the t interval of a mean.

In: scores (N,), binary targets (N,), and the entity of each row. Out: numbers; None where one class is missing.
Refuses to know: probes, tables. The bootstrap resamples entities, not rows, because rows of one entity are not
independent.
"""

from collections.abc import Sequence
from statistics import fmean, stdev

import numpy as np
from scipy.stats import rankdata
from scipy.stats import t as student


def auroc(target: np.ndarray, score: np.ndarray) -> float | None:
    """Area under the ROC curve of scores (N,) for binary targets (N,), ties counted half; None where only one class
    occurs.

    Computed from ranks (the Mann-Whitney statistic): the bootstrap calls it a thousand times per layer, and
    scikit-learn would spend more time on checking its input than on the result.
    """
    positive = np.asarray(target, dtype=bool)
    ones, zeros = int(positive.sum()), int((~positive).sum())
    if not ones or not zeros:
        return None
    return float((rankdata(score)[positive].sum() - ones * (ones + 1) / 2) / (ones * zeros))


def auroc_interval(
    target: np.ndarray, score: np.ndarray, entity: np.ndarray, resamples: int, seed: int
) -> tuple[float, float] | None:
    """95 % percentile bootstrap interval of AUROC over entities, from arrays (N,); None where AUROC is undefined."""
    if auroc(target, score) is None:
        return None
    rng = np.random.default_rng(seed)
    _, codes = np.unique(entity, return_inverse=True)
    members = np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1])
    resampled = []
    for _ in range(resamples):
        rows = np.concatenate([members[i] for i in rng.integers(len(members), size=len(members))])
        if (value := auroc(target[rows], score[rows])) is not None:
            resampled.append(value)
    low, high = np.percentile(resampled, [2.5, 97.5])
    return float(low), float(high)


def interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float] | None:
    """Student's t interval of a mean; None for fewer than two values."""
    if len(values) < 2:
        return None
    half_width = float(student.ppf((1 + confidence) / 2, len(values) - 1)) * stdev(values) / len(values) ** 0.5
    return fmean(values) - half_width, fmean(values) + half_width
