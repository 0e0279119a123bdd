"""How many questions a corpus holds and how long they are, as exactly as can be known before it is read for a run.

In: a configuration. Out: an `Extent`. Files at hand are read and split as a run reads them, and counted with the model's tokenizer where
that is at hand too; of data sets on the hub the published numbers of rows stand in, and a token count by format.
Refuses to know: models' sizes, stages, Ray.
"""

from dataclasses import dataclass

from ka2l_ray import schema
from ka2l_ray.config import Config, PromptSection
from ka2l_ray.corpus.files import File, files_of
from ka2l_ray.corpus.preview import Preview, preview

PUBLISHED_ROWS = {
    ("mandarjoshi/trivia_qa", "rc.nocontext", "train"): 138_384,
    ("mandarjoshi/trivia_qa", "rc.nocontext", "validation"): 17_944,
    ("google-research-datasets/nq_open", None, "train"): 87_925,
    ("google-research-datasets/nq_open", None, "validation"): 3_610,
    ("openlifescienceai/medmcqa", None, "train"): 182_822,
    ("openlifescienceai/medmcqa", None, "validation"): 4_183,
    ("akariasai/PopQA", None, "test"): 14_267,
}
"""Rows of (hub id, subset, split), as their pages state them."""
TYPICAL_TOKENS = {
    "nq_open": 12,
    "trivia_qa": 20,
    "medmcqa": 60,
    "popqa": 10,
    "entity_questions": 10,
    "squad": 14,
    "simpleqa": 25,
    "generic": 20,
}
"""Tokens of a question without its prompt, by format: words of the data sets' development files × 1.3."""
WRAPPING, ANSWER, INSTRUCTION = 5, 6, 12
"""Tokens of `Question: …\\nAnswer:` around a question, of a solved example's answer, of an instruction."""


@dataclass(frozen=True)
class Extent:
    """Questions by split, and tokens of a prompt: those that every prompt shares, and a question's own in the mean, under `corpus.prompt`
    and under `finetune.prompt` (`tuned`); `longest` is the longest prompt under `corpus.prompt`."""

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
    """Raises `ConfigError` for a corpus that cannot be used. A data set on the hub whose size cannot be known here counts as empty, and a
    note says so."""
    corpus = config.corpus
    files = [] if corpus.source == "world" else files_of(corpus.source, corpus.hub)
    if all(file.kind != "hub" for file in files):
        return _read(config, tokenizer_at_hand)
    rows, notes = 0, []
    for file in files:
        count = _rows_on_hub(file) if file.kind == "hub" else sum(1 for _ in file.rows(()))
        if count is None:
            notes.append(
                f"corpus.source = {file.name!r}: how many rows subset {file.hub.subset}, split {file.hub.split} has is not known here, so "
                "they count as none below; run `ka2l corpus` where the hub can be reached"
            )
        rows += count or 0
    shares = {"probe": corpus.split.probe, "pool": corpus.split.pool, "eval": corpus.split.eval}
    splits = {s: round(rows * share) for s, share in shares.items()}
    return Extent("published numbers; nothing was read", splits, *_typical(config), notes=tuple(notes))


def _rows_on_hub(file: File) -> int | None:
    """Rows as they are known here, or as the hub's own description of the data set says."""
    if known := PUBLISHED_ROWS.get((file.name, file.hub.subset, file.hub.split)):
        return known
    import datasets

    try:
        info = datasets.load_dataset_builder(file.name, file.hub.subset, revision=file.hub.revision).info
    except (
        Exception
    ):  # whatever the hub's client or the network says: the number is not known here, which becomes a note
        return None
    split = (info.splits or {}).get(file.hub.split)
    return split.num_examples if split else None


def _read(config: Config, tokenizer_at_hand: bool) -> Extent:
    found = preview(config, with_tokens=tokenizer_at_hand)
    splits = {s: found.splits[s] for s in schema.SPLITS}
    if not tokenizer_at_hand:
        return Extent("read; tokens by a rule of thumb", splits, *_typical(config), counted=found)
    tokens = found.tokens
    own, tuned_own = tokens["mean"] - tokens["shared"], tokens["tuned_mean"] - tokens["tuned_shared"]
    return Extent(
        "read and counted", splits, tokens["shared"], own, tokens["tuned_shared"], tuned_own, tokens["most"], found
    )


def _typical(config: Config) -> tuple[int, int, int, int]:
    """(shared, own) tokens of a prompt by its style and the corpus' format, of `corpus.prompt` and of `finetune.prompt`."""
    question = TYPICAL_TOKENS[config.corpus.format] + WRAPPING
    return (
        _typical_shared(config.corpus.prompt, question),
        question,
        _typical_shared(config.finetune.prompt, question),
        question,
    )


def _typical_shared(prompt: PromptSection, question: int) -> int:
    return (0 if prompt.style == "bare" else INSTRUCTION) + prompt.solved * (question + ANSWER)
