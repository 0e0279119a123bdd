"""Sections of finding out what the model does not know: collect, label, search, score, decode.

In: values of the file. Out: frozen, bounded sections.
Refuses to know: the model, and how any stage works.
"""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from ka2l_ray.config.base import NoKeys, Pool, Positive, Section, Share, Text

Position = Literal["last", "mean"]
_OFF = BeforeValidator(lambda value: "off" if value is False else value)
"""YAML reads a bare `off` as false."""


class AdaptiveSection(Section):
    """Stop sampling a question once no outcome of its remaining samples can change its label (exact equivalence only).

    Stopped questions have bounds instead of an entropy. They are left out of Otsu's rule, of the search over thresholds
    and of the baselines.
    """

    threshold: Annotated[Literal["off", "pilot"] | Annotated[float, Field(ge=0)], _OFF] = "off"
    """γ in nats, fixed before sampling: a value, or `pilot`, the Otsu threshold of `pilot_rows` questions with all K
    samples."""
    pilot_rows: Annotated[int, Field(ge=50)] = 500
    """Probe questions of the pilot, or all if there are fewer. Its samples are drawn in addition to the run's."""
    wave: Positive = 2
    """Samples drawn between two checks, after the first check that can decide: fewer save more samples, more fill
    batches better."""


class VllmSection(Section):
    """vLLM as the sampling engine of an actor (`collect.engine: vllm`)."""

    tensor_parallel: Positive = 1
    """GPUs that one model is spread over; `collect.pool.gpus` must be the same number."""
    memory_share: Annotated[float, Field(gt=0, le=1)] = 0.7
    """Share of each GPU's memory for vLLM; the blocks that compute the states need the rest."""
    context: Positive | None = None
    """Tokens of prompt and answer at most; null takes the model's own context, which may need more cache than there
    is."""
    eager: bool = False
    """Start faster, without compiled graphs."""


class CollectSection(Section):
    """Hidden states, one greedy answer and K samples per question, from a single prompt pass."""

    layers: Literal["all"] | Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = "all"
    """Layers to store: 0 is the input of block 1, l the residual output of block l."""
    positions: Annotated[tuple[Position, ...], Field(min_length=1)] = ("last",)
    """`last`: the state at the last prompt token; `mean`: the mean over the question's own tokens in the full
    prompt."""
    samples: Annotated[int, Field(ge=2, le=100)] = 10
    """K, the number of answers sampled per question of the probe split."""
    temperature: Annotated[float, Field(gt=0, le=10)] = 1.0
    """Temperature of the K samples."""
    greedy_temperature: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Temperature of the `greedy` answer; 0 is argmax, the paper uses 0.1."""
    max_new_tokens: Positive = 16
    """Tokens of an answer at most, in every stage; a prompt must leave room for them in the model's context."""
    adaptive: AdaptiveSection = AdaptiveSection()
    engine: Literal["own", "vllm"] = "own"
    """What draws the answers. `own` reads each prompt once for states and answers, and the same seed gives the same
    answers; `vllm` reads it twice."""
    vllm: VllmSection = VllmSection()
    pool: Pool = Pool()

    @model_validator(mode="after")
    def _engine_can(self) -> "CollectSection":
        """`engine: vllm` with adaptive sampling, or with a `vllm.tensor_parallel` above 1 that differs from
        `pool.gpus`."""
        if self.engine == "vllm" and self.adaptive.threshold != "off":
            raise ValueError("adaptive sampling needs engine: own; set adaptive.threshold: off for engine: vllm")
        spread = self.vllm.tensor_parallel
        if self.engine == "vllm" and spread > 1 and self.pool.gpus != spread:
            raise ValueError(
                f"vllm.tensor_parallel ({spread}) must be the number of GPUs that an actor has: set pool.gpus: {spread}"
            )
        return self


class LabelSection(Section):
    """Sampled answers → clusters → semantic entropy → known or unknown."""

    equivalence: Literal["exact"] = "exact"
    """`exact`: answers equal after normalisation (case, articles, punctuation)."""
    threshold: Literal["otsu"] | Annotated[float, Field(ge=0)] = "otsu"
    """γ in nats: `otsu` (least within-group sum of squares) or a value. Unknown means SE ≥ γ."""


class SearchSection(Section):
    """Which layer's state separates known from unknown, found on the probe split, which is divided by entity."""

    objective: Literal["auto", "correctness", "entropy"] = "auto"
    """What the AUROC that selects the probe is measured against. `correctness`: wrong greedy answers, on the questions
    with gold; `entropy`: SE ≥ γ. `auto` takes correctness if there are `min_graded` answers of each kind, and otherwise
    entropy, with a warning; `correctness` stops the run instead."""
    min_graded: Positive = 10
    """Right answers, and as many wrong ones, that the validation questions must contain for the objective
    `correctness`: with ten of each the standard error of an AUROC of 0.8 is at most 0.13."""
    inverse_regularization: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] = (
        0.003,
        0.03,
        0.3,
    )
    """Values of C tried for the logistic probe."""
    validation_share: Annotated[float, Field(gt=0, lt=0.5)] = 0.2
    """Share of the probe split's entities that layer, C and threshold are chosen on."""
    test_share: Annotated[float, Field(gt=0, lt=0.5)] = 0.3
    """Share of its entities that the reported AUROCs are measured on; the probes are trained on the rest."""
    min_class_share: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    """Thresholds that leave less than this share of the rows on one side are not tried."""
    bootstrap: Annotated[int, Field(ge=100)] = 1000
    """Resamples of entities behind each 95 % interval."""
    cpus: Annotated[float, Field(gt=0)] = 1.0
    """Logical CPUs of one trial (one layer with all its thresholds)."""


class ScoreSection(Section):
    """P(unknown) of every pool question, from blocks 1 … l of the model only."""

    pool: Pool = Pool()


class DecodeSection(Section):
    """Hidden states of acquired unknown questions → new questions."""

    enabled: bool = True
    """Whether to measure a decoder, and use it in the strategies `ka2l` (which only records its questions) and
    `decoded` (which buys them)."""
    decoder: Annotated[Text, NoKeys] = "world"
    """`world` (the shipped decoder), or a decoder's folder or URI."""
    variants: Positive = 2
    """New questions tried per state (M)."""
    noise: Annotated[float, Field(ge=0)] = 0.5
    """Gaussian noise added to the standardised state, in standard deviations; 0 reconstructs the question itself."""
    temperature: Annotated[float, Field(gt=0, le=10)] = 0.7
    """Temperature for new questions; `check_questions` are decoded at 0 and without noise."""
    min_p_unknown: Share = 0.5
    """A decoded question is kept only if the probe gives at least this."""
    check_questions: Positive = 256
    """Probe questions that the decoder is measured on: it must reconstruct each one from its own state."""
    pool: Pool = Pool(shard_rows=64)
