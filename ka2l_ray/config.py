"""The frozen configuration tree: one file describes one run.

In: a YAML file and `a.b=c` overrides. Out: a validated, immutable `Config`.
Refuses to know: torch, ray, and whether a file, model or cluster exists; it checks names, types and bounds only.
Unknown keys are errors. No validator changes a value: what the file says is what runs.
"""

import difflib
import hashlib
import json
import re
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(ge=1)]
Strategy = Literal["ka2l", "ka2l_diverse", "decoded", "entropy", "likelihood", "coreset", "quadrant", "random", "oracle"]
Quadrant = Literal["known", "misconception", "shaky", "unknown"]
Position = Literal["last", "mean"]
NO_RESULTS = {
    *(f"{stage}.pool" for stage in ("collect", "score", "decode", "evaluate")),
    *("ray", "report", "run.storage", "search.cpus"),
    *(f"finetune.{name}" for name in ("cpus_per_worker", "checkpoint_every_steps", "max_failures", "tensorboard")),
    *(f"annotate.endpoint.{name}" for name in ("concurrency", "requests_per_s", "timeout_s", "retries", "backoff_s", "key_variable")),
}
"""Sections and fields that change no number: a run may be continued with other values."""


_SECRET = re.compile(r"(secret|password|token|access_key|account_key|sas|credential)[^=&]*=|//[^/]*@|%2F%2F[^&]*%40", re.IGNORECASE)


class ConfigError(ValueError):
    """A configuration that cannot run; the message names file, dotted field, value and what is allowed."""


class Section(BaseModel):
    """Base of every section: frozen, strict about unknown keys, described by its docstrings."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False, serialize_by_alias=True
    )


class Pool(Section):
    """An actor pool: how many actors, what each one holds, how many rows it gets at once."""

    min: Positive = 1
    """Actors at the start and at the least."""
    max: Positive = 1
    """Actors at the most; above `min` the pool grows with the cluster."""
    cpus: Annotated[float, Field(gt=0)] = 1.0
    """Logical CPUs of one actor."""
    gpus: Annotated[float, Field(ge=0)] = 0.0
    """GPUs of one actor; a fraction shares one GPU."""
    batch_rows: Positive = 128
    """Rows of one forward batch."""
    block_rows: Positive = 256
    """Rows committed together: what a killed run loses at most per actor."""

    @model_validator(mode="after")
    def _ordered(self) -> "Pool":
        if self.max < self.min:
            raise ValueError(f"max ({self.max}) must be at least min ({self.min})")
        return self


class RunSection(Section):
    """Which run this is and where it is kept."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")] = "run"
    """Name of the run's folder below `storage`."""
    storage: Annotated[str, Field(min_length=1)] = "runs"
    """Folder or URI (`s3://…`, `gs://…`) that holds runs; on a cluster every node must reach it."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of splits, samples, acquisition and training."""
    max_error_fraction: Share = 0.01
    """A stage fails when more than this share of its rows failed."""

    @model_validator(mode="after")
    def _no_keys(self) -> "RunSection":
        address, _, query = self.storage.partition("?")
        user = "://" in address and "@" in address.split("://")[1].split("/")[0]
        if user or _SECRET.search(query):
            raise ValueError("storage must hold no keys, for it is kept with the run; set them in the environment, as AWS_ACCESS_KEY_ID")
        return self


class RaySection(Section):
    """The Ray cluster to use."""

    address: str | None = None
    """`auto`, `local`, `host:port` or `ray://…`; null uses RAY_ADDRESS where set and else starts a local cluster of its own."""
    local_cpus: Annotated[int, Field(ge=4)] = 6
    """Logical CPUs of a local cluster (at least 4: row-level resume needs a slot beside read, map and write)."""


class ModelSection(Section):
    """The causal language model under study."""

    name_or_path: Annotated[str, Field(min_length=1)] = "world"
    """`world` (the shipped model), a Hugging Face folder, or a hub id."""
    revision: str | None = None
    """Commit or tag of a hub id."""
    adapter: str | None = None
    """Fine-tuned weights on top of it: a folder or URI with a PEFT adapter, which is merged, or with a full model of the same kind."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision to load in; `auto` is the checkpoint's own."""
    trust_remote_code: bool = False
    """Run code from the model's repository. Off unless you trust its author."""

    @property
    def identity(self) -> str:
        """Names the weights, in cards and errors."""
        return "".join((self.name_or_path, f"@{self.revision}" if self.revision else "", f" + {self.adapter}" if self.adapter else ""))


