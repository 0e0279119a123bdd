"""The tokens that begin every prompt, run once per model.

In: a model and the shared tokens. Out: their keys and values, which every batch starts from.
Models whose attention comes from Hugging Face's interface look back at the one copy (`attention`); others get a copy per row.
Refuses to know: which text the tokens are.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from ka2l_ray.models import attention
from ka2l_ray.models.activations import Encoded


class GrowingLayer(DynamicLayer):
    """A block's keys and values in buffers with room for the tokens to come: a step writes its own tokens and copies no earlier ones.

    The room (`room` tokens behind the first ones) is taken once rows are repeated for their answers, so that memory is what was planned.
    """

    def __init__(self, room: int) -> None:
        super().__init__()
        self._room = room

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._buffers = [key_states, value_states]
            return self._show(key_states.shape[-2])
        end = self._length + key_states.shape[-2]
        for which, states in enumerate((key_states, value_states)):
            if end > self._buffers[which].shape[-2]:
                self._buffers[which] = self._roomy(self._buffers[which], 1)
            self._buffers[which][..., self._length : end, :] = states
        return self._show(end)

    def _show(self, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        self._length = length
        self.keys, self.values = (b[..., :length, :] for b in self._buffers)
        return self.keys, self.values

    def _roomy(self, held: torch.Tensor, repeats: int) -> torch.Tensor:
        """The tokens held so far, each row `repeats` times, with room behind them."""
        rows, heads, _, width = held.shape
        buffer = held.new_empty(rows * repeats, heads, self._length + self._room, width)
        buffer[..., : self._length, :] = held[..., : self._length, :].repeat_interleave(repeats, 0)
        return buffer

    def batch_repeat_interleave(self, repeats: int) -> None:
        for which, held in enumerate(self._buffers):
            self._buffers[which] = self._roomy(held, repeats)
        self._show(self._length)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self._buffers = [b[indices] for b in self._buffers]
        self._show(self._length)


def select_rows(cache: Any, indices: torch.Tensor) -> None:
    """Keep some rows of a cache, whose blocks may lie on several devices."""
    for layer in cache.layers:
        layer.batch_select_indices(indices.to(layer.device))


class SharedPrefix:
    """Keys and values of the shared tokens; without any, batches start from nothing. Makes `attention` the model's own where it can."""

    @torch.inference_mode()
    def __init__(self, model: PreTrainedModel, ids: Sequence[int]) -> None:
        self._looks_back = attention.takes_shared_prefix(model)
        if self._looks_back:
            attention.use(model)
        self.ids = tuple(ids) if attention.has_plain_layers(model) else ()
        self._keys: dict[int, torch.Tensor] = {}
        self._values: dict[int, torch.Tensor] = {}
        if self.ids:
            for layer, (keys, values) in self._read(model).items():
                self._keys[layer], self._values[layer] = keys, values

    def _read(self, model: PreTrainedModel) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
        """Keys and values of the prefix per block: those that attention is given, or those of a cache for rows to begin with."""
        backbone: Any = model.base_model
        ids = torch.tensor([self.ids], device=model.device)
        if self._looks_back:
            with attention.recording() as seen:
                backbone(input_ids=ids, use_cache=False)
            return seen
        cache = DynamicCache()
        backbone(input_ids=ids, past_key_values=cache, use_cache=True)
        layers: list[Any] = cache.layers
        return {n: (layer.keys[0], layer.values[0]) for n, layer in enumerate(layers)}

    def start(self, encoded: Encoded, room: int = 0) -> dict[str, Any]:
        """Keyword arguments of the first pass over a batch, to be made within `behind`.

        With `room` its keys and values are kept for answers of so many tokens to follow.
        """
        inputs: dict[str, Any] = encoded.inputs()
        if self._looks_back:
            cache: Any = Cache(layer_class_to_replicate=partial(GrowingLayer, room)) if room else None  # type: ignore[arg-type]
        elif encoded.before:
            rows = len(encoded.ids)
            cache = DynamicCache(
                [
                    (_rows(k, rows), _rows(v, rows))
                    for k, v in zip(self._keys.values(), self._values.values(), strict=True)
                ]
            )
            inputs["attention_mask"] = torch.cat([encoded.mask.new_ones(rows, encoded.before), encoded.mask], -1)
        else:
            cache = None
        return inputs | {"past_key_values": cache, "use_cache": room > 0 or cache is not None}

    def behind(self, encoded: Encoded, positions: torch.Tensor, said: int = 0) -> AbstractContextManager[None]:
        """Passes over this batch within the context see the prefix, if it starts behind it; `positions` (B, T) of their tokens, after
        `said` tokens of an answer."""
        if not (self._looks_back and encoded.before):
            return nullcontext()
        return attention.looking_back(
            attention.PrefixStates(self._keys, self._values, positions, encoded.end - 1 + said)
        )


def _rows(states: torch.Tensor, rows: int) -> torch.Tensor:
    return states.expand(rows, *states.shape)
