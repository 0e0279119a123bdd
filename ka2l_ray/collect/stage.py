"""Questions → hidden states and samples, through a pool of actors.

In: the table `questions`. Out: `activations` and `samples`, which list the same files: states and samples of a question
come from one prompt pass, and Parquet reads only the columns that are asked for.
Refuses to know: grades, probes; of labels it knows only the γ that adaptive sampling stops by.
"""

import heapq
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ka2l_ray import schema
from ka2l_ray.collect.actor import CollectActor, CollectSetup
from ka2l_ray.config import CollectSection
from ka2l_ray.dataflow.log import log
from ka2l_ray.dataflow.manifests import Table
from ka2l_ray.dataflow.placement import of_actor
from ka2l_ray.dataflow.runs import Run
from ka2l_ray.dataflow.shard_size import row_seconds
from ka2l_ray.dataflow.stage import Stage, run_stage
from ka2l_ray.dataflow.storage import FILES_AT_ONCE
from ka2l_ray.entropy.semantic import semantic_entropy
from ka2l_ray.entropy.thresholds import otsu
from ka2l_ray.hashing import uniform
from ka2l_ray.models.batching import Limits
from ka2l_ray.models.examine import abilities_of
from ka2l_ray.models.layers import wanted_layers
from ka2l_ray.models.loading import depth_and_width
from ka2l_ray.models.prompts import Tokenize, corpus_prompt, finetune_prompt
from ka2l_ray.models.sampled_as import sampled_as


def adaptive_threshold(run: Run) -> float | None:
    """γ in nats of `collect.adaptive`, fixed before the split is sampled; None where every question gets all K samples.

    A pilot draws all K samples of `pilot_rows` probe questions, without states; its cost is counted against what
    adaptive sampling saves.
    """
    section, pilot = run.config.collect.adaptive, run.base("pilot")
    if not isinstance(section.threshold, str):
        return float(section.threshold)
    if section.threshold == "off":
        return None
    source = Table(pilot.folder / "questions")
    if not source.is_done:
        source.write((None, pilot_rows(run.table("questions"), section.pilot_rows)))
    run_stage(_stage(run, "pilot", "pilot", _setup(run, _sampled(run))), source, pilot)
    kept = (b.filter(b["error"].is_null()) for b in pilot.batches(["samples", "error"]))
    return otsu(Counter(semantic_entropy(samples) for batch in kept for samples in batch["samples"].to_pylist()))


def pilot_rows(questions: Table, count: int) -> pa.Table:
    """`count` probe questions drawn by their ids, or all where there are fewer, as rows of `questions` in the order
    drawn.

    The table is streamed: only ids are kept in memory of the questions that are not drawn.
    """
    ids = (i for batch in questions.batches(["id"], "probe") for i in batch["id"].to_pylist())
    chosen = {i: rank for rank, i in enumerate(heapq.nsmallest(count, ids, key=lambda i: uniform("pilot", i)))}
    rows = pa.Table.from_batches(
        [
            batch.filter(pa.array([i in chosen for i in batch["id"].to_pylist()], pa.bool_()))
            for batch in questions.batches(part="probe")
        ]
    )
    return rows.take(sorted(range(rows.num_rows), key=lambda n: chosen[rows["id"][n].as_py()]))


def collect(run: Run) -> dict[str, Any]:
    """Collect states and samples of the probe split; returns the manifest of `activations`."""
    activations, samples, facts = run.base("activations"), run.base("samples"), run.base("activations").facts()
    gamma = facts["threshold_nats"] if "threshold_nats" in facts else adaptive_threshold(run)
    stage = _stage(run, "collect", "activations", _setup(run, _sampled(run), wanted_layers(run.config), gamma))
    manifest = run_stage(stage, run.table("questions"), activations, part="probe", threshold_nats=gamma)
    listed = activations.listed_from(samples.folder)
    if not samples.is_done or samples.entries() != listed:  # files change when failed or lost rows are repeated
        samples.close(
            listed,
            rows_in=manifest["rows_in"],
            errors=manifest["errors"],
            seconds=0.0,
            threshold_nats=manifest["threshold_nats"],
            **_precision(activations),
        )
    return manifest


