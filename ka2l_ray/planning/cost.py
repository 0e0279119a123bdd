"""What a run will do, in passes, tokens, bytes and annotations: arithmetic on sizes, each formula beside its number.

In: a configuration, an `Extent`, a `Shape`. Out: one `Line` per stage.
The numbers are upper bounds: no strategy stops early, and every answer is as long as it may be. Tokens read count each
question at the mean length of its prompt. Refuses to know: files, libraries, Ray.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ka2l_ray.active.replay import replay_counts
from ka2l_ray.active.strategies import STRATEGIES, Need, draws, that_need
from ka2l_ray.config import Config, DecoderTrainingSection, Pool
from ka2l_ray.config.knowing import KIND_DEPTH
from ka2l_ray.corpus.again import eval_scope
from ka2l_ray.dataflow.paths import SHIPPED
from ka2l_ray.dataflow.placement import gpus_used
from ka2l_ray.dataflow.shard_size import row_seconds, shard_rows
from ka2l_ray.planning.asking import annotating, rewording
from ka2l_ray.planning.corpora import Extent
from ka2l_ray.planning.line import TEXT_BYTES, Line
from ka2l_ray.planning.shapes import Shape

STATE_BYTES, STORED_BYTES, LOGIT_BYTES = 4, 2, 4
"""Bytes of one value of a state in an actor (float32) and on disk (float16), and of a logit (float32)."""
LIVE_VALUES = 18
"""Values that a block keeps per token and unit of width for its backward pass, without gradient checkpointing and
without attention (Korthikanti et al., 2022, count 34 bytes at 2 bytes a value)."""
OPTIMIZER_BYTES = 12
"""AdamW's float32 copy of a trained weight and its two moments."""
TRAINED_ANSWER = 8
"""Tokens of an answer that is trained on, with its end token."""
ADAPTED = 9
"""Modules of a block that adapters are added to, with their widths over the model's, on average."""
DECODED = 24
"""Tokens of a decoded question at most, as the shipped decoder writes them."""


def lines(config: Config, extent: Extent, shape: Shape, adapter_parameters: int) -> list[Line]:
    """Every stage of a whole run, in order. `adapter_parameters` are those that a LoRA training trains."""
    estimate = _Estimate(config, extent, shape)
    probe, pool, samples = extent.splits["probe"], extent.splits["pool"], config.collect.samples
    adaptive, replay, budget = config.collect.adaptive, config.finetune.replay, config.active.budget
    found = [rewording(config, extent)] if config.corpus.rewordings.source == "endpoint" else []
    if adaptive.threshold == "pilot":
        found.append(estimate.collecting("pilot", min(probe, adaptive.pilot_rows), samples))
    found += [estimate.collecting("collect", probe, samples, estimate.columns), estimate.scoring("score", pool)]
    if estimate.sampling:
        found.append(estimate.collecting("sample_pool", pool, samples))
    if replay.ratio:
        candidates = min(pool, sum(replay_counts(replay, budget)) + 2 * budget)
        tuned = replace(extent, shared=extent.tuned_shared, own=extent.tuned_own)  # asked under `finetune.prompt`
        found.append(_Estimate(config, tuned, shape).collecting("replay", candidates, replay.samples))
    if config.decode.enabled and config.decode.decoder is None:
        found.append(estimate.training_a_decoder())
    if config.decode.enabled:
        found += estimate.decoding()
    found += [
        estimate.knowing(),
        annotating(config, extent, estimate.curves, estimate.sampling),
        estimate.finetuning(adapter_parameters),
        estimate.evaluating(),
    ]
    if config.active.reprobe and (again := config.active.rounds - 1):
        times = again * estimate.curves
        found.append(estimate.collecting("reprobe", times * probe, samples, estimate.columns))
        found.append(estimate.scoring("reprobe score", times * pool))
        if estimate.sampling:
            found.append(estimate.collecting("reprobe pool", again * estimate.sampling * pool, samples))
    return found


