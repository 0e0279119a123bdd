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
from ka2l_ray.entropy.adaptive import entropy_bounds, first_decision, is_decided
from ka2l_ray.entropy.clusters import cluster
from ka2l_ray.models.abilities import Abilities
from ka2l_ray.models.answers import Answer, Decoding
from ka2l_ray.models.batching import Limits
from ka2l_ray.models.engine import Engine
from ka2l_ray.models.generation import Generator
from ka2l_ray.models.layers import load_up_to
from ka2l_ray.models.loading import load_model, load_tokenizer
from ka2l_ray.models.sampled_as import decoding_of, sampled_as
from ka2l_ray.models.vllm import VllmGenerator
from ka2l_ray.tables import error_column, fixed_size, not_finite
from ka2l_ray.text.answers import abstains
from ka2l_ray.text.prompts import Prompter, prompts_of
from ka2l_ray.text.tokens import pad_id

NO_ANSWER = Answer("", 0.0, 0)
"""Placeholder for a question that could not be asked; its row fails, and its columns become null."""


@dataclass(frozen=True, kw_only=True)
class CollectSetup:
    """States are read at `layers`, at the positions of `collect`. With `threshold_nats` (γ) a question gets fewer
    samples as soon as they decide on which side of it the entropy falls, and whether the model abstains by giving
    `refusals`."""

    model: ModelSection
    prompt: PromptSection
    collect: CollectSection
    layers: Sequence[int]
    seed: int
    limits: Limits = Limits()
    threshold_nats: float | None = None
    refusals: Sequence[str] = ()
    placement: Placement = CPU
    abilities: Abilities = Abilities()


class CollectActor:
    """Has the whole model in memory; returns states and 1 + K answers per question."""

    def __init__(self, setup: CollectSetup) -> None:
        model, (collect, _) = setup.model, sampled_as(setup.model, setup.collect)
        tokenizer = load_tokenizer(model)
        shared, self._setup = Prompter(tokenizer, setup.prompt).shared, setup
        decoding = decoding_of(collect, setup.prompt, setup.seed, collect.samples)
        if setup.threshold_nats is not None:
            decoding = adaptive(decoding, setup.threshold_nats, collect.adaptive.wave, setup.refusals)
        if collect.engine == "own":
            whole = load_model(model, placement=setup.placement)
            engine = Engine(whole, pad_id(tokenizer), shared, setup.limits, setup.abilities)
            self._generate = Generator(engine, tokenizer, decoding)
        else:
            engine = None
            if setup.layers:
                blocks = load_up_to(max(setup.layers), model, setup.abilities, setup.placement)
                engine = Engine(blocks, pad_id(tokenizer), shared, setup.limits, setup.abilities)
            self._generate = VllmGenerator(model, collect.vllm, tokenizer, decoding, engine, setup.placement)
        self.tally = self._generate.tally

    def __call__(self, batch: pa.Table) -> Mapping[str, Any]:
        """Columns for a batch of any size; questions that cannot be asked, questions most of whose answers end inside a
        thought, and states that are not finite, are reported in `error`."""
        setup, ids = self._setup, batch["id"].to_pylist()
        reading = self._generate(ids, prompts_of(batch), setup.layers, setup.collect.positions)
        failed = reading.failed | _still_thinking(reading.answers) | not_finite(reading.states)
        answers = [row or [NO_ANSWER] for row in reading.answers]
        return {
            **{schema.state_column(p, n): fixed_size(v, failed) for (p, n), v in reading.states.items()},
            "greedy": [row[0].text for row in answers],
            "greedy_logprob": [row[0].logprob for row in answers],
            "samples": [[a.text for a in row[1:]] for row in answers],
            "sample_logprobs": [[a.logprob for a in row[1:]] for row in answers],
            "sample_tokens": [[a.tokens for a in row[1:]] for row in answers],
            **error_column(failed, batch.num_rows),
        }


def _still_thinking(answers: Sequence[Sequence[Answer]]) -> dict[int, Exception]:
    """An error for each question of which most answers were cut off inside a thought."""
    return {
        row: ValueError(
            f"{cut} of {len(given)} answers end inside a thought: raise collect.max_new_tokens, or set "
            "corpus.prompt.enable_thinking: false"
        )
        for row, given in enumerate(answers)
        if 2 * (cut := sum(a.in_thought for a in given)) > len(given)
    }


def adaptive(decoding: Decoding, threshold_nats: float, wave: int, refusals: Sequence[str] = ()) -> Decoding:
    """The same decoding, but without samples that cannot change the label: whether the entropy reaches `threshold_nats`
    or most of the samples are empty or `refusals`.

    Samples are drawn in waves: first as many as may decide at all, then `wave` at a time.
    """
    first = first_decision(decoding.samples, threshold_nats)
    later = decoding.samples - first
    waves = (first, *[wave] * (later // wave), *([later % wave] if later % wave else []))

    def enough(samples: Sequence[Answer]) -> bool:
        clusters, remaining = cluster([a.text for a in samples]), decoding.samples - len(samples)
        silent = sum(abstains(a.text, refusals) for a in samples)
        may_abstain = 2 * silent <= decoding.samples < 2 * (silent + remaining)
        inconsistent = entropy_bounds(clusters, remaining)[0] >= threshold_nats
        return is_decided(clusters, remaining, threshold_nats) and (inconsistent or not may_abstain)

    return replace(decoding, waves=waves, enough=enough)
