"""The decoding actor: the state of a source question, plus noise, becomes a new question, which is re-embedded and
scored.

In: batches with `id` and the sources' prompts (`prompts.PROMPT_COLUMNS`). Out: `decoded_question`, `similarity`,
`p_unknown`. Loads blocks 1 … max(decoder's layer, probe's layer) of the model and nothing after them. Refuses to know:
Ray, which questions exist.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from ka2l_ray.config import DecodeSection, ModelSection, PromptSection
from ka2l_ray.dataflow.placement import CPU, Placement
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.decode.model import StateDecoder
from ka2l_ray.decode.states import decode_states, decoder_folder
from ka2l_ray.errors import ConfigError
from ka2l_ray.models.abilities import Abilities
from ka2l_ray.models.batching import Limits
from ka2l_ray.models.engine import Engine
from ka2l_ray.models.layers import load_up_to
from ka2l_ray.models.loading import load_tokenizer
from ka2l_ray.models.probe import LinearProbe, score_states
from ka2l_ray.tables import error_column
from ka2l_ray.text.prompts import Prompt, Prompter, prompts_of
from ka2l_ray.text.tokens import pad_id


@dataclass(frozen=True, kw_only=True)
class DecodeSetup:
    """`probe` is the folder of a fitted probe."""

    model: ModelSection
    prompt: PromptSection
    decode: DecodeSection
    probe: Folder
    seed: int
    limits: Limits = Limits()
    placement: Placement = CPU
    abilities: Abilities = Abilities()


class DecodeActor:
    """Raises `ConfigError` for a decoder that was trained on states of another model or prompt, or whose files do not
    match."""

    def __init__(self, setup: DecodeSetup) -> None:
        model, prompt, decode, placement = setup.model, setup.prompt, setup.decode, setup.placement
        self._decoder = StateDecoder.load(decoder_folder(decode.decoder))
        self._card, self._probe = self._decoder.card, LinearProbe.load(setup.probe)
        self._decode, self._seed = decode, setup.seed
        if (self._card.model, self._card.prompt) != (model.identity, prompt.template):
            raise ConfigError(
                f"decode.decoder = {decode.decoder!r} reads states of model {self._card.model!r} under prompt "
                f"{self._card.prompt!r}, not of {model.identity!r} under {prompt.template!r}"
            )
        self._tokenizer = load_tokenizer(model)
        self._prompts = Prompter(self._tokenizer, prompt)
        blocks = load_up_to(max(self._card.layer, self._probe.card.layer), model, setup.abilities, placement)
        self._decoder.to(placement.device)
        shared, pad = self._prompts.shared, pad_id(self._tokenizer)
        self._engine = Engine(blocks, pad, shared, setup.limits, setup.abilities)
        self.tally = self._engine.tally

    def __call__(self, batch: pa.Table) -> Mapping[str, Any]:
        """Columns for a batch of any size; questions that cannot be read get an `error`."""
        ids = batch["id"].to_pylist()
        source, _, failed = self._states(prompts_of(batch))
        noise, temperature = self._decode.noise, self._decode.temperature
        questions = decode_states(source, self._decoder, ids, noise, temperature, self._seed, self._tokenizer)
        decoded, p_unknown, failed_decoded = self._states(self._prompts([q or "?" for q in questions]))
        centred = [(s - self._decoder.mean) / self._decoder.scale for s in (source, decoded)]
        similarity = torch.cosine_similarity(*centred, dim=-1).cpu().numpy()
        columns = {"decoded_question": questions, "similarity": similarity, "p_unknown": p_unknown.astype("float32")}
        return columns | error_column(failed_decoded | failed, batch.num_rows)

    def _states(self, prompts: list[Prompt]) -> tuple[torch.Tensor, np.ndarray, dict[int, Exception]]:
        """From one pass the states (B, D) that the decoder reads, P(unknown) (B,), and the errors of questions that
        cannot be read."""
        mine, probe = self._card, self._probe.card
        layers, positions = sorted({mine.layer, probe.layer}), sorted({mine.position, probe.position})
        states, failed = self._engine.states(prompts, layers, positions)
        read = torch.from_numpy(states[mine.position, mine.layer]).to(self._decoder.mean)
        return read, score_states(states[probe.position, probe.layer], self._probe), failed
