"""The tokens that all prompts begin with, run once per model.

In: a model and the shared tokens. Out: their keys and values, which every batch starts from.
Models that use Hugging Face's attention interface attend to one copy of them (`attention`); for others they are copied
to every row.
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
from ka2l_ray.models.abilities import Sharing
from ka2l_ray.models.activations import Encoded


class PreallocatedLayer(DynamicLayer):
    """A block's keys and values in buffers with space for `room` tokens after the prompt: a step writes its own tokens
    and copies no earlier ones.

    The space is allocated once rows are repeated for their answers, so that memory is what `batching.Load` counts.
    """

    def __init__(self, room: int) -> None:
        super().__init__()
        self._room = room

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append keys (B, H_kv, T, d) and values (B, H_kv, T, d_v); returns all of them so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._buffers = [key_states, value_states]
            return self._set_length(key_states.shape[-2])
        end = self._length + key_states.shape[-2]
        for i, states in enumerate((key_states, value_states)):
            if end > self._buffers[i].shape[-2]:
                self._buffers[i] = self._with_room(self._buffers[i], 1)
            self._buffers[i][..., self._length : end, :] = states
        return self._set_length(end)

    def _set_length(self, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        self._length = length
        self.keys, self.values = (b[..., :length, :] for b in self._buffers)
        return self.keys, self.values

    def _with_room(self, buffer: torch.Tensor, repeats: int) -> torch.Tensor:
        """A larger buffer: the tokens so far, each row `repeats` times, and room after them."""
        rows, heads, _, width = buffer.shape
        larger = buffer.new_empty(rows * repeats, heads, self._length + self._room, width)
        larger[..., : self._length, :] = buffer[..., : self._length, :].repeat_interleave(repeats, 0)
        return larger

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row, and allocate the room."""
        # One by one, so that the old keys are freed before the new values are made.
        for i, buffer in enumerate(self._buffers):
            self._buffers[i] = self._with_room(buffer, repeats)
        self._set_length(self._length)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep the rows `indices`."""
        self._buffers = [b[indices] for b in self._buffers]
        self._set_length(self._length)


def select_rows(cache: Any, indices: torch.Tensor) -> None:
    """Make rows `indices`, in this order, those of a Hugging Face cache, whose blocks may be on several devices.

    Recurrent and convolutional states are among what a block reorders; `batch_select_indices` leaves them out.
    """
    for layer in cache.layers:
        if isinstance(layer, PreallocatedLayer):
            layer.batch_select_indices(indices.to(layer.device))
        else:
            layer.reorder_cache(indices)


def repeat_rows(cache: Any, rows: int, repeats: int) -> None:
    """Repeat each of a cache's rows."""
    for layer in cache.layers:
        if isinstance(layer, PreallocatedLayer):
            layer.batch_repeat_interleave(repeats)
        else:
            layer.reorder_cache(torch.arange(rows).repeat_interleave(repeats))


class SharedPrefix:
    """Keys and values of the shared tokens `ids`, which may be none. Installs `attention` in the model where `sharing`
    asks for it and the model supports it."""

    @torch.inference_mode()
    def __init__(self, model: PreTrainedModel, ids: Sequence[int], sharing: Sharing = "attended") -> None:
        self._is_attended = sharing == "attended" and attention.supports_shared_prefix(model)
        if self._is_attended:
            attention.install(model)
        self.ids = tuple(ids) if sharing != "none" and attention.has_only_attention_layers(model) else ()
        self._keys_values = self._run(model) if self.ids else {}

    @property
    def sharing(self) -> Sharing:
        """How the tokens are shared, which is not more than the model supports."""
        return "none" if not self.ids else "attended" if self._is_attended else "copied"

    def _run(self, model: PreTrainedModel) -> attention.KeysValues:
        """Keys and values of the prefix: those that attention receives or, where rows start from a copy, those of the
        cache."""
        backbone: Any = model.base_model
        ids = torch.tensor([self.ids], device=model.device)
        if self._is_attended:
            recorded: attention.KeysValues = {}
            with attention.passes_with(recorded=recorded):
                backbone(input_ids=ids, use_cache=False)
            return recorded
        cache: Any = DynamicCache()
        backbone(input_ids=ids, past_key_values=cache, use_cache=True)
        return {n: (layer.keys[0], layer.values[0]) for n, layer in enumerate(cache.layers)}

    def first_inputs(self, encoded: Encoded, room: int = 0) -> dict[str, Any]:
        """Keyword arguments of the first pass over a batch, which must run within `attached`.

        With `room` the keys and values are kept for answers of so many tokens.
        """
        inputs: dict[str, Any] = encoded.inputs()
        cache: Any = None
        if self._is_attended:
            cache = Cache(layer_class_to_replicate=partial(PreallocatedLayer, room)) if room else None  # type: ignore[arg-type]
        elif encoded.prefix_length:
            rows = len(encoded.ids)
            cache = DynamicCache([tuple(t.expand(rows, *t.shape) for t in kv) for kv in self._keys_values.values()])
            inputs["attention_mask"] = torch.cat([encoded.mask.new_ones(rows, encoded.prefix_length), encoded.mask], -1)
        kept = {} if cache is None else {"past_key_values": cache}
        return inputs | kept | {"use_cache": room > 0 or cache is not None}

    def attached(self, encoded: Encoded, positions: torch.Tensor, generated: int = 0) -> AbstractContextManager[None]:
        """Within this context passes over the batch see the prefix, if the batch leaves it out. `positions` (B, T) are
        those of the pass's tokens, at most `generated` of an answer's tokens after the prompts."""
        if not (self._is_attended and encoded.prefix_length):
            return nullcontext()
        return attention.passes_with(
            attention.PrefixStates(self._keys_values, positions, encoded.max_length - 1 + generated)
        )
