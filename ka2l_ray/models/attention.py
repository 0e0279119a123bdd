"""Attention over a prompt prefix that all rows of a batch share, stored once instead of once per row.

In: a prefix's keys and values (one row); queries, keys and values of the rows' own tokens. Out: the attention output
over prefix and own tokens together. Keys and values are those that attention receives, not those of a cache: a model
whose cache stores latents (multi-head latent attention) can share its prefix too.
One matrix product reads the prefix for all rows, so neither its memory nor its traffic grows with the batch: cascade
attention, here for any Hugging Face model that uses the library's attention interface.
Refuses to know: tokens, batches, what the prefix says.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "ka2l_shared_prefix"
LAYER_TYPES = {"full_attention", "sliding_attention"}

KeysValues = dict[int, tuple[torch.Tensor, torch.Tensor]]
"""Per block the keys (H_kv, T, d) and values (H_kv, T, d_v) of one row of T tokens."""


@dataclass(frozen=True)
class PrefixStates:
    """Keys and values of a prefix, and the `positions` (B, T) of the queries that attend to it. No position is larger
    than `max_position`, a number on the host, so that no step has to ask the device."""

    keys_values: KeysValues
    positions: torch.Tensor
    max_position: int


_context: ContextVar[tuple[PrefixStates | None, KeysValues | None]] = ContextVar(
    "prefix and record", default=(None, None)
)


@contextmanager
def passes_with(prefix: PrefixStates | None = None, recorded: KeysValues | None = None) -> Iterator[None]:
    """Within this context every pass of a model that uses this attention sees the prefix before its own tokens; a pass
    over one row fills `recorded` with the keys and values of every block."""
    token = _context.set((prefix, recorded))
    try:
        yield
    finally:
        _context.reset(token)


def has_only_attention_layers(model: PreTrainedModel) -> bool:
    """Whether keys and values of attention are all that the model remembers of earlier tokens (no recurrent or
    convolutional state)."""
    return set(model.config.get_text_config().to_dict().get("layer_types") or ()) <= LAYER_TYPES


def supports_shared_prefix(model: PreTrainedModel) -> bool:
    """Whether the model's blocks use the library's attention interface, computed by SDPA or as SDPA does."""
    return (
        model._supports_attention_backend
        and has_only_attention_layers(model)
        and model.config._attn_implementation in ("sdpa", NAME)
    )


def install(model: PreTrainedModel) -> None:
    """Make this the model's attention. Without a prefix it is SDPA, plus the soft cap on scores that SDPA leaves out
    (Gemma 2)."""
    AttentionInterface.register(NAME, attention_forward)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)


@contextmanager
def installed(*models: PreTrainedModel) -> Iterator[None]:
    """Within this context this is the models' attention."""
    before: list[Any] = [model.config._attn_implementation for model in models]
    for model in models:
        install(model)
    yield
    for model, implementation in zip(models, before, strict=True):
        model.set_attn_implementation(implementation)


def attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention output (B, T, H, d_v) of queries (B, H, T, d) over the prefix of this context and, after it, keys (B,
    H_kv, S, d) and values (B, H_kv, S, d_v)."""
    layer: Any = module.layer_idx
    prefix, recorded = _context.get()
    if recorded is not None:
        recorded[layer] = key[0], value[0]
    if prefix is None and softcap is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
    (B, H, T, d), (groups, S) = query.shape, key.shape[1:3]
    scale = d**-0.5 if scaling is None else scaling
    grouped = (query * scale).reshape(B, groups, H // groups * T, d)
    scores = [(grouped @ key.transpose(-1, -2)).view(B, H, T, S)]
    masks = [_own_mask(attention_mask, T, S, query.device)]
    if prefix is not None:
        prefix_key, _ = prefix.keys_values[layer]
        all_rows = grouped.transpose(0, 1).reshape(groups, -1, d)
        prefix_scores = (all_rows @ prefix_key.transpose(-1, -2)).view(groups, B, H // groups, T, -1)
        scores.insert(0, prefix_scores.transpose(0, 1).reshape(B, H, T, -1))
        masks.insert(0, _prefix_mask(prefix, prefix_key, sliding_window))
    weights = _softmax(scores, masks, softcap).to(query.dtype)
    output = weights[..., -S:].reshape(B, groups, -1, S) @ value
    if prefix is not None:
        P = weights.shape[-1] - S
        shared = weights[..., :-S].reshape(B, groups, -1, P).transpose(0, 1).reshape(groups, -1, P)
        output = output + (shared @ prefix.keys_values[layer][1]).view(groups, B, -1, value.shape[-1]).transpose(0, 1)
    return output.view(B, H, T, -1).transpose(1, 2).contiguous(), None


def _own_mask(mask: torch.Tensor | None, queries: int, keys: int, device: torch.device) -> torch.Tensor | None:
    """Which own keys each query sees, (B or 1, 1, T, S); None where it sees all."""
    if mask is not None or queries == 1:
        return mask
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)[None, None]


def _prefix_mask(prefix: PrefixStates, key: torch.Tensor, window: int | None) -> torch.Tensor | None:
    """Which prefix keys each query sees, (B, 1, T, P); None where it sees all."""
    if window is None or prefix.max_position < window:
        return None
    positions = prefix.positions.to(key.device)
    return (positions.unsqueeze(-1) - torch.arange(key.shape[1], device=key.device) < window).unsqueeze(1)


def _softmax(scores: list[torch.Tensor], masks: list[torch.Tensor | None], softcap: float | None) -> torch.Tensor:
    """Float32 weights (B, H, T, P + S) over all parts of the keys together."""
    parts = []
    for part, mask in zip(scores, masks, strict=True):
        part = part.float()
        if softcap is not None:
            part = torch.tanh(part / softcap) * softcap
        parts.append(part if mask is None else part.masked_fill(~mask, torch.finfo(torch.float32).min))
    return torch.cat(parts, -1).softmax(-1)
