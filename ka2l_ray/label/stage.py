"""Samples → clusters → semantic entropy → γ → known or unknown.

In: `base/samples`. Out: `base/clusters` (before γ) and `base/knowledge`, whose manifest records γ.
γ has one owner: this stage. It is found from a histogram of distinct entropies (at most 39 at K = 10), never from rows.
Refuses to know: hidden states, probes.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from ka2l_ray import schema
from ka2l_ray.config import Pool
from ka2l_ray.dataflow.manifests import Table
from ka2l_ray.dataflow.runs import Run
from ka2l_ray.dataflow.stage import Stage, run_stage
from ka2l_ray.entropy.thresholds import otsu
from ka2l_ray.label.actor import ClusterActor, KnowledgeActor
from ka2l_ray.stats import auroc
from ka2l_ray.tables import unseen_targets

CARRIED = ("group", "entity", "split_group", "truth")
POOL = Pool(batch_rows=1024, shard_rows=4096)
BASELINES = ("likelihood", "predictive_entropy")


def _added(table: pa.Schema, *present: str) -> pa.Schema:
    return pa.schema([f for f in table if f.name not in ("id", *CARRIED, *present)])


def label(run: Run) -> dict[str, Any]:
    """Cluster, then apply γ; returns the manifest of `knowledge`, which holds it as `threshold_nats`."""
    clusters = run.base("clusters")
    _cluster(run, "label", run.base("samples"), clusters)
    return _apply(run, "label", _threshold(run, clusters), clusters, run.base("knowledge"))


def gamma(run: Run) -> float:
    """γ in nats, by which the probe split was labelled; rows that are labelled later get the same."""
    return run.base("knowledge").manifest()["threshold_nats"]


def _threshold(run: Run, clusters: Table) -> float:
    """γ: the one that this split was labelled by before, the one that sampling stopped by, else `label.threshold`."""
    before, sampled = (
        run.base("knowledge").facts().get("threshold_nats"),
        run.base("samples").manifest()["threshold_nats"],
    )
    if (given := before if before is not None else sampled) is not None:
        return given
    threshold = run.config.label.threshold
    return otsu(entropy_histogram(clusters)) if threshold == "otsu" else float(threshold)


def label_pool(run: Run, gamma: float) -> dict[str, Any]:
    """The same for `base/pool_samples` with the γ of the probe split: `base/pool_knowledge`, which some strategies rank by."""
    _cluster(run, "label_pool", run.base("pool_samples"), run.base("pool_clusters"))
    return _apply(run, "label_pool", gamma, run.base("pool_clusters"), run.base("pool_knowledge"))


def _cluster(run: Run, name: str, samples: Table, clusters: Table) -> None:
    needs = ("samples", "sample_logprobs", "greedy", "greedy_logprob", "answers")
    run_stage(
        Stage(
            name,
            ClusterActor,
            {"wanted": run.config.collect.samples},
            needs,
            _added(schema.CLUSTERS),
            POOL,
            CARRIED,
            run.config.run.max_error_fraction,
        ),
        samples,
        clusters,
    )


def _apply(run: Run, name: str, gamma: float, clusters: Table, knowledge: Table) -> dict[str, Any]:
    kept = tuple(n for n in schema.CLUSTERS.names if n != "id")
    arguments, columns = {"threshold_nats": gamma}, _added(schema.KNOWLEDGE, *kept)
    return run_stage(
        Stage(name, KnowledgeActor, arguments, (), columns, POOL, kept, run.config.run.max_error_fraction),
        clusters,
        knowledge,
        threshold_nats=gamma,
    )


def entropy_histogram(table: Table) -> Counter[float]:
    """Count of each distinct entropy; failed rows have none and are left out."""
    counts: Counter[float] = Counter()
    for batch in table.batches(["entropy_nats"]):
        counts.update(v for v in batch["entropy_nats"].to_pylist() if v is not None)
    return counts


def label_summary(run: Run, gamma: float) -> dict[str, Any]:
    """The `label` part of results.json: shares, quadrants, and, over questions with all K samples, AUROCs of entropy and baselines. Those
    against wrong answers, and quadrants, are over the questions with gold: `right` and `wrong` say how many answers were so graded."""
    found = count_knowledge(run.base("knowledge"))
    graded, compared = found.wrong >= 0, found.unseen >= 0
    return {
        "questions": found.questions,
        "unknown_fraction": found.unknown / found.questions if found.questions else float("nan"),
        "threshold_nats": gamma,
        "samples_saved": samples_saved(run),
        "right": int((found.wrong == 0).sum()),
        "wrong": int((found.wrong == 1).sum()),
        "entropy_auroc_vs_incorrect": auroc(found.wrong[graded] == 1, found.scores["entropy_nats"][graded]),
        "entropy_auroc_vs_truth": auroc(found.unseen[compared], found.scores["entropy_nats"][compared]),
        "baselines": {name: auroc(found.wrong[graded] == 1, found.scores[name][graded]) for name in BASELINES},
        "quadrants": {name: found.quadrants[name] for name in schema.QUADRANTS} if found.quadrants else {},
    }


def samples_saved(run: Run) -> float:
    """Share of the probe split's K samples per question that were not drawn, the pilot's counted as drawn twice."""
    counted = [_drawn(run.base(name)) for name in ("samples", "pilot") if run.base(name).is_done]
    wanted = run.config.collect.samples * counted[0][0]
    return 1 - sum(drawn for _, drawn in counted) / wanted if wanted else 0.0


def _drawn(table: Table) -> tuple[int, int]:
    """Rows that did not fail, and the samples drawn for them."""
    rows = drawn = 0
    for batch in table.batches(["sample_tokens"]):
        lengths = batch["sample_tokens"].value_lengths()
        rows, drawn = rows + len(lengths) - lengths.null_count, drawn + (lengths.sum().as_py() or 0)
    return rows, drawn


@dataclass(frozen=True)
class KnowledgeCounts:
    """What a summary needs of the `knowledge` table: counts over the rows that did not fail and, for AUROCs, of each with all K samples
    its scores and two targets (N,): `wrong` and `unseen` are 1 or 0, and -1 where no AUROC counts the row."""

    questions: int
    unknown: int
    quadrants: Counter[str]
    scores: dict[str, np.ndarray]
    wrong: np.ndarray
    unseen: np.ndarray


def count_knowledge(knowledge: Table) -> KnowledgeCounts:
    """Batch by batch; a row leaves its three scores and two bytes, and no text."""
    names = ("entropy_nats", *BASELINES)
    questions, unknown, quadrants = 0, 0, Counter[str]()
    parts: dict[str, list[np.ndarray]] = {name: [] for name in (*names, "wrong", "unseen")}
    for batch in knowledge.batches(["unknown", "correct", "quadrant", "truth", *names]):
        rows = batch.filter(batch["unknown"].is_valid())
        questions, unknown = (
            questions + rows.num_rows,
            unknown + int(np.sum(rows["unknown"].to_numpy(zero_copy_only=False))),
        )
        quadrants.update(q for q in rows["quadrant"].to_pylist() if q is not None)
        whole = rows.filter(rows["entropy_nats"].is_valid())
        for name in names:
            parts[name].append(whole[name].to_numpy(zero_copy_only=False))
        parts["wrong"].append(
            np.array([-1 if c is None else int(not c) for c in whole["correct"].to_pylist()], np.int8)
        )
        parts["unseen"].append(unseen_targets(whole["truth"]).astype(np.int8))
    joined = {name: np.concatenate(arrays) if arrays else np.array([]) for name, arrays in parts.items()}
    wrong, unseen = joined.pop("wrong"), joined.pop("unseen")
    return KnowledgeCounts(questions, unknown, quadrants, joined, wrong, unseen)
