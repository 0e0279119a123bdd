"""When no outcome of a question's remaining samples can change its label, so that they need not be drawn.

In: the clusters of the samples drawn so far, how many remain, γ. Out: the least and the greatest entropy that all K samples can have.
Exact where a remaining sample may join any cluster or open one of its own, which holds for exact equivalence.
Refuses to know: text, models, how γ was found. Source: entropy is Schur-concave, so what makes the shares most unequal (all in the
largest cluster) is its least value, and what makes them most equal (each a cluster of its own) its greatest.
"""

from collections import Counter
from collections.abc import Sequence

from ka2l_ray.entropy.semantic import semantic_entropy


def entropy_bounds(cluster_ids: Sequence[int], remaining: int) -> tuple[float, float]:
    """Least and greatest semantic entropy in nats after `remaining` more samples; equal when none remains.

    Raises `ValueError` where nothing was drawn yet.
    """
    drawn = list(cluster_ids)
    if not drawn:
        raise ValueError("bounds of semantic entropy need at least one answer")
    largest = Counter(drawn).most_common(1)[0][0]
    apart = range(max(drawn) + 1, max(drawn) + 1 + remaining)
    return semantic_entropy([*drawn, *[largest] * remaining]), semantic_entropy([*drawn, *apart])


def first_decision(samples: int, threshold_nats: float) -> int:
    """The fewest of `samples` answers after which any label can be decided: they are all alike, or all unlike."""
    ways = (lambda n: [0] * n, range)
    return next(
        n for n in range(1, samples + 1) if any(is_decided(way(n), samples - n, threshold_nats) for way in ways)
    )


def is_decided(cluster_ids: Sequence[int], remaining: int, threshold_nats: float) -> bool:
    """Whether `unknown` (SE >= γ) is the same for every outcome of the remaining samples."""
    least, greatest = entropy_bounds(cluster_ids, remaining)
    return least >= threshold_nats or greatest < threshold_nats
