"""Questions → hidden states and samples, through a pool of actors.

In: the `questions` table. Out: `base/activations` and `base/samples`: one pass writes one set of files that both list,
because states and samples of a question come from the same prompt pass and Parquet reads only the columns asked for.
Refuses to know: grades, probes; of labels only the γ that adaptive sampling stops by.
"""

import heapq
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ka2l_ray.collect.actor import CollectActor, collect_columns
from ka2l_ray.config import CollectSection, PromptSection
from ka2l_ray.dataflow.log import log
from ka2l_ray.dataflow.manifests import Table
from ka2l_ray.dataflow.placement import of_actor
from ka2l_ray.dataflow.runs import Run
from ka2l_ray.dataflow.shard_size import row_seconds
from ka2l_ray.dataflow.stage import FILES_AT_ONCE, Stage, run_stage
from ka2l_ray.entropy.semantic import semantic_entropy
from ka2l_ray.entropy.thresholds import otsu
from ka2l_ray.hashing import uniform
from ka2l_ray.models.batching import Limits
from ka2l_ray.models.layers import wanted_layers
from ka2l_ray.models.loading import depth_and_width
from ka2l_ray.models.prompts import Tokenize, corpus_prompt, finetune_prompt

KEPT = ("question", "answers", "group", "entity", "split_group", "truth")


def adaptive_threshold(run: Run) -> float | None:
    """γ of `collect.adaptive`, fixed before the split is sampled; None where every question gets all K samples.

    A pilot draws all K samples of `pilot_rows` probe questions and no states; its own cost is counted in what adaptive sampling saves.
    """
    section, pilot = run.config.collect.adaptive, run.base("pilot")
    if not isinstance(section.threshold, str):
        return float(section.threshold)
    if section.threshold == "off":
        return None
    source = Table(pilot.folder / "questions")
    if not source.is_done:
        source.write((None, pilot_rows(run.table("questions"), section.pilot_rows)))
    _sample_only(run, "pilot", run.config.collect, source, pilot, run.config.run.seed)
    counts: Counter[float] = Counter()
    for batch in pilot.batches(["samples", "error"]):
        drawn = batch.filter(batch["error"].is_null())["samples"].to_pylist()
        counts.update(semantic_entropy(row) for row in drawn)
    return otsu(counts)


def pilot_rows(questions: Table, count: int) -> pa.Table:
    """`count` probe questions, or all where there are fewer, drawn by their ids; of the others no more than ids is ever held."""
    ids = (i for batch in questions.batches(["id"], "probe") for i in batch["id"].to_pylist())
    chosen = {i: rank for rank, i in enumerate(heapq.nsmallest(count, ids, key=lambda i: uniform("pilot", i)))}
    batches = questions.batches(part="probe")
    rows = pa.Table.from_batches(
        [b.filter(pa.array([i in chosen for i in b["id"].to_pylist()], pa.bool_())) for b in batches]
    )
    return rows.take(sorted(range(rows.num_rows), key=lambda n: chosen[rows["id"][n].as_py()]))


def collect(run: Run) -> dict[str, Any]:
    """Collect the probe split; returns the manifest."""
    config, activations, samples = run.config, run.base("activations"), run.base("samples")
    gamma = adaptive_threshold(run)
    stage = _stage(run, "collect", config.collect, wanted_layers(config), config.run.seed, KEPT, gamma)
    manifest = run_stage(stage, run.table("questions"), activations, part="probe", threshold_nats=gamma)
    listed = activations.listed_from(samples.folder)
    if not samples.is_done or samples.entries() != listed:  # other files where failed or lost rows were done anew
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
    """How many files hold their states as float16, and how many as float32; said on the log too."""
    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        schemas = list(pool.map(partial(pq.read_schema, filesystem=activations.folder.filesystem), activations.files()))
    wide = sum(
        any(pa.types.is_fixed_size_list(f.type) and f.type.value_type == pa.float32() for f in s) for s in schemas
    )
    if wide:
        log.info("collect    states beyond float16's range: %d of %d files hold them as float32", wide, len(schemas))
    else:
        log.info("collect    every state fits float16 and is stored so")
    return {"float16_files": len(schemas) - wide, "float32_files": wide}


def sample_pool(run: Run) -> dict[str, Any]:
    """K samples and the greedy answer of every pool question, for the strategies that rank by them; no states."""
    return _sample_only(
        run,
        "sample_pool",
        run.config.collect,
        run.table("questions"),
        run.base("pool_samples"),
        run.config.run.seed,
        "pool",
    )


def sample_replay(run: Run, source: Table, target: Table, seed: int) -> dict[str, Any]:
    """The base model's own answers to questions: `finetune.replay.samples` at T = 1 each, and the greedy one; no states.

    Under `finetune.prompt`, as these rows are trained on and graded afterwards: an answer that only another prompt brings about is neither
    taught nor taken for forgotten.
    """
    own = run.config.collect.model_copy(update={"samples": run.config.finetune.replay.samples, "temperature": 1.0})
    return _sample_only(run, "replay", own, source, target, seed, prompt=finetune_prompt(run))


def _sample_only(
    run: Run,
    name: str,
    section: CollectSection,
    source: Table,
    target: Table,
    seed: int,
    part: str | None = None,
    prompt: PromptSection | None = None,
) -> dict[str, Any]:
    section = section.model_copy(update={"positions": ()})
    return run_stage(_stage(run, name, section, (), seed, (*KEPT, "fact_id"), prompt=prompt), source, target, part)


def _stage(
    run: Run,
    name: str,
    section: CollectSection,
    layers: tuple[int, ...],
    seed: int,
    keep: tuple[str, ...],
    threshold_nats: float | None = None,
    prompt: PromptSection | None = None,
) -> Stage:
    """`prompt` is `corpus.prompt` unless said otherwise."""
    config, pool, asked = run.config, run.config.collect.pool, prompt or corpus_prompt(run)
    width = depth_and_width(config.model)[1] if layers else 0
    return Stage(
        name=name,
        actor=CollectActor,
        arguments={
            "model": config.model,
            "prompt": asked,
            "collect": section,
            "layers": layers,
            "seed": seed,
            "limits": Limits.of(pool),
            "threshold_nats": threshold_nats,
            "placement": of_actor(config.model, config.collect.pool, "collect"),
        },
        columns_in=("question",),
        columns_out=collect_columns(section, layers, width),
        pool=pool,
        keep=keep,
        max_error_fraction=config.run.max_error_fraction,
        prepare=Tokenize(config.model, asked),
        row_seconds=row_seconds(pool, 1 + section.samples, section.max_new_tokens),
    )
