"""The prompts of a run, resolved with its tokenizer and solved examples; questions are turned into prompts where a
shard is read.

In: a run, or a `ModelSection` and a `PromptSection`. Out: resolved prompts; `PROMPT_COLUMNS`; padded batches.
Refuses to know: answers, Ray.
"""

import hashlib
import heapq
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import pyarrow as pa
from pydantic import ValidationError
from transformers import PreTrainedTokenizerBase

from ka2l_ray import schema
from ka2l_ray.config import ModelSection, PromptSection
from ka2l_ray.dataflow.manifests import Table
from ka2l_ray.dataflow.runs import Run
from ka2l_ray.errors import StageError
from ka2l_ray.hashing import uniform
from ka2l_ray.models.activations import Encoded, pad
from ka2l_ray.models.loading import load_tokenizer
from ka2l_ray.text.prompts import EMPTY_QUESTION, PROMPT_COLUMNS, Prompter, Shot, resolve
from ka2l_ray.text.tokens import pad_id

PROMPTS = "prompts"
"""Folder of a run's chat prompts, by what they are made from."""


def corpus_prompt(run: Run) -> PromptSection:
    """The prompt that states and samples are read under, resolved. Solved examples need the `questions` table.

    Raises `ConfigError` as `text.prompts.resolve` does.
    """
    prompt = run.config.corpus.prompt
    return _of_run(run, prompt, _shots(prompt, run.table("questions")))


def finetune_prompt(run: Run) -> PromptSection:
    """The prompt that the model is trained and evaluated on, resolved; otherwise as `corpus_prompt`."""
    prompt = run.config.finetune.prompt
    return _of_run(run, prompt, _shots(prompt, run.table("questions")))


def other_shots_prompt(run: Run) -> PromptSection | None:
    """`finetune.prompt` with as many other solved examples, drawn from the probe split, which shares no fact with pool
    and eval, by another seed than its own; None where it has none, or where the split has fewer questions with gold."""
    prompt = run.config.finetune.prompt
    shots = _other_shots(run, prompt.solved) if prompt.solved else []
    return _of_run(run, prompt, shots) if shots else None


def _of_run(run: Run, prompt: PromptSection, shots: list[Shot]) -> PromptSection:
    """A chat template may write today's date, so a chat prompt is resolved once per run and kept in `PROMPTS`."""
    if prompt.style != "chat":
        return resolve(prompt, shots)
    model = run.config.model
    asked = json.dumps([model.name_or_path, model.revision, prompt.model_dump(mode="json"), shots])
    kept = run.folder / PROMPTS / f"{hashlib.sha256(asked.encode()).hexdigest()[:16]}.json"
    if not kept.exists():
        kept.write_new(resolve(prompt, shots, load_tokenizer(model)).model_dump_json(indent=1).encode())
    try:
        return PromptSection.model_validate(kept.read_json())
    except ValidationError as error:
        raise StageError(f"{kept.path}: is not a prompt. Delete it and run again") from error


def share_prompts(run: Run, other: Run) -> None:
    """Give `other`, which asks the same questions, the prompts that the run has kept."""
    kept = run.folder / PROMPTS
    for name in (n for n in kept.names() if n.endswith(".json")):
        (other.folder / PROMPTS / name).write_new((kept / name).read_bytes())


def resolved(prompt: PromptSection, questions: Table, tokenizer: PreTrainedTokenizerBase | None) -> PromptSection:
    """A prompt with the solved examples of a `questions` table. Raises `ConfigError` as `text.prompts.resolve` does."""
    return resolve(prompt, _shots(prompt, questions), tokenizer)


def _shots(prompt: PromptSection, questions: Table) -> list[Shot]:
    if not prompt.solved:
        return []
    rows = questions.read(["id", "question", "answers"], part=schema.SHOTS).sort_by("id").to_pylist()
    return [(r["question"], r["answers"][0]) for r in rows]


def _other_shots(run: Run, count: int) -> list[Shot]:
    """`count` solved examples in the order drawn, or none where there are fewer; of the world's questions, those about
    facts that the model knows, as its own examples are."""
    batches = run.table("questions").batches(["id", "question", "answers", "truth"], part="probe")
    rows = (r for b in batches for r in b.to_pylist() if r["answers"] and r["truth"] in (None, "known"))
    salt = f"other-shots-{run.config.run.seed}"
    drawn = heapq.nsmallest(count, rows, key=lambda r: uniform(salt, r["id"]))
    return [(r["question"], r["answers"][0]) for r in drawn] if len(drawn) == count else []


@dataclass(frozen=True)
class Tokenize:
    """Questions → `PROMPT_COLUMNS`, where a shard is read, so that no GPU waits for a tokenizer. The tokenizer is
    loaded once per process."""

    model: ModelSection
    prompt: PromptSection
    columns: ClassVar[pa.Schema] = PROMPT_COLUMNS

    def load(self) -> Prompter:
        """Load the tokenizer, unless this process has done so."""
        return _prompter(self)

    def __call__(self, batch: pa.Table) -> Mapping[str, Sequence[object]]:
        """`PROMPT_COLUMNS` of a batch with `question`."""
        prompts = self.load()(batch["question"].to_pylist())
        return {
            "prompt_ids": [p.ids for p in prompts],
            "own_start": [p.own_start for p in prompts],
            "own_end": [p.own_end for p in prompts],
        }

    def add(self, batch: pa.Table) -> pa.Table:
        """The batch with these columns appended."""
        for name, values in self(batch).items():
            batch = batch.append_column(self.columns.field(name), pa.array(values, self.columns.field(name).type))
        return batch


@lru_cache(maxsize=4)
def _prompter(tokenize: Tokenize) -> Prompter:
    return Prompter(load_tokenizer(tokenize.model), tokenize.prompt)


def encode(tokenizer: PreTrainedTokenizerBase, prompt: PromptSection, questions: Sequence[str]) -> Encoded:
    """The questions' prompts as one left-padded batch. Raises `ValueError` for a question without a token of its
    own."""
    prompts = Prompter(tokenizer, prompt)(questions)
    if any(p.is_empty for p in prompts):
        raise ValueError(EMPTY_QUESTION)
    return pad(prompts, pad_id(tokenizer))
