"""The scoring actor: P(unknown) from blocks 1 … l alone.

In: batches with the questions' prompts (`prompts.PROMPT_COLUMNS`). Out: `p_unknown` and, on request, the `state` read.
Holds no later block and no LM head; generates nothing. Refuses to know: Ray, files beyond the probe's own.
"""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from ka2l_ray.config import ModelSection, PromptSection
from ka2l_ray.dataflow.placement import CPU, Placement
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.errors import StageError
from ka2l_ray.models.batching import Limits
from ka2l_ray.models.engine import Engine
from ka2l_ray.models.loading import load_blocks, load_tokenizer
from ka2l_ray.models.probe import LinearProbe, score_states
from ka2l_ray.tables import error_column, fixed_size, not_finite
from ka2l_ray.text.prompts import Prompter, prompts_of
from ka2l_ray.text.tokens import pad_id


class ScoreActor:
    """Raises `StageError` for a probe that was fitted on another model or prompt."""

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
            raise StageError(
                f"the probe reads states of {card.model!r} under prompt {card.prompt!r}, not of {model.identity!r}"
            )
        self._layer, self._position = card.layer, card.position
        tokenizer = load_tokenizer(model)
        blocks = load_blocks(model, card.layer, placement)
        self._engine = Engine(blocks, pad_id(tokenizer), Prompter(tokenizer, prompt).shared, limits)
        self.tally = self._engine.tally

    def __call__(self, batch: pa.Table) -> Mapping[str, Any]:
        """Columns for a batch of any size; questions that cannot be asked are named in `error`."""
        read, failed = self._engine.states(prompts_of(batch), [self._layer], [self._position])
        states = read[self._position, self._layer]
        failed |= not_finite({0: states})
        columns: dict[str, Any] = {"p_unknown": score_states(states, self._probe).astype("float32")}
        return (
            columns
            | ({"state": fixed_size(states, failed)} if self._with_state else {})
            | error_column(failed, batch.num_rows)
        )
