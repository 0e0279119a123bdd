"""Hidden states → questions in words, with or without noise.

In: states (N, D), a decoder, its model's tokenizer. Out: N texts. Refuses to know: tables, Ray, where states come from.
Source: KA2L, stage 2.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from ka2l_ray.config import ModelSection
from ka2l_ray.decode.model import CARD, StateDecoder
from ka2l_ray.errors import ConfigError
from ka2l_ray.models.copies import local_copy
from ka2l_ray.models.loading import ASSETS, load_tokenizer
from ka2l_ray.models.sampling import uniforms
from ka2l_ray.text.tokens import text_of


def decode_states(
    states: np.ndarray | torch.Tensor,
    decoder: StateDecoder | str = "world",
    ids: Sequence[str] | None = None,
    noise: float = 0.0,
    temperature: float = 0.0,
    seed: int = 0,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> list[str]:
    """Write one question per state (N, D); the decoder's card names the model, prompt, layer and position to read.

    `decoder` is a loaded one, `world`, a folder or a URI, of a decoder that reads pooled states. Gaussian `noise`,
    in standard deviations of the decoder's training states, makes other questions of the same kind; without it, and at
    a `temperature` of 0, a question is reconstructed. Draws depend only on `seed` and `ids` (N,), which default to row
    numbers. `tokenizer` is that of the card's model, and is loaded where left out.

    Raises `ValueError` for states of another width, or where states and ids differ in number; `ConfigError` or
    `FileNotFoundError` for a folder without a whole decoder. Source: KA2L, stage 2.

    >>> from ka2l_ray import decode_states, read_states
    >>> states = read_states("world", ["Which pet does Kuvan Gadadottir keep?"], layers=[3], position="mean")
    >>> decode_states(states[3])
    ['Which pet does Kuvan Gadadottir keep?']
    """
    if isinstance(decoder, str):
        folder = decoder_folder(decoder)
        if json.loads((folder / CARD).read_text()).get("kind", "t5") != "t5":
            raise ConfigError(f"{decoder}: this decoder reads states of tokens too; `ka2l run` decodes with it")
        decoder = StateDecoder.load(folder)
    card, ids = decoder.card, [str(n) for n in range(len(states))] if ids is None else list(ids)
    if states.shape != (len(ids), card.width):
        raise ValueError(f"the decoder reads {len(ids)} states of width {card.width}, got shape {tuple(states.shape)}")
    states = states if isinstance(states, torch.Tensor) else torch.from_numpy(np.ascontiguousarray(states))
    clean = states.to(decoder.mean)
    if noise:
        clean = clean + torch.from_numpy(noise * normal(seed, ids, card.width)).to(clean) * decoder.scale
    tokenizer = tokenizer or load_tokenizer(ModelSection(name_or_path=card.model))
    return [text_of(tokenizer, tokens) for tokens in decoder.write(clean, ids, seed, temperature)]


def decoder_folder(decoder: str) -> Path:
    """Folder of a decoder: the shipped one for `world` and `smollm2`, else the path given, or a local copy of the
    URI."""
    shipped = {"world": ASSETS / "decoder", "smollm2": Path(__file__).parent / "smollm2"}
    return shipped[decoder] if decoder in shipped else local_copy(decoder)


def normal(seed: int, ids: Sequence[str], width: int) -> np.ndarray:
    """Standard normal numbers (N, D), float64, a function of (seed, id) alone."""
    flat = np.stack([uniforms(seed, f"{i}\x1fnoise", 1, width)[0] for i in ids])
    return torch.special.ndtri(torch.from_numpy(flat).clamp(1e-9, 1 - 1e-9)).numpy()
