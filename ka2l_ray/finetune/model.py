"""The model that is trained, and the frozen base that it may be held to.

In: a `Job`. Out: the base model with LoRA adapters or whole; a frozen copy of it where full weights are trained under a KL term.
Refuses to know: DeepSpeed, Ray, data. Every rank loads the whole model once, also under ZeRO-3, which shards it afterwards.
"""

from typing import Any

import torch

from ka2l_ray.errors import library_message
from ka2l_ray.finetune.job import Job, Refusal
from ka2l_ray.models.loading import load_model


def trainable_model(job: Job) -> Any:
    """The base model in training precision, wrapped in LoRA adapters unless `mode` is full."""
    model: Any = load_model(job.trained, placement=job.placement)
    if (dtype := next(model.parameters()).dtype) not in (torch.float32, torch.bfloat16):
        raise Refusal(f"finetune.precision = {job.finetune.precision!r} gives {dtype}; set it to float32 or bfloat16")
    model.config.use_cache = False
    if job.finetune.gradient_checkpointing:
        # ZeRO-3 frees weights between the passes, so that what is saved and what is recomputed differ in shape: it needs the reentrant way.
        model.gradient_checkpointing_enable(
            gradient_checkpointing_kwargs={"use_reentrant": job.finetune.zero_stage == 3}
        )
    if job.finetune.mode == "full":
        return model.train()
    if job.finetune.gradient_checkpointing:
        model.enable_input_require_grads()
    return _with_adapters(model, job).train()


def _with_adapters(model: Any, job: Job) -> Any:
    from peft import LoraConfig, get_peft_model

    lora = job.finetune.lora
    targets = lora.targets if isinstance(lora.targets, str) else list(lora.targets)
    config = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets, task_type="CAUSAL_LM"
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise Refusal(f"finetune.lora.targets = {lora.targets!r}: {library_message(error)}") from error


def frozen_base(job: Job) -> Any | None:
    """A second copy of the base model, whole on every rank, where full weights are trained under a KL term: it costs the memory of the
    model's weights (2 bytes per parameter in bfloat16) on every device. LoRA needs none: its base is the model without adapters."""
    if not job.finetune.replay.kl_weight or job.finetune.mode == "lora":
        return None
    return load_model(job.trained, placement=job.placement).requires_grad_(False)
