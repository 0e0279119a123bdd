"""What a run will do, in passes, tokens, bytes and annotations: arithmetic on sizes, each formula beside its number.

In: a configuration, an `Extent`, a `Shape`. Out: one `Line` per stage.
Rows, answers' lengths and rounds are those planned at most: no strategy stops early, every answer is as long as it may be. Tokens that are
read count a question by the mean length of its prompt. Refuses to know: files, libraries, Ray.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from ka2l_ray.active.replay import replay_counts
from ka2l_ray.active.strategies import STRATEGIES, Need, draws, that_need
from ka2l_ray.config import Config, Pool
from ka2l_ray.dataflow.placement import gpus_used
from ka2l_ray.dataflow.shard_size import row_seconds, shard_rows
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
TRAINED_ANSWER = 8
"""Tokens of an answer that is trained on, with its end token."""
DECODED = 24
"""Tokens of a decoded question at most: the shipped decoder's."""
LETTERS_A_TOKEN = 4
"""For what an annotator's endpoint is told, whose tokenizer is not known."""


@dataclass(frozen=True)
class Line:
    """One stage: rows through it, tokens read and written, memory of one actor or worker, bytes it leaves in storage.

    `count` actors or workers run at the least, each computing on `gpus`; `memory_bytes` are spread over the GPUs of one of them."""

    stage: str
    rows: int
    actors: str
    count: int = 0
    gpus: float = 0.0
    read_tokens: int = 0
    written_tokens: int = 0
    memory_bytes: int = 0
    memory_is: str = ""
    storage_bytes: int = 0
    does: str = ""
    price: float = 0.0
    """In the unit of `annotate.cost`."""

    @property
    def gpu_bytes(self) -> int:
        """What one GPU must hold: a part of a model that is spread, or several actors that share it. 0 where none is used."""
        return round(self.memory_bytes / self.gpus) if self.gpus else 0


@dataclass(frozen=True)
class _Curves:
    """How often what is done: every strategy, `random` once per draw, plays every round."""

    count: int
    rounds: int
    sampling: int
    decoding: int

    @classmethod
    def of(cls, config: Config) -> "_Curves":
        active = config.active
        count = len(draws(active))
        return cls(
            count,
            active.rounds,
            len(that_need(Need.SAMPLES, active.strategies)),
            sum(STRATEGIES[s].decodes for s in active.strategies),
        )

    @property
    def trainings(self) -> int:
        return self.count * self.rounds


def lines(config: Config, extent: Extent, shape: Shape, adapter_parameters: int) -> list[Line]:
    """Every stage of a whole run, in order."""
    probe, pool = extent.splits["probe"], extent.splits["pool"]
    collect, curves, replaying = config.collect, _Curves.of(config), config.finetune.replay
    found = []
    if collect.adaptive.threshold == "pilot":
        found.append(
            _collecting("pilot", config, extent, shape, min(probe, collect.adaptive.pilot_rows), collect.samples, 0)
        )
    found.append(_collecting("collect", config, extent, shape, probe, collect.samples, _columns(config, shape)))
    found.append(_scoring("score", config, extent, shape, pool))
    if curves.sampling:
        found.append(_collecting("sample_pool", config, extent, shape, pool, collect.samples, 0))
    if replaying.ratio:
        candidates = min(pool, sum(replay_counts(replaying, config.active.budget)) + 2 * config.active.budget)
        tuned = replace(extent, shared=extent.tuned_shared, own=extent.tuned_own)  # asked under `finetune.prompt`
        found.append(_collecting("replay", config, tuned, shape, candidates, replaying.samples, 0))
    if config.decode.enabled:
        found.append(_decoding(config, extent, shape, curves))
    found.append(_annotating(config, extent, curves))
    found.append(_finetuning(config, extent, shape, adapter_parameters, curves))
    found.append(_evaluating(config, extent, shape, curves))
    if config.active.reprobe and (again := curves.rounds - 1):
        times = again * curves.count
        found.append(
            _collecting("reprobe", config, extent, shape, times * probe, collect.samples, _columns(config, shape))
        )
        found.append(_scoring("reprobe score", config, extent, shape, times * pool))
        if curves.sampling:
            rows = again * curves.sampling * pool
            found.append(_collecting("reprobe pool", config, extent, shape, rows, collect.samples, 0))
    return found


def _columns(config: Config, shape: Shape) -> int:
    layers = shape.layers + 1 if config.collect.layers == "all" else len(config.collect.layers)
    return layers * len(config.collect.positions)


def _deepest(config: Config, shape: Shape) -> int:
    return shape.layers if config.collect.layers == "all" else max(config.collect.layers)


