"""BERTScore: how near decoded questions are to true ones, token by token, in the states of an encoder.

In: decoded and true questions, an encoder. Out: the mean F1. Refuses to know: decoders, Ray. Source: Zhang et al., 2020
(arXiv 1904.09675), equations 1 to 3, without rescaling and without weights by rarity. (The library that implements it,
torchmetrics 1.9, compares each text with another's where texts differ in length; a test compares pair by pair.)
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import AutoConfig, AutoModel

from ka2l_ray.config import BertScoreSection, ModelSection
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.errors import ConfigError
from ka2l_ray.models.hub import check_on_hub, is_on_hub
from ka2l_ray.models.loading import load_tokenizer, local_folder, named_by
from ka2l_ray.models.weights import check_weights

FIELD = "decode.bertscore.encoder"
MOST_TOKENS, BATCH = 512, 64


def check_encoder(section: BertScoreSection, cache: str | None) -> None:
    """Raises `ConfigError` for an encoder that is not there or has no safetensors, and for a layer that it does not
    have; one on the hub is not fetched for it."""
    if section.encoder is None:
        return
    model = ModelSection(name_or_path=section.encoder, cache=cache)
    with named_by(FIELD, model):
        if is_on_hub(model):
            check_on_hub(model)
            return
        depth = AutoConfig.from_pretrained(local_folder(model, weights=False)).num_hidden_layers
        check_weights(Folder.of(section.encoder), f"{FIELD} = {section.encoder!r}")
    _layer(section, depth)


def bert_f1(
    written: Sequence[str], true: Sequence[str], section: BertScoreSection, cache: str | None, device: str
) -> float:
    """Mean F1 over N decoded (`written`) and true questions, by the encoder that `section` names, on a device of torch.
    A text without tokens has an F1 of 0.

    Raises `ConfigError` as `check_encoder` does.
    """
    assert section.encoder is not None
    model = ModelSection(name_or_path=section.encoder, cache=cache)
    with named_by(FIELD, model):
        encoder = AutoModel.from_pretrained(local_folder(model), use_safetensors=True).eval().to(device)
        tokenizer = load_tokenizer(model)
        tokenizer.padding_side = "right"  # an encoder counts positions from the left
    layer = _layer(section, encoder.config.num_hidden_layers)
    pairs = zip(_states(encoder, tokenizer, written, layer), _states(encoder, tokenizer, true, layer), strict=True)
    scores = [_f1(a, b) for a, b in pairs]
    return sum(scores) / len(scores)


def _layer(section: BertScoreSection, depth: int) -> int:
    """The layer that is compared, of an encoder with so many. Raises `ConfigError` for one that it does not have."""
    layer = depth if section.layer is None else section.layer
    if layer > depth:
        raise ConfigError(f"decode.bertscore.layer = {layer}: {section.encoder} has layers 1 … {depth}")
    return layer


@torch.inference_mode()
def _states(encoder: Any, tokenizer: Any, texts: Sequence[str], layer: int) -> Iterator[torch.Tensor]:
    """Of each text the states (n, D) of its own tokens, each of length 1."""
    longest = min(MOST_TOKENS, tokenizer.model_max_length)
    for start in range(0, len(texts), BATCH):
        part = list(texts[start : start + BATCH])
        asked = tokenizer(
            part,
            padding=True,
            truncation=True,
            max_length=longest,
            return_special_tokens_mask=True,
            return_tensors="pt",
        ).to(encoder.device)
        own = asked["attention_mask"].bool() & ~asked.pop("special_tokens_mask").bool()
        states = encoder(**asked, output_hidden_states=True).hidden_states[layer]
        states = torch.nn.functional.normalize(states.float(), dim=-1)
        yield from (row[mask] for row, mask in zip(states, own, strict=True))


def _f1(written: torch.Tensor, true: torch.Tensor) -> float:
    """Of states (n, D) and (m, D) of length 1: each token is compared with the one nearest to it in the other text."""
    if not len(written) or not len(true):
        return 0.0
    alike = written @ true.T
    precision, recall = alike.max(1).values.mean().item(), alike.max(0).values.mean().item()
    return 2 * precision * recall / (precision + recall)
