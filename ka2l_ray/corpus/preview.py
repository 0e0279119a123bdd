"""What a run would ask, before it asks: `ka2l corpus`.

In: a configuration. Out: a `Preview`, from the same reading, merging and splitting as in a run, in this process; no
file is kept.
Refuses to know: Ray, terminals.
"""

import tempfile
from collections import Counter
from dataclasses import dataclass
from itertools import islice
from math import ceil
from statistics import fmean, median
from typing import Any

from ka2l_ray import schema
from ka2l_ray.config import Config, EvaluateSection, RewordingsSection
from ka2l_ray.corpus.again import questions_again
from ka2l_ray.corpus.prepare import description
from ka2l_ray.corpus.table import fill
from ka2l_ray.corpus.together import large_group
from ka2l_ray.dataflow.manifests import Table
from ka2l_ray.dataflow.parquet import open_parquet
from ka2l_ray.dataflow.rows import BadRow
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.models.engine import PromptLimits
from ka2l_ray.models.loading import as_config_errors, configuration, load_tokenizer
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
    asked_again: int = 0
    """Eval questions that ask a pool question's fact again, which are not among `questions`."""
    not_reworded: int = 0
    """Pool and eval questions without a wording that can be reserved, which eval does not ask."""


def preview(config: Config, with_tokens: bool = True) -> Preview:
    """Raises `ConfigError` as the `questions` stage does. Without tokens no tokenizer is needed, and `prompt` and
    `tokens` are empty."""
    with tempfile.TemporaryDirectory(prefix="ka2l-corpus-") as scratch:
        table = Table(Folder.of(scratch) / "questions")
        unusable = Folder.of(scratch) / "dropped"
        at_hand = _without_endpoint(config)
        fill(at_hand, table, Folder.of(scratch), unusable)
        manifest = table.manifest()
        planned = questions_again(config) * table.part_rows("pool") if config is not at_hand else 0
        again = manifest.get("asked_again", planned)
        problems = [r for n in unusable.names() for r in open_parquet(unusable / n).read().to_pylist()]
        groups, gold = Counter[str](), 0
        for batch in table.batches(["answers", "group", "scope"]):
            own = [r for r in batch.to_pylist() if not (again and r["scope"] in ("pool", "same"))]
            gold += sum(bool(r["answers"]) for r in own)
            groups.update(r["group"] for r in own if r["group"] is not None)
        with as_config_errors(config.model):
            prompt, lengths, tokens = _prompts(config, table) if with_tokens else ("", [], {})
        room = tokens.get("context", 0) - config.collect.max_new_tokens
        return Preview(
            sources=manifest.get("sources", []),
            rows=manifest.get("rows_in", table.rows),
            dropped=dict(Counter(f"{p['field']} {p['problem']}" for p in problems).most_common()),
            examples=[
                description(p["file"], p["row"], BadRow(p["field"], p["problem"], p["value"])) for p in problems[:3]
            ],
            lost=len(problems),
            merged=manifest["merged"],
            set_aside=table.part_rows(schema.SHOTS),
            questions=manifest.get("questions", table.rows),
            asked_again=again,
            not_reworded=manifest.get("not_reworded", 0),
            near_duplicates=manifest.get("near_duplicates", 0),
            **{name: manifest[name] for name in ("entities", "split_groups", "largest_group")},
            uneven=large_group(manifest),
            splits={s: table.part_rows(s) + planned * (s == "eval") for s in schema.SPLITS},
            with_gold=gold,
            groups=groups.most_common(),
            prompt=prompt,
            answers=next(iter(table.batches(["answers"])))["answers"][0].as_py(),
            tokens=tokens,
            measured=len(lengths),
            too_long=sum(n > room for n in lengths) if tokens.get("context") else 0,
        )


def _without_endpoint(config: Config) -> Config:
    """The same configuration; where an endpoint rewords questions, one without it, so that nothing is asked or paid."""
    if config.corpus.rewordings.source != "endpoint":
        return config
    corpus = config.corpus.model_copy(update={"rewordings": RewordingsSection()})
    return config.model_copy(update={"corpus": corpus, "evaluate": EvaluateSection()})


def _prompts(config: Config, table: Table) -> tuple[str, list[int], dict[str, int]]:
    """The prompt of the first question, and lengths over an even sample of all."""
    asked = (q for batch in table.batches(["question"]) for q in batch["question"].to_pylist())
    questions = list(islice(asked, None, None, max(1, table.rows // MEASURED)))
    tokenizer = load_tokenizer(config.model)
    prompt = resolved(config.corpus.prompt, table, tokenizer)
    prompter = Prompter(tokenizer, prompt)
    lengths = [len(p.ids) for p in prompter(questions)]
    tuned = Prompter(tokenizer, resolved(config.finetune.prompt, table, tokenizer))
    tokens = {
        "least": min(lengths),
        "median": round(median(lengths)),
        "mean": ceil(fmean(lengths)),
        "most": max(lengths),
        "shared": len(prompter.shared),
        "tuned_mean": ceil(fmean(len(p.ids) for p in tuned(questions))),
        "tuned_shared": len(tuned.shared),
        "context": PromptLimits.of(configuration(config.model), 0).context or 0,
    }
    return render(prompt, questions[0]), lengths, tokens
