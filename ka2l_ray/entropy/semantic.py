"""Discrete semantic entropy of clustered answers.

In: cluster numbers. Out: nats. Refuses to know: text, thresholds.
Source: SE = -Σ_c p_c ln p_c, p_c the share of the K answers in cluster c (Kuhn et al., 2023; KA2L, stage 1).
"""

import math
from collections import Counter
from collections.abc import Sequence

DIGITS = 12
"""Of an entropy in nats. Sums of different partitions that are equal (four alike and six apart, four pairs and two apart) round differently
in their last bits, and must fall on the same side of γ."""


def semantic_entropy(cluster_ids: Sequence[int]) -> float:
    """Entropy in nats to `DIGITS` decimals; equal entropies are bitwise equal, so distinct values can be enumerated."""
    if not cluster_ids:
        raise ValueError("semantic entropy needs at least one answer")
    shares = sorted(n / len(cluster_ids) for n in Counter(cluster_ids).values())
    return round(max(0.0, -math.fsum(p * math.log(p) for p in shares)), DIGITS)
