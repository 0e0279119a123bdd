"""Sections of finding out what the model does not know: collect, label, search, score, decode.

In: values of the file. Out: frozen, bounded sections.
Refuses to know: the model, and how any stage works.
"""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat

from ka2l_ray.config.base import REFUSALS, NodesSection, NoKeys, Pool, Positive, Section, Share, Text
from ka2l_ray.config.subject import Format

Position = Literal["last", "mean"]
_OFF = BeforeValidator(lambda value: "off" if value is False else value)
"""YAML reads a bare `off` as false."""


class AdaptiveSection(Section):
    """Stop sampling a question once no outcome of its remaining samples can change its label (exact equivalence only).

    Stopped questions have bounds instead of an entropy. They are left out of Otsu's rule, of the search over thresholds
    and of the baselines.
    """

    threshold: Annotated[Literal["off", "pilot"] | NonNegativeFloat, _OFF] = "off"
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

    layers: Literal["all"] | Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] = "all"
    """Layers to store: 0 is the input of block 1, l the residual output of block l."""
    positions: Annotated[tuple[Position, ...], Field(min_length=1)] = ("last",)
    """`last`: the state at the last prompt token; `mean`: the mean over the question's own tokens in the full
    prompt."""
    samples: Annotated[int, Field(ge=2, le=100)] = 10
    """K, the number of answers sampled per question of the probe split."""
    temperature: Literal["auto"] | Annotated[float, Field(gt=0, le=10)] = "auto"
    """Temperature of the K samples. `auto`: temperature, `top_k`, `top_p` and `min_p` as the model's
    `generation_config.json` states them (what it leaves out drops no token; the world states 1) or, where it states
    none of them, 0.7 with `top_p` 0.9. Log-probabilities are always the model's own at temperature 1."""
    top_k: Positive | None = None
    """Draw only from this many most probable tokens. Null, here and in the next two: what comes with
    `temperature: auto`, and with a number for the temperature no token is dropped."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """Draw only from the fewest most probable tokens that hold this share of the mass, after `min_p` and `top_k`."""
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    """Draw only from tokens at least this probable relative to the most probable one. All three apply at the samples'
    temperature, and in the engine `vllm` too; neither the greedy answer nor `finetune.replay` uses them."""
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

    def contradictions(self) -> Iterator[str]:
        """`engine: vllm` with adaptive sampling, or with a `vllm.tensor_parallel` above 1 that differs from
        `pool.gpus`."""
        if self.engine == "vllm" and self.adaptive.threshold != "off":
            yield "adaptive sampling needs engine: own; set adaptive.threshold: off for engine: vllm"
        spread = self.vllm.tensor_parallel
        if self.engine == "vllm" and spread > 1 and self.pool.gpus != spread:
            yield (
                f"vllm.tensor_parallel ({spread}) must be the number of GPUs that an actor has: set pool.gpus: {spread}"
            )


class LabelSection(Section):
    """Sampled answers → clusters → semantic entropy → known or unknown."""

    equivalence: Literal["exact"] = "exact"
    """`exact`: answers equal after normalisation (case, accents, articles, punctuation; numbers, dates, initials and
    units written one way)."""
    grading: Literal["auto", "exact", "contains", "f1"] = "auto"
    """When an answer is right, in every stage of a run. `exact`: it equals a gold answer. `contains`: its first
    `grading_words` words contain one, or it is most of one; a list of guesses with one right among them is wrong.
    `f1`: it shares enough words with one. `auto`: `contains` if `corpus.prompt` or `finetune.prompt` is a chat, whose
    answers are sentences, and otherwise `exact`."""
    grading_words: Positive = 60
    """Words of an answer that `contains` reads, counted without articles; in scripts without spaces, characters."""
    grading_f1: Annotated[float, Field(gt=0, le=1)] = 0.6
    """Least F1 of the words of an answer and a gold answer for `f1`."""
    threshold: Literal["otsu"] | NonNegativeFloat = "otsu"
    """γ in nats: `otsu` (least within-group sum of squares) or a value. Unknown means SE ≥ γ, or that the model
    abstains."""
    refusals: tuple[Text, ...] = (
        *REFUSALS,
        *("i have no", "i am unable to", "i'm unable to", "i don't have", "i do not have", "not sure", "no idea"),
        *("cannot be determined", "not enough information", "insufficient information", "unknown", "n/a", "idk"),
    )
    """Samples that are no answer, besides empty ones; matched as `annotate.endpoint.refusals` are. A question of which
    more than half of the samples are such is one that the model *abstains* from: unknown, whatever its entropy. A
    refusal that is the gold answer is an answer."""


class SearchSection(Section):
    """Which layer's state separates known from unknown, found on the probe split, which is divided by entity."""

    objective: Literal["auto", "correctness", "entropy"] = "auto"
    """What the AUROC that selects the probe is measured against. `correctness`: wrong greedy answers, on the questions
    with gold; `entropy`: SE ≥ γ. `auto` takes correctness if there are `min_graded` answers of each kind, and otherwise
    entropy, with a warning; `correctness` stops the run instead."""
    min_graded: Positive = 10
    """Right answers, and as many wrong ones, that the validation questions must contain for the objective
    `correctness`: with ten of each the standard error of an AUROC of 0.8 is at most 0.13."""
    inverse_regularization: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = (
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
    cpus: PositiveFloat = 1.0
    """Logical CPUs of one trial (one layer with all its thresholds)."""
    nodes: NodesSection = NodesSection()
    """Where the trials run."""


class ScoreSection(Section):
    """P(unknown) of every pool question, from blocks 1 … l of the model only."""

    pool: Pool = Pool()


class DecoderSearchSection(Section):
    """Ray Tune over the states that a decoder reads: a short training for each combination, on the resources of one
    worker, before the long one on the states that decode best."""

    layers: tuple[NonNegativeInt, ...] = ()
    """Layers of the pooled state to try; none: nothing is searched, and `layer`, `position` and `token_layer` count."""
    positions: Annotated[tuple[Position, ...], Field(min_length=1)] = ("mean",)
    """What to pool over."""
    token_layers: Annotated[tuple[NonNegativeInt | Literal["none"], ...], Field(min_length=1)] = (2,)
    """Layers of the tokens' states to try; `none`: the pooled state alone."""
    examples: Positive = 1200
    """Questions shown to each."""
    held_out_rows: Positive = 100
    """Held-out questions that each is measured on, at most; the one with the least loss on them is taken."""


class DecoderTrainingSection(Section):
    """Training of a question decoder on the studied model's own states (`ka2l train-decoder`): it learns to write the
    question whose states it reads."""

    writer: Annotated[Text | None, NoKeys] = None
    """Who writes. Null: the studied model itself, with adapters. Else an encoder-decoder with safetensors, such as
    `google-t5/t5-base`: a hub id, a folder or a URI; it is trained whole and stored with the decoder, and the studied
    model is not loaded for it."""

    questions: Annotated[dict[Format, Annotated[tuple[Text, ...], Field(min_length=1)]], NoKeys] = Field(default={})
    """Files, folders or URIs of further questions, by their format, as in `corpus.format` (columns of `generic` as in
    `corpus`); the probe split comes first. Questions of eval, of the pool and about their entities are left out."""
    layer: NonNegativeInt | Literal["auto"] = "auto"
    """Layer of the pooled state, which says what is asked; `auto`: a fifth of the
    model's depth."""
    position: Position = "mean"
    """What it is pooled over, as in `collect.positions`."""
    token_layer: NonNegativeInt | Literal["auto", "none"] = "auto"
    """Layer of the states of the tokens that say of whom or what is asked: the entity's where it is given, else those
    in which the questions of one group differ, else all of the question's own. `auto`: 2, because later layers tell
    less of a name; `none`: the pooled state alone, from which names cannot be told."""
    search: DecoderSearchSection = DecoderSearchSection()
    rank: Positive = 16
    """Rank of the adapters; a writer of its own has none."""
    pooled_tokens: Literal["auto"] | Annotated[int, Field(ge=1, le=64)] = "auto"
    """Pseudo-tokens that the pooled state becomes; `auto`: 2, and 8 for a writer of its own."""
    learning_rate: Annotated[float, Field(gt=0, lt=1)] = 1e-3
    """AdamW's learning rate after warm-up; it stays, and falls to zero over the second half."""
    warmup_steps: NonNegativeInt = 20
    """Steps over which it rises."""
    examples: Positive = 20_000
    """Questions shown at most; where there are fewer they are shown again, in another order."""
    batch_rows: Positive = 24
    """Questions of one step over all workers."""
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Share of the entities (of the questions, where there are none) that training never sees."""
    held_out_rows: Positive = 200
    """Questions about them that the decoder is measured on, at most."""
    evaluate_every_steps: Positive = 100
    """Steps between two measurements of the loss on them; the weights with the least are taken."""
    patience: Positive = 5
    """Training ends early after so many measurements in a row without a new least."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the passes: `auto` is bfloat16 on a GPU and float32 on a CPU, where the model is loaded so too.
    Weights that are trained are float32."""
    workers: Positive = 1
    """Processes of the training run; each does its share of every step's questions."""
    cpus_per_worker: PositiveFloat = 1.0
    """Logical CPUs of one worker; without a GPU also the number of threads it computes with."""
    gpus_per_worker: Annotated[int, Field(ge=0, le=1)] = 0
    """GPUs of one worker; 0 trains on the CPU."""
    nodes: NodesSection = NodesSection()
    """Where the workers run."""
    checkpoint_every_steps: Positive = 100
    """Steps between checkpoints: the most that is lost when a worker or the driver dies."""
    max_failures: NonNegativeInt = 2
    """How often training starts again from its last checkpoint after a worker died."""

    def contradictions(self) -> Iterator[str]:
        """`batch_rows` that is not a multiple of `workers`."""
        if self.batch_rows % self.workers:
            yield f"batch_rows ({self.batch_rows}) must be a multiple of workers ({self.workers})"


class BertScoreSection(Section):
    """BERTScore of decoded questions against true ones."""

    encoder: Annotated[Text | None, NoKeys] = None
    """An encoder with safetensors, such as `FacebookAI/roberta-large`: a hub id, a folder or a URI. Null: not
    measured."""
    layer: Positive | None = None
    """Its layer whose states are compared: BERTScore's authors take 17 of roberta-large, 9 of bert-base. Null: the
    last."""


KIND_DEPTH = 0.75
"""Share of the model's depth at which it is read of what kind a name is (`decode.reading.WHAT_IS`). On SmolLM2 and 20
relations of EntityQuestions and Wikidata it tells pairs of one kind from others (`steering.KIN`) with an AUROC of
0.994; the name's tokens in the question let places pass for works."""


class RereadSection(Section):
    """A stage of its own for re-embedding."""

    pool: Pool = Pool(shard_rows=64)


Augment = Literal["steer", "interpolate", "temperature", "noise"]
"""How new questions are made from the states of unknown ones."""


class DecodeSection(Section):
    """Hidden states of acquired unknown questions → new questions."""

    enabled: bool = True
    """Whether to measure a decoder, and use it in the strategies `ka2l` (which only records its questions) and
    `decoded` (which buys them)."""
    decoder: Annotated[Text | None, NoKeys] = "world"
    """`world` or `smollm2` (the decoders that are shipped, for the world's model and for SmolLM2 under the prompt of
    `jobs/configs/smollm2-wikifacts.yaml`), or a decoder's folder or URI; null: the run trains its own (`training`)."""
    augment: Annotated[tuple[Augment, ...], Field(min_length=1)] = ("steer",)
    """How the state of a new question is made from that of an unknown one; each way that is named makes `variants`.
    `steer`: what is asked becomes something else, of whom stays: − centroid of the question's own group + centroid of
    another in which the same things are asked about; where `group` is not given, or most questions' groups share no
    entities with another, clusters of states are the groups. `interpolate`: half of the way to an unknown question
    nearby. `noise`: `noise` is added. `temperature`: the state is left as it is, other words are drawn."""
    variants: Positive = 2
    """New questions tried per state and way to augment (M)."""
    candidates: Positive = 4
    """Texts that are decoded for each wanted state, one greedily (not for `temperature`) and the others at
    `temperature`: of those that are well-formed and new, the one whose own state is nearest to the wanted one is
    taken."""
    corrections: NonNegativeInt = 0
    """Rounds of correction after that: half of what the best text's own state lacks of the wanted one is added to the
    state that is decoded, greedily, and the new text is taken where it is better. `temperature` has none."""
    noise: NonNegativeFloat = 0.5
    """Size of the Gaussian noise that `augment: [noise]` adds, in standard deviations of the states."""
    temperature: Annotated[float, Field(gt=0, le=10)] = 0.7
    """Temperature at which candidates are drawn; `check_questions` are decoded greedily."""
    min_p_unknown: Share = 0.5
    """Questions are decoded from, and decoded ones kept, only where the probe gives at least this."""
    min_explained: Share | None = None
    """A decoded question is kept only if its own state explains at least this share of the wanted state's variance:
    what the decoder could not put into words is likely to be about something that does not exist."""
    grounding: Annotated[Text | None, NoKeys] = None
    """Names that exist: `corpus`, the `entity` of probe and pool questions, or a text file or URI with a name on each
    line. Of the candidates those that contain one (as whole words, without case and punctuation) are taken before
    others, and a question without one is not kept. Null: nothing is checked."""
    check_questions: Positive = 1024
    """Probe questions, of those that are new to the decoder, that it is measured on: it must reconstruct each one from
    its own states."""
    bertscore: BertScoreSection = BertScoreSection()
    training: DecoderTrainingSection = DecoderTrainingSection()
    pool: Pool = Pool(shard_rows=64)
    """Actors that read the sources' states, decode and, without `reread`, re-embed what they wrote and choose, all with
    one copy of the model's weights."""
    reread: RereadSection | None = None
    """Re-embed what was written, and choose, in other actors, which contain the model's first blocks alone: where
    writing and reading need different machines, such as large GPUs for a large model that writes, and small ones for
    its first blocks. The questions are the same. Null: the actors of `pool` do both."""

    def contradictions(self) -> Iterator[str]:
        """a way in `augment` that is named twice, and corrections of what another stage chooses."""
        if len({*self.augment}) < len(self.augment):
            yield f"augment ({', '.join(self.augment)}) must name each way once"
        if self.reread is not None and self.corrections:
            yield (
                f"corrections ({self.corrections}) must be 0 with `reread`: a correction decodes again what was "
                "re-embedded, so both need to be in one actor"
            )
