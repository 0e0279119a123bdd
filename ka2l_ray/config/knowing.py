"""Sections of finding out what the model does not know: collect, label, search, score, decode.

In: values of the file. Out: frozen, bounded sections.
Refuses to know: the model, and how any stage works.
"""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from ka2l_ray.config.base import Pool, Positive, Section, Share
from ka2l_ray.config.subject import refuse_keys

Position = Literal["last", "mean"]


def _off(value: object) -> object:
    """YAML reads a bare `off` as false."""
    return "off" if value is False else value


class AdaptiveSection(Section):
    """Stop sampling a question once no outcome of its remaining samples can change its label (exact equivalence only).

    Stopped questions have bounds in place of an entropy, and are left out of Otsu, of the search over thresholds and of the baselines.
    """

    threshold: Annotated[Literal["off", "pilot"] | Annotated[float, Field(ge=0)], BeforeValidator(_off)] = "off"
    """γ in nats, fixed before sampling: a value, or `pilot`, the Otsu threshold of `pilot_rows` questions with all K samples."""
    pilot_rows: Annotated[int, Field(ge=50)] = 500
    """Probe questions of the pilot, or all where there are fewer; it is sampled besides the run's own samples."""
    wave: Positive = 2
    """Samples drawn between two looks, after the first that can decide: fewer save more samples, more fill batches better."""


class VllmSection(Section):
    """vLLM as the sampling engine of an actor (`collect.engine: vllm`)."""

    tensor_parallel: Positive = 1
    """GPUs that one model is spread over; `collect.pool.gpus` must be as many."""
    memory_share: Annotated[float, Field(gt=0, le=1)] = 0.7
    """Share of each GPU's memory for vLLM; the blocks that states are read from need the rest."""
    context: Positive | None = None
    """Tokens of prompt and answer at most; null takes the model's own context, which may ask for more cache than there is."""
    eager: bool = False
    """Start sooner, without compiled graphs."""


class CollectSection(Section):
    """Hidden states, one greedy answer and K samples per question, from one prompt pass."""

    layers: Literal["all"] | Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = "all"
    """Layers to store: 0 is the input of block 1, l the residual output of block l."""
    positions: Annotated[tuple[Position, ...], Field(min_length=1)] = ("last",)
    """`last`: the last prompt token; `mean`: over the question's own tokens inside the full prompt."""
    samples: Annotated[int, Field(ge=2, le=100)] = 10
    """K, answers sampled per question of the probe split."""
    temperature: Annotated[float, Field(gt=0, le=10)] = 1.0
    """Temperature of the K samples."""
    greedy_temperature: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Temperature of the `greedy` answer; 0 is argmax, the paper's is 0.1."""
    max_new_tokens: Positive = 16
    """Tokens of an answer at most, wherever the run has one written; a prompt must leave room for them in the model's context."""
    adaptive: AdaptiveSection = AdaptiveSection()
    engine: Literal["own", "vllm"] = "own"
    """What draws answers: `own` reads each prompt once for states and answers, and repeats a seed exactly; `vllm` reads it twice."""
    vllm: VllmSection = VllmSection()
    pool: Pool = Pool()

    @model_validator(mode="after")
    def _engine_can(self) -> "CollectSection":
        """`engine: vllm` with adaptive sampling, or with a `vllm.tensor_parallel` above 1 other than `pool.gpus`."""
        if self.engine == "vllm" and self.adaptive.threshold != "off":
            raise ValueError("adaptive sampling needs engine: own; set adaptive.threshold: off for engine: vllm")
        spread = self.vllm.tensor_parallel
        if self.engine == "vllm" and spread > 1 and self.pool.gpus != spread:
            raise ValueError(
                f"vllm.tensor_parallel ({spread}) spreads a model over as many GPUs as an actor has: set pool.gpus: {spread}"
            )
        return self


class LabelSection(Section):
    """Sampled answers → clusters → semantic entropy → known or unknown."""

    equivalence: Literal["exact"] = "exact"
    """`exact`: answers equal after normalisation (case, articles, punctuation)."""
    threshold: Literal["otsu"] | Annotated[float, Field(ge=0)] = "otsu"
    """γ in nats: `otsu` (least within-group sum of squares) or a value. Unknown means SE >= γ."""


class SearchSection(Section):
    """Which layer's state tells known from unknown, found on the probe split divided by entity."""

    objective: Literal["auto", "correctness", "entropy"] = "auto"
    """Select by AUROC against wrong greedy answers, of the questions with gold, or against SE >= γ. `auto` takes correctness where
    `min_graded` allows it and else, with a warning, entropy; `correctness` stops there."""
    min_graded: Positive = 10
    """Right answers, and wrong ones, that the validation questions must hold at least for the objective `correctness`: with ten of either
    the standard error of an AUROC of 0.8 is at most 0.13."""
    inverse_regularization: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] = (
        0.003,
        0.03,
        0.3,
    )
    """Values of C tried for the logistic probe."""
    validation_share: Annotated[float, Field(gt=0, lt=0.5)] = 0.2
    """Share of the probe split's entities that layer, C and threshold are chosen on."""
    test_share: Annotated[float, Field(gt=0, lt=0.5)] = 0.3
    """Share of its entities that the reported AUROCs come from; the rest trains the probes."""
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
    """Whether a decoder is measured, and used by the strategies `ka2l` (which only records what it wrote) and `decoded` (which buys it)."""
    decoder: Annotated[str, Field(min_length=1)] = "world"
    """`world` (the shipped decoder), or a folder that holds one, or its URI."""
    variants: Positive = 2
    """New questions tried per state (M)."""
    noise: Annotated[float, Field(ge=0)] = 0.5
    """Gaussian noise on the standardised state, in standard deviations; 0 reconstructs the question itself."""
    temperature: Annotated[float, Field(gt=0, le=10)] = 0.7
    """Temperature at which a question is written; the measurement on `check_questions` writes at 0, without noise."""
    min_p_unknown: Share = 0.5
    """A decoded question is kept only where the probe gives at least this."""
    check_questions: Positive = 256
    """Probe questions whose own text the decoder must find again, to measure it."""
    pool: Pool = Pool(shard_rows=64)

    @model_validator(mode="after")
    def _no_keys(self) -> "DecodeSection":
        """a `decoder` that holds a key, a password or a user's name."""
        refuse_keys("decoder", self.decoder)
        return self
