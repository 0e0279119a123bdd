"""What one training is given, and where it leaves what it makes.

In: tables of examples and, on request, of questions to evaluate on. Out: a `Job` that travels to workers, and its rows in memory.
Refuses to know: Ray, DeepSpeed, how a model is trained.
"""

import math
import posixpath
from dataclasses import dataclass, replace

from ka2l_ray.config import FinetuneSection, ModelSection, PromptSection
from ka2l_ray.dataflow.manifests import Table
from ka2l_ray.dataflow.placement import Placement, of_worker
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.errors import UserError
from ka2l_ray.finetune.examples import Example


class Refusal(UserError, RuntimeError):
    """A training that would fail the same way again: it is not tried `max_failures` times. While they train all ranks raise it together; of
    what was saved rank 0 alone does."""


@dataclass(frozen=True)
class Job:
    """Everything a worker needs; small enough to travel.

    `evaluation` has `id`, `question` and gold `answers`, at least one a row; it is used for the record only. `planned_rows`: examples that
    the number of steps is counted by; more than there are where answers were bought and not given, so that every strategy is trained
    equally long.
    """

    model: ModelSection
    prompt: PromptSection
    finetune: FinetuneSection
    examples: Table
    output: Folder
    seed: int
    evaluation: Table | None = None
    planned_rows: int = 0

    def steps(self, examples: int) -> int:
        """Optimiser steps of the whole training."""
        return self.finetune.epochs * math.ceil(max(examples, self.planned_rows) / self.finetune.batch_rows)

    @property
    def trained(self) -> ModelSection:
        """The model as it is trained: `finetune.precision` stands over `model.dtype`."""
        precision = self.finetune.precision
        return self.model if precision == "auto" else self.model.model_copy(update={"dtype": precision})

    @property
    def placement(self) -> Placement:
        """Of each worker."""
        return of_worker(self.model, self.finetune)

    @property
    def progress(self) -> Folder:
        """A small file beside the output that rank 0 rewrites as it goes."""
        return replace(self.output, path=f"{self.output.path}-progress.json")

    @property
    def checkpoints(self) -> Folder:
        """Ray Train's own folder beside the output; gone once the output is complete."""
        return self._beside("train")

    @property
    def merged(self) -> Folder:
        return self._beside("merged")

    @property
    def tensorboard(self) -> Folder:
        return self._beside("tensorboard")

    @property
    def record(self) -> Folder:
        """The result of a finished training, written after everything else in the output folder."""
        return self.output / "training.json"

    def _beside(self, name: str) -> Folder:
        return replace(self.output, path=posixpath.join(posixpath.dirname(self.output.path), name))


def read_examples(table: Table) -> list[Example]:
    """The whole table, ordered by id: it is bounded by the budget and the replay size."""
    rows = table.read(["id", "question", "answers", "source"]).sort_by("id").to_pylist()
    return [Example(r["question"], tuple(r["answers"]), r["source"] == "replay") for r in rows]


def read_evaluation(job: Job) -> list[Example]:
    """The questions to evaluate on with their first gold answer, ordered by id; none without a table."""
    if job.evaluation is None:
        return []
    rows = job.evaluation.read(["id", "question", "answers"]).sort_by("id").to_pylist()
    return [Example(r["question"], (r["answers"][0],)) for r in rows]
