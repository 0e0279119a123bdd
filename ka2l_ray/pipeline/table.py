"""The steps of a run, by name and in order; nothing heavy is imported, so that the command line can list them at once.

Refuses to know: what a step does (`steps`).
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class StepSpec:
    """One step: the folders below the run's that hold its output, and which of those are tables whose failed rows can
    be done again one by one. `command` is the help text of the step's own `ka2l` command, empty where it has none."""

    name: str
    says: str
    folders: tuple[str, ...]
    by_row: tuple[str, ...] = ()
    command: str = ""


STEP_TABLE = (
    StepSpec("questions", "read the corpus and split it", ("questions",)),
    StepSpec(
        "collect",
        "hidden states, greedy answer and K samples of the probe split",
        ("base/pilot", "base/activations", "base/samples"),
        ("base/activations",),
        "Hidden states, a greedy answer and K samples of every probe question.",
    ),
    StepSpec(
        "label",
        "clusters, semantic entropy, γ, known or unknown",
        ("base/clusters", "base/knowledge"),
        ("base/clusters", "base/knowledge"),
        "Cluster the samples, compute semantic entropy, find γ, label known or unknown.",
    ),
    StepSpec(
        "search",
        "Ray Tune over layers and thresholds",
        ("base/search",),
        command="Ray Tune over probe layers and thresholds.",
    ),
    StepSpec(
        "score",
        "P(unknown) of the pool from blocks 1 … l",
        ("base/scores",),
        ("base/scores",),
        "P(unknown) of every pool question, from the first blocks of the model alone.",
    ),
    StepSpec(
        "sample_pool",
        "K samples of the pool, for the strategies that rank by them (entropy, likelihood, quadrant)",
        ("base/pool_samples", "base/pool_clusters", "base/pool_knowledge"),
        ("base/pool_samples", "base/pool_clusters", "base/pool_knowledge"),
    ),
    StepSpec(
        "replay",
        "the base model's own answers to pool questions that rounds may replay",
        ("base/replay",),
        ("base/replay",),
    ),
    StepSpec(
        "decode",
        "a decoder is trained where none is given; how well it finds a question again; steering is fitted",
        ("base/reconstruction", "base/augmenter", "base/decoder", "base/new_questions"),
    ),
    StepSpec(
        "evaluate",
        "greedy answers of the base model to the eval split, which facts it knows, and the noise floor",
        ("base/evaluation", "base/known", "base/noise_floor"),
        (
            *("base/evaluation", "base/evaluation/corpus_prompt"),
            *("base/known/asked_again", "base/noise_floor"),
        ),
    ),
    StepSpec("rounds", "acquire, decode, annotate, fine-tune, evaluate, round by round", ("strategies",)),
)
STEP_NAMES = tuple(step.name for step in STEP_TABLE)
BY_ROW = tuple(table.removeprefix("base/") for step in STEP_TABLE for table in step.by_row)
"""Tables of the base model whose failed rows can be done again one by one, below `base/`."""


def up_to(name: str | None) -> tuple[StepSpec, ...]:
    """The steps up to and with one; all of them for None."""
    return STEP_TABLE if name is None else STEP_TABLE[: STEP_NAMES.index(name) + 1]


def from_on(name: str) -> tuple[StepSpec, ...]:
    """A step and all that follow it."""
    return STEP_TABLE[STEP_NAMES.index(name) :]
