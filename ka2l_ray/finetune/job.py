"""What a training run gets, and where it puts its results.

In: tables of examples and, on request, of questions to evaluate on. Out: a `Job` that is sent to workers, and its rows
in memory.
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
from ka2l_ray.models.abilities import Sharing


class Refusal(UserError, RuntimeError):
    """A training run that would fail the same way again, so it is not retried `max_failures` times. During training all
    ranks raise it together; about the saved model only rank 0 does."""


@dataclass(frozen=True)
class Job:
    """Everything a worker needs; small enough to be sent to it.

    `evaluation` has `id`, `question` and gold `answers`, at least one per row; it is only reported. `planned_rows` is
    the number of examples that steps are counted by. It exceeds the number there is where answers were paid for but not
    received, so that all strategies train for equally many steps. `run` and `round` name it in metrics. `prefix` is how
    the model may share what prompts begin with, as in `abilities.Abilities`.
    """

    model: ModelSection
    prompt: PromptSection
    finetune: FinetuneSection
    examples: Table
    output: Folder
    seed: int
    evaluation: Table | None = None
    planned_rows: int = 0
    run: str = ""
    round: str = ""
    prefix: Sharing = "attended"

    def steps(self, examples: int) -> int:
        """Optimiser steps of the whole training run."""
        return self.finetune.epochs * math.ceil(max(examples, self.planned_rows) / self.finetune.batch_rows)

    @property
    def training_model(self) -> ModelSection:
        """The model with the dtype that it is trained in: `finetune.precision` overrides `model.dtype`."""
        precision = self.finetune.precision
        return self.model if precision == "auto" else self.model.model_copy(update={"dtype": precision})

    @property
    def placement(self) -> Placement:
        """The placement of each worker."""
        return of_worker(self.model, self.finetune)

    @property
    def progress(self) -> Folder:
        """A small file next to the output that rank 0 keeps rewriting."""
        return progress_of(self.output)

    @property
    def checkpoints(self) -> Folder:
        """Ray Train's own folder next to the output; deleted once the output is complete."""
        return self._sibling("train")

    @property
    def merged(self) -> Folder:
        """The full model with the adapter merged, where `finetune.merge` asks for it."""
        return self._sibling("merged")

    @property
    def tensorboard(self) -> Folder:
        """TensorBoard event files."""
        return self._sibling("tensorboard")

    @property
    def record(self) -> Folder:
        """The result of a finished training run, written to the output folder after everything else."""
        return self.output / "training.json"

    def _sibling(self, name: str) -> Folder:
        return replace(self.output, path=posixpath.join(posixpath.dirname(self.output.path), name))


def progress_of(output: Folder) -> Folder:
    """The progress file of a training run that writes to `output`."""
    return replace(output, path=f"{output.path}-progress.json")


def read_examples(table: Table) -> list[Example]:
    """The whole table, ordered by id; its size is bounded by the budget and the replay."""
    rows = table.read(["id", "question", "answers", "rewordings", "source"]).sort_by("id").to_pylist()
    return [Example(r["question"], tuple(r["answers"]), r["source"] == "replay", tuple(r["rewordings"])) for r in rows]


def read_evaluation(job: Job) -> list[Example]:
    """The questions to evaluate on, with their first gold answer, ordered by id; none without a table."""
    if job.evaluation is None:
        return []
    rows = job.evaluation.read(["id", "question", "answers"]).sort_by("id").to_pylist()
    return [Example(r["question"], (r["answers"][0],)) for r in rows]
