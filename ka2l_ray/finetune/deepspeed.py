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


def deepspeed_config(finetune: FinetuneSection, total_steps: int, cuda: bool, bf16: bool) -> dict[str, Any]:
    """ZeRO stage, batch arithmetic, AdamW, clipping, warm-up then linear decay. On a CPU the plain torch Adam: nothing compiles."""
    warmup = max(1, round(finetune.warmup_share * total_steps))
    adam = {"lr": finetune.learning_rate, "weight_decay": finetune.weight_decay, "betas": [0.9, 0.98]}
    return {
        "train_batch_size": micro_rows(finetune) * accumulation(finetune) * finetune.workers,
        "train_micro_batch_size_per_gpu": micro_rows(finetune),
        "gradient_accumulation_steps": accumulation(finetune),
        "gradient_clipping": finetune.max_grad_norm,
        "zero_optimization": {"stage": finetune.zero_stage},
        "bf16": {"enabled": bf16},
        "optimizer": {"type": "AdamW", "params": adam | ({} if cuda else {"torch_adam": True})},
        "scheduler": {
            "type": "WarmupDecayLR",
            "params": {
                "warmup_min_lr": 0.0,
                "warmup_max_lr": finetune.learning_rate,
                "warmup_num_steps": warmup,
                "total_num_steps": max(total_steps, warmup + 1),
                "warmup_type": "linear",
            },
        },
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }
