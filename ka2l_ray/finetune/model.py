"""The model that is trained, and the frozen base model for a KL term.

In: a `Job`. Out: the base model with LoRA adapters, or whole; a frozen copy of it where full weights are trained with a
KL term.
Refuses to know: DeepSpeed, Ray, data. Every rank loads the whole model once, also under ZeRO-3, which shards it
afterwards.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ka2l_ray.config import LoraSection
from ka2l_ray.errors import library_message
from ka2l_ray.finetune.job import Job, Refusal
from ka2l_ray.models.activations import blocks
from ka2l_ray.models.loading import load_model

TRAINED_IN = (torch.float32, torch.bfloat16)


def trainable_model(job: Job) -> nn.Module:
    """The base model in training precision and mode, with LoRA adapters unless `finetune.mode` is full.

    Raises `Refusal` for a precision that cannot be trained in, or LoRA targets that the model does not have.
    """
    model = load_model(job.training_model, placement=job.placement)
    if (dtype := next(model.parameters()).dtype) not in TRAINED_IN:
        raise Refusal(f"finetune.precision = {job.finetune.precision!r} gives {dtype}; set it to float32 or bfloat16")
    model.config.use_cache = False
    if job.finetune.gradient_checkpointing:
        # Under ZeRO-3 weights are freed between the passes, so saved and recomputed tensors differ in shape, which only
        # the reentrant implementation accepts.
        reentrant = {"use_reentrant": job.finetune.zero_stage == 3}
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=reentrant)
    if job.finetune.mode == "full":
        return model.train()
    if job.finetune.gradient_checkpointing:
        model.enable_input_require_grads()
    return with_new_adapters(model, job.finetune.lora).train()


def with_new_adapters(model: PreTrainedModel, lora: LoraSection) -> nn.Module:
    """The model frozen, with untrained adapters in its text decoder and head, or in the decoder's last blocks.

    Raises `Refusal` for targets that it does not have, and for more last blocks than it has.
    """
    from peft import LoraConfig, get_peft_model

    excluded = [*_modules_of_other_media(model), *_modules_before(model, lora.last_blocks)]
    targets = lora.targets if isinstance(lora.targets, str) else list(lora.targets)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets,
        exclude_modules=excluded or None,
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise Refusal(f"finetune.lora.targets = {lora.targets!r}: {library_message(error)}") from error


def _modules_of_other_media(model: PreTrainedModel) -> list[str]:
    """Names of the modules before the text decoder, such as those of a vision tower, which questions never reach."""
    inside = set(model.get_decoder().modules())
    within = {id(m) for m in model.base_model.modules()}
    return [n for n, m in model.named_modules() if id(m) in within and m not in inside and not list(m.children())]


def _modules_before(model: PreTrainedModel, last_blocks: int | None) -> list[str]:
    """Names of the modules in the blocks before the last so many; none where all blocks are meant."""
    if last_blocks is None:
        return []
    depth = model.config.get_text_config().num_hidden_layers
    if last_blocks > depth:
        raise Refusal(f"finetune.lora.last_blocks = {last_blocks}: the model has {depth} blocks")
    inside = {id(m) for block in blocks(model, depth)[: depth - last_blocks] for m in block.modules()}
    return [name for name, module in model.named_modules() if id(module) in inside and not list(module.children())]


def frozen_base(job: Job) -> PreTrainedModel | None:
    """A second, frozen copy of the base model where full weights are trained with a KL term; None otherwise.

    It is whole on every rank and takes the memory of the model's weights (2 bytes per parameter in bfloat16) on every
    device. LoRA needs none: its base is the model without adapters.
    """
    if not job.finetune.replay.kl_weight or job.finetune.mode == "lora":
        return None
    return load_model(job.training_model, placement=job.placement).requires_grad_(False)


@contextmanager
def without_adapters(model: Any) -> Iterator[None]:
    """Within this context a PEFT model in training is its base model."""
    model.eval()
    with model.disable_adapter():
        yield
    model.train()
