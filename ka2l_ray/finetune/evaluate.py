"""The evaluating actor: greedy answers of the base model or of a fine-tuned one, graded against gold.

In: batches with `id`, `question`, `answers`. Out: `answer`, `correct`. Refuses to know: Ray, what the accuracy is used for.
"""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from ka2l_ray.artifacts import Folder
from ka2l_ray.config import CollectSection, ModelSection, PromptSection
from ka2l_ray.corpus.prompts import encode
from ka2l_ray.label.grading import is_correct
from ka2l_ray.models.generation import Decoding, Generator
from ka2l_ray.models.loading import load_model, load_tokenizer


class EvaluateActor:
    """`tuned` is the folder of a fine-tuned model or adapter, None for the base model."""

    def __init__(self, model: ModelSection, prompt: PromptSection, collect: CollectSection, seed: int, tuned: Folder | None) -> None:
        self._tokenizer, self._prompt = load_tokenizer(model), prompt
        decoding = Decoding(seed, 0, 1.0, collect.greedy_temperature, collect.max_new_tokens, prompt.stop)
        if tuned is None:
            loaded = load_model(model)
        else:
            with tuned.local() as folder:
                loaded = load_model(model, adapter=folder)
        self._generate = Generator(loaded, self._tokenizer, decoding)

    def __call__(self, batch: pa.Table) -> Mapping[str, Any]:
        encoded = encode(self._tokenizer, self._prompt, batch["question"].to_pylist())
        _, answers = self._generate(batch["id"].to_pylist(), encoded)
        texts = [row[0].text for row in answers]
        return {"answer": texts, "correct": [is_correct(t, g) for t, g in zip(texts, batch["answers"].to_pylist(), strict=True)]}
