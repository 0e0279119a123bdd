"""The evaluating actor: greedy answers of the base model or of a fine-tuned one, graded against gold.

In: batches with `id`, gold `answers` and the questions' prompts (`prompts.PROMPT_COLUMNS`). Out: `answer`, `correct`.
Refuses to know: Ray, what accuracies are used for.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from ka2l_ray.config import CollectSection, ModelSection, PromptSection
from ka2l_ray.dataflow.placement import CPU, Placement
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.models.abilities import Abilities
from ka2l_ray.models.answers import Decoding
from ka2l_ray.models.batching import Limits
from ka2l_ray.models.engine import Engine
from ka2l_ray.models.generation import Generator
from ka2l_ray.models.loading import load_model, load_tokenizer
from ka2l_ray.tables import error_column
from ka2l_ray.text.answers import ends_in_thought
from ka2l_ray.text.grading import EXACT, Grading, grade
from ka2l_ray.text.prompts import Prompter, prompts_of
from ka2l_ray.text.tokens import pad_id


@dataclass(frozen=True, kw_only=True)
class EvaluateSetup:
    """`tuned` is the folder of a fine-tuned model or adapter, None for the base model. Of `collect`, only what shapes a
    greedy answer counts."""

    model: ModelSection
    prompt: PromptSection
    collect: CollectSection
    seed: int
    tuned: Folder | None
    grading: Grading = EXACT
    limits: Limits = Limits()
    placement: Placement = CPU
    abilities: Abilities = Abilities()


class EvaluateActor:
    """Answers greedily and grades the answers."""

    def __init__(self, setup: EvaluateSetup) -> None:
        model, prompt, collect, tokenizer = setup.model, setup.prompt, setup.collect, load_tokenizer(setup.model)
        decoding = Decoding(
            setup.seed,
            0,
            1.0,
            collect.greedy_temperature,
            collect.max_new_tokens,
            prompt.stop,
            ends_in_thought(prompt.template),
        )
        with nullcontext() if setup.tuned is None else setup.tuned.local() as folder:
            loaded = load_model(model, adapter=folder, placement=setup.placement)
        shared = Prompter(tokenizer, prompt).shared
        engine = Engine(loaded, pad_id(tokenizer), shared, setup.limits, setup.abilities)
        self.tally = engine.tally
        self._generate, self._grading = Generator(engine, tokenizer, decoding), setup.grading

    def __call__(self, batch: pa.Table) -> Mapping[str, Any]:
        """Columns for a batch of any size; questions that cannot be asked are reported in `error`."""
        reading = self._generate(batch["id"].to_pylist(), prompts_of(batch))
        texts = [row[0].text if row else "" for row in reading.answers]
        correct = [grade(t, g, self._grading) for t, g in zip(texts, batch["answers"].to_pylist(), strict=True)]
        return {"answer": texts, "correct": correct, **error_column(reading.failed, batch.num_rows)}
