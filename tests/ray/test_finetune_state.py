"""A training run that resumes from a checkpoint ends bit for bit as one that was never interrupted, and no pickle is
read for it.

Real DeepSpeed with one rank in this process; test_finetune.py has two ranks and Ray Train.
"""

import shutil
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from ka2l_ray.config import FinetuneSection, LoraSection, ModelSection, PromptSection, ReplaySection
from ka2l_ray.dataflow.manifests import Table
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.finetune import loop
from ka2l_ray.finetune.checkpoints import is_complete
from ka2l_ray.finetune.job import Job, Refusal
from ka2l_ray.finetune.loop import train_rank
from ka2l_ray.models.loading import load_model, load_tokenizer

pytestmark = pytest.mark.usefixtures("one_rank")


class Kept:
    """Checkpoints in a folder; a training run starts from `start` where it is given."""

    def __init__(self, folder, start=None):
        self.folder, self.start, self.events = folder, start, []

    @contextmanager
    def latest(self):
        self.events.append("latest")
        yield self.start

    def new_folder(self):
        (new := self.folder / "new").mkdir(parents=True)
        return new

    def submit(self, folder, step):
        shutil.move(folder, self.folder / f"step_{step}")

    def barrier(self):
        self.events.append("barrier")


def job(folder, model=None, seed=3, **fields):
    table = Table(Folder.of(str(folder / "examples")))
    rows = [
        {"id": str(i), "question": f"Where is {i}?", "answers": [f"Port {i}"], "source": "annotation"}
        | {"rewordings": []}
        for i in range(7)
    ]
    table.write((None, pa.Table.from_pylist(rows)))
    small = {
        "epochs": 3,
        "batch_rows": 4,
        "micro_batch_rows": 2,
        "workers": 1,
        "learning_rate": 1e-3,
        "checkpoint_every_steps": 3,
    }
    section = FinetuneSection(**small | fields)
    return Job(model or ModelSection(), PromptSection(), section, table, Folder.of(str(folder / "model")), seed)


@pytest.mark.parametrize(
    "fields",
    [
        {"zero_stage": 0, "precision": "bfloat16"},
        {"zero_stage": 0, "mode": "lora"},
        {"zero_stage": 1, "offload": "optimizer"},
        {"zero_stage": 2, "mode": "lora", "precision": "bfloat16"},
        {"zero_stage": 3, "mode": "lora"},
    ],
    ids=str,
)
def test_resuming_from_a_checkpoint_is_exact(tmp_path, monkeypatch, fields):
    """With dropout, mid-epoch: six steps, two per epoch, a checkpoint after the third."""
    given = job(tmp_path, lora=LoraSection(dropout=0.3), **fields)
    undisturbed = train_rank(given, 0, 1, Kept(tmp_path / "kept"))
    calm = load_model(given.model, adapter=given.output.path).state_dict()
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("a pickle is read"))
    torch.rand(99)  # another state of the random generators than a new training run's
    resumed = train_rank(given, 0, 1, Kept(tmp_path / "again", start=tmp_path / "kept/step_3"))
    assert resumed["losses"] == undisturbed["losses"]
    assert (resumed["resumed_at_steps"], len(resumed["step_seconds"])) == ([3], 3)
    again = load_model(given.model, adapter=given.output.path).state_dict()
    assert all(torch.equal(again[k], v) for k, v in calm.items())


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_adapters_are_trained_and_evaluated_on_quantized_weights(tmp_path, quantization):
    """QLoRA with bitsandbytes on the CPU: the export gives the same logits, or it would be refused; nothing is
    merged."""
    pytest.importorskip("bitsandbytes")
    base = ModelSection(quantization=quantization)
    given = job(tmp_path, base, mode="lora", zero_stage=2, epochs=8, replay=ReplaySection(kl_weight=0.1))
    result = train_rank(given, 0, 1)
    assert result["losses"][-1] < result["losses"][0] - 0.3
    tuned = load_model(base, adapter=given.output.path)
    kinds = {type(m).__name__ for m in tuned.modules()}
    assert {"4bit": "Linear4bit", "8bit": "Linear8bitLt"}[quantization] in kinds
    ids = torch.arange(5, 17).reshape(2, 6)
    with torch.no_grad():
        assert not torch.allclose(tuned(ids).logits, load_model(base)(ids).logits, atol=1e-2)


