"""What `results.json` of a run and `compare.json` of a comparison contain, as types.

Units: shares and accuracies 0 to 1, entropies in nats, times in seconds, costs in the unit of `annotate.cost`.
None: the number does not exist, for example an accuracy where no question has gold answers.
Refuses to know: how any of it is computed or shown.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NotRequired, TypedDict

Measure = Literal[
    "accuracy", "domain_accuracy", "beyond_accuracy", "known_accuracy", "replayed_accuracy", "annotations", "cost"
]
"""The numbers of a round that form a learning curve."""
EvalWording = Literal["reserved", "same", "other facts"]
"""What `accuracy` is over: pool facts in a reserved wording, pool facts in the same words, or other facts."""
Interval = Sequence[float]
"""(low, high) of a 95 % interval."""


class Portion(TypedDict):
    """A share of some facts, with the numbers that make it."""

    share: float | None
    """`count` / `of`; None where `of` is 0."""
    count: int
    of: int


class NoiseFloor(TypedDict):
    """What the base model itself loses and gains when its prompt shows other solved examples."""

    lost: Portion
    gained: Portion


class RoundFigures(TypedDict):
    """A round of one strategy and seed; round 0 is the base model. Annotations and cost are cumulative."""

    strategy: str
    seed: int
    round: int
    annotations: int
    cost: float
    accuracy: float | None
    """Over the eval questions of the run's `eval_scope`."""
    domain_accuracy: float | None
    beyond_accuracy: NotRequired[float | None]
    """Over facts about the pool's entities that no question asks; None where eval asks none."""
    beyond_unknown_accuracy: NotRequired[float | None]
    """Over those of them that the base model answered wrong."""
    known_accuracy: float | None
    """Share of the facts that the base model knows, and no round bought or replayed, that are still right."""
    replayed_accuracy: float | None
    lost: NotRequired[Portion | None]
    """Of the same facts, those now wrong; None in round 0."""
    gained: NotRequired[Portion | None]
    """Of the facts that the base model answered wrong, and no round bought or replayed, those now right."""
    taught_accuracy: NotRequired[float | None]
    """Over those of the `eval_scope` whose fact was bought; None where eval asks no pool fact."""
    same_words_accuracy: NotRequired[float | None]
    """Over pool facts in the pool question's own words; None unless `evaluate.same_words`."""
    taught_same_words: NotRequired[float | None]
    """The same over bought facts: what was taught, asked as it was taught."""
    corpus_prompt_accuracy: NotRequired[float | None]
    misconceptions_replayed: NotRequired[int | None]
    ledger: NotRequired[Mapping[str, float]]
    """As `annotate.ledger` makes it; empty for round 0."""


class RoundResult(RoundFigures):
    """A finished round."""

    seconds: Mapping[str, float]


class SavingResult(TypedDict):
    """Annotations that a strategy saves against random choice: 1 - n_s / n_r."""

    strategy: str
    seed: int
    saving: float | None
    of_oracle: float | None
    """As a share of the ceiling's: of `oracle` or, in a run without it, of `oracle_wrong`."""


class StoppedResult(TypedDict):
    """A strategy that ended before its last round."""

    strategy: str
    seed: int
    after_round: int
    reason: str


class LayerResult(TypedDict):
    """The best probe of one layer and position."""

    layer: int
    position: str
    auroc: float | None
    auroc_ci: Interval | None
    auroc_vs_truth: float | None


class SearchResult(LayerResult):
    """The probe that was chosen, and the best of every layer."""

    probe: str
    objective: str
    threshold_nats: float
    questions: int
    graded: int
    note: str | None
    auroc_topic_alone: NotRequired[float | None]
    """Of a classifier that sees only what a question is about, such as its relation; None without topics."""
    calibration_error: NotRequired[float | None]
    """Mean distance of P(unknown) from the share of test questions that are labelled unknown. Neither is in runs of
    earlier versions."""
    layers: Sequence[LayerResult]


class HeatCell(TypedDict):
    """One probe that the search tried: a cell of heat.json."""

    layer: int
    position: str
    threshold_nats: float
    inverse_regularization: float
    auroc: float | None


class LabelResult(TypedDict):
    """What the probe split's labels show; γ is `threshold_nats`."""

    questions: int
    unknown_fraction: float
    abstains: NotRequired[int]
    """Questions that the model mostly does not answer."""
    threshold_nats: float
    samples_saved: float
    right: int
    wrong: int
    entropy_auroc_vs_incorrect: float | None
    entropy_auroc_vs_truth: float | None
    baselines: Mapping[str, float | None]
    quadrants: Mapping[str, int]


class Results(TypedDict):
    """The content of results.json; parts of steps that have not run are None or empty."""

    config_hash: str | None
    command: str | None
    model: str | None
    versions: Mapping[str, str | None]
    seed: int | None
    label: LabelResult | None
    search: SearchResult | None
    decode: Mapping[str, Any] | None
    """{measure: value}, and `statuses`: {status: questions generated}."""
    eval_scope: str | None
    eval_wording: EvalWording | None
    evaluation_ledger: Mapping[str, Mapping[str, float]]
    """{what evaluation alone pays for: what was asked or drawn, and what it cost}; no strategy's cost contains it."""
    known: Mapping[str, int] | None
    """{class of `schema.KNOWN_CLASSES`: facts of the `eval_scope` with gold}, of the base model."""
    noise_floor: NoiseFloor | None
    """None where the prompt has no solved examples."""
    prior: Mapping[str, float]
    """{scope of eval: share that each topic's most common answer gets right}."""
    rounds: Sequence[RoundResult]
    saving: Sequence[SavingResult]
    stopped: Sequence[StoppedResult]
    rows: Mapping[str, Mapping[str, int | None]]
    """{step: {`in`: rows read, `out`: rows written, `errors`: failed rows}}."""
    time_s: Mapping[str, float | None]
    wall_s: NotRequired[float | None]
    """Seconds of the commands that did the work, from their start; steps side by side count once."""
    first_rows_s: Mapping[str, float]
    """{table of the base model: seconds until its first rows}: nodes start, weights are fetched and loaded."""


class CurvePoint(TypedDict):
    """Mean accuracy over seeds at one number of annotations."""

    annotations: int
    accuracy: float
    ci: Interval | None
    seeds: int


class StrategyResult(TypedDict):
    """One strategy over all seeds of a comparison; `over` counts the seeds that each mean is taken over."""

    strategy: str
    curve: Sequence[CurvePoint]
    saving: float | None
    saving_ci: Interval | None
    savings: Sequence[float | None]
    """By seed."""
    reached: int
    """Seeds in which random's accuracy was reached."""
    of_oracle: float | None
    of_oracle_lowest: float | None
    compute_saving: float | None
    compute_savings: Sequence[float]
    area: float | None
    area_ci: Interval | None
    known_accuracy: float | None
    over: Mapping[str, int]


class ComparisonResults(TypedDict):
    """The content of compare.json."""

    command: str
    seeds: Sequence[int]
    eval_scope: str
    random_budget: int
    area_up_to: int
    ceiling: float | None
    """The oracle's mean saving."""
    ceiling_over: int
    strategies: Sequence[StrategyResult]
