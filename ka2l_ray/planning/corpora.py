"""How many questions a corpus holds and how long they are, as exactly as can be known before it is read for a run.

In: a configuration. Out: an `Extent`. Files at hand are read and split as a run reads them, and counted with the model's tokenizer where
that is at hand too; of data sets on the hub the published numbers of rows stand in, and a token count by format.
Refuses to know: models' sizes, stages, Ray.
"""

from dataclasses import dataclass

from ka2l_ray import schema
from ka2l_ray.config import Config, ConfigError
from ka2l_ray.corpus.files import files_of
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
    """Questions by split, and tokens of a prompt: those that every prompt shares, and a question's own in the median and at most."""

    source: str
    splits: dict[str, int]
    shared: int
    own: int
    longest: int | None
    counted: Preview | None = None


def extent(config: Config, tokenizer_at_hand: bool) -> Extent:
    """Raises `ConfigError` for a corpus that cannot be used, and for one on the hub of which nothing is known here."""
    corpus = config.corpus
    remote = corpus.source != "world" and [f for f in files_of(corpus.source, corpus.hub) if f.kind == "hub"]
    if not remote:
        return _read(config, tokenizer_at_hand)
    rows = 0
    for file in remote:
        known = PUBLISHED_ROWS.get((file.name, file.hub.subset, file.hub.split))
        if known is None:
            raise ConfigError(
                f"corpus.source = {file.name!r}: how many rows subset {file.hub.subset}, split {file.hub.split} has is not known here; "
                "run `ka2l corpus` where the hub can be reached"
            )
        rows += known
    shares = {"probe": corpus.split.probe, "pool": corpus.split.pool, "eval": corpus.split.eval}
    return Extent("published numbers; nothing was read", {s: round(rows * share) for s, share in shares.items()}, *_typical(config), None)


def _read(config: Config, tokenizer_at_hand: bool) -> Extent:
    found = preview(config, with_tokens=tokenizer_at_hand)
    splits = {s: found.splits[s] for s in schema.SPLITS}
    if not tokenizer_at_hand:
        return Extent("read; tokens by a rule of thumb", splits, *_typical(config), None, found)
    shared = found.tokens["shared"]
    return Extent("read and counted", splits, shared, found.tokens["median"] - shared, found.tokens["most"], found)


def _typical(config: Config) -> tuple[int, int]:
    """(shared, own) tokens of a prompt by its style and the corpus' format."""
    prompt, question = config.corpus.prompt, TYPICAL_TOKENS[config.corpus.format]
    instruction = 0 if prompt.style == "bare" else INSTRUCTION
    return instruction + prompt.solved * (question + WRAPPING + ANSWER), question + WRAPPING
