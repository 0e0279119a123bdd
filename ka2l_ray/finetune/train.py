"""Fine-tuning on Ray Train: workers, their restarts, and their checkpoints in the run's storage.

In: a `Job` and a name. Out: the model folder, checked, and a dict of results. When a worker dies, all workers are
started again from the last checkpoint, at most `max_failures` times; after the driver's death the same call also
continues from there. What would fail the same way again is returned as a value, because Ray Train retries whatever is
raised. Refuses to know: strategies, rounds, where answers come from.
"""

import json
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.collective
from ray.train import (
    Checkpoint,
    CheckpointConfig,
    CheckpointUploadMode,
    FailureConfig,
    RunConfig,
    ScalingConfig,
    WorkerGroupError,
)
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from ka2l_ray.config import NodesSection
from ka2l_ray.dataflow.log import log, log_progress
from ka2l_ray.dataflow.metric_table import OF_TRAININGS
from ka2l_ray.dataflow.metrics import Reporter
from ka2l_ray.dataflow.placement import Placement
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.dataflow.tasks import fetch, placed
from ka2l_ray.dataflow.vault import open_vault, vault
from ka2l_ray.errors import StageError, UserError
from ka2l_ray.finetune.checkpoints import Checkpoints, is_complete
from ka2l_ray.finetune.job import Job, Refusal
from ka2l_ray.finetune.record import progress_line

SNAPSHOT = "checkpoint_manager_snapshot.json"
"""Ray Train's list of checkpoints. It is overwritten in place, so a driver killed meanwhile leaves a truncated file."""
STEP_FOLDER = "step_{:08d}"


def finetune(job: Job, name: str) -> dict[str, Any]:
    """Train and save to `job.output`; returns the content of `job.record` (see `loop.train_rank`). A finished training
    run is not repeated, an unfinished one continues.

    Raises `StageError` for what another attempt would not fix, `ConfigError` where workers are allotted GPUs that their
    torch cannot use, else the last error of a worker.
    """
    if job.record.exists():
        _clean(job)
        return job.record.read_json()
    if not job.examples.rows:
        raise StageError(
            f"{job.examples.folder.path}: contains no examples, so there is nothing to train on: no answers were "
            "bought and none replayed"
        )
    job.progress.delete()
    tune = job.finetune
    check_gpu(job.placement, tune.nodes)
    resources = {"CPU": tune.cpus_per_worker, **({"GPU": tune.gpus_per_worker} if tune.gpus_per_worker else {})}
    resources |= tune.nodes.resources
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"job": job, "fallback": fallback_checkpoint(job, job.checkpoints / name), "token": vault()},
        torch_config=PlacedTorch(backend=job.placement.backend),
        scaling_config=ScalingConfig(
            num_workers=tune.workers,
            use_gpu=tune.gpus_per_worker > 0,
            resources_per_worker=resources,
            label_selector=dict(tune.nodes.labels) or None,
        ),
        run_config=RunConfig(
            name=name,
            storage_path=job.checkpoints.make().path,
            storage_filesystem=job.checkpoints.filesystem,
            failure_config=FailureConfig(max_failures=tune.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
        ),
    )
    with log_progress("finetune", lambda: progress_line(job.progress)), restored_interrupt_handler():
        result = fit(trainer, "fine-tuning")
    if "refused" in result:
        raise StageError(f"fine-tuning: {result['refused']}")
    job.record.write_json(result)
    _clean(job)
    return result


def fit(trainer: TorchTrainer, doing: str) -> Any:
    """What rank 0 returned, once every rank has. A user's mistake that a worker met is raised as a `StageError` that
    begins with what was being done."""
    try:
        return trainer.fit().return_value
    except WorkerGroupError as error:
        for failure in error.worker_failures.values():
            if isinstance(cause := getattr(failure, "_base_exc", failure), UserError):
                raise StageError(f"{doing}: {cause}") from error
        raise


def _clean(job: Job) -> None:
    """Delete what only an unfinished training run needs: checkpoints contain the optimiser's state, twice the size of
    the weights."""
    job.checkpoints.delete()
    job.progress.delete()


