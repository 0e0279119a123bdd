"""The training of one rank, from the base model to a checked folder.

In: a `Job`, a place among ranks whose torch.distributed is up, and where checkpoints go. Out: a dict of what happened, the same on
every rank. Ranks meet in collectives as long as they train and gather weights, and not while one of them loads or uploads a model: that
takes as long as it takes, and a collective gives up after its timeout. deepspeed is imported here, in workers only. Refuses to know: Ray,
strategies, rounds.
"""

import gc
import itertools
import math
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.optim.lr_scheduler import LambdaLR

from ka2l_ray.finetune.checkpoints import History, identity, read_state, write_state
from ka2l_ray.finetune.deepspeed import deepspeed_config, rate
from ka2l_ray.finetune.examples import Tokens, collate, epoch_batches, tokenize_all
from ka2l_ray.finetune.export import export, gathered, logits_of, write_model
from ka2l_ray.finetune.job import Job, Refusal, read_evaluation, read_examples
from ka2l_ray.finetune.model import frozen_base, trainable_model
from ka2l_ray.finetune.record import Recorder
from ka2l_ray.finetune.step import Stepper
from ka2l_ray.models.loading import load_tokenizer
from ka2l_ray.text.tokens import pad_id

SAMPLE_ROWS = 4
"""Training examples whose logits a saved model must give again."""


class Checkpoints(Protocol):
    """Where checkpoints are kept."""

    def latest(self) -> AbstractContextManager[Path | None]:
        """A local copy of the last complete checkpoint, if there is one."""
        ...

    def room(self) -> Path:
        """A fresh local folder for this rank's part; waits until the part before has left."""
        ...

    def keep(self, folder: Path, step: int) -> None:
        """Send this rank's part off; does not wait for it to arrive."""
        ...

    def meet(self) -> None:
        """Wait until every rank is here, however long that takes: a model or checkpoint reaches one node later than another."""
        ...


def train_rank(job: Job, rank: int, world_size: int, checkpoints: Checkpoints | None = None) -> dict[str, Any]:
    """Train, then save and check; rank 0 returns when the model is in `job.output`, the others as soon as their weights are gathered.

    Raises `Refusal` for what would go wrong again: of the training on every rank, of what was saved on rank 0 alone, whose word counts.
    """
    os.environ["DS_ACCELERATOR"] = job.placement.accelerator
    if not job.placement.on_gpu:
        torch.set_num_threads(max(1, int(job.finetune.cpus_per_worker)))
    tokenizer = load_tokenizer(job.model)
    examples = tokenize_all(tokenizer, job.prompt, read_examples(job.examples))
    steps = job.steps(len(examples))
    torch.manual_seed(job.seed)
    stepper = Stepper(job, _engine(job, steps, checkpoints), frozen_base(job), pad_id(tokenizer), rank, world_size)
    torch.manual_seed(job.seed + 1 + rank)  # dropout differs between ranks
    evaluation = [answers[0] for answers in tokenize_all(tokenizer, job.prompt, read_evaluation(job))]
    history, seconds = _train(stepper, examples, evaluation, steps, checkpoints)
    sample = {
        k: v for k, v in collate([a[0] for a in examples[:SAMPLE_ROWS]], pad_id(tokenizer)).items() if k != "labels"
    }
    with tempfile.TemporaryDirectory(prefix="ka2l-save-") as scratch:
        folder = Path(scratch) / "model"
        expected = _write(stepper, tokenizer, sample, folder)
        stepper.engine.destroy()
        del stepper  # the reloaded model may need its memory
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


