"""The actors of evaluation: greedy answers of the base model or of a fine-tuned one, graded against gold, and how many
samples agree with those that are right.

In: batches with `id`, gold `answers` and the questions' prompts (`prompts.PROMPT_COLUMNS`). Out: `answer`, `correct`;
of `SamplingActor` also `samples`, `samples_right`.
Refuses to know: Ray, what accuracies are used for.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import pyarrow as pa

from ka2l_ray.config import CollectSection, ModelSection, PromptSection
from ka2l_ray.dataflow.placement import CPU, Placement
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.models.abilities import Abilities
from ka2l_ray.models.batching import Limits
from ka2l_ray.models.engine import Engine
from ka2l_ray.models.generation import Generator
from ka2l_ray.models.loading import load_model, load_tokenizer
from ka2l_ray.models.sampled_as import decoding_of, sampled_as
from ka2l_ray.tables import error_column
from ka2l_ray.text.grading import EXACT, Grading, grade
from ka2l_ray.text.prompts import Prompter, prompts_of
from ka2l_ray.text.tokens import pad_id


@dataclass(frozen=True, kw_only=True)
class EvaluateSetup:
    """`tuned` is the folder of a fine-tuned model or adapter, None for the base model. Of `collect`, only what shapes a
    greedy answer counts, and a sample where any are drawn."""

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
        tokenizer = load_tokenizer(setup.model)
        with nullcontext() if setup.tuned is None else setup.tuned.local() as folder:
            loaded = load_model(setup.model, adapter=folder, placement=setup.placement)
        shared = Prompter(tokenizer, setup.prompt).shared
        engine = Engine(loaded, pad_id(tokenizer), shared, setup.limits, setup.abilities)
        self.tally, self._grading = engine.tally, setup.grading
        self._generate = Generator(engine, tokenizer, decoding_of(setup.collect, setup.prompt, setup.seed, samples=0))

    def __call__(self, batch: pa.Table) -> Mapping[str, Any]:
        """Columns for a batch of any size; questions that cannot be asked are reported in `error`."""
        graded, failed = self._graded(batch)
        return {**graded, **error_column(failed, batch.num_rows)}

    def _graded(self, batch: pa.Table) -> tuple[dict[str, Any], dict[int, Exception]]:
        reading = self._generate(batch["id"].to_pylist(), prompts_of(batch))
        texts = [row[0].text if row else "" for row in reading.answers]
        correct = [grade(t, g, self._grading) for t, g in zip(texts, batch["answers"].to_pylist(), strict=True)]
        return {"answer": texts, "correct": correct}, reading.failed


class SamplingActor(EvaluateActor):
    """The same, and draws K samples of each question whose greedy answer is right."""

    def __init__(self, setup: EvaluateSetup) -> None:
        super().__init__(setup)
        collect, _ = sampled_as(setup.model, setup.collect)
        decoding = decoding_of(collect, setup.prompt, setup.seed, collect.samples)
        self._sample = Generator(self._generate.engine, load_tokenizer(setup.model), decoding)

    def __call__(self, batch: pa.Table) -> Mapping[str, Any]:
        """Columns for a batch of any size; where no samples are drawn, `samples` is empty and `samples_right` null."""
        graded, failed = self._graded(batch)
        right = [n for n, is_right in enumerate(graded["correct"]) if is_right]
        asked = batch.take(pa.array(right, pa.int64()))
        reading = self._sample(asked["id"].to_pylist(), prompts_of(asked))
        samples: list[list[str]] = [[] for _ in range(batch.num_rows)]
        shares: list[float | None] = [None] * batch.num_rows
        for n, answers, gold in zip(right, reading.answers, asked["answers"].to_pylist(), strict=True):
            if answers:
                samples[n] = [a.text for a in answers[1:]]
                shares[n] = fmean(bool(grade(s, gold, self._grading)) for s in samples[n])
        failed = failed | {right[n]: error for n, error in reading.failed.items()}
        return {**graded, "samples": samples, "samples_right": shares, **error_column(failed, batch.num_rows)}
