"""The training run of one rank, from the base model to a checked folder.

In: a `Job`, the rank's place in an initialised torch.distributed, and where checkpoints go. Out: a dict of results, the
same on every rank. Ranks use collectives while they train and gather weights, but not while one of them loads or
uploads a model, because that may take longer than a collective's timeout. deepspeed is imported here, in workers only.
Refuses to know: Ray, strategies, rounds.
"""

import gc
import math
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

from ka2l_ray.finetune.base import MOST_BYTES, BaseLogits
from ka2l_ray.finetune.checkpoints import Checkpoints, History, checkpoint_identity, read_state, write_state
from ka2l_ray.finetune.deepspeed import deepspeed_config, learning_rate_factor
from ka2l_ray.finetune.examples import TokenizedRow, collate, epoch_batches, tokenize_all
from ka2l_ray.finetune.export import export, write_model
from ka2l_ray.finetune.job import Job, Refusal, read_evaluation, read_examples
from ka2l_ray.finetune.model import frozen_base, trainable_model, without_adapters
from ka2l_ray.finetune.passes import Passes, drops_out, shared_tokens
from ka2l_ray.finetune.record import Recorder, Report
from ka2l_ray.finetune.step import Stepper
from ka2l_ray.finetune.trunk import Trunk
from ka2l_ray.models import attention
from ka2l_ray.models.engine import embedding_rows, usable
from ka2l_ray.models.loading import load_tokenizer
from ka2l_ray.text.tokens import pad_id

SAMPLE_ROWS = 4
"""Training examples on which a saved model must give the trained model's logits."""


def train_rank(
    job: Job, rank: int, world_size: int, checkpoints: Checkpoints | None = None, report: Report | None = None
) -> dict[str, Any]:
    """Train, then save and check; rank 0 returns when the model is in `job.output`, the others once their weights are
    gathered.

    Losses and KL are in nats per token, `step_seconds` covers the steps of this attempt. `report` gets the metrics of
    rank 0. Raises `Refusal` for what
    would fail the same way again: for the training on every rank, for the saved model on rank 0 only.
    """
    os.environ["DS_ACCELERATOR"] = job.placement.device.type  # its default is a GPU wherever one is visible
    if not job.placement.on_gpu:
        torch.set_num_threads(max(1, int(job.finetune.cpus_per_worker)))
    tokenizer = load_tokenizer(job.model)
    examples = tokenize_all(tokenizer, job.prompt, read_examples(job.examples))
    steps = job.steps(len(examples))
    torch.manual_seed(job.seed)
    engine = sharded(job, steps, checkpoints)
    padding = usable(pad_id(tokenizer), embedding_rows(engine.module))
    torch.manual_seed(job.seed + 1 + rank)  # dropout differs between ranks
    evaluation = [answers[0] for answers in tokenize_all(tokenizer, job.prompt, read_evaluation(job))]
    with _stepper(job, engine, padding, [*chain(*examples), *evaluation], rank, world_size) as stepper:
        history, seconds = _train(stepper, examples, evaluation, steps, checkpoints, report)
    sample = collate([answers[0] for answers in examples[:SAMPLE_ROWS]], padding)
    del sample["labels"]
    with tempfile.TemporaryDirectory(prefix="ka2l-save-") as scratch:
        folder = Path(scratch) / "model"
        expected = write_model(engine.module, rank, tokenizer, sample, folder, job.finetune.mode == "lora")
        engine.destroy()
        del stepper, engine  # frees memory for the reloaded model
        gc.collect()
        if rank == 0:
            export(job, folder, tokenizer, sample, expected)
    return {
        "steps": steps,
        "examples": len(examples),
        "losses": [round(x, 6) for x in history.losses],
        "kl": [None if x is None else round(x, 6) for x in history.kl] if job.finetune.replay.kl_weight else None,
        "evaluations": history.evaluations,
        "resumed_at_steps": history.resumed_at_steps,
        "step_seconds": [round(x, 5) for x in seconds],
    }


@contextmanager
def _stepper(
    job: Job, engine: Any, padding: int, rows: list[TokenizedRow], rank: int, world_size: int
) -> Iterator[Stepper]:
    """What makes steps, for no more work than the model and the settings need; `rows` are all that it will be given."""
    tune, module = job.finetune, engine.module
    model, held = module.get_base_model() if tune.mode == "lora" else module, frozen_base(job)
    # ZeRO-3 frees weights between passes, and checkpointing forgets what a pass was to see besides its own tokens.
    may_save = tune.zero_stage < 3 and not tune.gradient_checkpointing and not drops_out(module)
    shared = shared_tokens(rows) if may_save and job.prefix == "attended" else ()
    with attention.installed(*(one for one in (model, held) if shared and one is not None)):
        passes = partial(Passes, device=engine.device, pad_token=padding, shared=shared)
        trunk = Trunk.of(model, rows[:SAMPLE_ROWS], engine.device, padding, shared) if may_save else None
        base = None
        if held is not None:
            base = BaseLogits(passes(held))
        elif tune.replay.kl_weight:
            kept = 0 if tune.zero_stage == 3 else MOST_BYTES
            base = BaseLogits(passes(model, trunk=trunk), kept, partial(without_adapters, module))
        yield Stepper(job, engine, passes(model, call=engine, trunk=trunk), base, rank, world_size)