class PromptSection(Section):
    """How a question becomes a prompt, and where an answer ends."""

    style: Literal["bare"] = "bare"
    """`bare`: the template alone."""
    template: str = "Question: {question}\nAnswer:"
    """Text with `{question}` in it."""
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ("\n", "Question:")
    """An answer ends before the first of these, or at the model's end token."""

    @model_validator(mode="after")
    def _holds_question(self) -> "PromptSection":
        if self.template.count("{question}") != 1:
            raise ValueError("template must hold {question} exactly once")
        return self


class SplitSection(Section):
    """Shares of a file corpus; the world splits by `WorldCorpusSection`."""

    probe: Share = 0.5
    pool: Share = 0.3
    eval: Share = 0.2

    @model_validator(mode="after")
    def _sums(self) -> "SplitSection":
        if abs(self.probe + self.pool + self.eval - 1.0) > 1e-9:
            raise ValueError(f"probe + pool + eval must be 1, got {self.probe + self.pool + self.eval:g}")
        return self


class WorldCorpusSection(Section):
    """What is asked about the knowledge world."""

    pool_questions: Annotated[int, Field(ge=10, le=2000)] = 600
    """Questions that may be bought."""
    probe_questions: Annotated[int, Field(ge=100, le=3000)] = 2200
    """Questions that label, search and fit the probe."""
    domain_questions: Annotated[int, Field(ge=10, le=1000)] = 200
    """Eval questions about facts that no pool question asks."""
    unknown_share: Annotated[float, Field(ge=0.05, le=0.95)] = 0.5
    """Share of pool questions about facts the model never saw."""
    misconceptions: bool = True
    """Whether facts learned wrong on purpose, and rare ones, are asked."""


class CorpusSection(Section):
    """Where questions come from."""

    source: Annotated[str, Field(min_length=1)] = "world"
    """`world`, or a JSONL, CSV or Parquet file (glob, local or URI)."""
    question_column: str = "question"
    answers_column: str = "answers"
    """Column of gold answers (a string or a list of strings); may be missing in the file, then nothing is graded."""
    id_column: str = "id"
    group_column: str = "group"
    prompt: PromptSection = PromptSection()
    split: SplitSection = SplitSection()
    world: WorldCorpusSection = WorldCorpusSection()


class CollectSection(Section):
    """Hidden states, one greedy answer and K samples per question, from one prompt pass."""

    layers: Literal["all"] | Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = "all"
    """Layers to store: 0 is the input of block 1, l the residual output of block l."""
    positions: Annotated[tuple[Position, ...], Field(min_length=1)] = ("last",)
    """`last`: the last prompt token; `mean`: over the question's own tokens inside the full prompt."""
    samples: Annotated[int, Field(ge=2, le=100)] = 10
    """K, answers sampled per question of the probe split."""
    temperature: Annotated[float, Field(gt=0, le=10)] = 1.0
    greedy_temperature: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Temperature of the `greedy` answer; 0 is argmax, the paper's is 0.1."""
    max_new_tokens: Positive = 16
    pool: Pool = Pool()


class LabelSection(Section):
    """Sampled answers → clusters → semantic entropy → known or unknown."""

    equivalence: Literal["exact"] = "exact"
    """`exact`: answers equal after normalisation (case, articles, punctuation)."""
    threshold: Literal["otsu"] | Annotated[float, Field(ge=0)] = "otsu"
    """γ in nats: `otsu` (least within-group sum of squares) or a value. Unknown means SE >= γ."""


