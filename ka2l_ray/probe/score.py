"""The scoring actor: P(unknown) from blocks 1 … l alone.

In: batches with `question`. Out: `p_unknown`, on request the `state` it was read from.
Holds no later block and no LM head; generates nothing. Refuses to know: Ray, files beyond the probe's own.
"""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from ka2l_ray.artifacts import Folder
from ka2l_ray.collect.actor import fixed_size
from ka2l_ray.config import ModelSection, PromptSection
from ka2l_ray.corpus.prompts import encode
from ka2l_ray.models.activations import prompt_states
from ka2l_ray.models.loading import load_blocks, load_tokenizer
from ka2l_ray.probe.model import LinearProbe


class ScoreActor:
    """Raises `ValueError` for a probe that was fitted on another model or prompt."""

    def __init__(self, model: ModelSection, prompt: PromptSection, probe: Folder, with_state: bool = False) -> None:
        self._probe, self._prompt, self._with_state = LinearProbe.load(probe), prompt, with_state
        card = self._probe.card
        if (card.model, card.prompt) != (model.identity, prompt.template):
            raise ValueError(f"the probe reads states of {card.model!r} under prompt {card.prompt!r}, not of {model.identity!r}")
        self._layer, self._position = card.layer, card.position
        self._tokenizer, self._model = load_tokenizer(model), load_blocks(model, card.layer)

    def __call__(self, batch: pa.Table) -> Mapping[str, Any]:
        encoded = encode(self._tokenizer, self._prompt, batch["question"].to_pylist()).to(self._model.device)
        depth = self._model.config.num_hidden_layers
        states = prompt_states(self._model, depth, encoded, self._position, [self._layer])[self._layer]
        scored = states.cpu().numpy()
        columns: dict[str, Any] = {"p_unknown": self._probe(scored).astype("float32")}
        return columns | ({"state": fixed_size(scored)} if self._with_state else {})
