"""The collecting actor: hidden states, the greedy answer and K samples of a batch, from one prompt pass.

In: batches with `id` and the questions' prompts (`prompts.PROMPT_COLUMNS`). Out: the columns of `collect_columns`.
Refuses to know: Ray, files, labels. Call it like a function to test it.
"""

from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from ka2l_ray import schema
from ka2l_ray.config import CollectSection, ModelSection, PromptSection
from ka2l_ray.corpus.prompts import Prompter, prompts_of
from ka2l_ray.label.adaptive import first_decision, is_decided
from ka2l_ray.label.clusters import cluster
from ka2l_ray.models.answers import Answer, Decoding
from ka2l_ray.models.batching import Limits
from ka2l_ray.models.engine import Engine
from ka2l_ray.models.generation import Generator
from ka2l_ray.models.loading import load_blocks, load_model, load_tokenizer
from ka2l_ray.models.placement import CPU, Placement
from ka2l_ray.models.tokens import pad_id
from ka2l_ray.models.vllm import VllmGenerator

HALF_MAX = float(np.finfo(np.float16).max)
NO_ANSWER = Answer("", 0.0, 0)
"""Stands in the row of a question that could not be asked, whose columns are emptied for its error."""


def collect_columns(collect: CollectSection, layers: Sequence[int], width: int) -> pa.Schema:
    """Columns that the actor adds: states, float16 in every file whose values fit and float32 in the others, then samples."""
    return schema.join(schema.states(collect.positions, layers, width, half=False), schema.SAMPLES.remove(0), error=False)


class CollectActor:
    """Holds the whole model; answers with states at `layers` and 1 + K answers per question.

    With `threshold_nats` a question gets fewer samples once they decide on which side of it its entropy falls.
    """

    def __init__(
        self,
        model: ModelSection,
        prompt: PromptSection,
        collect: CollectSection,
        layers: Sequence[int],
        seed: int,
        limits: Limits = Limits(),
        threshold_nats: float | None = None,
        placement: Placement = CPU,
    ) -> None:
        tokenizer = load_tokenizer(model)
        shared, self._collect, self._layers = Prompter(tokenizer, prompt).shared, collect, tuple(layers)
        decoding = Decoding(seed, collect.samples, collect.temperature, collect.greedy_temperature, collect.max_new_tokens, prompt.stop)
        if threshold_nats is not None:
            decoding = adaptive(decoding, threshold_nats, collect.adaptive.wave)
        self._generate: Generator | VllmGenerator
        if collect.engine == "own":
            engine = Engine(load_model(model, placement=placement), pad_id(tokenizer), shared, limits)
            self._generate = Generator(engine, tokenizer, decoding)
        else:
            read = load_blocks(model, max(layers), placement) if layers else None
            engine = Engine(read, pad_id(tokenizer), shared, limits) if read else None
            self._generate = VllmGenerator(model, collect.vllm, tokenizer, decoding, engine, placement)
        self.tally = self._generate.tally

    def __call__(self, batch: pa.Table) -> Mapping[str, Any]:
        """Columns for a batch of any size; questions that cannot be asked, and states that are not finite, are named in `error`."""
        reading = self._generate(batch["id"].to_pylist(), prompts_of(batch), self._layers, self._collect.positions)
        failed = reading.failed | not_finite(reading.states)
        answers = [row or [NO_ANSWER] for row in reading.answers]
        columns: dict[str, Any] = {schema.state_column(p, n): fixed_size(v, failed) for (p, n), v in reading.states.items()}
        return columns | {
            "greedy": [row[0].text for row in answers],
            "greedy_logprob": [row[0].logprob for row in answers],
            "samples": [[a.text for a in row[1:]] for row in answers],
            "sample_logprobs": [[a.logprob for a in row[1:]] for row in answers],
            "sample_tokens": [[a.tokens for a in row[1:]] for row in answers],
            **errors(failed, batch.num_rows),
        }


def adaptive(decoding: Decoding, threshold_nats: float, wave: int) -> Decoding:
    """The same decoding, which draws no sample that cannot change whether SE >= `threshold_nats`."""
    first = first_decision(decoding.samples, threshold_nats)
    later = decoding.samples - first
    waves = (first, *[wave] * (later // wave), *([later % wave] if later % wave else []))

    def enough(samples: Sequence[Answer]) -> bool:
        return is_decided(cluster([a.text for a in samples]), decoding.samples - len(samples), threshold_nats)

    return replace(decoding, waves=waves, enough=enough)


def errors(failed: Mapping[int, Exception], rows: int) -> dict[str, list[str | None]]:
    """The `error` column of an actor's rows, where any failed."""
    return {"error": [f"{type(e).__name__}: {e}" if (e := failed.get(i)) else None for i in range(rows)]} if failed else {}


def not_finite(states: Mapping[Any, np.ndarray]) -> dict[int, Exception]:
    """An error for each row whose state holds NaN or infinity, at any of the layers."""
    rows = {int(i) for values in states.values() for i in np.flatnonzero(~np.isfinite(values).all(1))}
    return {i: ValueError("hidden state holds NaN or infinity") for i in sorted(rows)}


def fixed_size(states: np.ndarray, failed: Container[int] = ()) -> pa.FixedSizeListArray:
    """States (B, D) as a fixed-size list column with nulls in the failed rows: float16 where every value fits, else float32."""
    lost = np.array([i in failed for i in range(len(states))], bool)
    values = np.where(lost[:, None], 0.0, states).astype(np.float32)
    if np.abs(values).max(initial=0.0) <= HALF_MAX:
        values = values.astype(np.float16)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), states.shape[1], mask=pa.array(lost))


def matrix(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """A fixed-size list column without nulls back to a float32 array (B, D)."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return array.flatten().to_numpy(zero_copy_only=False).reshape(len(array), -1).astype(np.float32)