def _engine(job: Job, steps: int, checkpoints: Checkpoints | None) -> Any:
    import deepspeed

    ops: Any = deepspeed.ops
    ops.__compatible_ops__ = {}  # else it looks for a C++ compiler and builds shared-memory collectives that only inference uses
    tune, model = job.finetune, trainable_model(job)
    if checkpoints is not None:
        checkpoints.meet()
    bf16 = next(model.parameters()).dtype == torch.bfloat16
    initialize: Any = deepspeed.initialize  # its annotations refuse lists of parameters and callables, which it takes
    engine, *_ = initialize(
        model=model,
        model_parameters=[p for p in model.parameters() if p.requires_grad],
        config=deepspeed_config(tune, job.placement.on_gpu, bf16),
        lr_scheduler=lambda optimizer: LambdaLR(
            optimizer, lambda step: rate(step, steps, tune.warmup_share, tune.schedule)
        ),
        dist_init_required=False,
    )
    if bf16 and not tune.zero_stage:
        # DeepSpeed primes AdamW with a step on zero gradients, which its bias correction would count.
        engine.optimizer.optimizer.state.clear()
    return engine


def _train(
    stepper: Stepper,
    examples: list[list[Tokens]],
    evaluation: list[Tokens],
    steps: int,
    checkpoints: Checkpoints | None,
) -> tuple[History, list[float]]:
    """Steps from the last checkpoint on; also the seconds that each step of this attempt took."""
    job, engine, history = stepper.job, stepper.engine, History()
    belongs = identity(job, len(examples), stepper.world_size)
    if checkpoints is not None:
        with checkpoints.latest() as folder:
            checkpoints.meet()
            if folder is not None:
                history = read_state(folder, engine, stepper.rank, belongs)
    recorder = Recorder(job, steps, len(history.losses)) if stepper.rank == 0 else None
    per_epoch, evaluate_every, seconds = (
        math.ceil(len(examples) / job.finetune.batch_rows),
        job.finetune.evaluate_every_epochs,
        [],
    )
    for epoch, batch in itertools.islice(
        _batches(job, examples, len(history.losses), per_epoch), steps - len(history.losses)
    ):
        started, learning_rate = time.perf_counter(), engine.get_lr()[0]
        loss, kl = stepper.step(batch)
        seconds.append(time.perf_counter() - started)
        history.losses.append(loss)
        history.kl.append(kl)
        step = len(history.losses)
        _refuse_unless_finite(loss, kl, step, learning_rate)
        if (
            (epoch_ends := step % per_epoch == 0)
            and evaluation
            and evaluate_every
            and (epoch + 1) % evaluate_every == 0
        ):
            history.evaluations.append({"epoch": epoch + 1, "step": step} | stepper.evaluate(evaluation))
        if recorder is not None:
            recorder.step(history, epoch + 1, learning_rate, epoch_ends)
        every = job.finetune.checkpoint_every_steps
        if checkpoints is not None and every and step % every == 0 and step < steps:
            folder = checkpoints.room()
            write_state(folder, engine, stepper.rank, history, belongs)
            checkpoints.keep(folder, step)
    if recorder is not None:
        recorder.close()
    return history, seconds


def _batches(job: Job, examples: list[list[Tokens]], done: int, per_epoch: int) -> Iterator[tuple[int, list[Tokens]]]:
    """(epoch, global batch) from step `done` on, without end."""
    tune = job.finetune
    for epoch in itertools.count(done // per_epoch):
        batches = epoch_batches(examples, tune.batch_rows, job.seed, epoch, tune.group_by_length)
        for place, batch in enumerate(batches):
            if epoch * per_epoch + place >= done:
                yield epoch, batch


def _refuse_unless_finite(loss: float, kl: float | None, step: int, learning_rate: float) -> None:
    if not math.isfinite(loss) or not math.isfinite(kl or 0.0):
        raise Refusal(
            f"the loss at optimiser step {step} is {loss} (KL {kl}) at a learning rate of {learning_rate:.3g}: lower "
            "finetune.learning_rate or finetune.max_grad_norm, raise finetune.warmup_share, or set finetune.precision: float32"
        )


def _write(stepper: Stepper, tokenizer: Any, sample: dict[str, torch.Tensor], folder: Path) -> torch.Tensor:
    """Gather the trained weights, which all ranks take part in; rank 0 writes them. Returns the logits that the folder must give again."""
    module, lora = stepper.engine.module, stepper.job.finetune.mode == "lora"
    expected = logits_of(module, sample)
    state = gathered(module, stepper.rank, trained_only=lora)
    if stepper.rank == 0:
        write_model(module, state, tokenizer, folder, lora)
    return expected
