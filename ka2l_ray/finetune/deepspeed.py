"""The DeepSpeed configuration as a pure function of ours.

In: a `FinetuneSection` and what the hardware is. Out: a plain dict. Refuses to know: the deepspeed package, models.
"""

from typing import Any

from ka2l_ray.config import FinetuneSection


def accumulation(finetune: FinetuneSection) -> int:
    """Micro-batches per worker and optimiser step."""
    per_worker = finetune.batch_rows // finetune.workers
    return max(1, -(-per_worker // finetune.micro_batch_rows))


def micro_rows(finetune: FinetuneSection) -> int:
    """Rows of one forward pass on one worker: never more than the worker's share of a step."""
    return min(finetune.micro_batch_rows, finetune.batch_rows // finetune.workers)


def rate(step: int, total_steps: int, warmup_share: float) -> float:
    """Share of the learning rate at an optimiser step (counted from 0): linear warm-up, then linear decay to zero.

    Our own, because DeepSpeed's WarmupDecayLR takes its first two steps at a rate of zero.
    """
    warmup = max(1, round(warmup_share * total_steps))
    return (step + 1) / warmup if step < warmup else max(0.0, (total_steps - step) / max(1, total_steps - warmup))


def deepspeed_config(finetune: FinetuneSection, cuda: bool, bf16: bool) -> dict[str, Any]:
    """ZeRO stage, batch arithmetic, AdamW, clipping. On a CPU the plain torch Adam: nothing compiles."""
    adam = {"lr": finetune.learning_rate, "weight_decay": finetune.weight_decay, "betas": [0.9, 0.98]}
    return {
        "train_batch_size": micro_rows(finetune) * accumulation(finetune) * finetune.workers,
        "train_micro_batch_size_per_gpu": micro_rows(finetune),
        "gradient_accumulation_steps": accumulation(finetune),
        "gradient_clipping": finetune.max_grad_norm,
        "zero_optimization": {"stage": finetune.zero_stage},
        "bf16": {"enabled": bf16},
        "optimizer": {"type": "AdamW", "params": adam | ({} if cuda else {"torch_adam": True})},
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }
