"""The decoding actor: the state of a source question, plus noise, becomes a new question, which is re-embedded and
scored.

In: batches with `id` and the sources' prompts (`prompts.PROMPT_COLUMNS`). Out: `decoded_question`, `similarity`,
`p_unknown`. Loads blocks 1 … max(decoder's layer, probe's layer) of the model and nothing after them. Refuses to know:
Ray, which questions exist.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from ka2l_ray.config import DecodeSection, ModelSection, PromptSection
from ka2l_ray.dataflow.placement import CPU, Placement
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.decode.model import StateDecoder
from ka2l_ray.errors import ConfigError
from ka2l_ray.models.batching import Limits
from ka2l_ray.models.copies import local_copy
from ka2l_ray.models.engine import Engine
from ka2l_ray.models.loading import ASSETS, load_blocks, load_tokenizer
from ka2l_ray.models.probe import LinearProbe
from ka2l_ray.models.sampling import uniforms
from ka2l_ray.tables import error_column
from ka2l_ray.text.prompts import Prompt, Prompter, prompts_of
from ka2l_ray.text.tokens import pad_id, text_of


class DecodeActor:
    """Raises `ConfigError` for a decoder that was trained on states of another model or prompt, or whose files do not
    match."""

    def __init__(
        self,
        model: ModelSection,
        prompt: PromptSection,
        decode: DecodeSection,
        decoder: str,
        probe: Folder,
        seed: int,
        limits: Limits = Limits(),
        placement: Placement = CPU,
    ) -> None:
        self._decoder, self._probe = StateDecoder.load(decoder_folder(decoder)), LinearProbe.load(probe)
        self._card, self._decode, self._seed = self._decoder.card, decode, seed
        if (self._card.model, self._card.prompt) != (model.identity, prompt.template):
            raise ConfigError(
                f"decode.decoder = {decoder!r} reads states of model {self._card.model!r} under prompt "
                f"{self._card.prompt!r}, not of {model.identity!r} under {prompt.template!r}"
            )
        self._tokenizer = load_tokenizer(model)
        self._prompts = Prompter(self._tokenizer, prompt)
        blocks = load_blocks(model, max(self._card.layer, self._probe.card.layer), placement)
        self._decoder.to(placement.device)
        self._engine = Engine(blocks, pad_id(self._tokenizer), self._prompts.shared, limits)
        self.tally = self._engine.tally

    def __call__(self, batch: pa.Table) -> Mapping[str, Any]:
        """Columns for a batch of any size; questions that cannot be read get an `error`."""
        ids = batch["id"].to_pylist()
        source, _, failed = self._states(prompts_of(batch))
        noisy = source + self._noise(ids).to(source) * self._decoder.scale
        written = self._decoder.write(noisy, ids, self._seed, self._decode.temperature)
        questions = [text_of(self._tokenizer, tokens) for tokens in written]
        decoded, p_unknown, failed_decoded = self._states(self._prompts([q or "?" for q in questions]))
        standardised = [(s - self._decoder.mean) / self._decoder.scale for s in (source, decoded)]
        similarity = torch.cosine_similarity(*standardised, dim=-1).cpu().numpy()
        columns = {"decoded_question": questions, "similarity": similarity, "p_unknown": p_unknown.astype("float32")}
        return columns | error_column(failed_decoded | failed, batch.num_rows)

    def _states(self, prompts: list[Prompt]) -> tuple[torch.Tensor, np.ndarray, dict[int, Exception]]:
        """From one pass the states (B, D) that the decoder reads, P(unknown) (B,), and the errors of questions that
        cannot be read."""
        cards = self._card, self._probe.card
        states, failed = self._engine.states(
            prompts, sorted({c.layer for c in cards}), sorted({c.position for c in cards})
        )
        read, scored = (states[c.position, c.layer] for c in cards)
        return torch.from_numpy(read).to(self._decoder.mean), self._probe(scored), failed

    def _noise(self, ids: list[str]) -> torch.Tensor:
        """Gaussian noise (B, D) in standard deviations of the states, a function of (seed, id) only."""
        numbers = np.stack([uniforms(self._seed, f"{i}\x1fnoise", 1, self._card.width)[0] for i in ids])
        return self._decode.noise * torch.special.ndtri(torch.from_numpy(numbers).clamp(1e-9, 1 - 1e-9))


def decoder_folder(decoder: str) -> Path:
    """Folder of a decoder: the shipped one for `world`, else the path given, or a local copy of the URI.

    Raises `ConfigError` where there is nothing at the URI.
    """
    return ASSETS / "decoder" if decoder == "world" else local_copy(decoder)
