"""Sections of teaching it: acquire, annotate, the rounds, evaluate.

In: values of the file. Out: frozen, bounded sections.
Refuses to know: the pool, the annotator, and how any policy chooses.
"""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, JsonValue, NonNegativeFloat, NonNegativeInt, PositiveFloat

from ka2l_ray.config.base import REFUSALS, NoKeys, Pool, Positive, Section, Share, Template, Text

Strategy = Literal[
    "ka2l",
    "ka2l_diverse",
    "decoded",
    "entropy",
    "likelihood",
    "coreset",
    "quadrant",
    "random",
    "oracle",
    "oracle_wrong",
]
Quadrant = Literal["known", "misconception", "shaky", "unknown", "abstains"]


class AcquireSection(Section):
    """How the strategies of `active.strategies` choose what to buy."""

    diversity: Annotated[float, Field(ge=0, le=4)] = 0.5
    """`ka2l_diverse` ranks by P(unknown) × (distance to the nearest chosen state) ^ `diversity`; 0 is plain `ka2l`."""
    candidates: Annotated[int, Field(ge=10)] = 20_000
    """Questions whose states are compared on the driver: for `coreset` a random draw of the pool, for `ka2l_diverse`
    those most likely unknown."""
    quadrants: Annotated[tuple[Quadrant, ...], Field(min_length=1)] = ("unknown", "abstains", "misconception")
    """What `quadrant` buys, in this order; `abstains` are questions that the model mostly does not answer. It needs
    gold answers for the pool, so it is for corpora whose gold is free. Other pool questions without gold come last."""
    decoded_share: Annotated[float, Field(ge=0, le=1)] = 0.25
    """Share of a round's budget that `decoded` spends on questions generated from hidden states.

    Unanswerable questions are paid for too, so check a run's `decode.answerable` before raising it.
    """
    balance: Literal["none", "group"] = "none"
    """`group`: the best question of every group comes before the second best of any group."""
    sampling_cost: NonNegativeFloat = 0.01
    """Cost of sampling one pool question, in the unit of `annotate.cost`; `entropy`, `likelihood` and `quadrant` pay
    it. By default a hundred sampled questions cost as much as one answer. For your own value, divide the price of a GPU
    hour by the number of questions sampled in it."""


def _optional_fields(given: dict[str, JsonValue]) -> dict[str, JsonValue]:
    if taken := sorted({"model", "messages", "stream"}.intersection(given)):
        raise ValueError(f"must not contain {taken[0]}, which is set by the other fields of annotate.endpoint")
    return given


class EndpointSection(Section):
    """An OpenAI-compatible chat endpoint that answers questions. Its key comes from the environment, never from this
    file."""

    url: Annotated[str, Field(pattern=r"^https?://[^@\s]+$")] = "http://127.0.0.1:8000/v1/chat/completions"
    """Full address of the chat completions route. It may change within a run, because the annotator is identified by
    `model`: stored replies count at every address."""
    model: Text = "annotator"
    """Name of the model to ask for. It identifies the annotator: if another service uses the same `replies`, give it
    another name, or another folder."""
    key_variable: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] = "KA2L_ANNOTATOR_KEY"
    """Environment variable on the driver that contains the key; if it is not set, no header is sent."""
    system: str = (
        "Answer with the answer alone, in as few words as possible. "
        "If you do not know, reply: I don't know. If there is no such thing, reply: no such thing."
    )
    """The system message; empty sends none."""
    template: Template = "{question}"
    """The user's message, which contains `{question}` exactly once."""
    max_tokens: Positive = 64
    """Tokens of a reply at most; a reply that is cut off there is paid for, counted and dropped."""
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    """Sampling temperature requested from the endpoint."""
    parameters: Annotated[dict[str, JsonValue], AfterValidator(_optional_fields)] = Field(default={})
    """Further fields of the request, such as `{reasoning_effort: low}`, or other values of the ones above. A field that
    the server refuses is left out, with a warning; `max_tokens` is then called `max_completion_tokens`."""
    concurrency: Positive = 8
    """Requests in flight at once."""
    requests_per_s: PositiveFloat | None = None
    """Rate limit over all requests; null sends as fast as `concurrency` allows."""
    timeout_s: PositiveFloat = 60.0
    """Seconds after which a request counts as failed and is tried again."""
    replies: Annotated[str | None, NoKeys] = None
    """Folder or URI where replies are stored by content (`model`, messages, sampling parameters; not `url`); runs with
    the same folder never ask the same thing twice. Null: `annotation_cache/` in the run's own folder, or next to the
    runs of a comparison."""
    retries: NonNegativeInt = 6
    """Further tries after the first, for 408, 409, 425, 429, 5xx, time-outs, broken connections and answers that are
    not valid JSON."""
    backoff_s: PositiveFloat = 1.0
    """Wait before the first retry. It doubles with each retry, unless the server sends `Retry-After`."""
    cost_per_million_prompt_tokens: NonNegativeFloat = 0.0
    """Price of a million tokens read, in the unit of `annotate.cost`."""
    cost_per_million_completion_tokens: NonNegativeFloat = 0.0
    """Price of a million tokens written, in the same unit."""
    refusals: tuple[Text, ...] = REFUSALS
    """A reply that begins or ends with one of these is a refusal: paid for, counted, dropped. Case and punctuation do
    not matter. Words inside an answer do not count, nor does a phrase with the capitals of a title ("I Can't Help
    Myself"), because titles and quotations may contain them. A phrase of one word must be the whole reply. People's
    answers are read in the same way."""
    no_such_thing: tuple[Text, ...] = (
        *("no such", "there is no such", "there's no such", "no such thing", "nobody of that name"),
        *("does not exist", "doesn't exist", "do not exist", "don't exist"),
    )
    """A reply that begins or ends with one of these says that the question has no answer, by the same rules:
    paid for, counted, dropped."""


