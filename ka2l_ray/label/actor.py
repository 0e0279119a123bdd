"""The labelling actors: sampled answers → clusters, entropy and grades; then γ → labels and quadrants.

In: `samples` joined with gold answers; then `clusters`. Out: `schema.CLUSTERS` and `schema.KNOWLEDGE` columns.
Refuses to know: Ray, language models.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from ka2l_ray.entropy.adaptive import entropy_bounds
from ka2l_ray.entropy.clusters import cluster
from ka2l_ray.text.grading import is_correct


class ClusterActor:
    """Clusters and grades; needs `samples`, `sample_logprobs`, `greedy`, `greedy_logprob`, `answers`.

    A question with fewer than `wanted` samples stopped early: it has bounds in place of an entropy, and no figure over its samples.
    """

    def __init__(self, wanted: int = 0) -> None:
        self._wanted = wanted

    def __call__(self, batch: pa.Table) -> Mapping[str, Any]:
        samples, gold = batch["samples"].to_pylist(), batch["answers"].to_pylist()
        clusters, missing = [cluster(row) for row in samples], [max(self._wanted - len(row), 0) for row in samples]
        bounds = [entropy_bounds(c, n) for c, n in zip(clusters, missing, strict=True)]
        logprobs = batch["sample_logprobs"].to_pylist()
        grades = [
            [bool(is_correct(a, g)) for a in row] if g and not n else None
            for row, g, n in zip(samples, gold, missing, strict=True)
        ]
        return {
            "cluster_ids": clusters,
            "entropy_nats": [None if n else least for (least, _), n in zip(bounds, missing, strict=True)],
            "entropy_lo": [least for least, _ in bounds],
            "entropy_hi": [greatest for _, greatest in bounds],
            "correct": [is_correct(a, g) for a, g in zip(batch["greedy"].to_pylist(), gold, strict=True)],
            "sample_accuracy": [None if g is None else float(np.mean(g)) for g in grades],
            "likelihood": [-v for v in batch["greedy_logprob"].to_pylist()],
            "predictive_entropy": [
                None if n else -float(np.mean(row)) for row, n in zip(logprobs, missing, strict=True)
            ],
        }


class KnowledgeActor:
    """Applies γ: `unknown` is 1 where SE >= γ (where sampling stopped: where its least value is, since γ decided when to stop).

    The quadrant crosses it with the greedy answer's grade (null without gold).
    """

    def __init__(self, threshold_nats: float) -> None:
        self._threshold = threshold_nats

    def __call__(self, batch: pa.Table) -> Mapping[str, Any]:
        unknown = [e >= self._threshold for e in batch["entropy_lo"].to_pylist()]
        correct = batch["correct"].to_pylist()
        return {
            "unknown": [int(u) for u in unknown],
            "quadrant": [None if c is None else quadrant(u, c) for u, c in zip(unknown, correct, strict=True)],
        }


def quadrant(unknown: bool, correct: bool) -> str:
    """known (consistent, right), misconception (consistent, wrong), shaky (inconsistent, right), unknown (inconsistent, wrong)."""
    return ("shaky" if correct else "unknown") if unknown else ("known" if correct else "misconception")
