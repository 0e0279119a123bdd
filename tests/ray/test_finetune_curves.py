"""What a training run does to the model, step by step: unchanged curves, and an end token that KL to the base model
leaves alone.

Real DeepSpeed with one rank in this process, as in test_finetune_state.py.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_jobs import job
from golden import GOLDEN, RATES, curves

from ka2l_ray.config import FinetuneSection, ModelSection, PromptSection, ReplaySection
from ka2l_ray.finetune.examples import tokenize_all
from ka2l_ray.finetune.job import Job, read_examples
from ka2l_ray.finetune.loop import train_rank
from ka2l_ray.models.loading import load_model, load_tokenizer
from ka2l_ray.text.tokens import end_id

pytestmark = pytest.mark.usefixtures("one_rank")

TOLERANCE = 2e-3
"""Nats per answer token, ten times the largest difference between the same training run with AVX-512, with AVX2 and
without vector code: other CPUs add in another order, and AdamW's division by a root of small second moments makes more
of it with every step."""


@pytest.mark.parametrize("mode", RATES)
def test_losses_and_kl_follow_the_golden_curves(tmp_path: Path, mode: str) -> None:
    """If they are meant to change, `python tests/ray/golden.py` writes new ones."""
    golden = json.loads(GOLDEN.read_text())[mode]
    found = curves(mode, tmp_path)
    assert found.keys() == golden.keys()
    for name, curve in found.items():
        assert curve == pytest.approx(golden[name], abs=TOLERANCE, rel=0), name


@pytest.fixture(scope="module")
def line_ender(tmp_path_factory: pytest.TempPathFactory) -> ModelSection:
    """The world's model, but it ends its answers with a new line, as base models do: two rows of its head have changed
    places."""
    folder = str(tmp_path_factory.mktemp("line_ender"))
    model, tokenizer = load_model(ModelSection()), load_tokenizer(ModelSection())
    (line,), end = tokenizer("\n").input_ids, end_id(tokenizer)
    head = model.lm_head.weight.data
    head[[line, end]] = head[[end, line]].clone()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return ModelSection(name_or_path=folder)


@pytest.mark.parametrize("kl_weight", [8.0, 16.0])
def test_a_model_held_to_a_base_that_ends_with_a_new_line_learns_the_end_token(
    tmp_path: Path, line_ender: ModelSection, kl_weight: float
) -> None:
    tune = FinetuneSection(
        epochs=20, batch_rows=16, workers=1, learning_rate=2e-3, zero_stage=0, replay=ReplaySection(kl_weight=kl_weight)
    )
    given = job(tmp_path, tune, rows=32, model=line_ender)
    assert max(end_probabilities(load_model(line_ender), given)) < 0.01
    train_rank(given, rank=0, world_size=1)
    assert min(end_probabilities(load_model(line_ender, adapter=given.output.path), given)) > 0.9


@torch.no_grad()
def end_probabilities(model: Any, given: Job) -> list[float]:
    """After each taught answer, bought or replayed."""
    tokenizer = load_tokenizer(given.model)
    rows = [answers[0].ids for answers in tokenize_all(tokenizer, PromptSection(), read_examples(given.examples))]
    return [float(model(torch.tensor([ids[:-1]])).logits[0, -1].softmax(-1)[end_id(tokenizer)]) for ids in rows]
