"""The DeepSpeed configuration and the learning rate schedule, as pure functions of ours.

In: a `FinetuneSection`, whether a worker has a GPU, and the precision. Out: a plain dict; a factor on the learning rate
per step.
Refuses to know: the deepspeed package, models.
"""

import math
from typing import Any, Literal

from ka2l_ray.config import FinetuneSection

BETAS = (0.9, 0.98)
OFFLOADED = {"none": (), "optimizer": ("offload_optimizer",), "all": ("offload_optimizer", "offload_param")}
"""DeepSpeed's names of what `finetune.offload` keeps in the host's memory."""


def accumulation_steps(finetune: FinetuneSection) -> int:
    """Micro-batches per worker and optimiser step."""
    return math.ceil(finetune.batch_rows / (finetune.workers * finetune.micro_batch_rows))


def micro_batch_rows(finetune: FinetuneSection) -> int:
    """Rows of one forward pass on one worker: at most the worker's share of a step."""
    return min(finetune.micro_batch_rows, finetune.batch_rows // finetune.workers)


def learning_rate_factor(
    step: int, total_steps: int, warmup_share: float, schedule: Literal["linear", "cosine"] = "linear"
) -> float:
    """Factor on the learning rate at an optimiser step (counted from 0): linear warm-up, then a linear or cosine decay
    to zero.

    Our own, because DeepSpeed's WarmupDecayLR has a rate of zero in its first two steps.
    """
    warmup = max(1, round(warmup_share * total_steps))
    if step < warmup:
        return (step + 1) / warmup
    left = max(0.0, (total_steps - step) / max(1, total_steps - warmup))
    return left if schedule == "linear" else 0.5 - 0.5 * math.cos(math.pi * left)


def deepspeed_config(finetune: FinetuneSection, on_gpu: bool, bf16: bool) -> dict[str, Any]:
    """DeepSpeed's configuration: ZeRO stage, batch sizes, AdamW, gradient clipping, offload.

    The optimiser is always torch's AdamW: DeepSpeed's own (FusedAdam on a GPU, DeepSpeedCPUAdam under offload) are
    compiled on first use and need nvcc, or a C++ compiler with ninja, on every node. On a GPU without offload torch's
    fused kernel is as fast; under offload torch runs on the host's cores, slower than DeepSpeedCPUAdam, but nothing has
    to be built. In bfloat16 ZeRO keeps float32 master weights and optimiser state.
    """
    # Pinned memory makes copies to a GPU faster.
    offload = {part: {"device": "cpu", "pin_memory": on_gpu} for part in OFFLOADED[finetune.offload]}
    adam = {
        "lr": finetune.learning_rate,
        "weight_decay": finetune.weight_decay,
        "betas": list(BETAS),
        "torch_adam": True,
        **({"fused": True} if on_gpu and finetune.offload == "none" else {}),
    }
    return {
        "train_batch_size": micro_batch_rows(finetune) * accumulation_steps(finetune) * finetune.workers,
        "train_micro_batch_size_per_gpu": micro_batch_rows(finetune),
        "gradient_accumulation_steps": accumulation_steps(finetune),
        "gradient_clipping": finetune.max_grad_norm,
        "zero_optimization": {"stage": finetune.zero_stage} | offload,
        "bf16": {"enabled": bf16},
        "optimizer": {"type": "AdamW", "params": adam},
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }
