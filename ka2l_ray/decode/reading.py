"""The reading actor: of each question the states that a decoder is trained on.

In: batches with the questions' prompts (`prompts.PROMPT_COLUMNS`), `id`, `group` and `entity`. Out: `state`, `tokens`,
`whom_ids` and, on request, `kind_state`. Loads the first blocks of the model alone.
Refuses to know: Ray, files, decoders.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from ka2l_ray.config import ModelSection, PromptSection
from ka2l_ray.config.knowing import KIND_DEPTH
from ka2l_ray.dataflow.failures import BlockLost
from ka2l_ray.dataflow.placement import CPU, Placement
from ka2l_ray.decode.question_states import token_column
from ka2l_ray.decode.whom import NO_GROUPS, WHOM, CommonWords, whom_tokens
from ka2l_ray.models.abilities import Abilities
from ka2l_ray.models.batching import Limits
from ka2l_ray.models.engine import Engine
from ka2l_ray.models.layers import load_up_to
from ka2l_ray.models.loading import depth_and_width, load_tokenizer
from ka2l_ray.tables import error_column, fixed_size, not_finite
from ka2l_ray.text.prompts import Prompter, prompts_of
from ka2l_ray.text.tokens import pad_id

WHAT_IS = "What is {name}? {name} is a"
"""What the model is about to answer says of what kind a name is. In a question the name's own tokens say what is asked
too, which is told before it."""
AS_IS = PromptSection(template="{question}")


@dataclass(frozen=True, kw_only=True)
class ReadSetup:
    """The pooled state is read at `layer` and `position`, states of tokens at `token_layer`; None reads none. `kinds`:
    ids of the questions of whom it is read of what kind they are; None adds no such column. `common` tells which words
    say what is asked."""

    model: ModelSection
    prompt: PromptSection
    layer: int
    position: str
    token_layer: int | None
    kinds: frozenset[str] | None = None
    common: CommonWords = NO_GROUPS
    limits: Limits = Limits()
    placement: Placement = CPU
    abilities: Abilities = Abilities()


class ReadActor:
    """Has the blocks up to the last layer that is read."""

    def __init__(self, setup: ReadSetup) -> None:
        model, self._setup = setup.model, setup
        self._kind_layer = round(KIND_DEPTH * depth_and_width(model)[0])
        deepest = max(setup.layer, setup.token_layer or 0, 0 if setup.kinds is None else self._kind_layer)
        tokenizer, blocks = load_tokenizer(model), load_up_to(deepest, model, setup.abilities, setup.placement)
        self._prompter, self._as_is = Prompter(tokenizer, setup.prompt), Prompter(tokenizer, AS_IS)
        self._engine = Engine(blocks, pad_id(tokenizer), self._prompter.shared, setup.limits, setup.abilities)
        self.tally = self._engine.tally

    def __call__(self, batch: pa.Table) -> Mapping[str, Any]:
        """Columns for a batch of any size; questions that cannot be read, and states that are not finite, are reported
        in `error`."""
        setup, prompts, rows = self._setup, prompts_of(batch), batch.select(["id", *WHOM]).to_pylist()
        whom = whom_tokens(self._prompter, rows, setup.common)
        at = setup.layer if setup.token_layer is None else setup.token_layer
        of_layer, read, failed = self._engine.token_states(prompts, whom, [at], [setup.layer], [setup.position])
        state, tokens = read[setup.position, setup.layer], of_layer[at]
        failed |= not_finite(read) | _not_finite(tokens)
        kinds = {} if setup.kinds is None else {"kind_state": self._kinds(rows, setup.kinds, state.shape[1], failed)}
        kept = [t[:0] if n in failed or setup.token_layer is None else t for n, t in enumerate(tokens)]
        ids = [prompt.ids[start : start + len(t)] for prompt, (start, _), t in zip(prompts, whom, kept, strict=True)]
        return {
            "state": fixed_size(state, failed, half=False),
            **kinds,
            "tokens": token_column(kept, state.shape[1]),
            "whom_ids": ids,
            **error_column(failed, batch.num_rows),
        }

    def _kinds(
        self, rows: list[dict[str, Any]], of: frozenset[str], width: int, failed: dict[int, Exception]
    ) -> pa.FixedSizeListArray:
        """The column `kind_state`, null where it is not wanted; adds to `failed`."""
        at = [n for n, r in enumerate(rows) if r["id"] in of and n not in failed]
        spans = [self._setup.common.whom(rows[n]["question"], rows[n]["entity"], rows[n]["group"]) for n in at]
        names = [rows[n]["question"][start:end] for n, (start, end) in zip(at, spans, strict=True)]
        states = np.zeros((len(rows), width), np.float32)
        if at:
            asked = self._as_is([WHAT_IS.replace("{name}", name) for name in names])
            try:
                read, lost = self._engine.states(asked, [self._kind_layer], ["last"])
            except BlockLost as block:  # the questions were read by the same blocks, so these are not broken
                read, lost = {}, dict(block.errors)
            else:
                states[at] = np.nan_to_num(read["last", self._kind_layer])
            failed |= {at[n]: error for n, error in (lost | not_finite(read)).items()}
        return fixed_size(states, {*range(len(rows))} - {*at} | {*failed}, half=False)


def _not_finite(tokens: list[np.ndarray]) -> dict[int, Exception]:
    lost = [n for n, states in enumerate(tokens) if not np.isfinite(states).all()]
    return {n: ValueError("hidden state of a token contains NaN or infinity") for n in lost}
