"""What a run will do, in passes, tokens and bytes: arithmetic on sizes, each formula beside its number.

In: a configuration, an `Extent`, a `Shape`. Out: one `Line` per stage, and what does not fit.
Estimates are of what is planned at most: every answer as long as it may be, every round played. Refuses to know: files, libraries, Ray.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from ka2l_ray.active.acquire import SAMPLING
from ka2l_ray.active.replay import replay_counts
from ka2l_ray.config import Config, Pool
from ka2l_ray.planning.corpora import Extent
from ka2l_ray.planning.shapes import Shape

STATE_BYTES, STORED_BYTES = 4, 2
"""A state's value in an actor (float32) and on disk (float16)."""
LIVE_VALUES = 18
"""Values that a block keeps per token and unit of width for its backward pass, without gradient checkpointing (attention not counted:
Korthikanti et al., 2022, count 34 bytes at 2 bytes a value)."""
OPTIMIZER_BYTES = 12
"""AdamW's float32 copy of a trained weight and its two moments."""
TEXT_BYTES = 64
"""A stored answer with its numbers."""


@dataclass(frozen=True)
class Line:
    """One stage: rows through it, tokens read and written at most, memory of one actor or worker, bytes it leaves in storage."""

    stage: str
    rows: int
    actors: str
    read_tokens: int = 0
    written_tokens: int = 0
    memory_bytes: int = 0
    memory_is: str = ""
    storage_bytes: int = 0
    does: str = ""


def lines(config: Config, extent: Extent, shape: Shape, adapter_parameters: int) -> list[Line]:
    """Every stage of a whole run, in order."""
    probe, pool, evaluated = (extent.splits[s] for s in ("probe", "pool", "eval"))
    collect, active = config.collect, config.active
    found = [_collecting("collect", config, extent, shape, probe, collect.samples, _columns(config, shape))]
    layer = shape.layers if collect.layers == "all" else max(collect.layers)
    found.append(
        Line(
            "score",
            pool,
            _actors(config.score.pool),
            read_tokens=pool * extent.own,
            memory_bytes=shape.first_blocks_bytes(layer) + _reading_bytes(config.score.pool, extent, shape),
            memory_is=f"embeddings and blocks 1 … {layer}, one batch",
            storage_bytes=pool * 8,
            does=f"P(unknown) from at most {layer} of {shape.layers} blocks",
        )
    )
    if set(active.strategies) & set(SAMPLING):
        found.append(_collecting("sample_pool", config, extent, shape, pool, collect.samples, 0))
    candidates = (
        min(pool, sum(replay_counts(config.finetune.replay, active.budget)) + 2 * active.budget) if config.finetune.replay.ratio else 0
    )
    if candidates:
        found.append(_collecting("replay", config, extent, shape, candidates, config.finetune.replay.samples, 0))
    trainings = sum(active.random_draws if s == "random" else 1 for s in active.strategies) * active.rounds
    found.append(_evaluating(config, extent, shape, evaluated, trainings))
    found.append(_finetuning(config, extent, shape, adapter_parameters, trainings))
    return found


def _columns(config: Config, shape: Shape) -> int:
    layers = shape.layers + 1 if config.collect.layers == "all" else len(config.collect.layers)
    return layers * len(config.collect.positions)


