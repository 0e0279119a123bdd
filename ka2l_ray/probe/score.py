"""The scoring actor: P(unknown) from blocks 1 … l alone.

In: batches with the questions' prompts (`prompts.PROMPT_COLUMNS`). Out: `p_unknown`, on request the `state` that it was
computed from. Loads no later block and no LM head; generates nothing.
Refuses to know: Ray, files other than the probe's own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
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


@dataclass(frozen=True, kw_only=True)
class ScoreSetup:
    """`probe` is the folder of a fitted probe; `with_state` adds the states that it reads."""

    model: ModelSection
    prompt: PromptSection
    probe: Folder
    with_state: bool = False
    limits: Limits = Limits()
    placement: Placement = CPU


class ScoreActor:
    """Has the probe and the blocks up to its layer. Raises `StageError` for a probe of another model or prompt."""

    def __init__(self, setup: ScoreSetup) -> None:
        self._probe, self._with_state = LinearProbe.load(setup.probe), setup.with_state
        card, model = self._probe.card, setup.model
        if (card.model, card.prompt) != (model.identity, setup.prompt.template):
            raise StageError(
                f"the probe reads states of {card.model!r} under prompt {card.prompt!r}, not of {model.identity!r}"
            )
        self._layer, self._position = card.layer, card.position
        tokenizer = load_tokenizer(model)
        blocks = load_blocks(model, card.layer, setup.placement)
        self._engine = Engine(blocks, pad_id(tokenizer), Prompter(tokenizer, setup.prompt).shared, setup.limits)
        self.tally = self._engine.tally

    def __call__(self, batch: pa.Table) -> Mapping[str, Any]:
        """Columns for a batch of any size; questions that cannot be asked, and states that are not finite, are reported
        in `error`."""
        read, failed = self._engine.states(prompts_of(batch), [self._layer], [self._position])
        states = read[self._position, self._layer]
        failed |= not_finite({0: states})
        columns: dict[str, Any] = {"p_unknown": score_states(states, self._probe).astype("float32")}
        if self._with_state:
            columns["state"] = fixed_size(states, failed)
        return columns | error_column(failed, batch.num_rows)