class AnnotateSection(Section):
    """Who answers the questions that were bought."""

    source: Literal["auto", "world", "reference", "endpoint", "file"] = "auto"
    """`world` asks the knowledge world, `reference` takes the corpus' gold answers, `endpoint` asks a chat model, and
    `file` pauses the loop until people's answers are imported. `auto`: `world` for the world, else `reference`."""
    cost: NonNegativeFloat = 1.0
    """Cost of one question asked, in addition to what an endpoint charges by the token."""
    endpoint: EndpointSection = EndpointSection()


class StopSection(Section):
    """When a strategy stops before its rounds are used up. The budget always ends it.

    Eval accuracy is over the facts that `eval_scope` in results.json names: pool facts on the world and on a corpus
    with rewordings, else facts that no pool question asks.
    """

    accuracy: Share | None = None
    """Stop once eval accuracy reaches this."""
    patience: Positive | None = None
    """Stop after this many rounds in a row without a gain of `min_gain`."""
    min_gain: NonNegativeFloat = 0.005
    """Gain in eval accuracy over the best earlier round that counts as one."""
    p_unknown: Share | None = None
    """Stop when no unbought pool question has at least this P(unknown)."""


class ActiveSection(Section):
    """The loop: acquire, decode, annotate, fine-tune, evaluate, round by round."""

    strategies: Annotated[tuple[Strategy, ...], Field(min_length=1)] = ("ka2l", "random")
    """`ka2l`: most likely unknown by the probe. `ka2l_diverse`: that × distance to what is chosen. `decoded`: `ka2l`
    with a share of generated questions. `entropy`, `likelihood`: by sampled SE or greedy log-likelihood (both sample
    the pool). `coreset`: k-centre on states. `quadrant`: by grade and SE (samples the pool, needs gold). `random`: a
    uniform draw. `oracle`: truly unknown (world only). `oracle_wrong`: what the base model answers wrong at eval, which
    nobody can know before buying; the ceiling on real corpora, where eval asks the pool's facts."""
    rounds: Positive = 2
    """Rounds of every strategy; each buys an equal part of the budget, and trains on everything bought so far."""
    budget: Positive = 150
    """Annotations that a strategy may buy in all rounds together."""
    parallel: Positive | None = None
    """Learning curves (a strategy, or a draw of `random`) that are played side by side, each in a process of its own;
    by default as many as the cluster holds when the rounds begin. Where people answer, they take turns."""
    random_draws: Positive = 3
    """Independent draws of `random`; savings are measured against their mean. The accuracies compared are over
    the facts that `eval_scope` in results.json names."""
    stop: StopSection = StopSection()
    reprobe: bool = False
    """Collect, label and search again on each round's model and rank by its probe. If its SE AUROC is below 0.7, the
    base model's probe is used instead, and the log says so."""

    def contradictions(self) -> Iterator[str]:
        """a `budget` below `rounds`; a strategy that is named twice."""
        if self.budget < self.rounds:
            yield f"budget ({self.budget}) must be at least one annotation per round ({self.rounds})"
        if len(set(self.strategies)) != len(self.strategies):
            yield f"strategies must differ, got {list(self.strategies)}"


class EvaluateSection(Section):
    """Greedy answers on the eval split, by the base model and after every round."""

    same_words: bool = False
    """Ask every pool fact also in the very words in which it may be taught. On a corpus without `corpus.rewordings`,
    accuracy is then memorisation; with them it is listed beside accuracy in the reserved wording."""
    pool: Pool = Pool()
