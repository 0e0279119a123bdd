"""Training runs on the world, for tests; run as a program it is a driver that a test can kill: `finetune_jobs.py FOLDER
SECTION_JSON`."""

import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray.train
import torch
from torch.distributed.distributed_c10d import _set_pg_timeout

from ka2l_ray.config import Config, FinetuneSection, ModelSection, PromptSection
from ka2l_ray.dataflow.manifests import Table
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.finetune.job import Job
from ka2l_ray.finetune.loop import train_rank
from ka2l_ray.world.facts import build_world, phrase_question

NAME = "killed"
WORLD = ModelSection()
PATIENCE_S = 6.0
"""A collective's timeout in the training run whose upload is slow."""


def job(
    folder: Path, section: FinetuneSection, rows: int = 21, output: Folder | None = None, model: ModelSection = WORLD
) -> Job:
    """Unseen facts to learn, every third a replayed one; 21 rows leave the last batch of an epoch short."""
    facts = [f for f in build_world().facts if f.truth == "unseen"][:rows]
    table = Table(Folder.of(str(folder / "examples")))
    if not table.is_done:
        columns = {
            "id": [f.fact_id for f in facts],
            "question": [phrase_question(f.attribute, 0, f.person.name) for f in facts],
            "answers": [[f.value] for f in facts],
            "rewordings": [[]] * len(facts),
            "source": ["annotation" if i % 3 else "replay" for i in range(len(facts))],
        }
        table.write((None, pa.table(columns)))
    return Job(model, PromptSection(), section, table, output or Folder.of(str(folder / "model")), 3, evaluation=table)


class SlowStorage(Folder):
    """Where an upload takes longer than a collective waits."""

    def upload(self, local: Path) -> None:
        time.sleep(1.5 * PATIENCE_S)
        super().upload(local)


def train_all(config: dict[str, dict[str, Job]]) -> dict[str, Any]:
    """A loop of Ray Train that does several training runs one after another in the same two workers: one start instead
    of one each."""
    context, results = ray.train.get_context(), {}
    for case, given in config["jobs"].items():
        if isinstance(given.output, SlowStorage):
            torch.distributed.barrier()
            _set_pg_timeout(timedelta(seconds=PATIENCE_S))
        results[case] = train_rank(given, context.get_world_rank(), context.get_world_size())
    return results


def seeing_gpus(config: dict[str, Any]) -> dict[str, Any]:
    """The worker of `finetune` on a machine that shows it eight GPUs, of which none was allotted to it: whatever goes
    to one fails."""
    import bitsandbytes  # noqa: F401  # PEFT imports it, which it survives only before this torch says that it has CUDA

    from ka2l_ray.finetune import train

    torch.cuda.is_available, torch.cuda.device_count = (lambda: True), (lambda: 8)
    return train._worker(config)


if __name__ == "__main__":
    from ka2l_ray.dataflow.cluster import connect
    from ka2l_ray.finetune.train import finetune

    connect(Config())
    finetune(job(Path(sys.argv[1]), FinetuneSection.model_validate_json(sys.argv[2])), NAME)