def _precision(activations: Table) -> dict[str, int]:
    """Number of files whose states are float16, and of those whose states are float32; logged too."""
    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        schemas = list(pool.map(partial(pq.read_schema, filesystem=activations.folder.filesystem), activations.files()))
    wide = sum(
        any(pa.types.is_fixed_size_list(f.type) and f.type.value_type == pa.float32() for f in s) for s in schemas
    )
    exceeding = f"states exceed float16's range in {wide} of {len(schemas)} files, which store them as float32"
    said = exceeding if wide else "every state fits float16 and is stored as such"
    log.info("%s", said, extra={"stage": "collect"})
    return {"float16_files": len(schemas) - wide, "float32_files": wide}


def sample_pool(run: Run) -> dict[str, Any]:
    """K samples and the greedy answer of every pool question, for the strategies that rank by them; no states.

    Returns the manifest of `pool_samples`.
    """
    return run_stage(
        _stage(run, "sample_pool", "pool_samples", _setup(run, _sampled(run))),
        run.table("questions"),
        run.base("pool_samples"),
        part="pool",
    )


def sample_replay(run: Run, source: Table, target: Table, seed: int) -> dict[str, Any]:
    """The base model's own answers to questions, a greedy one and `finetune.replay.samples` at T = 1; no states.

    Asked under `finetune.prompt`, under which these rows are trained on and graded: an answer that only another prompt
    brings about is neither taught nor counted as forgotten. Returns the manifest of `target`.
    """
    asked: dict[str, Any] = {"temperature": 1.0, "top_k": None, "top_p": None, "min_p": None}
    collect = run.config.collect.model_copy(update=asked | {"samples": run.config.finetune.replay.samples})
    setup = replace(_setup(run, collect), seed=seed, prompt=finetune_prompt(run))
    return run_stage(_stage(run, "replay", "replay", setup), source, target)


def _sampled(run: Run) -> CollectSection:
    """`collect` with a number for an `auto` temperature; what the number is and where it comes from is logged."""
    collect, says = sampled_as(run.config.model, run.config.collect)
    if says:
        log.info("%s", says, extra={"stage": "collect"})
    return collect


def _setup(
    run: Run, collect: CollectSection, layers: tuple[int, ...] = (), threshold_nats: float | None = None
) -> CollectSetup:
    """Questions under `corpus.prompt`, with the run's own seed; no states without `layers`."""
    config = run.config
    return CollectSetup(
        model=config.model,
        prompt=corpus_prompt(run),
        collect=collect if layers else collect.model_copy(update={"positions": ()}),
        layers=layers,
        seed=config.run.seed,
        limits=Limits.of(config.collect.pool),
        threshold_nats=threshold_nats,
        refusals=config.label.refusals,
        placement=of_actor(config.model, config.collect.pool, "collect"),
        abilities=abilities_of(config.model),
    )


def _stage(run: Run, name: str, table: str, setup: CollectSetup) -> Stage[CollectSetup]:
    config, pool, collect = run.config, run.config.collect.pool, setup.collect
    width = depth_and_width(config.model)[1] if setup.layers else 0
    return Stage(
        name=name,
        run=config.run.name,
        spec=schema.TABLES[table],
        actor=CollectActor,
        setup=setup,
        pool=pool,
        tasks=config.ray.tasks,
        states=schema.states(collect.positions, setup.layers, width, half=False),
        max_error_fraction=config.run.max_error_fraction,
        prepare=Tokenize(config.model, setup.prompt),
        row_seconds=row_seconds(pool, 1 + collect.samples, collect.max_new_tokens),
    )
