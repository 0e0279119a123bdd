"""The tokens that begin every prompt, run once per model.

In: a model and the shared tokens. Out: their keys and values, which every batch starts from.
Models whose attention comes from Hugging Face's interface look back at the one copy (`attention`); others get a copy per row.
Refuses to know: which text the tokens are.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from ka2l_ray.models import attention
from ka2l_ray.models.activations import Encoded


class GrowingLayer(DynamicLayer):
    """A block's keys and values in buffers with room to grow: a step writes its own tokens and copies no earlier ones."""

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._buffers, self._length = [_buffer(t, 0) for t in (key_states, value_states)], 0
        end = self._length + key_states.shape[-2]
        for which, (states, held) in enumerate(zip((key_states, value_states), self._buffers, strict=True)):
            if end > held.shape[-2]:
                grown = _buffer(states, 2 * end)
                grown[..., : self._length, :] = held[..., : self._length, :]
                self._buffers[which] = held = grown
            held[..., self._length : end, :] = states
        return self._show(end)

    def _show(self, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        self._length = length
        self.keys, self.values = (b[..., :length, :] for b in self._buffers)
        return self.keys, self.values

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._buffers = [b.repeat_interleave(repeats, 0) for b in self._buffers]
        self._show(self._length)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self._buffers = [b[indices] for b in self._buffers]
        self._show(self._length)


def _buffer(like: torch.Tensor, length: int) -> torch.Tensor:
    return like.new_empty(*like.shape[:-2], length, like.shape[-1])


class SharedPrefix:
    """Keys and values of the shared tokens; without any, batches start from nothing. Makes `attention` the model's own where it can."""

    @torch.inference_mode()
    def __init__(self, model: PreTrainedModel, ids: Sequence[int]) -> None:
        self._looks_back = attention.takes_shared_prefix(model)
        if self._looks_back:
            attention.use(model)
        self.ids = tuple(ids) if attention.has_plain_layers(model) else ()
        self._keys: tuple[torch.Tensor, ...] = ()
        self._values: tuple[torch.Tensor, ...] = ()
        if self.ids:
            cache = DynamicCache()
            backbone: Any = model.base_model
            backbone(input_ids=torch.tensor([self.ids], device=model.device), past_key_values=cache, use_cache=True)
            layers: list[Any] = cache.layers
            self._keys, self._values = tuple(x.keys[0] for x in layers), tuple(x.values[0] for x in layers)

    def start(self, encoded: Encoded, keeps: bool) -> dict[str, Any]:
        """Keyword arguments of the first pass over a batch, to be made within `behind`.

        `keeps` its keys and values, for answers to follow.
        """
        inputs: dict[str, Any] = encoded.inputs()
        if self._looks_back:
            cache = Cache(layer_class_to_replicate=GrowingLayer) if keeps else None
        elif encoded.before:
            rows = len(encoded.ids)
            cache = DynamicCache([(_rows(k, rows), _rows(v, rows)) for k, v in zip(self._keys, self._values, strict=True)])
            inputs["attention_mask"] = torch.cat([encoded.mask.new_ones(rows, encoded.before), encoded.mask], -1)
        else:
            cache = None
        return inputs | {"past_key_values": cache, "use_cache": keeps or cache is not None}

    def behind(self, encoded: Encoded, positions: torch.Tensor) -> AbstractContextManager[None]:
        """Passes over this batch within the context see the prefix, if it starts behind it; `positions` (B, T) of their tokens."""
        if not (self._looks_back and encoded.before):
            return nullcontext()
        return attention.looking_back(attention.PrefixStates(self._keys, self._values, positions))


def _rows(states: torch.Tensor, rows: int) -> torch.Tensor:
    return states.expand(rows, *states.shape)
