"""When a question's remaining samples cannot change its label, so that they need not be drawn.

In: the clusters of the samples drawn so far, how many remain, γ. Out: the least and the greatest entropy that all K
samples can have. The bounds are exact where a remaining sample may join any cluster or open a new one, as under exact
equivalence.
Refuses to know: text, models, how γ was found. Source: entropy is Schur-concave, so it is least where the shares are
most unequal (all remaining samples in the largest cluster) and greatest where they are most equal (each in a cluster of
its own).
"""

from collections import Counter
from collections.abc import Sequence

from ka2l_ray.entropy.semantic import semantic_entropy


def entropy_bounds(cluster_ids: Sequence[int], remaining: int) -> tuple[float, float]:
    """Least and greatest semantic entropy in nats after `remaining` more samples; equal where none remain.

    Raises `ValueError` where nothing has been drawn.
    """
    if not cluster_ids:
        raise ValueError("bounds of semantic entropy need at least one answer")
    (largest, _), new = Counter(cluster_ids).most_common(1)[0], max(cluster_ids) + 1
    return (
        semantic_entropy([*cluster_ids, *[largest] * remaining]),
        semantic_entropy([*cluster_ids, *range(new, new + remaining)]),
    )


def first_decision(samples: int, threshold_nats: float) -> int:
    """The fewest of `samples` answers after which some label can be decided: all answers are equal, or all
    different."""
    extremes = (lambda n: [0] * n, range)
    return next(
        n for n in range(1, samples + 1) if any(is_decided(ids(n), samples - n, threshold_nats) for ids in extremes)
    )


def is_decided(cluster_ids: Sequence[int], remaining: int, threshold_nats: float) -> bool:
    """Whether `unknown` (SE >= γ) is the same for every outcome of the remaining samples."""
    least, greatest = entropy_bounds(cluster_ids, remaining)
    return least >= threshold_nats or greatest < threshold_nats
