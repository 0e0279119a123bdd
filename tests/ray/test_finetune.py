"""Real DeepSpeed on real Ray Train workers gives what one plain PyTorch process gives."""

import math
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pytest
import torch

from ka2l_ray.artifacts import Folder, Table
from ka2l_ray.config import FinetuneSection, ModelSection, PromptSection, ReplaySection
from ka2l_ray.finetune.deepspeed import rate
from ka2l_ray.finetune.examples import collate, epoch_batches
from ka2l_ray.finetune.losses import answer_loss
from ka2l_ray.finetune.train import Job, finetune, read_examples, trainable_model
from ka2l_ray.models.loading import load_model, load_tokenizer
from ka2l_ray.models.tokens import pad_id
from ka2l_ray.world.facts import build_world, word

LOSS_TOLERANCE = 2e-3
"""Nats per answer token. AdamW divides by a root of tiny second moments, so the order of a sum shows after some steps."""
RATES = {"full": 1e-3, "lora": 5e-3}


def job(folder: Path, mode: Literal["lora", "full"], rows: int = 21) -> Job:
    facts = [f for f in build_world().facts if f.truth == "unseen"][:rows]
    table = Table(Folder.of(str(folder / "examples")))
    questions = [word(f.attribute, 0, f.person.name) for f in facts]
    table.write(
        (
            None,
            pa.table(
                {
                    "id": [f.fact_id for f in facts],
                    "question": questions,
                    "answers": [[f.value] for f in facts],
                    "source": ["annotation"] * len(facts),
                }
            ),
        )
    )
    section = FinetuneSection(
        mode=mode, epochs=3, batch_rows=8, micro_batch_rows=2, learning_rate=RATES[mode], replay=ReplaySection(ratio=0)
    )
    return Job(ModelSection(), PromptSection(), section, table, Folder.of(str(folder / "model")), seed=3)


def plain_losses(given: Job) -> list[float]:
    """The same global batches in one process: no DeepSpeed, no Ray, no micro-batches."""
    tune, tokenizer, examples = given.finetune, load_tokenizer(given.model), read_examples(given.examples)
    torch.manual_seed(given.seed)
    model = trainable_model(given)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=tune.learning_rate, weight_decay=0.0, betas=(0.9, 0.98))
    steps = tune.epochs * math.ceil(len(examples) / tune.batch_rows)
    losses = []
    for epoch in range(tune.epochs):
        for batch in epoch_batches(examples, tokenizer, given.prompt, tune.batch_rows, given.seed, epoch):
            step = len(losses)
            for group in optimizer.param_groups:
                group["lr"] = tune.learning_rate * rate(step, steps, tune.warmup_share)
            inputs = collate(batch, pad_id(tokenizer))
            labels = inputs.pop("labels")
            loss = answer_loss(model(**inputs).logits, labels) / sum(r.answer for r in batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, tune.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    return losses


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_two_deepspeed_workers_follow_one_plain_process(tmp_path: Path, mode: Literal["lora", "full"]) -> None:
    given = job(tmp_path, mode)
    result: dict[str, Any] = finetune(given, f"test-{mode}-{tmp_path.name}")
    expected = plain_losses(given)
    assert result["examples"] == 21
    assert result["losses"] == pytest.approx(expected, abs=LOSS_TOLERANCE)
    first_epoch, last_epoch = result["losses"][:3], result["losses"][-3:]
    assert sum(last_epoch) < sum(first_epoch) - 0.3, "nothing was learned, so agreement shows nothing"
    saved = {f.name for f in (tmp_path / "model").iterdir()}
    assert ("adapter_model.safetensors" if mode == "lora" else "model.safetensors") in saved
    tuned, base = load_model(given.model, adapter=str(tmp_path / "model")), load_model(given.model)
    changed = sum(float((a - b).detach().abs().sum()) for a, b in zip(tuned.parameters(), base.parameters(), strict=True))
    assert changed > 0
