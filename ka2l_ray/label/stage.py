"""Samples → clusters → semantic entropy → γ → known or unknown.

In: the table `samples`. Out: `clusters` (before γ) and `knowledge`, whose manifest records γ as `threshold_nats`.
γ has one owner: this stage. It is found from a histogram of distinct entropies (at most 39 at K = 10), never from rows.
Refuses to know: hidden states, probes.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ka2l_ray import schema
from ka2l_ray.config import Pool
from ka2l_ray.dataflow.manifests import Table
from ka2l_ray.dataflow.runs import Run
from ka2l_ray.dataflow.stage import Stage, run_stage
from ka2l_ray.entropy.thresholds import otsu
from ka2l_ray.label.actor import ClusterActor, ClusterSetup, KnowledgeActor, KnowledgeSetup
from ka2l_ray.results_schema import LabelResult
from ka2l_ray.stats import auroc
from ka2l_ray.tables import unseen_targets
from ka2l_ray.text.grading import Grading

POOL = Pool(batch_rows=1024, shard_rows=4096)
BASELINES = ("likelihood", "predictive_entropy")
"""Scores that semantic entropy is compared with: -log p of the greedy answer, and its mean over the samples."""


def label(run: Run) -> dict[str, Any]:
    """Cluster, then apply γ; returns the manifest of `knowledge`, which holds it as `threshold_nats`."""
    return _label(run, "label", "", _threshold)


def label_pool(run: Run) -> dict[str, Any]:
    """The same for `pool_samples` with the γ of the probe split; returns the manifest of `pool_knowledge`."""
    return _label(run, "label_pool", "pool_", gamma)


def gamma(run: Run) -> float:
    """γ in nats, by which the probe split was labelled; rows that are labelled later are labelled by it too."""
    return run.base("knowledge").manifest()["threshold_nats"]


def _threshold(run: Run) -> float:
    """γ: the one that this split was labelled by before, else the one that sampling stopped by, else
    `label.threshold`.

    It is kept twice. Readers take it from the manifest of `knowledge`, which a round's own labels have too. A damaged
    manifest is deleted by hand, though, and Otsu's threshold over rows that were repeated since may be another one than
    probe and rounds stand on: the step's record then still has γ.
    """
    noted = run.records.result("label") or {}
    for before in (run.base("knowledge").facts(), noted, run.base("samples").manifest()):
        if (given := before.get("threshold_nats")) is not None:
            return given
    threshold = run.config.label.threshold
    return otsu(entropy_histogram(run.base("clusters"))) if threshold == "otsu" else float(threshold)


def _label(run: Run, name: str, tables: str, threshold: Callable[[Run], float]) -> dict[str, Any]:
    """Cluster the samples of the tables with this prefix, then apply the γ that `threshold` finds."""
    samples, clusters, knowledge = (run.base(f"{tables}{name}") for name in ("samples", "clusters", "knowledge"))
    pool = POOL.model_copy(update={"nodes": run.config.ray.tasks})
    run_stage(clustering_stage(run, name, tables), samples, clusters)
    threshold_nats = threshold(run)
    labelling = Stage(
        name=name,
        run=run.config.run.name,
        spec=schema.TABLES[f"{tables}knowledge"],
        actor=KnowledgeActor,
        setup=KnowledgeSetup(threshold_nats=threshold_nats),
        pool=pool,
        tasks=run.config.ray.tasks,
        max_error_fraction=run.config.run.max_error_fraction,
    )
    return run_stage(labelling, clusters, knowledge, threshold_nats=threshold_nats)


def clustering_stage(run: Run, name: str, tables: str) -> Stage[ClusterSetup]:
    """The stage that clusters and grades the samples of the tables with this prefix."""
    return Stage(
        name=name,
        run=run.config.run.name,
        spec=schema.TABLES[f"{tables}clusters"],
        actor=ClusterActor,
        setup=ClusterSetup(
            wanted=run.config.collect.samples, refusals=run.config.label.refusals, grading=Grading.of(run.config)
        ),
        pool=POOL.model_copy(update={"nodes": run.config.ray.tasks}),
        tasks=run.config.ray.tasks,
        max_error_fraction=run.config.run.max_error_fraction,
    )


def entropy_histogram(table: Table) -> Counter[float]:
    """How often each distinct entropy (in nats) occurs; rows that failed or abstain are left out."""
    batches = (_answered(b)["entropy_nats"].to_pylist() for b in table.batches(["entropy_nats", "abstains"]))
    return Counter(v for values in batches for v in values if v is not None)


def _answered(rows: pa.RecordBatch) -> pa.RecordBatch:
    """The rows that do not abstain: the same refusal ten times has no entropy, but it is not consistent knowledge."""
    return rows.filter(pc.invert(pc.coalesce(rows["abstains"], False)))  # pyright: ignore


def label_summary(run: Run) -> LabelResult:
    """The part `label` of results.json: shares, quadrants and AUROCs of entropy and baselines, the latter over
    questions with all K samples that the model does not abstain from.

    Quadrants and AUROCs against wrong answers are over the questions with gold; `right` and `wrong` count their greedy
    answers.
    """
    counts = count_knowledge(run.base("knowledge"))
    graded, compared = counts.wrong >= 0, counts.unseen >= 0
    wrong, entropy = counts.wrong[graded] == 1, counts.scores["entropy_nats"]
    return {
        "questions": counts.questions,
        "unknown_fraction": counts.unknown / counts.questions if counts.questions else float("nan"),
        "abstains": counts.abstains,
        "threshold_nats": gamma(run),
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
    drawn = [_drawn(table) for name in ("samples", "pilot") if (table := run.base(name)).is_done]
    wanted = run.config.collect.samples * drawn[0][0]
    return 1 - sum(samples for _, samples in drawn) / wanted if wanted else 0.0


def _drawn(table: Table) -> tuple[int, int]:
    """Rows that did not fail, and samples that were drawn for them."""
    rows = samples = 0
    for batch in table.batches(["sample_tokens"]):
        lengths = batch["sample_tokens"].value_lengths().drop_null()
        rows, samples = rows + len(lengths), samples + (pc.sum(lengths).as_py() or 0)  # pyright: ignore
    return rows, samples


@dataclass(frozen=True)
class KnowledgeCounts:
    """What a summary needs of the table `knowledge`.

    Counts are over the rows that did not fail. For AUROCs there are, over the N of them with all K samples that do not
    abstain, scores (N,) by column and two targets (N,): `wrong` and `unseen` are 1 or 0, or -1 in rows that no AUROC
    counts.
    """

    questions: int
    unknown: int
    abstains: int
    quadrants: Counter[str]
    scores: dict[str, np.ndarray]
    wrong: np.ndarray
    unseen: np.ndarray


def count_knowledge(knowledge: Table) -> KnowledgeCounts:
    """Count batch by batch, so that only three scores and three bytes per row stay in memory."""
    names, quadrants, silent = ("entropy_nats", *BASELINES), Counter[str](), 0
    parts: list[list[np.ndarray]] = []
    for batch in knowledge.batches(["unknown", "abstains", "correct", "quadrant", "truth", *names]):
        rows = batch.filter(batch["unknown"].is_valid())
        answered = _answered(rows)
        silent += rows.num_rows - answered.num_rows
        whole = answered.filter(answered["entropy_nats"].is_valid())
        wrong = np.array([-1 if c is None else int(not c) for c in whole["correct"].to_pylist()], np.int8)
        unseen = unseen_targets(whole["truth"]).astype(np.int8)
        numbers = (rows["unknown"], *(whole[name] for name in names))
        parts.append([*(column.to_numpy(zero_copy_only=False) for column in numbers), wrong, unseen])
        quadrants.update(q for q in rows["quadrant"].to_pylist() if q is not None)
    joined = [np.concatenate(arrays) for arrays in zip(*parts, strict=True)] or [np.array([])] * (len(names) + 3)
    unknown, *scores, wrong, unseen = joined
    by_name = dict(zip(names, scores, strict=True))
    return KnowledgeCounts(len(unknown), int(unknown.sum()), silent, quadrants, by_name, wrong, unseen)