def _collecting(name: str, config: Config, extent: Extent, shape: Shape, rows: int, samples: int, columns: int) -> Line:
    collect, answers, pool = config.collect, 1 + samples, config.collect.pool
    cache = pool.batch_tokens * shape.cache_bytes + extent.shared * shape.cache_bytes
    copies = min(pool.batch_rows * answers, max(answers, pool.batch_tokens // (extent.own + collect.max_new_tokens)))
    logits = copies * shape.vocabulary * 4
    stored = answers * TEXT_BYTES + columns * shape.width * STORED_BYTES
    shard = shard_rows(pool, rows, stored, row_seconds(pool, answers, collect.max_new_tokens))
    states = (pool.batch_rows + shard) * columns * shape.width * STATE_BYTES
    twice = collect.engine == "vllm" and columns > 0
    blocks = shape.first_blocks_bytes(_deepest(config, shape)) if twice else 0
    told = ["weights", f"cache of {pool.batch_tokens:,} tokens", f"logits of {copies:,} rows"]
    if collect.engine == "vllm":
        told = [
            f"vLLM's weights and cache (it takes vllm.memory_share = {collect.vllm.memory_share:g} of each GPU)",
            *told[2:],
        ]
    told += [f"blocks 1 … {_deepest(config, shape)} once more, for states"] * twice
    told += [f"states of a shard ({columns} columns)"] * (columns > 0)
    return Line(
        name,
        rows,
        **_actors(config, pool),
        read_tokens=rows * extent.own * (2 if twice else 1),
        written_tokens=rows * answers * collect.max_new_tokens,
        memory_bytes=shape.weight_bytes + cache + logits + states + blocks,
        memory_is=", ".join(told),
        storage_bytes=rows * stored,
        does=f"{'two prompt passes' if twice else 'one prompt pass'}, {answers} answers of at most {collect.max_new_tokens} tokens",
    )


def _scoring(name: str, config: Config, extent: Extent, shape: Shape, rows: int) -> Line:
    layer, pool = _deepest(config, shape), config.score.pool
    states = bool(that_need(Need.STATES, config.active.strategies))
    return Line(
        name,
        rows,
        **_actors(config, pool),
        read_tokens=rows * extent.own,
        memory_bytes=shape.first_blocks_bytes(layer) + _reading_bytes(pool, extent, shape),
        memory_is=f"embeddings and blocks 1 … {layer}, one batch",
        storage_bytes=rows * (8 + (shape.width * STATE_BYTES if states else 0)),
        does=f"P(unknown) from at most {layer} of {shape.layers} blocks{', with the state' if states else ''}",
    )


def _decoding(config: Config, extent: Extent, shape: Shape, curves: _Curves) -> Line:
    """Of every unknown question that is bought, `variants` more; each is read once for its state and once as a new question."""
    decode, layer = config.decode, _deepest(config, shape)
    checked = min(decode.check_questions, extent.splits["probe"])
    rows = checked + curves.decoding * config.active.budget * decode.variants
    return Line(
        "decode",
        rows,
        **_actors(config, decode.pool),
        read_tokens=rows * 2 * extent.own,
        written_tokens=rows * DECODED,
        memory_bytes=shape.first_blocks_bytes(layer) + _reading_bytes(decode.pool, extent, shape),
        memory_is=f"embeddings and blocks 1 … {layer}, one batch; the decoder besides",
        storage_bytes=rows * 2 * TEXT_BYTES,
        does=f"{checked:,} to measure the decoder, then {decode.variants} per unknown question bought in {curves.decoding} curve(s)",
    )


def _annotating(config: Config, extent: Extent, curves: _Curves) -> Line:
    annotate, rows = config.annotate, config.active.budget * curves.count
    price, told = rows * annotate.cost, f"{annotate.cost:g} each"
    read = written = 0
    if annotate.source == "endpoint":
        endpoint = annotate.endpoint
        read = rows * (extent.own + len(endpoint.system + endpoint.template) // LETTERS_A_TOKEN)
        written = rows * endpoint.max_tokens
        tokens = (
            read * endpoint.cost_per_million_prompt_tokens + written * endpoint.cost_per_million_completion_tokens
        ) / 1e6
        price, told = price + tokens, f"{told}, and {tokens:,.6g} for tokens"
    if sampling := curves.sampling * extent.splits["pool"] * config.acquire.sampling_cost:
        price, told = price + sampling, f"{told}, and {sampling:,.6g} for sampling the pool"
    return Line(
        "annotate",
        rows,
        annotate.source,
        read_tokens=read,
        written_tokens=written,
        storage_bytes=rows * TEXT_BYTES,
        does=f"{config.active.budget:,} annotations for each of {curves.count} curves, at {told}: {price:,.10g} at most",
        price=price,
    )


def _evaluating(config: Config, extent: Extent, shape: Shape, curves: _Curves) -> Line:
    """The eval split under both prompts, by the base model and after every training; what a round replayed once more after it."""
    pool, times, asked = config.evaluate.pool, 1 + curves.trainings, extent.splits["eval"]
    both = config.corpus.prompt != config.finetune.prompt
    replayed = curves.trainings * _replayed(config, extent)
    rows = times * asked * (1 + both) + replayed
    cache = pool.batch_tokens * shape.cache_bytes
    return Line(
        "evaluate",
        rows,
        **_actors(config, pool),
        read_tokens=(times * asked + replayed) * extent.tuned_own + times * asked * extent.own * both,
        written_tokens=rows * config.collect.max_new_tokens,
        memory_bytes=shape.weight_bytes + cache + min(pool.batch_rows, max(asked, 1)) * shape.vocabulary * 4,
        memory_is=f"weights, cache of {pool.batch_tokens:,} tokens",
        storage_bytes=rows * TEXT_BYTES,
        does=f"{times} times the eval split (base model and {curves.trainings} trainings)"
        + (" under corpus.prompt and under finetune.prompt" if both else "")
        + f", and {replayed:,} replayed questions",
    )


def _replayed(config: Config, extent: Extent) -> int:
    """Questions that a round replays."""
    return min(sum(replay_counts(config.finetune.replay, config.active.budget)), extent.splits["pool"])


def _bought(config: Config) -> list[int]:
    """Annotations that a curve has bought after each round: equal parts, earlier rounds one more where the budget does not divide."""
    part, more = divmod(config.active.budget, config.active.rounds)
    return [part * n + min(n, more) for n in range(1, config.active.rounds + 1)]


def _finetuning(config: Config, extent: Extent, shape: Shape, adapter_parameters: int, curves: _Curves) -> Line:
    tune, replayed = config.finetune, _replayed(config, extent)
    examples = curves.count * sum(tune.epochs * (b + replayed) for b in _bought(config))
    steps = curves.count * sum(tune.epochs * -(-(b + replayed) // tune.batch_rows) for b in _bought(config))
    tokens = extent.tuned_shared + extent.tuned_own + TRAINED_ANSWER
    trained = shape.parameters if tune.mode == "full" else adapter_parameters
    saved = trained * (shape.bytes_per_value if tune.mode == "full" else 4)
    merged = shape.parameters * _training_width(config, shape) if tune.merge else 0
    checkpoint = trained * OPTIMIZER_BYTES if tune.checkpoint_every_steps else 0
    training, loading = training_bytes(config, shape, trained, tokens), loading_bytes(config, shape, trained)
    parts = ", ".join(f"{name} {size(n)}" for name, n in training.items() if n)
    return Line(
        "finetune",
        examples,
        f"{tune.workers} × {tune.gpus_per_worker} GPU"
        if tune.gpus_per_worker
        else f"{tune.workers} × {tune.cpus_per_worker:g} CPU",
        count=tune.workers,
        gpus=gpus_used(config.model, tune.gpus_per_worker),
        read_tokens=examples * tokens * (2 if tune.replay.kl_weight else 1),
        memory_bytes=max(loading, sum(training.values())),
        memory_is=f"whole weights while loading and saving {size(loading)}; then {size(sum(training.values()))}: {parts}",
        storage_bytes=curves.trainings * (saved + merged) + checkpoint,
        does=f"{curves.trainings} trainings, {steps:,} steps of {tune.batch_rows} rows; each leaves {size(saved)}"
        + (f" and merged weights of {size(merged)}" if merged else ""),
    )


def _training_width(config: Config, shape: Shape) -> int:
    """Bytes of a weight as it is trained."""
    return (
        shape.bytes_per_value
        if config.finetune.precision == "auto"
        else {"float32": 4, "bfloat16": 2}[config.finetune.precision]
    )


def loading_bytes(config: Config, shape: Shape, trained: int) -> int:
    """Memory of one worker when its model is loaded: every worker loads all of it, ZeRO-3 shards it afterwards, and the first one loads it
    whole again to check what it saves."""
    tune, width = config.finetune, _training_width(config, shape)
    weights = shape.weight_bytes if shape.quantization != "none" else shape.parameters * width
    adapters = trained * width if tune.mode == "lora" else 0
    return weights * (2 if tune.replay.kl_weight and tune.mode == "full" else 1) + adapters


def training_bytes(config: Config, shape: Shape, trained: int, tokens: int) -> dict[str, int]:
    """Memory of one worker by part while it trains, under ZeRO (Rajbhandari et al., 2020) with what it offloads left out."""
    tune, width = config.finetune, _training_width(config, shape)
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
        "optimizer": 0
        if tune.offload != "none"
        else trained * OPTIMIZER_BYTES // (shard if tune.zero_stage >= 1 else 1),
        "activations": live,
        "logits": tune.micro_batch_rows * tokens * shape.vocabulary * 4 * (3 if tune.replay.kl_weight else 2),
    }


def _reading_bytes(pool: Pool, extent: Extent, shape: Shape) -> int:
    """A batch's values inside one block, and the shared prefix' keys and values."""
    tokens = min(pool.batch_tokens, pool.batch_rows * extent.own)
    return tokens * LIVE_VALUES * shape.width * shape.bytes_per_value + extent.shared * shape.cache_bytes


def _actors(config: Config, pool: Pool) -> dict[str, Any]:
    """Who works, as `Line` says it."""
    count = f"{pool.min}" if pool.min == pool.max else f"{pool.min} … {pool.max}"
    told = f"{count} × {pool.gpus:g} GPU" if pool.gpus else f"{count} × {pool.cpus:g} CPU"
    return {"actors": told, "count": pool.min, "gpus": gpus_used(config.model, pool.gpus)}


def storage_bytes(found: Iterable[Line]) -> int:
    return sum(line.storage_bytes for line in found)


def size(count: float) -> str:
    """Bytes in words: powers of 1,000, three figures."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.4g} TB"