class SearchSection(Section):
    """Which layer's state tells known from unknown, found on the probe split divided by entity."""

    objective: Literal["auto", "correctness", "entropy"] = "auto"
    """Select by AUROC against wrong greedy answers, or against SE >= γ; `auto` takes correctness where gold exists."""
    inverse_regularization: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] = (0.003, 0.03, 0.3)
    """Values of C tried for the logistic probe."""
    validation_share: Annotated[float, Field(gt=0, lt=0.5)] = 0.2
    test_share: Annotated[float, Field(gt=0, lt=0.5)] = 0.3
    min_class_share: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    """Thresholds that leave fewer rows than this share on one side are not tried."""
    bootstrap: Annotated[int, Field(ge=100)] = 1000
    """Resamples of entities behind each 95 % interval."""
    cpus: Annotated[float, Field(gt=0)] = 1.0
    """Logical CPUs of one trial (one layer with all its thresholds)."""


class ScoreSection(Section):
    """P(unknown) of every pool question from blocks 1 … l alone."""

    pool: Pool = Pool()


class DecodeSection(Section):
    """Hidden states of acquired unknown questions → new questions."""

    enabled: bool = True
    decoder: Annotated[str, Field(min_length=1)] = "world"
    """`world` (the shipped decoder) or a folder that holds one."""
    variants: Positive = 2
    """New questions tried per state (M)."""
    noise: Annotated[float, Field(ge=0)] = 0.5
    """Gaussian noise on the standardised state, in standard deviations; 0 reconstructs the question itself."""
    temperature: Annotated[float, Field(gt=0, le=10)] = 0.7
    min_p_unknown: Share = 0.5
    """A decoded question is kept only where the probe gives at least this."""
    check_questions: Positive = 256
    """Probe questions whose own text the decoder must find again, to measure it."""
    pool: Pool = Pool(block_rows=64)


class AcquireSection(Section):
    """What the strategies of `active.strategies` look at when they choose what to buy."""

    diversity: Annotated[float, Field(ge=0, le=4)] = 0.5
    """`ka2l_diverse` buys by P(unknown) × (distance to the nearest chosen state) ^ `diversity`; 0 is plain `ka2l`."""
    candidates: Annotated[int, Field(ge=10)] = 20_000
    """Questions whose states are compared on the driver: for `coreset` a draw of the pool, for `ka2l_diverse` the likeliest unknown."""
    quadrants: Annotated[tuple[Quadrant, ...], Field(min_length=1)] = ("unknown", "misconception")
    """What `quadrant` buys, in this order; it needs gold answers for the pool, so it fits corpora whose gold is free."""
    decoded_share: Annotated[float, Field(ge=0, le=1)] = 0.25
    """Share of a round's budget that `decoded` spends on questions generated from hidden states.

    An unanswerable question is paid for too, so look at `decode.answerable` of a run before raising it.
    """
    balance: Literal["none", "group"] = "none"
    """`group`: every group's best question before any group's second best."""
    sampling_cost: Annotated[float, Field(ge=0)] = 0.0
    """Cost of sampling one pool question, in the unit of `annotate.cost`: booked to `entropy`, `likelihood` and `quadrant`."""


class EndpointSection(Section):
    """An OpenAI-compatible chat endpoint that answers questions. Its key comes from the environment, never from this file."""

    url: Annotated[str, Field(pattern=r"^https?://[^@\s]+$")] = "http://127.0.0.1:8000/v1/chat/completions"
    """Full address of the chat completions route."""
    model: Annotated[str, Field(min_length=1)] = "annotator"
    """Name of the model to ask for."""
    key_variable: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] = "KA2L_ANNOTATOR_KEY"
    """Environment variable on the driver that holds the key; no header is sent where it is not set."""
    system: str = (
        "Answer with the answer alone, in as few words as possible. "
        "If you do not know, reply: I don't know. If there is no such thing, reply: no such thing."
    )
    template: str = "{question}"
    """The user's message, with `{question}` in it."""
    max_tokens: Positive = 64
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    concurrency: Positive = 8
    """Requests under way at once."""
    requests_per_s: Annotated[float, Field(gt=0)] | None = None
    """Rate limit over all requests; null sends as fast as `concurrency` allows."""
    timeout_s: Annotated[float, Field(gt=0)] = 60.0
    """Seconds until a request counts as failed and is tried again."""
    retries: Annotated[int, Field(ge=0)] = 6
    """Tries after the first, for 408, 409, 425, 429, 5xx, time-outs, broken connections and answers that are not valid JSON."""
    backoff_s: Annotated[float, Field(gt=0)] = 1.0
    """Wait before the first retry; doubles with each, unless the server says `Retry-After`."""
    cost_per_million_prompt_tokens: Annotated[float, Field(ge=0)] = 0.0
    cost_per_million_completion_tokens: Annotated[float, Field(ge=0)] = 0.0
    refusals: tuple[Annotated[str, Field(min_length=1)], ...] = (
        "i don't know",
        "i do not know",
        "i cannot",
        "i can't",
        "as an ai",
        "i'm sorry",
        "i am sorry",
    )
    """An answer that holds one of these (any case) is a refusal: paid, counted, dropped."""
    no_such_thing: tuple[Annotated[str, Field(min_length=1)], ...] = ("no such", "does not exist", "doesn't exist", "nobody of that name")
    """An answer that holds one of these says that the question has none: paid, counted, dropped."""

    @model_validator(mode="after")
    def _holds_question(self) -> "EndpointSection":
        if self.template.count("{question}") != 1:
            raise ValueError("template must hold {question} exactly once")
        return self


