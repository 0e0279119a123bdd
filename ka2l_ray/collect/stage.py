"""Questions → hidden states and samples, through a pool of actors.

In: the `questions` table. Out: `base/activations` and `base/samples`: one pass writes one set of files that both list,
because states and samples of a question come from the same prompt pass and Parquet reads only the columns asked for.
Refuses to know: labels, probes.
"""

from typing import Any

from ka2l_ray.artifacts import Run, Table
from ka2l_ray.collect.actor import CollectActor, collect_columns
from ka2l_ray.config import CollectSection, Config
from ka2l_ray.dataflow import Stage, run_stage
from ka2l_ray.models.batching import Limits
from ka2l_ray.models.loading import depth_and_width

KEPT = ("question", "answers", "group", "entity", "truth")


def wanted_layers(config: Config) -> tuple[int, ...]:
    """Layers to store. Raises `ValueError` for a layer that the model does not have."""
    depth, _ = depth_and_width(config.model)
    layers = tuple(range(depth + 1)) if config.collect.layers == "all" else config.collect.layers
    if wrong := [n for n in layers if n > depth]:
        raise ValueError(f"collect.layers = {list(layers)}: {config.model.name_or_path} has layers 0 … {depth}, not {wrong}")
    return layers


def collect(run: Run) -> dict[str, Any]:
    """Collect the probe split; returns the manifest."""
    config, layers = run.config, wanted_layers(run.config)
    _, width = depth_and_width(config.model)
    stage = Stage(
        name="collect",
        actor=CollectActor,
        arguments={
            "model": config.model,
            "prompt": config.corpus.prompt,
            "collect": config.collect,
            "layers": layers,
            "seed": config.run.seed,
            "limits": Limits.of(config.collect.pool),
        },
        columns_in=("question",),
        columns_out=collect_columns(config.collect, layers, width),
        pool=config.collect.pool,
        keep=KEPT,
        max_error_fraction=config.run.max_error_fraction,
    )
    activations = run.base("activations")
    manifest = run_stage(stage, run.table("questions"), activations, part="probe")
    samples = run.base("samples")
    if not samples.is_done:
        samples.close(activations.listed_from(samples.folder), rows_in=manifest["rows_in"], errors=manifest["errors"], seconds=0.0)
    return manifest


def sample_pool(run: Run) -> dict[str, Any]:
    """K samples and the greedy answer of every pool question, for the strategies that rank by them; no states."""
    return _sample_only(
        run, "sample_pool", run.config.collect, run.table("questions"), run.base("pool_samples"), run.config.run.seed, "pool"
    )


def sample_replay(run: Run, source: Table, target: Table, seed: int) -> dict[str, Any]:
    """The base model's own answers to questions: `finetune.replay.samples` at T = 1 each, and the greedy one; no states."""
    own = run.config.collect.model_copy(update={"samples": run.config.finetune.replay.samples, "temperature": 1.0})
    return _sample_only(run, "replay", own, source, target, seed)


def _sample_only(
    run: Run, name: str, section: CollectSection, source: Table, target: Table, seed: int, part: str | None = None
) -> dict[str, Any]:
    config, section = run.config, section.model_copy(update={"positions": ()})
    stage = Stage(
        name=name,
        actor=CollectActor,
        arguments={
            "model": config.model,
            "prompt": config.corpus.prompt,
            "collect": section,
            "layers": (),
            "seed": seed,
            "limits": Limits.of(config.collect.pool),
        },
        columns_in=("question",),
        columns_out=collect_columns(section, (), 0),
        pool=config.collect.pool,
        keep=(*KEPT, "fact_id"),
        max_error_fraction=config.run.max_error_fraction,
    )
    return run_stage(stage, source, target, part)
