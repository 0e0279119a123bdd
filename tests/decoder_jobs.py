"""Trainings of question decoders on the world's model, in this process: states of a few questions, a job, batches."""

import contextlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ka2l_ray.config import DecoderTrainingSection, ModelSection
from ka2l_ray.dataflow.placement import CPU
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.decode.fitting import DecoderJob, TrainedCard
from ka2l_ray.decode.reading import ReadActor, ReadSetup
from ka2l_ray.decode.self_decoder import SelfCard
from ka2l_ray.finetune.checkpoints import Checkpoints
from ka2l_ray.models.prompts import Tokenize
from ka2l_ray.world.facts import build_world, phrase_question
from ka2l_ray.world_model.pretrain import PROMPT

WORLD = ModelSection(name_or_path="world")
CARD = SelfCard(
    model="world", prompt=PROMPT.template, layer=3, position="mean", token_layer=1, width=128, rank=4, max_tokens=16
)
FACTS = build_world().facts[::7][:60]
QUESTIONS = [phrase_question(f.attribute, n % 3, f.person.name) for n, f in enumerate(FACTS)]


def read(questions: list[str], **fields: Any) -> dict[str, Any]:
    """What the actor reads of questions about the facts."""
    actor = ReadActor(ReadSetup(model=WORLD, prompt=PROMPT, layer=3, position="mean", token_layer=1, **fields))
    asked = pa.table(
        {
            "id": [str(n) for n in range(len(FACTS))],
            "question": questions,
            "entity": [f.person.name for f in FACTS],
            "group": pa.nulls(len(FACTS), pa.string()),
        }
    )
    found = dict(actor(Tokenize(WORLD, PROMPT).add(asked)))
    assert "error" not in found
    return found


def job(rows: pa.Table, folder: Path, card: TrainedCard = CARD, **fields: Any) -> DecoderJob:
    training = {"examples": 96, "batch_rows": 8, "rank": 4, "evaluate_every_steps": 4, "checkpoint_every_steps": 5}
    return DecoderJob(
        card=card,
        model=WORLD,
        training=DecoderTrainingSection.model_validate(training | fields),
        placement=CPU,
        begin=rows.slice(0, 40),
        held=rows.slice(48),
        rows=48,
        output=Folder.of(str(folder / "decoder")),
        progress=Folder.of(str(folder / "progress.json")),
        seed=0,
    )


def batches(rows: pa.Table):
    """Batches of 8 of the first 48 rows, in another order each epoch."""

    def epoch(number: int):
        order = np.random.default_rng(number).permutation(48)
        yield from (rows.take(order[n : n + 8]) for n in range(0, 48, 8))

    return epoch


class InFolder(Checkpoints):
    """Keeps the newest checkpoint, and fails before the one numbered `dies_at`."""

    def __init__(self, folder: Path, dies_at: int | None = None) -> None:
        self._folder, self._dies_at = folder, dies_at

    def latest(self):
        return contextlib.nullcontext(str(self._folder / "kept") if (self._folder / "kept").exists() else None)

    def new_folder(self) -> Path:
        (self._folder / "new").mkdir(parents=True)
        return self._folder / "new"

    def submit(self, folder: Path, step: int) -> None:
        if step == self._dies_at:
            shutil.rmtree(folder)
            raise KeyboardInterrupt
        shutil.rmtree(self._folder / "kept", ignore_errors=True)
        folder.rename(self._folder / "kept")

    def barrier(self) -> None: ...
