"""The scoring actor: P(unknown) from blocks 1 … l alone.

In: batches with `question`. Out: `p_unknown`, on request the `state` it was read from.
Holds no later block and no LM head; generates nothing. Refuses to know: Ray, files beyond the probe's own.
"""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from ka2l_ray.artifacts import Folder
from ka2l_ray.collect.actor import errors, fixed_size, not_finite
from ka2l_ray.config import ModelSection, PromptSection
from ka2l_ray.corpus.prompts import Prompter
from ka2l_ray.models.batching import Limits
from ka2l_ray.models.engine import Engine
from ka2l_ray.models.loading import load_blocks, load_tokenizer
from ka2l_ray.models.placement import CPU, Placement
from ka2l_ray.models.tokens import pad_id
from ka2l_ray.probe.model import LinearProbe


class ScoreActor:
    """Raises `ValueError` for a probe that was fitted on another model or prompt."""

    def __init__(
        self,
        model: ModelSection,
        prompt: PromptSection,
        probe: Folder,
        with_state: bool = False,
        limits: Limits = Limits(),
        placement: Placement = CPU,
    ) -> None:
        self._probe, self._with_state = LinearProbe.load(probe), with_state
        card = self._probe.card
        if (card.model, card.prompt) != (model.identity, prompt.template):
            raise ValueError(f"the probe reads states of {card.model!r} under prompt {card.prompt!r}, not of {model.identity!r}")
        self._layer, self._position = card.layer, card.position
        tokenizer = load_tokenizer(model)
        self._prompts = Prompter(tokenizer, prompt)
        self._engine = Engine(load_blocks(model, card.layer, placement), pad_id(tokenizer), self._prompts.shared, limits)
        self.tally = self._engine.tally

    def __call__(self, batch: pa.Table) -> Mapping[str, Any]:
        """Columns for a batch of any size; questions that cannot be asked are named in `error`."""
        read, failed = self._engine.states(self._prompts(batch["question"].to_pylist()), [self._layer], [self._position])
        states = read[self._position, self._layer]
        failed |= not_finite({0: states})
        columns: dict[str, Any] = {"p_unknown": self._probe(states).astype("float32")}
        return columns | ({"state": fixed_size(states, failed)} if self._with_state else {}) | errors(failed, batch.num_rows)
