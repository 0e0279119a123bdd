"""What rank 0 reports while it trains: a progress file for the driver, metrics, TensorBoard event files on request.

In: the history after each step. Out: `job.progress`, values of `metric_table.OF_TRAININGS`, `job.tensorboard`. Writes
are small, because the other ranks wait in the collectives of the next step. Refuses to know: engines, Ray.
"""

import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.finetune.checkpoints import History
from ka2l_ray.finetune.job import Job

PROGRESS_EVERY_S = 5.0
Report = Callable[[Mapping[str, float]], None]
"""Takes metrics by name, as `dataflow.metrics.Reporter.report` does."""


class Recorder:
    """`steps` is the number of optimiser steps, `first_step` the one that this attempt starts at: later events of an
    earlier attempt are purged. `report` gets the metrics of each step."""

    def __init__(self, job: Job, steps: int, first_step: int, report: Report | None = None) -> None:
        self._job, self._steps, self._report, self._reported_s = job, steps, report, 0.0
        self._writer: Any = None
        if job.finetune.tensorboard:
            from tensorboardX import SummaryWriter

            self._events = Path(tempfile.mkdtemp(prefix="ka2l-events-"))
            self._writer = SummaryWriter(logdir=str(self._events), purge_step=first_step)

    def step(self, history: History, seconds: float, epoch: int, learning_rate: float, epoch_ends: bool) -> None:
        """Report the last step of the history, which took `seconds`; the progress file is written at the end of an
        epoch, else every `PROGRESS_EVERY_S`."""
        step, loss = len(history.losses), history.losses[-1]
        if self._report is not None:
            values = (("step", step), ("steps", self._steps), ("loss", loss), ("step_s", seconds))
            self._report({f"training_{name}": value for name, value in values})
        if epoch_ends or time.monotonic() - self._reported_s > PROGRESS_EVERY_S:
            self._reported_s = time.monotonic()
            self._job.progress.write_json(
                {
                    "step": step,
                    "steps": self._steps,
                    "epoch": epoch,
                    "epochs": self._job.finetune.epochs,
                    "loss": loss,
                    "evaluation": history.evaluations[-1] if history.evaluations else None,
                }
            )
        if self._writer is None:
            return
        scalars = {"loss": loss, "learning_rate": learning_rate, "kl": history.kl[-1]}
        if history.evaluations and history.evaluations[-1]["step"] == step:
            scalars |= {f"evaluation/{k}": v for k, v in history.evaluations[-1].items() if k not in ("epoch", "step")}
        for name, value in scalars.items():
            if value is not None:
                self._writer.add_scalar(name, value, step)
        if epoch_ends:
            self._writer.flush()
            self._job.tensorboard.upload(self._events)

    def close(self) -> None:
        """Upload the event files and delete the local ones."""
        if self._writer is not None:
            self._writer.close()
            self._job.tensorboard.upload(self._events)
            shutil.rmtree(self._events)


def progress_line(progress: Folder) -> str | None:
    """A progress file as a line for the driver's log; None where there is none yet, or no longer."""
    try:
        now = progress.read_json_or_empty()
    except FileNotFoundError:  # deleted since it was looked for
        return None
    if not now:
        return None
    parts = [
        f"epoch {now['epoch']}/{now['epochs']}, step {now['step']}/{now['steps']}, "
        f"loss {now['loss']:.3f} nats per answer token"
    ]
    if last := now["evaluation"]:
        accuracy = f"token accuracy {last['token_accuracy']:.3f}"
        parts += [f"eval loss {last['loss']:.3f}, {accuracy} after epoch {last['epoch']}"]
    return "; ".join(parts)
