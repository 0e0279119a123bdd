"""Fine-tuning on Ray Train: workers, their restarts, and their checkpoints in the run's storage.

In: a `Job` and a name. Out: the model folder, checked, and a dict of what happened. A worker that dies starts its group again from the last
checkpoint, at most `max_failures` times; after the driver's death the same call goes on from there too. What would fail the same way
again comes back as a value, for Ray Train retries whatever is raised. Refuses to know: strategies, rounds, where answers come from.
"""

import json
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
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

from ka2l_ray.dataflow.log import log, log_progress
from ka2l_ray.dataflow.placement import Placement
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.dataflow.tasks import fetch
from ka2l_ray.errors import StageError, UserError
from ka2l_ray.finetune.checkpoints import is_whole
from ka2l_ray.finetune.job import Job, Refusal
from ka2l_ray.finetune.loop import train_rank
from ka2l_ray.finetune.record import progress_line

SNAPSHOT = "checkpoint_manager_snapshot.json"
"""Ray Train's list of checkpoints, which it writes in place: a driver killed in that moment leaves half of it."""
STEP_FOLDER = "step_{:08d}"


def finetune(job: Job, name: str) -> dict[str, Any]:
    """Train and save to `job.output`; returns `job.record`. A finished training is not repeated; an unfinished one goes on.

    Raises `StageError` for what another try would not mend, `ConfigError` where workers are allotted GPUs that their torch cannot use,
    else what a worker raised last.
    """
    if job.record.exists():
        _clean(job)
        return job.record.read_json()
    if not job.examples.rows:
        raise StageError(
            f"{job.examples.folder.path}: holds no example, so there is nothing to train on: no answer was bought, none replayed"
        )
    job.progress.delete()
    tune = job.finetune
    _try_a_gpu(job)
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"job": job, "fallback": fallback(job, job.checkpoints / name)},
        torch_config=PlacedTorch(backend=job.placement.backend),
        scaling_config=ScalingConfig(
            num_workers=tune.workers,
            use_gpu=tune.gpus_per_worker > 0,
            resources_per_worker={"CPU": tune.cpus_per_worker}
            | ({"GPU": tune.gpus_per_worker} if tune.gpus_per_worker else {}),
        ),
        run_config=RunConfig(
            name=name,
            storage_path=job.checkpoints.make().path,
            storage_filesystem=job.checkpoints.filesystem,
            failure_config=FailureConfig(max_failures=tune.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
        ),
    )
    with log_progress("finetune", lambda: progress_line(job)), own_interrupts():
        result = _fitted(trainer)
    if "refused" in result:
        raise StageError(f"fine-tuning: {result['refused']}")
    job.record.write_json(result)
    _clean(job)
    return result


def _fitted(trainer: TorchTrainer) -> Any:
    """What rank 0 returned, once every rank has. A user's mistake that a worker met is raised as itself."""
    try:
        return trainer.fit().return_value
    except WorkerGroupError as error:
        for raised in error.worker_failures.values():
            if isinstance(cause := getattr(raised, "_base_exc", raised), UserError):
                raise StageError(f"fine-tuning: {cause}") from error
        raise


def _clean(job: Job) -> None:
    """Also after a kill between record and cleaning: checkpoints hold the optimiser's state, twice the size of what is trained."""
    job.checkpoints.delete()
    job.progress.delete()


@contextmanager
def own_interrupts() -> Iterator[None]:
    """Ray Train leaves its handler of Ctrl-C behind, which ends the process with status 0 now and does nothing after the training."""
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
    """Ray Train's torch without its own choice of a GPU, which it makes under `model.device: cpu` too: `_worker` chooses."""

    @property
    def train_func_context(self) -> Any:
        return nullcontext


def _try_a_gpu(job: Job) -> None:
    """Raise `ConfigError` where torch cannot use an allotted GPU, from a process with such a one: workers cannot say it themselves, for Ray
    Train joins them by NCCL before they run anything, and NCCL's own error does not tell what to change."""
    if job.placement.on_gpu:
        fetch(ray.remote(num_cpus=0, num_gpus=job.finetune.gpus_per_worker)(_check).remote(job.placement))


def _check(placement: Placement) -> None:
    placement.check()


def _worker(config: dict[str, Any]) -> dict[str, Any]:
    if config["job"].placement.on_gpu:
        config["job"].placement.take(get_device())
    context = ray.train.get_context()
    checkpoints = RayCheckpoints(config["fallback"])
    try:
        return train_rank(config["job"], context.get_world_rank(), context.get_world_size(), checkpoints)
    except (
        Refusal
    ) as refusal:  # of all ranks, or of the last that works: what one alone met, the others would wait for without end
        return {"refused": str(refusal)}


class RayCheckpoints:
    """Ray Train's checkpoints: every rank uploads its part in the background, and one counts when all parts have arrived."""

    def __init__(self, fallback: Folder | None) -> None:
        self._fallback = fallback
        self._leaving: Path | None = None

    @contextmanager
    def latest(self) -> Iterator[Path | None]:
        if (reported := ray.train.get_checkpoint()) is not None:
            with reported.as_directory() as folder:
                yield Path(folder)
        elif self._fallback is not None:
            with self._fallback.local() as folder:
                yield Path(folder)
        else:
            yield None

    def room(self) -> Path:
        while self._leaving is not None and self._leaving.exists():  # Ray Train deletes a part when it is uploaded
            time.sleep(0.01)
        self._leaving = Path(tempfile.mkdtemp(prefix="ka2l-checkpoint-"))
        return self._leaving

    def keep(self, folder: Path, step: int) -> None:
        ray.train.report(
            {"step": step},
            checkpoint=Checkpoint.from_directory(folder),
            checkpoint_dir_name=STEP_FOLDER.format(step),
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
        )

    def meet(self) -> None:
        ray.train.collective.barrier()


def fallback(job: Job, folder: Folder) -> Folder | None:
    """The newest whole checkpoint where Ray Train has no good list of them; None where it has one, or no checkpoint is whole.

    A torn list is deleted, for Ray Train fails on it; until the next checkpoint is listed there is none.
    """
    if _has_good_list(folder):
        return None
    (folder / SNAPSHOT).delete()
    steps = sorted((n for n in folder.names(files_only=False) if n.startswith("step_")), reverse=True)
    for name in steps:
        with (folder / name).local() as local:
            if is_whole(Path(local), job.finetune.workers):
                log.info("%-10s Ray Train's list of checkpoints is torn: going on from %s", "finetune", name)
                return folder / name
    if steps:
        log.info("%-10s Ray Train's list of checkpoints is torn and none is whole: starting again", "finetune")
    return None


def _has_good_list(folder: Folder) -> bool:
    """Whether Ray Train's list is there and uncut, and every checkpoint that it names is there."""
    if not (snapshot := folder / SNAPSHOT).exists():
        return False
    try:
        listed = [c["checkpoint_dir_name"] for c in json.loads(snapshot.read_bytes())["checkpoint_results"]]
    except (ValueError, KeyError, TypeError):
        return False
    return all((folder / name).exists() for name in listed)
