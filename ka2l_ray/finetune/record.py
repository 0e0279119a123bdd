"""What rank 0 tells while it trains: a progress file for the driver, TensorBoard event files on request.

In: the history after each step. Out: `job.progress`, `job.tensorboard`. What is written is small, for the other ranks wait in the next
step's collectives meanwhile. Refuses to know: engines, Ray.
"""

import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from ka2l_ray.finetune.checkpoints import History
from ka2l_ray.finetune.job import Job

PROGRESS_EVERY_S = 5.0


class Recorder:
    """`first_step` is where this attempt starts: event files of a dead one count up to there."""

    def __init__(self, job: Job, steps: int, first_step: int) -> None:
        self._job, self._steps, self._told_s = job, steps, 0.0
        self._writer: Any = None
        if job.finetune.tensorboard:
            from tensorboardX import SummaryWriter

            self._events = Path(tempfile.mkdtemp(prefix="ka2l-events-"))
            self._writer = SummaryWriter(logdir=str(self._events), purge_step=first_step)

    def step(self, history: History, epoch: int, learning_rate: float, epoch_ends: bool) -> None:
        step = len(history.losses)
        if epoch_ends or time.monotonic() - self._told_s > PROGRESS_EVERY_S:
            self._told_s = time.monotonic()
            now = {
                "step": step,
                "steps": self._steps,
                "epoch": epoch,
                "epochs": self._job.finetune.epochs,
                "loss": history.losses[-1],
            }
            self._job.progress.write_json(
                now | {"evaluation": history.evaluations[-1] if history.evaluations else None}
            )
        if self._writer is not None:
            self._write(history, step, learning_rate, epoch_ends)

    def _write(self, history: History, step: int, learning_rate: float, epoch_ends: bool) -> None:
        scalars = {"loss": history.losses[-1], "learning_rate": learning_rate, "kl": history.kl[-1]}
        if history.evaluations and history.evaluations[-1]["step"] == step:
            scalars |= {f"evaluation/{k}": v for k, v in history.evaluations[-1].items() if k not in ("epoch", "step")}
        for name, value in scalars.items():
            if value is not None:
                self._writer.add_scalar(name, value, step)
        if epoch_ends:
            self._writer.flush()
            self._job.tensorboard.upload(self._events)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._job.tensorboard.upload(self._events)
            shutil.rmtree(self._events)


def progress_line(job: Job) -> str | None:
    """The progress file as a line for the driver's log; None before there is one."""
    if not job.progress.exists():
        return None
    now = job.progress.read_json()
    line = f"epoch {now['epoch']}/{now['epochs']}, step {now['step']}/{now['steps']}, loss {now['loss']:.3f} nats per answer token"
    if found := now["evaluation"]:
        line += f"; eval loss {found['loss']:.3f}, token accuracy {found['token_accuracy']:.3f} after epoch {found['epoch']}"
    return line
