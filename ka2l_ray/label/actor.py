"""The labelling actors: sampled answers → clusters, entropy and grades; then γ → labels and quadrants.

In: rows of `samples` with gold answers; then rows of `clusters`. Out: the columns that `clusters` and `knowledge` add.
Refuses to know: Ray, language models.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from ka2l_ray.entropy.adaptive import entropy_bounds
from ka2l_ray.entropy.clusters import cluster
from ka2l_ray.text.grading import is_correct


@dataclass(frozen=True, kw_only=True)
class ClusterSetup:
    """`wanted` is K. A question with fewer samples stopped early: it gets bounds in place of an entropy, and no figure
    over its samples."""

    wanted: int = 0


class ClusterActor:
    """Clusters samples by meaning, computes semantic entropy (Farquhar et al., 2024) and its baselines, and grades."""

    def __init__(self, setup: ClusterSetup) -> None:
        self._wanted = setup.wanted

    def __call__(self, batch: pa.Table) -> Mapping[str, Any]:
        """Columns for a batch of any size with `samples`, `sample_logprobs`, `greedy`, `greedy_logprob`, `answers`."""
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


@dataclass(frozen=True, kw_only=True)
class KnowledgeSetup:
    """`threshold_nats` is γ."""

    threshold_nats: float


class KnowledgeActor:
    """Applies γ: `unknown` is 1 where SE >= γ. Where sampling stopped early, the least possible entropy decides,
    which is on the same side of γ as any other, since γ decided when to stop."""

    def __init__(self, setup: KnowledgeSetup) -> None:
        self._threshold = setup.threshold_nats

    def __call__(self, batch: pa.Table) -> Mapping[str, Any]:
        """`unknown`, and the quadrant: it crossed with the greedy answer's grade; null without gold."""
        unknown = [e >= self._threshold for e in batch["entropy_lo"].to_pylist()]
        correct = batch["correct"].to_pylist()
        return {
            "unknown": [int(u) for u in unknown],
            "quadrant": [None if c is None else quadrant(u, c) for u, c in zip(unknown, correct, strict=True)],
        }


def quadrant(unknown: bool, correct: bool) -> str:
    """known (consistent, right), misconception (consistent, wrong), shaky (inconsistent, right) or unknown
    (inconsistent, wrong)."""
    return ("shaky" if correct else "unknown") if unknown else ("known" if correct else "misconception")
