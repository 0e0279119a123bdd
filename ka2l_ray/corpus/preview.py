"""What a run would ask, before it asks: `ka2l corpus`.

In: a configuration. Out: a `Preview`, from the same reading, merging and splitting as in a run, in this process; no
file is kept.
Refuses to know: Ray, terminals.
"""

import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from math import ceil
from statistics import fmean, median
from typing import Any

import pyarrow.parquet as pq

from ka2l_ray import schema
from ka2l_ray.config import Config
from ka2l_ray.corpus.prepare import description
from ka2l_ray.corpus.table import fill
from ka2l_ray.corpus.together import large_group
from ka2l_ray.dataflow.manifests import Table
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.models.engine import Reach
from ka2l_ray.models.loading import configuration, load_tokenizer, refused_by_name
from ka2l_ray.models.prompts import resolved
from ka2l_ray.text.prompts import Prompter, render

MEASURED = 10_000
"""Questions whose prompts are counted in tokens, spread over the corpus."""


@dataclass(frozen=True)
class Preview:
    """What becomes of a corpus' rows, and what a prompt of it looks like."""

    sources: list[dict[str, Any]]
    rows: int
    dropped: dict[str, int]
    """Counts by field and problem."""
    examples: list[str]
    lost: int
    merged: int
    set_aside: int
    """Solved examples of the prompt, which are not asked."""
    questions: int
    near_duplicates: int
    entities: int
    """People and things that questions are about, as far as the corpus names them."""
    split_groups: int
    """Groups of questions that are alike or about one entity; in a corpus of files no group is in two splits."""
    largest_group: int
    uneven: str | None
    """What to do where the largest group is too large to split well."""
    splits: dict[str, int]
    with_gold: int
    groups: list[tuple[str, int]]
    prompt: str
    answers: list[str]
    """Gold answers of the question in `prompt`."""
    tokens: dict[str, int]
    """Least, median, mean (rounded up) and most tokens of a prompt, the tokens that all prompts share, and the
    longest context that the model reads; `tuned_` for `finetune.prompt`."""
    measured: int
    too_long: int
    """Measured prompts that leave no room for an answer."""


def preview(config: Config, with_tokens: bool = True) -> Preview:
    """Raises `ConfigError` as the `questions` stage does. Without tokens no tokenizer is needed, and `prompt` and
    `tokens` are empty."""
    with tempfile.TemporaryDirectory(prefix="ka2l-corpus-") as scratch:
        table = Table(Folder.of(scratch) / "questions")
        unusable = Folder.of(scratch) / "dropped"
        fill(config, table, Folder.of(scratch), unusable)
        manifest = table.manifest()
        problems = [r for n in unusable.names() for r in pq.read_table((unusable / n).path).to_pylist()]
        groups: Counter[str] = Counter()
        gold = 0
        for batch in table.batches(["answers", "group"]):
            gold += sum(bool(a) for a in batch["answers"].to_pylist())
            groups.update(g for g in batch["group"].to_pylist() if g is not None)
        prompt, lengths, tokens = "", list[int](), dict[str, int]()
        if with_tokens:
            with refused_by_name(config.model):
                prompt, lengths, tokens = _prompts(config, table)
        room = tokens.get("context", 0) - config.collect.max_new_tokens
        return Preview(
            sources=manifest.get("sources", []),
            rows=manifest.get("rows_in", table.rows),
            dropped=dict(Counter(f"{p['field']} {p['problem']}" for p in problems).most_common()),
            examples=[description(p) for p in problems[:3]],
            lost=len(problems),
            merged=manifest["merged"],
            set_aside=table.part_rows(schema.SHOTS),
            questions=table.rows,
            near_duplicates=manifest.get("near_duplicates", 0),
            **{name: manifest[name] for name in ("entities", "split_groups", "largest_group")},
            uneven=large_group(manifest),
            splits={s: table.part_rows(s) for s in schema.SPLITS},
            with_gold=gold,
            groups=groups.most_common(),
            prompt=prompt,
            answers=next(iter(table.batches(["answers"])))["answers"][0].as_py(),
            tokens=tokens,
            measured=len(lengths),
            too_long=sum(n > room for n in lengths) if tokens.get("context") else 0,
        )


def _prompts(config: Config, table: Table) -> tuple[str, list[int], dict[str, int]]:
    """The prompt of the first question, and lengths over an even sample of all."""
    every = max(1, table.rows // MEASURED)
    questions = list(_every(table, every))
    tokenizer = load_tokenizer(config.model)
    prompt = resolved(config.corpus.prompt, table, tokenizer)
    prompter = Prompter(tokenizer, prompt)
    lengths = [len(p.ids) for p in prompter(questions)]
    tokens = {
        "least": min(lengths),
        "median": round(median(lengths)),
        "mean": ceil(fmean(lengths)),
        "most": max(lengths),
        "shared": len(prompter.shared),
    }
    tuned = Prompter(tokenizer, resolved(config.finetune.prompt, table, tokenizer))
    tokens |= {"tuned_mean": ceil(fmean(len(p.ids) for p in tuned(questions))), "tuned_shared": len(tuned.shared)}
    return (
        render(prompt, questions[0]),
        lengths,
        tokens | {"context": Reach.of(configuration(config.model), 0).context or 0},
    )


def _every(table: Table, step: int) -> Iterator[str]:
    questions = (q for batch in table.batches(["question"]) for q in batch["question"].to_pylist())
    return islice(questions, None, None, step)
