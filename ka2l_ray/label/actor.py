"""The labelling actors: sampled answers → clusters, entropy and grades; then γ → labels and quadrants.

In: rows of `samples` with gold answers; then rows of `clusters`. Out: the columns that `clusters` and `knowledge` add.
Refuses to know: Ray, language models.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from ka2l_ray.entropy.adaptive import entropy_bounds
from ka2l_ray.entropy.clusters import cluster
from ka2l_ray.text.answers import abstains
from ka2l_ray.text.grading import EXACT, Grading, grade


@dataclass(frozen=True, kw_only=True)
class ClusterSetup:
    """`wanted` is K. A question with fewer samples stopped early: it gets bounds in place of an entropy, and no figure
    over its samples. `refusals` are phrases that are no answer."""

    wanted: int = 0
    refusals: Sequence[str] = ()
    grading: Grading = EXACT


class ClusterActor:
    """Clusters samples by meaning, computes semantic entropy (Farquhar et al., 2024) and its baselines, and grades."""

    def __init__(self, setup: ClusterSetup) -> None:
        self._wanted, self._refusals, self._grading = setup.wanted, setup.refusals, setup.grading

    def __call__(self, batch: pa.Table) -> Mapping[str, Any]:
        """Columns for a batch of any size with `samples`, `sample_logprobs`, `greedy`, `greedy_logprob`, `answers`."""
        samples, gold, logprobs = (batch[name].to_pylist() for name in ("samples", "answers", "sample_logprobs"))
        clusters, missing = [cluster(row) for row in samples], [max(self._wanted - len(row), 0) for row in samples]
        bounds = [entropy_bounds(c, n) for c, n in zip(clusters, missing, strict=True)]
        grades = [
            [bool(grade(a, g, self._grading)) for a in row] if g and not n else None
            for row, g, n in zip(samples, gold, missing, strict=True)
        ]
        return {
            "cluster_ids": clusters,
            "entropy_nats": [None if n else least for (least, _), n in zip(bounds, missing, strict=True)],
            "entropy_lo": [least for least, _ in bounds],
            "entropy_hi": [greatest for _, greatest in bounds],
            "abstains": [self._abstains(row, g) for row, g in zip(samples, gold, strict=True)],
            "correct": [grade(a, g, self._grading) for a, g in zip(batch["greedy"].to_pylist(), gold, strict=True)],
            "sample_accuracy": [None if g is None else float(np.mean(g)) for g in grades],
            "likelihood": [-v for v in batch["greedy_logprob"].to_pylist()],
            "predictive_entropy": [
                None if n else -float(np.mean(row)) for row, n in zip(logprobs, missing, strict=True)
            ],
        }

    def _abstains(self, samples: Sequence[str], gold: Sequence[str]) -> bool:
        """Whether more than half of the K samples are no answer; a refusal that is the gold answer is one."""
        silent = sum(abstains(a, self._refusals) and not grade(a, gold, self._grading) for a in samples)
        return 2 * silent > max(self._wanted, len(samples))


@dataclass(frozen=True, kw_only=True)
class KnowledgeSetup:
    """`threshold_nats` is γ."""

    threshold_nats: float


class KnowledgeActor:
    """Applies γ: `unknown` is 1 where SE >= γ, or where the model abstains. Where sampling stopped early, the least
    possible entropy decides, which is on the same side of γ as any other, since γ decided when to stop."""

    def __init__(self, setup: KnowledgeSetup) -> None:
        self._threshold = setup.threshold_nats

    def __call__(self, batch: pa.Table) -> Mapping[str, Any]:
        """`unknown`, and the quadrant: it crossed with the greedy answer's grade; null without gold."""
        inconsistent = [e >= self._threshold for e in batch["entropy_lo"].to_pylist()]
        silent, correct = batch["abstains"].to_pylist(), batch["correct"].to_pylist()
        rows = list(zip(inconsistent, silent, correct, strict=True))
        return {
            "unknown": [int(u or a) for u, a, _ in rows],
            "quadrant": [None if c is None else "abstains" if a else quadrant(u, c) for u, a, c in rows],
        }


def quadrant(unknown: bool, correct: bool) -> str:
    """known (consistent, right), misconception (consistent, wrong), shaky (inconsistent, right) or unknown
    (inconsistent, wrong)."""
    return ("shaky" if correct else "unknown") if unknown else ("known" if correct else "misconception")