@dataclass(frozen=True)
class _Estimate:
    """The lines of one configuration: every curve (a strategy, or one draw of `random`) plays every round."""

    config: Config
    extent: Extent
    shape: Shape

    @property
    def curves(self) -> int:
        return len(draws(self.config.active))

    @property
    def sampling(self) -> int:
        """Strategies that sample the whole pool."""
        return len(that_need(Need.SAMPLES, self.config.active.strategies))

    @property
    def trainings(self) -> int:
        return self.curves * self.config.active.rounds

    @property
    def replayed(self) -> int:
        """Questions that a round replays."""
        return min(
            sum(replay_counts(self.config.finetune.replay, self.config.active.budget)), self.extent.splits["pool"]
        )

    @property
    def facts(self) -> int:
        """Facts that accuracy is over, all of which the base model may know."""
        return self.extent.splits["eval" if eval_scope(self.config) == "other" else "pool"]

    @property
    def noise_floor(self) -> int:
        """Questions that the base model is asked after other solved examples, where the prompt has some."""
        return self.facts if self.config.finetune.prompt.solved else 0

    @property
    def layers(self) -> Sequence[int]:
        """Layers whose states are read."""
        layers = self.config.collect.layers
        return range(self.shape.layers + 1) if layers == "all" else layers

    @property
    def columns(self) -> int:
        """Columns of states that are stored."""
        return len(self.layers) * len(self.config.collect.positions)

    @property
    def deepest(self) -> int:
        """The last layer that is read."""
        return max(self.layers)

    def line(self, stage: str, rows: int, pool: Pool) -> Line:
        """A line that says so far how many rows go through which actors."""
        count = f"{pool.min}" if pool.min == pool.max else f"{pool.min} … {pool.max}"
        each = f"{pool.gpus:g} GPU" if pool.gpus else f"{pool.cpus:g} CPU"
        return Line(stage, rows, f"{count} × {each}", pool.min, gpus_used(self.config.model, pool.gpus))

    def reading_bytes(self, pool: Pool) -> int:
        """Memory of reading one batch: its values inside one block, and keys and values of the shared prefix."""
        shape = self.shape
        tokens = min(pool.batch_tokens, pool.batch_rows * self.extent.own)
        return tokens * LIVE_VALUES * shape.width * shape.bytes_per_value + self.extent.shared * shape.cache_bytes

    def collecting(self, stage: str, rows: int, samples: int, columns: int = 0) -> Line:
        """`columns` of states, if any, a greedy answer and `samples` of every row."""
        collect, shape, extent = self.config.collect, self.shape, self.extent
        pool, answers, most = collect.pool, 1 + samples, collect.max_new_tokens
        cache = (pool.batch_tokens + extent.shared) * shape.cache_bytes
        copies = min(pool.batch_rows * answers, max(answers, pool.batch_tokens // (extent.own + most)))
        stored = answers * TEXT_BYTES + columns * shape.width * STORED_BYTES
        shard = shard_rows(pool, rows, stored, row_seconds(pool, answers, most))
        states = (pool.batch_rows + shard) * columns * shape.width * STATE_BYTES
        twice = collect.engine == "vllm" and columns > 0
        share = f"it takes vllm.memory_share = {collect.vllm.memory_share:g} of each GPU"
        by_engine = {
            "own": f"weights, cache of {pool.batch_tokens:,} tokens",
            "vllm": f"vLLM's weights and cache ({share})",
        }
        parts = [by_engine[collect.engine], f"logits of {copies:,} rows"]
        parts += [f"blocks 1 … {self.deepest} once more, for states"] * twice
        parts += [f"states of a shard ({columns} columns)"] * (columns > 0)
        return replace(
            self.line(stage, rows, pool),
            read_tokens=rows * extent.own * (2 if twice else 1),
            written_tokens=rows * answers * most,
            memory_bytes=shape.weight_bytes
            + cache
            + copies * shape.vocabulary * LOGIT_BYTES
            + states
            + (shape.first_blocks_bytes(self.deepest) if twice else 0),
            memory_is=", ".join(parts),
            storage_bytes=rows * stored,
            does=f"{'two prompt passes' if twice else 'one prompt pass'}, {answers} answers of at most {most} tokens",
        )

    def knowing(self) -> Line:
        """Every fact's question asked again and, where the answer is right, sampled; at most all of them."""
        config, shape, extent = self.config, self.shape, self.extent
        pool, answers, most = config.evaluate.pool, 1 + config.collect.samples, config.collect.max_new_tokens
        copies = min(pool.batch_rows * answers, max(answers, pool.batch_tokens // (extent.tuned_own + most)))
        return replace(
            self.line("known", self.facts, pool),
            read_tokens=self.facts * 2 * extent.tuned_own,
            written_tokens=self.facts * (1 + answers) * most,
            memory_bytes=shape.weight_bytes
            + (pool.batch_tokens + extent.tuned_shared) * shape.cache_bytes
            + copies * shape.vocabulary * LOGIT_BYTES,
            memory_is=f"weights, cache of {pool.batch_tokens:,} tokens, logits of {copies:,} rows",
            storage_bytes=self.facts * answers * TEXT_BYTES,
            does=f"where the base model is right, at most everywhere: one more answer and {config.collect.samples} "
            "samples",
        )

    def scoring(self, stage: str, rows: int) -> Line:
        shape, pool, decode, deepest = self.shape, self.config.score.pool, self.config.decode, self.deepest
        if decode.enabled and "steer" in decode.augment:  # the same pool reads of what kind names are
            deepest = max(deepest, round(KIND_DEPTH * shape.layers))
        with_state = bool(that_need(Need.STATES, self.config.active.strategies))
        return replace(
            self.line(stage, rows, pool),
            read_tokens=rows * self.extent.own,
            memory_bytes=shape.first_blocks_bytes(deepest) + self.reading_bytes(pool),
            memory_is=f"embeddings and blocks 1 … {deepest}, one batch",
            storage_bytes=rows * (8 + (shape.width * STATE_BYTES if with_state else 0)),
            does=f"P(unknown) from at most {self.deepest} of {shape.layers} blocks"
            + (", with the state" if with_state else ""),
        )

    def decoding(self) -> list[Line]:
        """New questions for each unknown one bought: its state is read for each of them, and each of the candidates is
        read again, in a stage of its own with `decode.reread`."""
        decode, active = self.config.decode, self.config.active
        checked = min(decode.check_questions, self.extent.splits["probe"])
        curves = sum(STRATEGIES[s].decodes for s in active.strategies)
        wanted = decode.variants * len(decode.augment)
        new = curves * active.budget * wanted
        rows, texts = checked + new, decode.candidates + decode.corrections
        whole = decode.decoder != SHIPPED and (decode.decoder is not None or decode.training.writer is None)
        alone, again = checked + new, checked + new * texts
        blocks = self.shape.first_blocks_bytes(self.deepest)
        decoding = replace(
            self.line("decode", rows, decode.pool),
            read_tokens=(alone + (0 if decode.reread else again)) * self.extent.own,
            written_tokens=(checked + new * texts) * DECODED,
            memory_bytes=(self.shape.weight_bytes if whole else blocks) + self.reading_bytes(decode.pool),
            memory_is="weights with the decoder's adapters, one batch"
            if whole
            else f"embeddings and blocks 1 … {self.deepest}, one batch; the decoder comes on top",
            storage_bytes=rows * 2 * TEXT_BYTES,
            does=f"{checked:,} to measure the decoder, "
            f"then {wanted} per unknown question bought in {curves} curve(s), each the best of {texts}",
        )
        if decode.reread is None:
            return [decoding]
        reread = replace(
            self.line("reread", rows, decode.reread.pool),
            read_tokens=again * self.extent.own,
            memory_bytes=blocks + self.reading_bytes(decode.reread.pool),
            memory_is=f"embeddings and blocks 1 … {self.deepest}, one batch",
            storage_bytes=rows * 2 * TEXT_BYTES,
            does=f"each of the {again:,} texts read again, the best of each request's taken",
        )
        between = rows * self.shape.width * STATE_BYTES + again * TEXT_BYTES
        return [replace(decoding, storage_bytes=between), reread]

    def training_a_decoder(self) -> Line:
        """Each question is read once for its states, and its name, pseudo-tokens and text in each step that shows
        it. A writer of its own, whose size its name does not tell, comes on top, and the model is not needed for it."""
        training, shape, own = self.config.decode.training, self.shape, self.extent.own
        if training.writer is not None:
            return replace(
                self.line("train-decoder", training.examples, self._workers(training)),
                memory_is=f"{training.writer}, its gradients and its optimizer, which are not counted",
                storage_bytes=training.examples * (1 + own // 2) * shape.width * STATE_BYTES,
                does=self._steps(training),
            )
        trained = 2 * training.rank * shape.layers * ADAPTED * shape.width + 3 * shape.width**2
        in_step = training.batch_rows // training.workers * 2 * own
        live = in_step * shape.layers * shape.width * LIVE_VALUES * shape.bytes_per_value
        return replace(
            self.line("train-decoder", training.examples, self._workers(training)),
            read_tokens=3 * own * training.examples,
            memory_bytes=shape.weight_bytes + trained * (4 + OPTIMIZER_BYTES) + live,
            memory_is=f"weights {size(shape.weight_bytes)}, adapters and optimizer, activations {size(live)}",
            storage_bytes=2 * trained + training.examples * (1 + own // 2) * shape.width * STATE_BYTES,
            does=f"{self._steps(training)}; leaves {size(2 * trained)}",
        )

    @staticmethod
    def _workers(training: DecoderTrainingSection) -> Pool:
        """The workers of a decoder's training as a pool."""
        count, cpus = training.workers, training.cpus_per_worker
        return Pool(min=count, max=count, cpus=cpus, gpus=training.gpus_per_worker)

    @staticmethod
    def _steps(training: DecoderTrainingSection) -> str:
        return f"at most {training.examples // training.batch_rows:,} steps of {training.batch_rows} questions"

    def evaluating(self) -> Line:
        """The eval split by the base model and after every training, under both prompts; once more what the round
        replayed; and the noise floor."""
        config, shape, extent = self.config, self.shape, self.extent
        pool, times = config.evaluate.pool, 1 + self.trainings
        asked, replayed = times * extent.splits["eval"], self.trainings * self.replayed
        more = replayed + self.noise_floor
        both = config.corpus.prompt != config.finetune.prompt
        rows = asked * (1 + both) + more
        logits = min(pool.batch_rows, max(extent.splits["eval"], 1)) * shape.vocabulary * LOGIT_BYTES
        return replace(
            self.line("evaluate", rows, pool),
            read_tokens=(asked + more) * extent.tuned_own + asked * extent.own * both,
            written_tokens=rows * config.collect.max_new_tokens,
            memory_bytes=shape.weight_bytes + pool.batch_tokens * shape.cache_bytes + logits,
            memory_is=f"weights, cache of {pool.batch_tokens:,} tokens",
            storage_bytes=rows * TEXT_BYTES,
            does=f"{times} times the eval split (base model and {self.trainings} trainings)"
            + (" under corpus.prompt and under finetune.prompt" if both else "")
            + f", and {replayed:,} replayed questions"
            + (f"; {self.noise_floor:,} at most for the noise floor" if self.noise_floor else ""),
        )

    def finetuning(self, adapter_parameters: int) -> Line:
        tune, shape, extent = self.config.finetune, self.shape, self.extent
        in_round = [bought + self.replayed for bought in _bought(self.config)]
        examples = self.curves * tune.epochs * sum(in_round)
        steps = self.curves * tune.epochs * sum(-(-rows // tune.batch_rows) for rows in in_round)
        tokens = extent.tuned_shared + extent.tuned_own + TRAINED_ANSWER
        trained = shape.parameters if tune.mode == "full" else adapter_parameters
        saved = trained * (shape.bytes_per_value if tune.mode == "full" else 4)
        merged = shape.parameters * _training_width(self.config, shape) if tune.merge else 0
        checkpoint = trained * OPTIMIZER_BYTES if tune.checkpoint_every_steps else 0
        loading, training = (
            loading_bytes(self.config, shape, trained),
            training_bytes(self.config, shape, trained, tokens),
        )
        parts = f"{size(sum(training.values()))}: " + ", ".join(
            f"{name} {size(n)}" for name, n in training.items() if n
        )
        workers = Pool(min=tune.workers, max=tune.workers, cpus=tune.cpus_per_worker, gpus=tune.gpus_per_worker)
        return replace(
            self.line("finetune", examples, workers),
            read_tokens=examples * tokens * (2 if tune.replay.kl_weight else 1),
            memory_bytes=max(loading, sum(training.values())),
            memory_is=f"whole weights while loading and saving {size(loading)}; then {parts}",
            storage_bytes=self.trainings * (saved + merged) + checkpoint,
            does=f"{self.trainings} trainings, {steps:,} steps of {tune.batch_rows} rows; each leaves {size(saved)}"
            + (f" and merged weights of {size(merged)}" if merged else ""),
        )


def _bought(config: Config) -> list[int]:
    """Annotations that a curve has bought after each round: equal parts, and one more in the first rounds if the budget
    does not divide."""
    part, more = divmod(config.active.budget, config.active.rounds)
    return [part * n + min(n, more) for n in range(1, config.active.rounds + 1)]


def _training_width(config: Config, shape: Shape) -> int:
    """Bytes of a weight as it is trained."""
    return {"auto": shape.bytes_per_value, "float32": 4, "bfloat16": 2}[config.finetune.precision]


def _weight_bytes(config: Config, shape: Shape) -> int:
    """Bytes of the weights as they are trained, or as they are quantized."""
    return shape.weight_bytes if shape.quantization != "none" else shape.parameters * _training_width(config, shape)


def loading_bytes(config: Config, shape: Shape, trained: int) -> int:
    """Bytes of memory of one worker while its model loads: every worker loads all of it, ZeRO-3 shards it afterwards,
    and the first worker loads it whole again to check what it saves. `trained` are the trained parameters."""
    tune = config.finetune
    adapters = trained * _training_width(config, shape) if tune.mode == "lora" else 0
    return _weight_bytes(config, shape) * (2 if tune.replay.kl_weight and tune.mode == "full" else 1) + adapters


def training_bytes(config: Config, shape: Shape, trained: int, tokens: int) -> dict[str, int]:
    """Bytes of memory of one worker by part while it trains, under ZeRO (Rajbhandari et al., 2020), offloaded parts
    left out.

    `trained` are the trained parameters, `tokens` those of one row.
    """
    tune, width, shard = config.finetune, _training_width(config, shape), config.finetune.workers
    per_token = shape.layers * shape.width * width
    kept = per_token if tune.gradient_checkpointing else per_token * LIVE_VALUES
    rows_tokens = tune.micro_batch_rows * tokens
    return {
        "weights": 0
        if tune.offload == "all"
        else _weight_bytes(config, shape) // (shard if tune.zero_stage == 3 else 1),
        "frozen base": shape.parameters * width if tune.replay.kl_weight and tune.mode == "full" else 0,
        "gradients": trained * width // (shard if tune.zero_stage >= 2 else 1),
        "optimizer": 0
        if tune.offload != "none"
        else trained * OPTIMIZER_BYTES // (shard if tune.zero_stage >= 1 else 1),
        "activations": rows_tokens * (kept + LIVE_VALUES * shape.width * width),
        "logits": rows_tokens * shape.vocabulary * LOGIT_BYTES * (3 if tune.replay.kl_weight else 2),
    }


def size(count: float) -> str:
    """Bytes in words: powers of 1,000, three figures."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.4g} TB"