class AnnotateSection(Section):
    """Who answers the questions that were bought."""

    source: Literal["auto", "world", "reference", "endpoint", "file"] = "auto"
    """`world` asks the knowledge world, `reference` takes the corpus' gold answers, `endpoint` asks a chat model,
    `file` pauses the loop until people's answers are imported; `auto` takes the corpus' own."""
    cost: Annotated[float, Field(ge=0)] = 1.0
    """Cost of one question asked, besides what an endpoint charges by the token."""
    endpoint: EndpointSection = EndpointSection()


class LoraSection(Section):
    """Low-rank adapters (PEFT)."""

    rank: Positive = 16
    alpha: Positive = 32
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"


class ReplaySection(Section):
    """Unbought pool questions mixed in, labelled with the base model's own answers: no annotation cost."""

    ratio: Annotated[float, Field(ge=0)] = 2.0
    """Questions replayed in every round per annotation of the whole budget: the same number for every strategy and round."""
    unknown_share: Share = 0.5
    """Share of them that the probe predicts unknown, as far as the pool has them; the rest is predicted known."""
    source: Literal["samples", "greedy"] = "samples"
    """`samples`: drawn at T = 1, which keeps the base model's doubt; `greedy`: its one likeliest answer."""
    samples: Positive = 4
    """Samples drawn per replayed question; training cycles through them epoch by epoch."""
    gold_is_free: bool = False
    """Where gold of unbought questions costs nothing: replay the right ones among a question's own answers if there is any."""
    kl_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of KL(base ‖ tuned) beside the cross-entropy, at the answer tokens of replayed rows: it keeps the base model's whole
    distribution there, not only what was sampled from it. Costs a second pass of the base model."""


class FinetuneSection(Section):
    """DeepSpeed-backed Ray Train on the annotations bought so far."""

    start: Literal["base"] = Field(default="base", alias="from")
    """Where a round starts: `base`, the model as it was before any round."""
    mode: Literal["lora", "full"] = "full"
    lora: LoraSection = LoraSection()
    replay: ReplaySection = ReplaySection()
    epochs: Positive = 25
    learning_rate: Annotated[float, Field(gt=0, lt=1)] = 5e-4
    schedule: Literal["linear", "cosine"] = "linear"
    """How the learning rate falls to zero after warm-up."""
    warmup_share: Share = 0.1
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    batch_rows: Positive = 32
    """Rows of one optimiser step over all workers and accumulation steps."""
    micro_batch_rows: Positive = 16
    """Rows of one forward pass on one worker."""
    group_by_length: bool = False
    """Fill each step with rows of like length (shuffled within windows of 16 steps): less padding on real text."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of weights and passes: `auto` is what `model.dtype` loads. AdamW's own state is float32 in any case."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: about a third more time for much less memory."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    """DeepSpeed ZeRO: 0 plain data parallel, 1 shards optimiser state, 2 gradients too, 3 weights too."""
    offload: Literal["none", "optimizer", "all"] = "none"
    """What ZeRO keeps in the host's memory: the optimiser's state (stages 1 to 3), or the weights too (stage 3)."""
    workers: Positive = 2
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1.0
    gpus_per_worker: Annotated[int, Field(ge=0, le=1)] = 0
    checkpoint_every_steps: Annotated[int, Field(ge=0)] = 200
    """Optimiser steps between checkpoints in the run's storage: what a dead worker or driver costs at most; 0 writes none."""
    max_failures: Annotated[int, Field(ge=0)] = 2
    """How often a training starts again from its last checkpoint after a worker died."""
    evaluate_every_epochs: Annotated[int, Field(ge=0)] = 0
    """Epochs between evaluations (loss and token accuracy on `evaluate_rows` eval questions, for the record only); 0 makes none."""
    evaluate_rows: Positive = 128
    merge: bool = False
    """Also write the adapter merged into the base model's weights, to `merged/`."""
    tensorboard: bool = False
    """Also write TensorBoard event files, to `tensorboard/` beside the model."""

    @model_validator(mode="after")
    def _batches(self) -> "FinetuneSection":
        if self.batch_rows % (per_step := self.micro_batch_rows * self.workers) and self.batch_rows > per_step:
            raise ValueError(f"batch_rows ({self.batch_rows}) must be a multiple of micro_batch_rows × workers ({per_step})")
        if self.batch_rows % self.workers:
            raise ValueError(f"batch_rows ({self.batch_rows}) must be a multiple of workers ({self.workers})")
        if self.offload == "all" and self.zero_stage != 3:
            raise ValueError(f"offload: all needs zero_stage: 3, got {self.zero_stage}; `optimizer` works from stage 1")
        if self.offload == "optimizer" and self.zero_stage == 0:
            raise ValueError("offload: optimizer needs zero_stage 1, 2 or 3")
        if self.merge and self.mode != "lora":
            raise ValueError("merge applies to mode: lora; a full fine-tuning is whole already")
        return self


