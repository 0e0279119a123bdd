"""The collecting actor: hidden states, the greedy answer and K samples of a batch, from one prompt pass.

In: batches with `id` and `question`. Out: the columns of `collect_columns`.
Refuses to know: Ray, files, labels. Call it like a function to test it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from ka2l_ray import schema
from ka2l_ray.config import CollectSection, ModelSection, PromptSection
from ka2l_ray.corpus.prompts import encode
from ka2l_ray.models.generation import Decoding, Generator
from ka2l_ray.models.loading import load_model, load_tokenizer

HALF_MAX = 65504.0


def collect_columns(collect: CollectSection, layers: Sequence[int], width: int) -> pa.Schema:
    """Columns that the actor adds: states as float32 (the narrowest type that holds every model's values), then samples."""
    return schema.join(schema.states(collect.positions, layers, width, half=False), schema.SAMPLES.remove(0), error=False)


class CollectActor:
    """Holds the whole model; answers with states at `layers` and 1 + K answers per question."""

    def __init__(
        self,
        model: ModelSection,
        prompt: PromptSection,
        collect: CollectSection,
        layers: Sequence[int],
        seed: int,
        adapter: str | None = None,
    ) -> None:
        self._tokenizer = load_tokenizer(model)
        self._prompt, self._collect, self._layers = prompt, collect, tuple(layers)
        decoding = Decoding(seed, collect.samples, collect.temperature, collect.greedy_temperature, collect.max_new_tokens, prompt.stop)
        self._generate = Generator(load_model(model, adapter), self._tokenizer, decoding)

    def __call__(self, batch: pa.Table) -> Mapping[str, Any]:
        """Columns for a batch. Raises `ValueError` for questions that cannot be asked or states that are not finite."""
        encoded = encode(self._tokenizer, self._prompt, batch["question"].to_pylist())
        states, answers = self._generate(batch["id"].to_pylist(), encoded, self._layers, self._collect.positions)
        columns: dict[str, Any] = {schema.state_column(p, n): fixed_size(v) for (p, n), v in states.items()}
        return columns | {
            "greedy": [row[0].text for row in answers],
            "greedy_logprob": [row[0].logprob for row in answers],
            "samples": [[a.text for a in row[1:]] for row in answers],
            "sample_logprobs": [[a.logprob for a in row[1:]] for row in answers],
            "sample_tokens": [[a.tokens for a in row[1:]] for row in answers],
        }


def fixed_size(states: np.ndarray) -> pa.FixedSizeListArray:
    """States (B, D) as a fixed-size list column. Raises `ValueError` where a value is not finite."""
    if not np.isfinite(states).all():
        raise ValueError("hidden state holds NaN or infinity")
    return pa.FixedSizeListArray.from_arrays(pa.array(states.reshape(-1)), states.shape[1])


def matrix(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """A fixed-size list column back to an array (B, D)."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return array.flatten().to_numpy(zero_copy_only=False).reshape(len(array), -1)