def _collecting(name: str, config: Config, extent: Extent, shape: Shape, rows: int, samples: int, columns: int) -> Line:
    collect, answers = config.collect, 1 + samples
    cache = collect.pool.batch_tokens * shape.cache_bytes + extent.shared * shape.cache_bytes
    copies = min(collect.pool.batch_rows * answers, max(answers, collect.pool.batch_tokens // (extent.own + collect.max_new_tokens)))
    logits = copies * shape.vocabulary * 4
    states = (collect.pool.batch_rows + collect.pool.block_rows) * columns * shape.width * STATE_BYTES
    return Line(
        name,
        rows,
        _actors(collect.pool),
        read_tokens=rows * extent.own,
        written_tokens=rows * answers * collect.max_new_tokens,
        memory_bytes=shape.weight_bytes + cache + logits + states,
        memory_is=f"weights, cache of {collect.pool.batch_tokens:,} tokens, logits of {copies:,} rows"
        + (f", states of a block ({columns} columns)" if columns else ""),
        storage_bytes=rows * (columns * shape.width * STORED_BYTES + answers * TEXT_BYTES),
        does=f"one prompt pass, {answers} answers of at most {collect.max_new_tokens} tokens",
    )


def _evaluating(config: Config, extent: Extent, shape: Shape, rows: int, trainings: int) -> Line:
    pool, passes = config.evaluate.pool, (1 + trainings) * (1 if config.corpus.prompt == config.finetune.prompt else 2)
    cache = pool.batch_tokens * shape.cache_bytes
    return Line(
        "evaluate",
        rows * passes,
        _actors(pool),
        read_tokens=rows * passes * extent.own,
        written_tokens=rows * passes * config.collect.max_new_tokens,
        memory_bytes=shape.weight_bytes + cache + min(pool.batch_rows, rows) * shape.vocabulary * 4,
        memory_is=f"weights, cache of {pool.batch_tokens:,} tokens",
        storage_bytes=rows * passes * TEXT_BYTES,
        does=f"{passes} times the eval split: base model and {trainings} trainings"
        + ("" if passes == 1 + trainings else ", under corpus.prompt and finetune.prompt"),
    )


def _finetuning(config: Config, extent: Extent, shape: Shape, adapter_parameters: int, trainings: int) -> Line:
    tune, active = config.finetune, config.active
    replayed = sum(replay_counts(tune.replay, active.budget))
    bought = [active.budget * n // active.rounds for n in range(1, active.rounds + 1)]
    per_curve = sum(tune.epochs * (b + replayed) for b in bought)
    examples = per_curve * trainings // active.rounds
    tokens = extent.own + 8
    trained = shape.parameters if tune.mode == "full" else adapter_parameters
    memory = training_bytes(config, shape, trained, tokens)
    saved = trained * (shape.bytes_per_value if tune.mode == "full" else 4)
    steps = sum(-(-(b + replayed) // tune.batch_rows) * tune.epochs for b in bought) * trainings // active.rounds
    return Line(
        "finetune",
        examples,
        f"{tune.workers} × {tune.gpus_per_worker} GPU" if tune.gpus_per_worker else f"{tune.workers} × {tune.cpus_per_worker:g} CPU",
        read_tokens=examples * tokens * (2 if tune.replay.kl_weight else 1),
        memory_bytes=sum(memory.values()),
        memory_is=", ".join(f"{name} {size(n)}" for name, n in memory.items() if n),
        storage_bytes=trainings * saved + trained * OPTIMIZER_BYTES,
        does=f"{trainings} trainings, {steps:,} steps of {tune.batch_rows} rows; {size(saved)} each",
    )


def training_bytes(config: Config, shape: Shape, trained: int, tokens: int) -> dict[str, int]:
    """Memory of one worker by part, under ZeRO (Rajbhandari et al., 2020) with what it offloads left out."""
    tune, width = (
        config.finetune,
        shape.bytes_per_value if config.finetune.precision == "auto" else {"float32": 4, "bfloat16": 2}[config.finetune.precision],
    )
    shard = tune.workers
    weights = shape.weight_bytes if shape.quantization != "none" else shape.parameters * width
    frozen = shape.parameters * width if tune.replay.kl_weight and tune.mode == "full" else 0
    per_token = shape.layers * shape.width * width
    kept = per_token if tune.gradient_checkpointing else per_token * LIVE_VALUES
    live = tune.micro_batch_rows * tokens * (kept + LIVE_VALUES * shape.width * width)
    return {
        "weights": 0 if tune.offload == "all" else weights // (shard if tune.zero_stage == 3 else 1),
        "frozen base": frozen,
        "gradients": trained * width // (shard if tune.zero_stage >= 2 else 1),
        "optimizer": 0 if tune.offload != "none" else trained * OPTIMIZER_BYTES // (shard if tune.zero_stage >= 1 else 1),
        "activations": live,
        "logits": tune.micro_batch_rows * tokens * shape.vocabulary * 4 * (3 if tune.replay.kl_weight else 2),
    }


def _reading_bytes(pool: Pool, extent: Extent, shape: Shape) -> int:
    """A batch's values inside one block, and the shared prefix' keys and values."""
    tokens = min(pool.batch_tokens, pool.batch_rows * extent.own)
    return tokens * LIVE_VALUES * shape.width * shape.bytes_per_value + extent.shared * shape.cache_bytes


def _actors(pool: Pool) -> str:
    count = f"{pool.min}" if pool.min == pool.max else f"{pool.min} … {pool.max}"
    return f"{count} × {pool.gpus:g} GPU" if pool.gpus else f"{count} × {pool.cpus:g} CPU"


def storage_bytes(found: Iterable[Line]) -> int:
    return sum(line.storage_bytes for line in found)


def size(count: float) -> str:
    """Bytes in words: powers of 1,000, three figures."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.4g} TB"
