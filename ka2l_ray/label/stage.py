"""Samples → clusters → semantic entropy → γ → known or unknown.

In: the table `samples`. Out: `clusters` (before γ) and `knowledge`, whose manifest records γ as `threshold_nats`.
γ has one owner: this stage. It is found from a histogram of distinct entropies (at most 39 at K = 10), never from rows.
Refuses to know: hidden states, probes.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from ka2l_ray import schema
from ka2l_ray.config import Pool
from ka2l_ray.dataflow.manifests import Table
from ka2l_ray.dataflow.runs import Run
from ka2l_ray.dataflow.stage import Stage, run_stage
from ka2l_ray.entropy.thresholds import otsu
from ka2l_ray.label.actor import ClusterActor, ClusterSetup, KnowledgeActor, KnowledgeSetup
from ka2l_ray.stats import auroc
from ka2l_ray.tables import unseen_targets

POOL = Pool(batch_rows=1024, shard_rows=4096)
BASELINES = ("likelihood", "predictive_entropy")
"""Scores that semantic entropy is compared with: -log p of the greedy answer, and its mean over the samples."""


def label(run: Run) -> dict[str, Any]:
    """Cluster, then apply γ; returns the manifest of `knowledge`, which holds it as `threshold_nats`."""
    _cluster(run, "label", "samples", "clusters")
    return _apply(run, "label", _threshold(run), "clusters", "knowledge")


def gamma(run: Run) -> float:
    """γ in nats, by which the probe split was labelled; rows that are labelled later are labelled by it too."""
    return run.base("knowledge").manifest()["threshold_nats"]


def _threshold(run: Run) -> float:
    """γ: the one that this split was labelled by before, else the one that sampling stopped by, else
    `label.threshold`."""
    knowledge, sampled = run.base("knowledge"), run.base("samples").manifest()
    noted = {} if knowledge.is_done else run.records.result("label") or {}
    for before in (noted, knowledge.facts(), sampled):
        if (given := before.get("threshold_nats")) is not None:
            return given
    threshold = run.config.label.threshold
    return otsu(entropy_histogram(run.base("clusters"))) if threshold == "otsu" else float(threshold)


def label_pool(run: Run, gamma: float) -> dict[str, Any]:
    """The same for `pool_samples` with the γ of the probe split; returns the manifest of `pool_knowledge`."""
    _cluster(run, "label_pool", "pool_samples", "pool_clusters")
    return _apply(run, "label_pool", gamma, "pool_clusters", "pool_knowledge")


def _cluster(run: Run, name: str, samples: str, clusters: str) -> None:
    stage = Stage(
        name=name,
        spec=schema.TABLES[clusters],
        actor=ClusterActor,
        setup=ClusterSetup(wanted=run.config.collect.samples),
        pool=POOL,
        max_error_fraction=run.config.run.max_error_fraction,
    )
    run_stage(stage, run.base(samples), run.base(clusters))


def _apply(run: Run, name: str, gamma: float, clusters: str, knowledge: str) -> dict[str, Any]:
    stage = Stage(
        name=name,
        spec=schema.TABLES[knowledge],
        actor=KnowledgeActor,
        setup=KnowledgeSetup(threshold_nats=gamma),
        pool=POOL,
        max_error_fraction=run.config.run.max_error_fraction,
    )
    return run_stage(stage, run.base(clusters), run.base(knowledge), threshold_nats=gamma)


def entropy_histogram(table: Table) -> Counter[float]:
    """How often each distinct entropy (in nats) occurs; failed rows have none and are left out."""
    counts: Counter[float] = Counter()
    for batch in table.batches(["entropy_nats"]):
        counts.update(v for v in batch["entropy_nats"].to_pylist() if v is not None)
    return counts


def label_summary(run: Run, gamma: float) -> dict[str, Any]:
    """The part `label` of results.json: shares, quadrants and, over questions with all K samples, AUROCs of entropy and
    baselines.

    Quadrants and AUROCs against wrong answers are over the questions with gold; `right` and `wrong` count their greedy
    answers.
    """
    counts = count_knowledge(run.base("knowledge"))
    graded, compared = counts.wrong >= 0, counts.unseen >= 0
    wrong, entropy = counts.wrong[graded] == 1, counts.scores["entropy_nats"]
    return {
        "questions": counts.questions,
        "unknown_fraction": counts.unknown / counts.questions if counts.questions else float("nan"),
        "threshold_nats": gamma,
        "samples_saved": samples_saved(run),
        "right": int((counts.wrong == 0).sum()),
        "wrong": int((counts.wrong == 1).sum()),
        "entropy_auroc_vs_incorrect": auroc(wrong, entropy[graded]),
        "entropy_auroc_vs_truth": auroc(counts.unseen[compared], entropy[compared]),
        "baselines": {name: auroc(wrong, counts.scores[name][graded]) for name in BASELINES},
        "quadrants": {name: counts.quadrants[name] for name in schema.QUADRANTS} if counts.quadrants else {},
    }


def samples_saved(run: Run) -> float:
    """Share of the probe split's K samples per question that adaptive sampling saved, net of what the
    pilot drew."""
    counted = [_drawn(run.base(name)) for name in ("samples", "pilot") if run.base(name).is_done]
    wanted = run.config.collect.samples * counted[0][0]
    return 1 - sum(drawn for _, drawn in counted) / wanted if wanted else 0.0


def _drawn(table: Table) -> tuple[int, int]:
    """Number of rows that did not fail, and of the samples drawn for them."""
    rows = drawn = 0
    for batch in table.batches(["sample_tokens"]):
        lengths = batch["sample_tokens"].value_lengths()
        rows, drawn = rows + len(lengths) - lengths.null_count, drawn + (lengths.sum().as_py() or 0)
    return rows, drawn


@dataclass(frozen=True)
class KnowledgeCounts:
    """What a summary needs of the table `knowledge`.

    Counts are over the rows that did not fail. For AUROCs there are, over the N of them with all K samples, scores (N,)
    by column and two targets (N,): `wrong` and `unseen` are 1 or 0, or -1 in rows that no AUROC counts.
    """

    questions: int
    unknown: int
    quadrants: Counter[str]
    scores: dict[str, np.ndarray]
    wrong: np.ndarray
    unseen: np.ndarray


def count_knowledge(knowledge: Table) -> KnowledgeCounts:
    """Count batch by batch, so that only three scores and two bytes per row stay in memory."""
    names = ("entropy_nats", *BASELINES)
    questions, unknown, quadrants = 0, 0, Counter[str]()
    parts: dict[str, list[np.ndarray]] = {name: [] for name in (*names, "wrong", "unseen")}
    for batch in knowledge.batches(["unknown", "correct", "quadrant", "truth", *names]):
        rows = batch.filter(batch["unknown"].is_valid())
        questions += rows.num_rows
        unknown += int(np.sum(rows["unknown"].to_numpy(zero_copy_only=False)))
        quadrants.update(q for q in rows["quadrant"].to_pylist() if q is not None)
        whole = rows.filter(rows["entropy_nats"].is_valid())
        for name in names:
            parts[name].append(whole[name].to_numpy(zero_copy_only=False))
        correct = whole["correct"].to_pylist()
        parts["wrong"].append(np.array([-1 if c is None else int(not c) for c in correct], np.int8))
        parts["unseen"].append(unseen_targets(whole["truth"]).astype(np.int8))
    joined = {name: np.concatenate(arrays) if arrays else np.array([]) for name, arrays in parts.items()}
    wrong, unseen = joined.pop("wrong"), joined.pop("unseen")
    return KnowledgeCounts(questions, unknown, quadrants, joined, wrong, unseen)
