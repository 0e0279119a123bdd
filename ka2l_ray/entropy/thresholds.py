"""The threshold γ on semantic entropy, chosen among the values that occur.

In: a histogram {entropy in nats: count}. Out: γ in nats; `unknown` means SE >= γ, so equal values are always on the
same side.
Refuses to know: rows, tables. Source: KA2L, stage 1 (least within-group sum of squares), the same split as Otsu (1979).
"""

import itertools
from collections.abc import Mapping

import numpy as np

from ka2l_ray.errors import ConfigError


def otsu(histogram: Mapping[float, int]) -> float:
    """The threshold that splits the values (below it; from it upwards) with the least within-group sum of squares.

    Raises `ConfigError` where fewer than two values occur.
    """
    if len(histogram) < 2:
        raise ConfigError(
            "every question has the same semantic entropy, so known and unknown cannot be told apart; "
            "ask more questions, raise collect.temperature, or set label.threshold to a value"
        )
    values = np.array(sorted(histogram))
    counts = np.array([histogram[v] for v in values], dtype=float)
    within = [_scatter(values[:i], counts[:i]) + _scatter(values[i:], counts[i:]) for i in range(1, len(values))]
    return float(values[1 + int(np.argmin(within))])


def candidates(histogram: Mapping[float, int], min_share: float) -> list[float]:
    """All thresholds with at least `min_share` of the rows on each side, ascending."""
    values, total = sorted(histogram), sum(histogram.values())
    below = itertools.accumulate((histogram[v] for v in values), initial=0)
    return [v for v, rows in zip(values, below, strict=False) if min_share <= rows / total <= 1 - min_share]


def _scatter(values: np.ndarray, counts: np.ndarray) -> float:
    mean = np.average(values, weights=counts)
    return float(np.sum(counts * (values - mean) ** 2))
