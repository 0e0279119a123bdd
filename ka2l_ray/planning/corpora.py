"""How many questions a corpus has and how long they are, as exactly as can be known before a run reads it.

In: a configuration. Out: an `Extent`. Files at hand are read and split as a run would, and counted with the model's
tokenizer if that is at hand too. For data sets on the hub the published numbers of rows are used instead, with a
typical token count for each format.
Refuses to know: models' sizes, stages, Ray.
"""

from dataclasses import dataclass

from ka2l_ray.config import Config
from ka2l_ray.corpus.again import questions_again
from ka2l_ray.corpus.files import File, files_of
from ka2l_ray.corpus.preview import Preview, preview
from ka2l_ray.planning.published import data_set_rows

TYPICAL_TOKENS = {
    "nq_open": 12,
    "trivia_qa": 20,
    "medmcqa": 60,
    "popqa": 10,
    "entity_questions": 10,
    "squad": 14,
    "simpleqa": 25,
    "kilt": 14,
    "alpaca": 30,
    "messages": 60,
    "generic": 20,
}
"""Tokens of a question without its prompt, by format: words of the data sets' development files × 1.3."""
WRAPPING, ANSWER, INSTRUCTION = 5, 6, 12
"""Tokens of `Question: …\\nAnswer:` around a question, of a solved example's answer, and of an instruction."""


@dataclass(frozen=True)
class Extent:
    """Questions by split and tokens of a prompt. `shared` are the tokens that all prompts have in common, `own` those
    of a question itself on average, both under `corpus.prompt`; `tuned_` are the same under `finetune.prompt`. `source`
    says where the numbers come from. `longest` are the tokens of the longest prompt under `corpus.prompt`, None if none
    was counted; `counted` is what reading the corpus showed, None if nothing was read."""

    source: str
    splits: dict[str, int]
    shared: int
    own: int
    tuned_shared: int
    tuned_own: int
    longest: int | None = None
    counted: Preview | None = None
    notes: tuple[str, ...] = ()


def extent(config: Config, tokenizer_at_hand: bool) -> Extent:
    """The extent of a run's corpus.

    A data set on the hub whose size cannot be known here counts as empty, and a note says so. Raises `ConfigError` for
    a corpus that cannot be used.
    """
    corpus = config.corpus
    files = [] if corpus.source == "world" else files_of(corpus.source, corpus.hub, corpus.encoding)
    if all(file.kind != "hub" for file in files):
        return _read(config, tokenizer_at_hand)
    counts = [_rows_on_hub(file) if file.kind == "hub" else sum(1 for _ in file.rows(())) for file in files]
    rows = sum(count or 0 for count in counts)
    notes = tuple(
        f"corpus.source = {file.name!r}: the number of rows of subset {file.hub.subset}, split {file.hub.split} is not "
        "known here, so it counts as empty below; run `ka2l corpus` where the hub can be reached"
        for file, count in zip(files, counts, strict=True)
        if count is None
    )
    splits = {split: round(rows * share) for split, share in corpus.split}
    splits["eval"] += questions_again(config) * splits["pool"]
    return Extent("published numbers; nothing was read", splits, *_typical(config), notes=notes)


def _rows_on_hub(file: File) -> int | None:
    """Rows as published, or as the hub describes the data set; None if neither is known."""
    if known := data_set_rows(file.name, file.hub.subset, file.hub.split):
        return known
    import datasets

    try:
        info = datasets.load_dataset_builder(file.name, file.hub.subset, revision=file.hub.revision).info
    except Exception:  # whatever client or network raise: the number is not known here, which becomes a note
        return None
    split = (info.splits or {}).get(file.hub.split)
    return split.num_examples if split else None


def _read(config: Config, tokenizer_at_hand: bool) -> Extent:
    found = preview(config, with_tokens=tokenizer_at_hand)
    if not tokenizer_at_hand:
        return Extent("read; tokens by a rule of thumb", found.splits, *_typical(config), counted=found)
    tokens = found.tokens
    return Extent(
        "read and counted",
        found.splits,
        shared=tokens["shared"],
        own=tokens["mean"] - tokens["shared"],
        tuned_shared=tokens["tuned_shared"],
        tuned_own=tokens["tuned_mean"] - tokens["tuned_shared"],
        longest=tokens["most"],
        counted=found,
    )


def _typical(config: Config) -> tuple[int, int, int, int]:
    """(shared, own) tokens of a prompt, by its style and the corpus' format: of `corpus.prompt`, then of
    `finetune.prompt`."""
    question = TYPICAL_TOKENS[config.corpus.format] + WRAPPING
    shared, tuned_shared = (
        (0 if prompt.style == "bare" else INSTRUCTION) + prompt.solved * (question + ANSWER)
        for prompt in (config.corpus.prompt, config.finetune.prompt)
    )
    return shared, question, tuned_shared, question
