"""Attention over a prompt prefix that every row shares, held once instead of once per row.

In: a prefix's keys and values (one row), queries, keys and values of the rows' own tokens. Out: what attention over prefix and own
tokens together gives. Keys and values are those that attention itself is given, not those of a cache: where a model caches latents from
which it makes them (multi-head latent attention), the prefix is shared all the same.
A prefix is read by one matrix product for all rows, so that neither its memory nor its traffic grows with the batch: what
cascade attention is for paged caches, here for any Hugging Face model that takes its attention from the library's interface.
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


@dataclass(frozen=True)
class PrefixStates:
    """Per block the keys (H_kv, P, d) and values (H_kv, P, d_v) of a prefix of P tokens; `positions` (B, T) of the queries that look back
    at it, none of them beyond `farthest`, which the host knows without asking the device."""

    keys: dict[int, torch.Tensor]
    values: dict[int, torch.Tensor]
    positions: torch.Tensor
    farthest: int


_active: ContextVar[PrefixStates | None] = ContextVar("shared prefix of this pass", default=None)
_seen: ContextVar[dict[int, tuple[torch.Tensor, torch.Tensor]] | None] = ContextVar(
    "keys and values of this pass", default=None
)


@contextmanager
def recording() -> Iterator[dict[int, tuple[torch.Tensor, torch.Tensor]]]:
    """Within this context a pass over one row leaves every block's keys (H_kv, T, d) and values (H_kv, T, d_v)."""
    seen: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    token = _seen.set(seen)
    try:
        yield seen
    finally:
        _seen.reset(token)


@contextmanager
def looking_back(prefix: PrefixStates) -> Iterator[None]:
    """Within this context every pass of a model that uses this attention sees the prefix before its own tokens."""
    token = _active.set(prefix)
    try:
        yield
    finally:
        _active.reset(token)


def has_plain_layers(model: PreTrainedModel) -> bool:
    """Whether all that a model remembers of earlier tokens are attention keys and values (no recurrent or convolutional state)."""
    return set(model.config.get_text_config().to_dict().get("layer_types") or ()) <= LAYER_TYPES


def takes_shared_prefix(model: PreTrainedModel) -> bool:
    """Whether a model's blocks take their attention from the library's interface, computed by SDPA or as SDPA does."""
    return (
        model._supports_attention_backend
        and has_plain_layers(model)
        and model.config._attn_implementation in ("sdpa", NAME)
    )


def use(model: PreTrainedModel) -> None:
    """Make this the model's attention. Without a prefix it is SDPA, with the soft cap on scores that SDPA leaves out (Gemma 2)."""
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)


def attend(
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
    """Attention output (B, T, H, d_v) of queries (B, H, T, d) over keys (B, H_kv, S, d) and values (B, H_kv, S, d_v) and, before them, the
    active prefix."""
    layer: Any = module.layer_idx
    prefix, seen = _active.get(), _seen.get()
    if seen is not None:
        seen[layer] = key[0], value[0]
    if prefix is None and softcap is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
    (B, H, T, d), (groups, S) = query.shape, key.shape[1:3]
    scale = d**-0.5 if scaling is None else scaling
    grouped = (query * scale).reshape(B, groups, H // groups * T, d)
    scores = [(grouped @ key.transpose(-1, -2)).view(B, H, T, S)]
    visible = [_own_visible(attention_mask, T, S, query.device)]
    if prefix is not None:
        prefix_key, prefix_value = prefix.keys[layer], prefix.values[layer]
        together = grouped.transpose(0, 1).reshape(groups, -1, d)
        looked = (together @ prefix_key.transpose(-1, -2)).view(groups, B, H // groups, T, -1)
        scores.insert(0, looked.transpose(0, 1).reshape(B, H, T, -1))
        visible.insert(0, _prefix_visible(prefix, prefix_key, sliding_window))
    weights = _softmax(scores, visible, softcap).to(query.dtype)
    own = weights[..., -S:].reshape(B, groups, -1, S) @ value
    if prefix is not None:
        shared = (
            weights[..., :-S]
            .reshape(B, groups, -1, weights.shape[-1] - S)
            .transpose(0, 1)
            .reshape(groups, -1, weights.shape[-1] - S)
        )
        own = own + (shared @ prefix_value).view(groups, B, -1, value.shape[-1]).transpose(0, 1)
    return own.view(B, H, T, -1).transpose(1, 2).contiguous(), None


def _own_visible(mask: torch.Tensor | None, queries: int, keys: int, device: torch.device) -> torch.Tensor | None:
    """Which own keys each query sees, (B or 1, 1, T, S); None where it sees all."""
    if mask is not None or queries == 1:
        return mask
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)[None, None]


def _prefix_visible(prefix: PrefixStates, key: torch.Tensor, window: int | None) -> torch.Tensor | None:
    """Which prefix keys each query sees, (B, 1, T, P); None where it sees all."""
    if window is None or prefix.farthest < window:
        return None
    positions = prefix.positions.to(key.device)
    return (positions.unsqueeze(-1) - torch.arange(key.shape[1], device=key.device) < window).unsqueeze(1)


def _softmax(scores: list[torch.Tensor], visible: list[torch.Tensor | None], softcap: float | None) -> torch.Tensor:
    """Weights over all parts of the keys together, (B, H, T, P + S), in float32."""
    parts = []
    for part, seen in zip(scores, visible, strict=True):
        part = part.float()
        if softcap is not None:
            part = torch.tanh(part / softcap) * softcap
        parts.append(part if seen is None else part.masked_fill(~seen, torch.finfo(torch.float32).min))
    return torch.cat(parts, -1).softmax(-1)
