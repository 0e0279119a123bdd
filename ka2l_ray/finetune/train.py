"""Fine-tuning on Ray Train with DeepSpeed: one loop per worker, one model folder out.

In: a table of examples, a `FinetuneSection`. Out: a Hugging Face folder (full weights or a PEFT adapter), checked by reloading it.
The base model is loaded fresh: a round fine-tunes on all annotations bought so far.
Refuses to know: strategies, rounds, where answers come from. deepspeed is imported in the workers only.
"""

import math
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedTokenizerBase

from ka2l_ray.artifacts import Folder, Table
from ka2l_ray.config import FinetuneSection, ModelSection, PromptSection
from ka2l_ray.finetune.deepspeed import accumulation, deepspeed_config, micro_rows, rate
from ka2l_ray.finetune.examples import Example, answer_loss, collate, epoch_batches, micro_batches
from ka2l_ray.models.loading import load_model, load_tokenizer
from ka2l_ray.models.tokens import pad_id
from ka2l_ray.runtime import telling

LOGIT_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Job:
    """Everything a worker needs; small enough to travel."""

    model: ModelSection
    prompt: PromptSection
    finetune: FinetuneSection
    examples: Table
    output: Folder
    seed: int

    @property
    def progress(self) -> Folder:
        """A small file beside the output that rank 0 rewrites after every epoch."""
        return Folder(self.output.filesystem, f"{self.output.path}-progress.json")


def finetune(job: Job, name: str) -> Any:
    """Train and save to `job.output`; returns steps, examples and every step's loss (nats per answer token).

    Raises what a worker raised.
    """
    tune = job.finetune
    job.progress.delete()
    with tempfile.TemporaryDirectory(prefix="ka2l-train-") as scratch:
        trainer = TorchTrainer(
            _worker,
            train_loop_config={"job": job},
            scaling_config=ScalingConfig(
                num_workers=tune.workers,
                use_gpu=tune.gpus_per_worker > 0,
                resources_per_worker={"CPU": tune.cpus_per_worker} | ({"GPU": tune.gpus_per_worker} if tune.gpus_per_worker else {}),
            ),
            run_config=RunConfig(name=name, storage_path=scratch if job.output.is_local else None),
        )
        with telling("finetune", lambda: _progress(job)):
            result = trainer.fit().return_value
    job.progress.delete()
    return result


def _progress(job: Job) -> str | None:
    if not job.progress.exists():
        return None
    now = job.progress.read_json()
    return f"epoch {now['epoch']}/{now['epochs']}, loss {now['loss']:.3f} nats per answer token"


def _worker(config: dict[str, Any]) -> dict[str, Any]:
    job: Job = config["job"]
    context = ray.train.get_context()
    return train_rank(job, context.get_world_rank(), context.get_world_size())


def train_rank(job: Job, rank: int, world_size: int) -> dict[str, Any]:
    """The loop of one rank; torch.distributed is up. Rank 0 saves, and reloads what it saved."""
    if not torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"
        torch.set_num_threads(max(1, int(job.finetune.cpus_per_worker)))
    import deepspeed

    torch.manual_seed(job.seed)
    tokenizer = load_tokenizer(job.model)
    examples = read_examples(job.examples)
    model = trainable_model(job)
    steps = job.finetune.epochs * math.ceil(len(examples) / job.finetune.batch_rows)
    bf16 = next(model.parameters()).dtype == torch.bfloat16
    initialize: Any = deepspeed.initialize  # its annotations refuse lists of parameters and callables, which it takes
    engine, *_ = initialize(
        model=model,
        model_parameters=[p for p in model.parameters() if p.requires_grad],
        config=deepspeed_config(job.finetune, torch.cuda.is_available(), bf16),
        lr_scheduler=lambda optimizer: LambdaLR(optimizer, lambda step: rate(step, steps, job.finetune.warmup_share)),
        dist_init_required=False,
    )
    losses: list[float] = []
    for epoch in range(job.finetune.epochs):
        for batch in epoch_batches(examples, tokenizer, job.prompt, job.finetune.batch_rows, job.seed, epoch):
            losses.append(_step(engine, batch, job, rank, world_size, pad_id(tokenizer)))
        if rank == 0:
            job.progress.write_json({"epoch": epoch + 1, "epochs": job.finetune.epochs, "loss": losses[-1]})
    if rank == 0:
        _save(engine.module, tokenizer, job)
    torch.distributed.barrier()
    return {"steps": len(losses), "examples": len(examples), "losses": [round(x, 6) for x in losses]}


def read_examples(table: Table) -> list[Example]:
    """The whole table, ordered by id: it is bounded by the budget and the replay size."""
    rows = table.read(["id", "question", "answers"]).sort_by("id").to_pylist()
    return [Example(r["question"], tuple(r["answers"])) for r in rows]


def trainable_model(job: Job) -> Any:
    """The base model, wrapped in LoRA adapters unless `mode` is full."""
    model = load_model(job.model)
    model.config.use_cache = False
    if job.finetune.mode == "full":
        return model.train()
    from peft import LoraConfig, get_peft_model

    lora = job.finetune.lora
    targets = lora.targets if isinstance(lora.targets, str) else list(lora.targets)
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets, task_type="CAUSAL_LM")
    return get_peft_model(model, config).train()


def _step(engine: Any, batch: list[Any], job: Job, rank: int, world_size: int, pad: int) -> float:
    """One optimiser step. The loss is the token sum over the step's global answer tokens, whatever the split over ranks."""
    parts = accumulation(job.finetune)
    answer_tokens = sum(row.answer for row in batch)
    total = torch.zeros((), device=engine.device)
    for rows in micro_batches(batch, rank, world_size, micro_rows(job.finetune), parts):
        inputs = {k: v.to(engine.device) for k, v in collate(rows, pad).items()}
        labels = inputs.pop("labels")
        loss = answer_loss(engine(**inputs).logits, labels)
        # DeepSpeed averages over ranks and accumulation steps; this undoes both, so that the sum is global.
        engine.backward(loss * (world_size * parts / answer_tokens))
        engine.step()
        total += loss.detach()
    torch.distributed.all_reduce(total)
    return float(total) / answer_tokens


def _save(model: Any, tokenizer: PreTrainedTokenizerBase, job: Job) -> None:
    """Save, reload and compare logits before the folder counts. Raises `RuntimeError` where they differ."""
    model.eval()
    with tempfile.TemporaryDirectory(prefix="ka2l-save-") as scratch:
        model.save_pretrained(scratch, safe_serialization=True)
        tokenizer.save_pretrained(scratch)
        again = load_model(job.model, adapter=scratch)
        sample = tokenizer([job.prompt.template], return_tensors="pt").to(next(model.parameters()).device)
        with torch.inference_mode():
            gap = float((model(**sample).logits.float() - again(**sample).logits.float()).abs().max())
        if not gap <= LOGIT_TOLERANCE:
            raise RuntimeError(
                f"the saved model does not reload to the same logits: largest difference {gap:.3g}, allowed {LOGIT_TOLERANCE:g}"
            )
        job.output.delete()
        job.output.upload(Path(scratch))