def sharded(job: Job, steps: int, checkpoints: Checkpoints | None = None) -> Any:
    """DeepSpeed's engine around the model that is trained, in an initialised torch.distributed."""
    import deepspeed

    # Otherwise DeepSpeed looks for a C++ compiler to build shared-memory collectives that only inference uses.
    deepspeed.ops.__compatible_ops__ = {}  # pyright: ignore
    tune, model = job.finetune, trainable_model(job)
    if checkpoints is not None:
        checkpoints.barrier()
    bf16 = next(model.parameters()).dtype == torch.bfloat16
    initialize: Any = deepspeed.initialize  # takes lists and callables, though its annotations say otherwise
    engine, *_ = initialize(
        model=model,
        model_parameters=[p for p in model.parameters() if p.requires_grad],
        config=deepspeed_config(tune, job.placement.on_gpu, bf16),
        lr_scheduler=lambda optimizer: LambdaLR(
            optimizer, lambda step: learning_rate_factor(step, steps, tune.warmup_share, tune.schedule)
        ),
        dist_init_required=False,
    )
    if bf16 and not tune.zero_stage:
        # DeepSpeed primes AdamW with a step on zero gradients, which its bias correction would count.
        engine.optimizer.optimizer.state.clear()
    return engine


def _train(
    stepper: Stepper,
    examples: list[list[TokenizedRow]],
    evaluation: list[TokenizedRow],
    steps: int,
    checkpoints: Checkpoints | None,
    report: Report | None,
) -> tuple[History, list[float]]:
    """Train from the last checkpoint to the last step; returns also the seconds of each step of this attempt."""
    job, tune, engine, history = stepper.job, stepper.job.finetune, stepper.engine, History()
    identity = checkpoint_identity(job, len(examples), stepper.world_size)
    if checkpoints is not None:
        with checkpoints.latest() as folder:
            checkpoints.barrier()
            if folder is not None:
                history = read_state(Path(folder), engine, stepper.rank, identity)
    done = len(history.losses)
    recorder = Recorder(job, steps, done, report) if stepper.rank == 0 else None
    per_epoch, seconds = math.ceil(len(examples) / tune.batch_rows), list[float]()
    first_epoch, skipped = divmod(done, per_epoch)
    batches = (
        (epoch, batch)
        for epoch in count(first_epoch)
        for batch in epoch_batches(examples, tune.batch_rows, job.seed, epoch, tune.group_by_length)
    )
    for epoch, batch in islice(batches, skipped, skipped + steps - done):
        started, learning_rate = time.perf_counter(), engine.get_lr()[0]
        loss, kl = stepper.step(batch)
        seconds.append(time.perf_counter() - started)
        history.losses.append(loss)
        history.kl.append(kl)
        step = len(history.losses)
        _check_finite(loss, kl, step, learning_rate)
        epoch_ends, evaluate_every = step % per_epoch == 0, tune.evaluate_every_epochs
        if epoch_ends and evaluation and evaluate_every and (epoch + 1) % evaluate_every == 0:
            history.evaluations.append({"epoch": epoch + 1, "step": step} | stepper.evaluate(evaluation))
        if recorder is not None:
            recorder.step(history, seconds[-1], epoch + 1, learning_rate, epoch_ends)
        every = tune.checkpoint_every_steps
        if checkpoints is not None and every and step % every == 0 and step < steps:
            folder = checkpoints.new_folder()
            write_state(folder, engine, stepper.rank, history, identity)
            checkpoints.submit(folder, step)
    if recorder is not None:
        recorder.close()
    return history, seconds


def _check_finite(loss: float, kl: float | None, step: int, learning_rate: float) -> None:
    if not math.isfinite(loss) or not math.isfinite(kl or 0.0):
        raise Refusal(
            f"the loss at optimiser step {step} is {loss} (KL {kl}) at a learning rate of {learning_rate:.3g}: lower "
            "finetune.learning_rate or finetune.max_grad_norm, raise finetune.warmup_share, or set "
            "finetune.precision: float32"
        )
