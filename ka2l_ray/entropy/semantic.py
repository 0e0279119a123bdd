"""Discrete semantic entropy of a question's answers.

In: answers, or the numbers of their clusters. Out: nats. Refuses to know: thresholds, tables.
Source: SE = -Σ_c p_c ln p_c, p_c the share of the K answers in cluster c (Kuhn et al., 2023; KA2L, stage 1).
"""

import math
from collections import Counter
from collections.abc import Sequence

from ka2l_ray.entropy.clusters import cluster

DIGITS = 12
"""Of an entropy in nats. Equal sums of different partitions (four alike and six apart; four pairs and two apart) round
differently in their last bits, and must fall on the same side of γ."""


def semantic_entropy(answers: Sequence[str] | Sequence[int]) -> float:
    """Semantic entropy in nats, from 0 (all alike) to ln K (all different), of K sampled answers to one question.

    Texts are alike where they are equal after normalisation (`text.grading.are_equal`). For another equivalence,
    such as entailment, give the number of each answer's cluster in place of its text. The value is rounded to `DIGITS`
    decimals: equal entropies are bitwise equal, so that distinct values can be counted.

    Raises `ValueError` where there is no answer. Source: Kuhn et al., 2023; KA2L, stage 1.

    >>> from ka2l_ray import semantic_entropy
    >>> semantic_entropy(["Rome", "rome.", "the Rome", "Oslo"])
    0.562335144619
    >>> semantic_entropy([0, 0, 0, 1])
    0.562335144619
    """
    if not answers:
        raise ValueError("semantic entropy needs at least one answer")
    texts = [a for a in answers if isinstance(a, str)]
    clusters = cluster(texts) if texts else answers
    shares = sorted(n / len(answers) for n in Counter(clusters).values())
    return round(max(0.0, -math.fsum(p * math.log(p) for p in shares)), DIGITS)
