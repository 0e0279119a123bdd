"""Passes that begin at the first trained block give the losses and gradients of whole ones, and read each row once."""

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from ka2l_ray.config import LoraSection
from ka2l_ray.finetune.examples import TokenizedRow
from ka2l_ray.finetune.losses import answer_loss
from ka2l_ray.finetune.model import with_new_adapters
from ka2l_ray.finetune.passes import WORTH_SHARING, Passes, shared_tokens
from ka2l_ray.finetune.trunk import Trunk, frozen_blocks
from ka2l_ray.models import attention
from ka2l_ray.models.activations import blocks

CPU = torch.device("cpu")
PAD = 0
PREFIX = list(range(5, 5 + WORTH_SHARING + 3))
ROWS = [
    TokenizedRow([*PREFIX, 7, 8, 9, 10], len(PREFIX) + 2),
    TokenizedRow([*PREFIX, 9, 11, 12, 13, 6, 7, 8, 9], len(PREFIX) + 5),
    TokenizedRow([*PREFIX, 12, 7, 10, 14, 15, 16], len(PREFIX) + 3),
]


def block_list(model):
    return blocks(model, model.config.num_hidden_layers)


@pytest.fixture
def adapted(model):
    """A model with adapters in its last block alone that already change what it says, and its base model."""
    torch.manual_seed(0)
    module: Any = with_new_adapters(copy.deepcopy(model), LoraSection(rank=2, last_blocks=1))
    for name, parameter in module.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return module, module.get_base_model()


def loss_and_gradients(module, passes, rows):
    loss = answer_loss(*passes(rows))
    return loss, torch.autograd.grad(loss, [p for p in module.parameters() if p.requires_grad])


@pytest.mark.parametrize("shares", [True, False])
def test_loss_and_gradients_are_those_of_whole_passes(adapted, shares):
    module, base = adapted
    orders = ([0, 1, 2], [2, 0, 1], [1])
    batches = [[ROWS[i] for i in order] for order in orders]
    expected = [loss_and_gradients(module, Passes(base, CPU, PAD), rows) for rows in batches]
    shared, first, ran_whole = shared_tokens(ROWS) if shares else (), block_list(base)[0], []
    with attention.installed(base):
        trunk = Trunk(base, frozen_blocks(base), CPU, PAD, shared)
        trunk(ROWS)
        own = first.forward
        hook = first.register_forward_hook(lambda block, args, output: ran_whole.append(block.forward == own))
        passes = Passes(base, CPU, PAD, shared, call=module, trunk=trunk)
        found = [loss_and_gradients(module, passes, rows) for rows in batches]
    hook.remove()
    for (loss, gradients), (wanted, wanted_gradients) in zip(found, expected, strict=True):
        torch.testing.assert_close(loss, wanted, atol=1e-4, rtol=1e-5)
        for mine, theirs in zip(gradients, wanted_gradients, strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-3)
    assert ran_whole
    assert not any(ran_whole), "a frozen block never runs again"
    assert first.forward == own


@pytest.mark.parametrize(("kept_bytes", "reads"), [(2**20, 1), (0, 3)])
def test_a_row_is_read_once_if_its_states_may_be_kept(adapted, kept_bytes, reads):
    _, base = adapted
    trunk, read = Trunk(base, 1, CPU, PAD, kept_bytes=kept_bytes), []
    hook = base.get_input_embeddings().register_forward_hook(lambda module, args, output: read.append(len(args[0])))
    first = trunk(ROWS)
    for _ in range(2):
        assert torch.equal(trunk(ROWS), first)
    hook.remove()
    assert read == [len(ROWS)] * reads


def test_frozen_are_the_blocks_before_the_first_that_is_trained(model):
    depth = len(block_list(model))
    whole = copy.deepcopy(model)
    assert frozen_blocks(whole) == 0
    assert frozen_blocks(whole.requires_grad_(False)) == 0
    for last_blocks, frozen in ((1, depth - 1), (None, 0)):
        module: Any = with_new_adapters(copy.deepcopy(model), LoraSection(rank=2, last_blocks=last_blocks))
        assert frozen_blocks(module.get_base_model()) == frozen


def test_adapted_embeddings_leave_nothing_frozen(llama):
    lora = LoraConfig(r=2, target_modules=["embed_tokens"], task_type="CAUSAL_LM")
    module: Any = get_peft_model(copy.deepcopy(llama), lora)
    assert frozen_blocks(module.get_base_model()) == 0


@pytest.mark.parametrize("missing", [0.0, None])
def test_blocks_that_hand_on_more_than_states_are_not_skipped(adapted, missing):
    """The last block adds what the first left in this pass, as blocks that share keys and values do; where the first
    did not run there is a zero, or nothing that could be added."""
    _, base = adapted
    assert Trunk.of(base, ROWS, CPU, PAD, ()) is not None
    (first, *_, last), left = block_list(base), {}
    run_first = first.forward

    def leaves(*args, **kwargs):
        output = run_first(*args, **kwargs)
        left["states"] = args[0] if args else kwargs["hidden_states"]
        return output

    def adds(block, args, output):
        return (output[0] + left["states"], *output[1:]) if isinstance(output, tuple) else output + left["states"]

    first.forward = leaves
    hooks = [
        base.get_input_embeddings().register_forward_pre_hook(lambda *_: left.update(states=missing)),
        last.register_forward_hook(adds),
    ]
    assert Trunk.of(base, ROWS, CPU, PAD, ()) is None
    for hook in hooks:
        hook.remove()
    del first.forward