def test_steps_are_counted_by_the_planned_rows(tmp_path):
    """Seven of nine bought answers were given: as many steps as with nine, over seven examples."""
    whole = job(tmp_path / "a")
    short = replace(whole, planned_rows=9, output=Folder.of(str(tmp_path / "b/model")))
    assert (whole.steps(7), short.steps(7)) == (6, 9)
    steps: list[Mapping[str, float]] = []
    result = train_rank(short, 0, 1, Kept(tmp_path / "kept"), steps.append)
    assert (result["steps"], len(result["losses"])) == (9, 9)
    assert [(v["training_step"], v["training_steps"], round(v["training_loss"], 6)) for v in steps] == [
        (n, 9, loss) for n, loss in enumerate(result["losses"], 1)
    ]
    resumed = train_rank(short, 0, 1, Kept(tmp_path / "again", start=tmp_path / "kept/step_6"))
    assert resumed["losses"] == result["losses"]


def test_a_checkpoint_of_another_training_run_is_refused_with_what_differs(tmp_path):
    train_rank(job(tmp_path / "a"), 0, 1, Kept(tmp_path / "kept"))
    other = job(tmp_path / "b", seed=4, learning_rate=2e-3, max_failures=9)
    with pytest.raises(
        Refusal,
        match=r"learning_rate: 0.001 → 0.002; seed: 3 → 4\. Restore the settings, or delete the round's `train` folder",
    ):
        train_rank(other, 0, 1, Kept(tmp_path / "more", start=tmp_path / "kept/step_3"))


def test_a_checkpoint_is_complete_with_every_ranks_whole_files(tmp_path):
    train_rank(job(tmp_path), 0, 1, Kept(tmp_path / "kept"))
    folder = tmp_path / "kept/step_3"
    assert is_complete(folder, 1)
    assert not is_complete(folder, 2)
    for file in sorted(folder.iterdir()):
        whole = file.read_bytes()
        file.write_bytes(whole[:-9])
        assert not is_complete(folder, 1), file.name
        file.write_bytes(whole)


def test_a_loss_that_is_not_finite_is_refused_with_its_step(tmp_path):
    base = load_model(ModelSection())
    base.lm_head.weight.data[0] = torch.inf
    base.save_pretrained(tmp_path / "broken")
    load_tokenizer(ModelSection()).save_pretrained(tmp_path / "broken")
    given = job(tmp_path, ModelSection(name_or_path=str(Path(tmp_path / "broken"))))
    with pytest.raises(Refusal, match=r"the loss at optimiser step 1 is nan .* lower finetune.learning_rate"):
        train_rank(given, 0, 1)
    assert not given.output.exists()


def test_a_precision_that_cannot_be_trained_in_is_refused(tmp_path):
    given = job(tmp_path, ModelSection(dtype="float16"))
    with pytest.raises(
        Refusal, match=r"finetune.precision = 'auto' gives torch.float16; set it to float32 or bfloat16"
    ):
        train_rank(given, 0, 1)


def test_ranks_wait_for_each_other_after_each_load_and_not_in_a_collective(tmp_path, monkeypatch):
    """A model or a checkpoint may reach one node an hour later than another."""
    kept = Kept(tmp_path / "kept")

    def told(name, real):
        return lambda *given, **more: kept.events.append(name) or real(*given, **more)

    for name in ("trainable_model", "deepspeed_config", "frozen_base"):
        monkeypatch.setattr(loop, name, told(name, getattr(loop, name)))
    train_rank(job(tmp_path, epochs=1, checkpoint_every_steps=0), 0, 1, kept)
    assert kept.events == ["trainable_model", "barrier", "deepspeed_config", "frozen_base", "latest", "barrier"]
