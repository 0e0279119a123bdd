"""The collecting actor: hidden states, the greedy answer and K samples of a batch, from one prompt pass.

In: batches with `id` and the questions' prompts (`prompts.PROMPT_COLUMNS`). Out: the columns that the table
`activations` adds.
Refuses to know: Ray, files, labels. Call it like a function to test it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from ka2l_ray import schema
from ka2l_ray.config import CollectSection, ModelSection, PromptSection
from ka2l_ray.dataflow.placement import CPU, Placement
from ka2l_ray.entropy.adaptive import first_decision, is_decided
from ka2l_ray.entropy.clusters import cluster
from ka2l_ray.models.answers import Answer, Decoding
from ka2l_ray.models.batching import Limits
from ka2l_ray.models.engine import Engine
from ka2l_ray.models.generation import Generator
from ka2l_ray.models.loading import load_blocks, load_model, load_tokenizer
from ka2l_ray.models.vllm import VllmGenerator
from ka2l_ray.tables import error_column, fixed_size, not_finite
from ka2l_ray.text.prompts import Prompter, prompts_of
from ka2l_ray.text.tokens import pad_id

NO_ANSWER = Answer("", 0.0, 0)
"""Placeholder for a question that could not be asked; its row fails, and its columns become null."""


@dataclass(frozen=True, kw_only=True)
class CollectSetup:
    """States are read at `layers`, at the positions of `collect`. With `threshold_nats` (γ) a question gets fewer
    samples as soon as they decide on which side of it the entropy falls."""

    model: ModelSection
    prompt: PromptSection
    collect: CollectSection
    layers: Sequence[int]
    seed: int
    limits: Limits = Limits()
    threshold_nats: float | None = None
    placement: Placement = CPU


class CollectActor:
    """Has the whole model in memory; returns states and 1 + K answers per question."""

    def __init__(self, setup: CollectSetup) -> None:
        model, collect, tokenizer = setup.model, setup.collect, load_tokenizer(setup.model)
        shared, self._setup = Prompter(tokenizer, setup.prompt).shared, setup
        decoding = Decoding(
            setup.seed,
            collect.samples,
            collect.temperature,
            collect.greedy_temperature,
            collect.max_new_tokens,
            setup.prompt.stop,
        )
        if setup.threshold_nats is not None:
            decoding = adaptive(decoding, setup.threshold_nats, collect.adaptive.wave)
        self._generate: Generator | VllmGenerator
        if collect.engine == "own":
            engine = Engine(load_model(model, placement=setup.placement), pad_id(tokenizer), shared, setup.limits)
            self._generate = Generator(engine, tokenizer, decoding)
        else:
            blocks = load_blocks(model, max(setup.layers), setup.placement) if setup.layers else None
            engine = Engine(blocks, pad_id(tokenizer), shared, setup.limits) if blocks else None
            self._generate = VllmGenerator(model, collect.vllm, tokenizer, decoding, engine, setup.placement)
        self.tally = self._generate.tally

    def __call__(self, batch: pa.Table) -> Mapping[str, Any]:
        """Columns for a batch of any size; questions that cannot be asked, and states that are not finite, are reported
        in `error`."""
        layers, positions = self._setup.layers, self._setup.collect.positions
        reading = self._generate(batch["id"].to_pylist(), prompts_of(batch), layers, positions)
        failed = reading.failed | not_finite(reading.states)
        answers = [row or [NO_ANSWER] for row in reading.answers]
        columns: dict[str, Any] = {
            schema.state_column(p, n): fixed_size(v, failed) for (p, n), v in reading.states.items()
        }
        return columns | {
            "greedy": [row[0].text for row in answers],
            "greedy_logprob": [row[0].logprob for row in answers],
            "samples": [[a.text for a in row[1:]] for row in answers],
            "sample_logprobs": [[a.logprob for a in row[1:]] for row in answers],
            "sample_tokens": [[a.tokens for a in row[1:]] for row in answers],
            **error_column(failed, batch.num_rows),
        }


def adaptive(decoding: Decoding, threshold_nats: float, wave: int) -> Decoding:
    """The same decoding, but without samples that cannot change whether the entropy reaches `threshold_nats`.

    Samples are drawn in waves: first as many as may decide at all, then `wave` at a time.
    """
    first = first_decision(decoding.samples, threshold_nats)
    later = decoding.samples - first
    waves = (first, *[wave] * (later // wave), *([later % wave] if later % wave else []))

    def enough(samples: Sequence[Answer]) -> bool:
        return is_decided(cluster([a.text for a in samples]), decoding.samples - len(samples), threshold_nats)

    return replace(decoding, waves=waves, enough=enough)
