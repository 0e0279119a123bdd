"""Discrete semantic entropy of clustered answers.

In: cluster numbers. Out: nats. Refuses to know: text, thresholds.
Source: SE = -Σ_c p_c ln p_c, p_c the share of the K answers in cluster c (Kuhn et al., 2023; KA2L, stage 1).
"""

import math
from collections import Counter
from collections.abc import Sequence

DIGITS = 12
"""Decimals of an entropy in nats. Different partitions can have equal entropies (clusters of 4, 1, 1, 1, 1, 1, 1
answers and of 2, 2, 2, 2, 1, 1) whose sums differ in their last bits; rounded, they are on the same side of γ."""


def semantic_entropy(cluster_ids: Sequence[int]) -> float:
    """Entropy in nats of cluster numbers (K,), rounded to `DIGITS` decimals, so that equal entropies are equal bit for
    bit.

    Raises `ValueError` for no answers.
    """
    if not cluster_ids:
        raise ValueError("semantic entropy needs at least one answer")
    shares = sorted(n / len(cluster_ids) for n in Counter(cluster_ids).values())
    return round(max(0.0, -math.fsum(p * math.log(p) for p in shares)), DIGITS)
