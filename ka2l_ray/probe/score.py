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
from ka2l_ray.models.abilities import Abilities
from ka2l_ray.models.batching import Limits
from ka2l_ray.models.engine import Engine
from ka2l_ray.models.layers import load_up_to
from ka2l_ray.models.loading import load_tokenizer
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
    abilities: Abilities = Abilities()


class ScoreActor:
    """Has the probe and the blocks up to its layer. Raises `StageError` for a probe of another model or prompt."""

    def __init__(self, setup: ScoreSetup) -> None:
        self._probe, self._with_state = LinearProbe.load(setup.probe), setup.with_state
        card, model = self._probe.card, setup.model
        if (card.model, card.prompt) != (model.identity, setup.prompt.template):
            raise StageError(
                f"the probe reads states of {card.model!r} under prompt {card.prompt!r}, not of {model.identity!r}"
            )
        tokenizer, blocks = load_tokenizer(model), load_up_to(card.layer, model, setup.abilities, setup.placement)
        shared = Prompter(tokenizer, setup.prompt).shared
        self._engine = Engine(blocks, pad_id(tokenizer), shared, setup.limits, setup.abilities)
        self.tally = self._engine.tally

    def __call__(self, batch: pa.Table) -> Mapping[str, Any]:
        """Columns for a batch of any size; questions that cannot be asked, and states that are not finite, are reported
        in `error`."""
        layer, position = self._probe.card.layer, self._probe.card.position
        read, failed = self._engine.states(prompts_of(batch), [layer], [position])
        failed |= not_finite(read)
        states = read[position, layer]
        return {
            "p_unknown": score_states(states, self._probe).astype("float32"),
            **({"state": fixed_size(states, failed)} if self._with_state else {}),
            **error_column(failed, batch.num_rows),
        }
