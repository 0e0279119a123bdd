"""Training a decoder: it learns on the CPU, and where the model is on another device everything goes there."""

import copy
import itertools
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ka2l_ray.config import PromptSection
from ka2l_ray.decode.train import DecoderRecipe, train_decoder

QUESTIONS = [["Why?", "Where does she live?"], ["Who is he?", "When was that?"]]
READS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.item.default, torch.ops.aten.is_nonzero.default)


class OneDevice(TorchDispatchMode):
    """Refuses what a GPU refuses, to compute from tensors on two devices; numbers without a dimension may lie on the
    CPU.

    A number read from the `meta` device, which stores none, is 0.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [t for t in tree_leaves((args, kwargs or {})) if isinstance(t, torch.Tensor)]
        if func in READS and tensors[0].is_meta:
            return 0.0
        if func not in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            assert len({t.device for t in tensors if t.dim()}) <= 1, (
                f"{func}: {[(t.device, tuple(t.shape)) for t in tensors]}"
            )
        return func(*args, **(kwargs or {}))


def train(model: Any, tokenizer: Any, steps: int) -> tuple[Any, list[float]]:
    losses: list[float] = []
    recipe = DecoderRecipe(layer=2, steps=steps, batch_rows=2, warmup_steps=2)
    decoder = train_decoder(
        model,
        tokenizer,
        PromptSection(),
        "tiny",
        itertools.cycle(QUESTIONS),
        recipe,
        lambda step, loss: losses.append(loss),
    )
    return decoder, losses


def test_a_decoder_is_trained_on_the_models_device(llama, tokenizer):
    """The `meta` device stands for a GPU."""
    elsewhere = copy.deepcopy(llama).to("meta")
    with OneDevice():
        decoder, losses = train(elsewhere, tokenizer, 2)
    assert {t.device.type for t in decoder.state_dict().values()} == {"meta"}
    assert losses == [0.0, 0.0]


def test_a_decoder_learns_the_questions_it_is_shown(llama, tokenizer):
    decoder, losses = train(llama, tokenizer, 40)
    assert sum(losses[-4:]) < 0.7 * sum(losses[:4])
    assert {t.device.type for t in decoder.state_dict().values()} == {"cpu"}


def test_the_test_refuses_two_devices():
    with OneDevice(), pytest.raises(AssertionError, match="meta"):
        torch.add(torch.ones(2), torch.ones(2, device="meta"))