class StopSection(Section):
    """When a strategy stops before its rounds are used up. The budget always ends it."""

    accuracy: Share | None = None
    """Stop once eval accuracy reaches this."""
    patience: Positive | None = None
    """Stop after this many rounds in a row without a gain of `min_gain`."""
    min_gain: Annotated[float, Field(ge=0)] = 0.005
    """Gain in eval accuracy over the best earlier round that counts as one."""
    p_unknown: Share | None = None
    """Stop when no unbought pool question has at least this P(unknown)."""


class ActiveSection(Section):
    """The loop: acquire, decode, annotate, fine-tune, evaluate, round by round."""

    strategies: Annotated[tuple[Strategy, ...], Field(min_length=1)] = ("ka2l", "random")
    """`ka2l`: likeliest unknown by the probe. `ka2l_diverse`: that × distance to what is chosen. `decoded`: `ka2l` with a share of
    generated questions. `entropy`, `likelihood`: by sampled SE or greedy log-likelihood (samples the pool). `coreset`: k-centre on states.
    `quadrant`: by grade and SE (samples the pool, needs gold). `random`. `oracle`: truly unknown (world only)."""
    rounds: Positive = 2
    budget: Positive = 150
    """Annotations that a strategy may buy in all rounds together."""
    random_draws: Positive = 3
    """Independent draws of `random`; the saving compares with their mean."""
    stop: StopSection = StopSection()
    reprobe: bool = False
    """Collect, label and search again on each round's model and rank by its probe, unless its SE AUROC is below 0.7: then the base
    model's probe is used, and the log says so."""

    @model_validator(mode="after")
    def _spendable(self) -> "ActiveSection":
        if self.budget < self.rounds:
            raise ValueError(f"budget ({self.budget}) must be at least one annotation per round ({self.rounds})")
        if len(set(self.strategies)) != len(self.strategies):
            raise ValueError(f"strategies must differ, got {list(self.strategies)}")
        return self


class EvaluateSection(Section):
    """Greedy answers on the eval split, base model and after every round."""

    pool: Pool = Pool()


class ReportSection(Section):
    """The report page."""

    title: str = "What the model does not know"


