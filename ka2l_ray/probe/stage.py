"""Pool questions → P(unknown), through a pool of actors that load blocks 1 … l only.

In: the pool split and the chosen probe. Out: the table `scores`. Refuses to know: how the probe was fitted.
"""

from typing import Any

import pyarrow as pa

from ka2l_ray import schema
from ka2l_ray.dataflow.placement import of_actor
from ka2l_ray.dataflow.runs import Run
from ka2l_ray.dataflow.shard_size import row_seconds
from ka2l_ray.dataflow.stage import Stage, run_stage
from ka2l_ray.models.batching import Limits
from ka2l_ray.models.examine import abilities_of
from ka2l_ray.models.loading import depth_and_width
from ka2l_ray.models.prompts import Tokenize, corpus_prompt
from ka2l_ray.probe.score import ScoreActor, ScoreSetup


def score(run: Run, with_state: bool = False) -> dict[str, Any]:
    """Score the pool; with the states that the probe reads, where a strategy compares them. Returns the manifest."""
    config, prompt = run.config, corpus_prompt(run)
    stage = Stage(
        name="score",
        run=config.run.name,
        spec=schema.TABLES["scores"],
        actor=ScoreActor,
        setup=ScoreSetup(
            model=config.model,
            prompt=prompt,
            probe=run.folder / "base/search/probe",
            with_state=with_state,
            limits=Limits.of(config.score.pool),
            placement=of_actor(config.model, config.score.pool, "score"),
            abilities=abilities_of(config.model),
        ),
        pool=config.score.pool,
        tasks=config.ray.tasks,
        states=pa.schema([("state", pa.list_(pa.float32(), depth_and_width(config.model)[1]))] if with_state else []),
        max_error_fraction=config.run.max_error_fraction,
        prepare=Tokenize(config.model, prompt),
        row_seconds=row_seconds(config.score.pool),
    )
    return run_stage(stage, run.table("questions"), run.base("scores"), part="pool")
