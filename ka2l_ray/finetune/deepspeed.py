"""The DeepSpeed configuration and the learning rate, as pure functions of ours.

In: a `FinetuneSection`, whether a worker has a GPU, and the precision. Out: a plain dict; a share of the learning rate per step.
Refuses to know: the deepspeed package, models.
"""

import math
from typing import Any, Literal

from ka2l_ray.config import FinetuneSection

BETAS = (0.9, 0.98)


def accumulation(finetune: FinetuneSection) -> int:
    """Micro-batches per worker and optimiser step."""
    per_worker = finetune.batch_rows // finetune.workers
    return max(1, -(-per_worker // finetune.micro_batch_rows))


def micro_rows(finetune: FinetuneSection) -> int:
    """Rows of one forward pass on one worker: never more than the worker's share of a step."""
    return min(finetune.micro_batch_rows, finetune.batch_rows // finetune.workers)


def rate(step: int, total_steps: int, warmup_share: float, schedule: Literal["linear", "cosine"] = "linear") -> float:
    """Share of the learning rate at an optimiser step (counted from 0): linear warm-up, then a linear or cosine fall to zero.

    Our own, because DeepSpeed's WarmupDecayLR takes its first two steps at a rate of zero.
    """
    warmup = max(1, round(warmup_share * total_steps))
    if step < warmup:
        return (step + 1) / warmup
    left = max(0.0, (total_steps - step) / max(1, total_steps - warmup))
    return left if schedule == "linear" else 0.5 - 0.5 * math.cos(math.pi * left)


def deepspeed_config(finetune: FinetuneSection, on_gpu: bool, bf16: bool) -> dict[str, Any]:
    """ZeRO stage, batch arithmetic, AdamW, clipping, offload.

    The optimiser is torch's AdamW everywhere: DeepSpeed's own (FusedAdam on a GPU, DeepSpeedCPUAdam under offload) are compiled on
    first use and need nvcc or a C++ compiler with ninja on every node. On a GPU without offload torch's fused kernel does the same work;
    under offload torch steps on the host's cores, slower than DeepSpeedCPUAdam, and nothing has to be built. In bfloat16 ZeRO keeps
    float32 master weights and optimiser state.
    """
    adam = {
        "lr": finetune.learning_rate,
        "weight_decay": finetune.weight_decay,
        "betas": list(BETAS),
        "torch_adam": True,
    }
    return {
        "train_batch_size": micro_rows(finetune) * accumulation(finetune) * finetune.workers,
        "train_micro_batch_size_per_gpu": micro_rows(finetune),
        "gradient_accumulation_steps": accumulation(finetune),
        "gradient_clipping": finetune.max_grad_norm,
        "zero_optimization": _zero(finetune, on_gpu),
        "bf16": {"enabled": bf16},
        "optimizer": {
            "type": "AdamW",
            "params": adam | ({"fused": True} if on_gpu and finetune.offload == "none" else {}),
        },
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }


def _zero(finetune: FinetuneSection, on_gpu: bool) -> dict[str, Any]:
    """Stage and offload. Pinned memory speeds copies up to a GPU; without one the host's memory is all there is."""
    place = {"device": "cpu", "pin_memory": on_gpu}
    zero: dict[str, Any] = {"stage": finetune.zero_stage}
    if finetune.offload != "none":
        zero["offload_optimizer"] = place
    if finetune.offload == "all":
        zero["offload_param"] = place
    return zero