@contextmanager
def restored_interrupt_handler() -> Iterator[None]:
    """Make Ctrl-C raise `KeyboardInterrupt` within this context, and restore its handler afterwards: Ray Train installs
    one that ends the process with status 0 during training and does nothing after it."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as end:
        raise KeyboardInterrupt from end
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)


@dataclass
class PlacedTorch(TorchConfig):
    """Ray Train's torch without its own choice of a GPU, which it makes under `model.device: cpu` too; `_worker`
    chooses instead."""

    @property
    def train_func_context(self) -> Callable[[], AbstractContextManager[None]]:
        """No context around the training function."""
        return nullcontext


def check_gpu(placement: Placement, nodes: NodesSection) -> None:
    """Raise `ConfigError` where torch cannot use an allotted GPU, found out in a process that has one. Workers cannot
    report it: Ray Train connects them by NCCL before they run anything, and NCCL's own error does not say what to
    change."""
    if placement.on_gpu:
        task = ray.remote(num_cpus=0, num_gpus=placement.gpus, **placed(nodes))(Placement.check)
        fetch(task.remote(placement))


def _worker(config: dict[str, Any]) -> dict[str, Any]:
    # Here, because the process that starts workers loads this file too, and has no use for a model.
    from ka2l_ray.finetune.loop import train_rank

    job: Job = config["job"]
    open_vault(config["token"])
    if job.placement.on_gpu:
        job.placement.take(get_device())
    context = ray.train.get_context()
    checkpoints = RayCheckpoints(config["fallback"])
    metrics = Reporter(OF_TRAININGS, {"run": job.run, "stage": "finetune", "round": job.round})
    try:
        return train_rank(job, context.get_world_rank(), context.get_world_size(), checkpoints, metrics.report)
    # Raised by all ranks, or by the last that works: if only one of several working ranks met it, the others would wait
    # without end.
    except Refusal as refusal:
        return {"refused": str(refusal)}


class RayCheckpoints(Checkpoints):
    """Ray Train's checkpoints: every rank uploads its part in the background, and a checkpoint counts when all parts
    have arrived. `fallback` is where to start if Ray Train has none."""

    def __init__(self, fallback: Folder | None) -> None:
        self._fallback = fallback
        self._uploading: Path | None = None

    def latest(self) -> AbstractContextManager[str | None]:
        if (reported := ray.train.get_checkpoint()) is not None:
            return reported.as_directory()
        return self._fallback.local() if self._fallback is not None else nullcontext()

    def new_folder(self) -> Path:
        while self._uploading is not None and self._uploading.exists():  # Ray Train deletes a part when it is uploaded
            time.sleep(0.01)
        self._uploading = Path(tempfile.mkdtemp(prefix="ka2l-checkpoint-"))
        return self._uploading

    def submit(self, folder: Path, step: int) -> None:
        ray.train.report(
            {"step": step},
            checkpoint=Checkpoint.from_directory(folder),
            checkpoint_dir_name=STEP_FOLDER.format(step),
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
        )

    def barrier(self) -> None:
        ray.train.collective.barrier()


def fallback_checkpoint(job: Job, folder: Folder) -> Folder | None:
    """The newest complete checkpoint where Ray Train has no valid list of them; None where it has one, or no checkpoint
    is complete.

    A damaged list is deleted, because Ray Train fails on it; there is none until the next checkpoint is listed.
    """
    if has_valid_list(folder):
        return None
    (folder / SNAPSHOT).delete()
    steps = sorted((n for n in folder.names(files_only=False) if n.startswith("step_")), reverse=True)
    for name in steps:
        with (folder / name).local() as local:
            if is_complete(Path(local), job.finetune.workers):
                said = "Ray Train's list of checkpoints is damaged: continuing from %s"
                log.info(said, name, extra={"stage": "finetune"})
                return folder / name
    if steps:
        said = "Ray Train's list of checkpoints is damaged and none is complete: starting again"
        log.info(said, extra={"stage": "finetune"})
    return None


def has_valid_list(folder: Folder) -> bool:
    """Whether Ray Train's list exists and is complete, and every checkpoint that it names exists."""
    try:
        listed = [c["checkpoint_dir_name"] for c in json.loads((folder / SNAPSHOT).read_bytes())["checkpoint_results"]]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return False
    return all((folder / name).exists() for name in listed)