class Config(Section):
    """Everything a run depends on."""

    run: RunSection = RunSection()
    ray: RaySection = RaySection()
    model: ModelSection = ModelSection()
    corpus: CorpusSection = CorpusSection()
    collect: CollectSection = CollectSection()
    label: LabelSection = LabelSection()
    search: SearchSection = SearchSection()
    score: ScoreSection = ScoreSection()
    acquire: AcquireSection = AcquireSection()
    decode: DecodeSection = DecodeSection()
    annotate: AnnotateSection = AnnotateSection()
    finetune: FinetuneSection = FinetuneSection()
    active: ActiveSection = ActiveSection()
    evaluate: EvaluateSection = EvaluateSection()
    report: ReportSection = ReportSection()


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, apply `a.b=c` overrides, validate. Raises `ConfigError` with every problem, one line each."""
    try:
        tree = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is not YAML: {' '.join(str(error).split())}") from error
    if tree is not None and not isinstance(tree, dict):
        raise ConfigError(f"{path}: must hold sections such as `run:`, got {type(tree).__name__}")
    tree = tree or {}
    for override in overrides:
        _apply(tree, override)
    return parse_config(tree, str(path))


def parse_config(tree: dict[str, Any], source: str) -> Config:
    """Validate a plain tree; `source` names it in errors. Strict, as JSON: no value is turned into another type."""
    try:
        return Config.model_validate_json(json.dumps(tree, default=str), strict=True)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(source, e) for e in error.errors())) from None


def _apply(tree: dict[str, Any], override: str) -> None:
    dotted, equals, text = override.partition("=")
    if not equals or not dotted:
        raise ConfigError(f"--set {override}: must look like section.field=value")
    *parents, last = dotted.strip().split(".")
    for depth, name in enumerate(parents):
        if tree.get(name) is None:
            tree[name] = {}
        tree = tree[name]
        if not isinstance(tree, dict):
            raise ConfigError(f"--set {override}: `{'.'.join(parents[: depth + 1])}` is a value, not a section")
    try:
        tree[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: the value is not YAML") from error


def _explain(source: str, error: Any) -> str:
    """One line for one pydantic error: file, dotted field, bad value, what is allowed, nearest name for a typo."""
    fields, siblings = _walk(error["loc"])
    dotted = ".".join(fields)
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(fields[-1], siblings, n=1)
        hint = f"did you mean `{near[0]}`?" if near else f"allowed here: {', '.join(siblings)}"
        return f"{source}: `{dotted}` is not a known field; {hint}"
    message = error["msg"].removeprefix("Value error, ").replace("Input should", "should")
    value = "" if isinstance(error["input"], (dict, BaseModel)) else f" = {_USER_PART.sub('//…@', repr(error['input']))}"
    return f"{source}: `{dotted}`{value}: {message}"


_USER_PART = re.compile(r"//[^/\s]*@")
"""Name and password of an address: never repeated, for they may be real."""


def _walk(location: tuple[int | str, ...]) -> tuple[list[str], list[str]]:
    """The dotted names of an error's location and the field names allowed at its last level; drops pydantic's union tags."""
    section: type[BaseModel] | None = Config
    names: list[str] = []
    siblings: list[str] = []
    for part in location:
        if section is not None:
            siblings = [f.alias or name for name, f in section.model_fields.items()]
            names.append(str(part))
            annotation = section.model_fields[str(part)].annotation if str(part) in section.model_fields else None
            section = next((t for t in (annotation, *get_args(annotation)) if isinstance(t, type) and issubclass(t, Section)), None)
        elif isinstance(part, int):
            names.append(str(part))
    return names, siblings


def differing_fields(a: Config, b: Config) -> list[str]:
    """Dotted fields that change results and differ; cluster, pools, storage and report do not change results."""
    left, right = _flat(_results_part(a)), _flat(_results_part(b))
    return [f"{k}: {left.get(k)!r} → {right.get(k)!r}" for k in sorted(left.keys() | right.keys()) if left.get(k) != right.get(k)]


def config_hash(config: Config) -> str:
    """Hash of what results depend on."""
    return hashlib.sha256(json.dumps(_results_part(config), sort_keys=True).encode()).hexdigest()[:12]


def _results_part(config: Config) -> dict[str, Any]:
    return _without(config.model_dump(mode="json"), NO_RESULTS)


def _without(tree: dict[str, Any], paths: Set[str], prefix: str = "") -> dict[str, Any]:
    kept = {k: v for k, v in tree.items() if f"{prefix}{k}" not in paths}
    return {k: _without(v, paths, f"{prefix}{k}.") if isinstance(v, dict) else v for k, v in kept.items()}


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
