"""The labelling actors: sampled answers → clusters, entropy and grades; then γ → labels and quadrants.

In: `samples` joined with gold answers; then `clusters`. Out: `schema.CLUSTERS` and `schema.KNOWLEDGE` columns.
Refuses to know: Ray, language models.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from ka2l_ray.label.clusters import cluster
from ka2l_ray.label.entropy import semantic_entropy
from ka2l_ray.label.grading import is_correct


class ClusterActor:
    """Clusters and grades; needs `samples`, `sample_logprobs`, `greedy`, `greedy_logprob`, `answers`."""

    def __call__(self, batch: pa.Table) -> Mapping[str, Any]:
        samples, gold = batch["samples"].to_pylist(), batch["answers"].to_pylist()
        clusters = [cluster(row) for row in samples]
        grades = [[bool(is_correct(a, g)) for a in row] if g else None for row, g in zip(samples, gold, strict=True)]
        return {
            "cluster_ids": clusters,
            "entropy_nats": [semantic_entropy(c) for c in clusters],
            "correct": [is_correct(a, g) for a, g in zip(batch["greedy"].to_pylist(), gold, strict=True)],
            "sample_accuracy": [None if g is None else float(np.mean(g)) for g in grades],
            "likelihood": [-v for v in batch["greedy_logprob"].to_pylist()],
            "predictive_entropy": [-float(np.mean(row)) for row in batch["sample_logprobs"].to_pylist()],
        }


class KnowledgeActor:
    """Applies γ: `unknown` is 1 where SE >= γ; the quadrant crosses it with the greedy answer's grade (null without gold)."""

    def __init__(self, threshold_nats: float) -> None:
        self._threshold = threshold_nats

    def __call__(self, batch: pa.Table) -> Mapping[str, Any]:
        unknown = [e >= self._threshold for e in batch["entropy_nats"].to_pylist()]
        correct = batch["correct"].to_pylist()
        return {
            "unknown": [int(u) for u in unknown],
            "quadrant": [None if c is None else quadrant(u, c) for u, c in zip(unknown, correct, strict=True)],
        }


def quadrant(unknown: bool, correct: bool) -> str:
    """known (consistent, right), misconception (consistent, wrong), shaky (inconsistent, right), unknown (inconsistent, wrong)."""
    return ("shaky" if correct else "unknown") if unknown else ("known" if correct else "misconception")
