"""The KV cache of a batch: each block on its own device, and no larger than planned."""

from typing import Any

import pytest
import torch
from tiny_models import BLOCKS, tiny_model
from torch.overrides import TorchFunctionMode
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from ka2l_ray.models.activations import pad
from ka2l_ray.models.attention import PrefixStates, _prefix_mask
from ka2l_ray.models.prefix import PreallocatedLayer, SharedPrefix, select_rows
from ka2l_ray.text.prompts import Prompt


class IndicesOnTheirTensorsDevice(TorchFunctionMode):
    """Fails as two GPUs do where a tensor on one device is indexed by rows on another."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.__getitem__:
            indices = args[1] if isinstance(args[1], tuple) else (args[1],)
            assert {i.device for i in indices if isinstance(i, torch.Tensor)} <= {args[0].device}
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("layer", [lambda: PreallocatedLayer(2), DynamicLayer], ids=["attended", "copied"])
def test_rows_are_selected_on_each_blocks_own_device(layer):
    """The `meta` device stands for a second GPU."""
    cache = Cache(layers=[layer(), layer()])
    for n, device in enumerate(("cpu", "meta")):
        cache.update(torch.ones(3, 2, 4, 8, device=device), torch.ones(3, 2, 4, 8, device=device), n)
    cache.batch_repeat_interleave(2)
    with IndicesOnTheirTensorsDevice():
        select_rows(cache, torch.tensor([0, 5]))
    layers: list[Any] = cache.layers
    assert [(x.keys.device.type, *x.keys.shape) for x in layers] == [("cpu", 2, 2, 4, 8), ("meta", 2, 2, 4, 8)]


def keys_of(layer: Any) -> torch.Tensor:
    """The keys in a layer of a cache."""
    return layer.keys


def test_the_cache_is_as_large_as_planned_and_is_never_copied_again():
    """Prompts of 4 tokens, 3 copies each, room for 5 tokens: 9 tokens per row, values narrower than keys."""
    layer, drawn = PreallocatedLayer(5), torch.Generator().manual_seed(0)
    keys, values = torch.randn(2, 2, 4, 8, generator=drawn), torch.randn(2, 2, 4, 6, generator=drawn)
    layer.update(keys, values)
    layer.batch_repeat_interleave(3)
    keys, values = keys.repeat_interleave(3, 0), values.repeat_interleave(3, 0)
    held = [b.data_ptr() for b in layer._buffers]
    for _ in range(5):
        step = torch.randn(6, 2, 1, 8, generator=drawn), torch.randn(6, 2, 1, 6, generator=drawn)
        keys, values = torch.cat([keys, step[0]], -2), torch.cat([values, step[1]], -2)
        updated = layer.update(*step)
        assert updated[0].equal(keys)
        assert updated[1].equal(values)
    assert [b.data_ptr() for b in layer._buffers] == held
    assert [tuple(b.shape) for b in layer._buffers] == [(6, 2, 9, 8), (6, 2, 9, 6)]
    layer.batch_select_indices(torch.tensor([1, 4]))
    assert torch.equal(keys_of(layer), keys[[1, 4]])
    assert [b.shape[-2] for b in layer._buffers] == [9, 9]


def test_a_prefix_is_stored_as_attention_sees_it_where_the_cache_contains_latents(tokenizer):
    """DeepSeek caches 16 latents and 4 rotated numbers per token; its 4 heads read keys of 12 and values of 6."""
    model, cache = tiny_model("deepseek_v3", tokenizer), DynamicCache()
    model(torch.tensor([[5, 6, 7]]), past_key_values=cache, use_cache=True)
    assert keys_of(cache.layers[0]).shape == (1, 1, 3, 16)
    prefix = SharedPrefix(model, (5, 6, 7))
    assert {(tuple(k.shape), tuple(v.shape)) for k, v in prefix._keys_values.values()} == {((4, 3, 12), (4, 3, 6))}
    assert list(prefix._keys_values) == list(range(BLOCKS))


@pytest.mark.parametrize("window", [None, 1, 3, 4, 5, 6, 9])
@pytest.mark.parametrize("generated", [0, 1, 2])
def test_what_a_sliding_window_hides_is_known_without_asking_the_device(window, generated):
    """A prefix of 3 tokens, own parts of 1 and 2: the mask shows the keys within the window, and is None where these
    are all.

    The `meta` device cannot be asked for a value.
    """
    encoded = pad([Prompt((5, 6, 7, *[8] * n), 3, 3 + n) for n in (1, 2)], 0, 3)
    positions = encoded.positions[:, -1:] + generated if generated else encoded.positions
    for device in ("cpu", "meta"):
        prefix = PrefixStates({}, positions.to(device), encoded.max_length - 1 + generated)
        visible = _prefix_mask(prefix, torch.empty(2, 3, 8, device=device), window)
        if device == "cpu":
            seen = torch.ones(1, dtype=torch.bool) if visible is None else visible[:, 0]
            expected = positions[..., None] - torch.arange(3) < (window or 99)
            assert (seen == expected).all()
            assert (visible is None) == bool(expected.all())
