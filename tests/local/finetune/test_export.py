"""An adapter must be complete: the empty file that ZeRO-3 can leave is found before anything else is done with it. What
is uploaded gives the logits of the trained model."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from ka2l_ray.config import FinetuneSection, ModelSection, PromptSection
from ka2l_ray.dataflow.manifests import Table
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.finetune.export import check_adapter, export, logits_of
from ka2l_ray.finetune.job import Job, Refusal
from ka2l_ray.models.loading import load_model

STATE = {
    "base_model.model.q.lora_A.default.weight": torch.ones(2, 4),
    "base_model.model.q.lora_B.default.weight": torch.ones(4, 2),
}
SAVED = {k.replace(".default", ""): v for k, v in STATE.items()}


def checked(folder, saved, state=STATE):
    save_file(saved, folder / "adapter_model.safetensors")
    check_adapter(folder, state)


def test_a_complete_adapter_passes(tmp_path):
    checked(tmp_path, SAVED)


@pytest.mark.parametrize(
    ("saved", "state", "message"),
    [
        ({}, STATE, "2 of 2 tensors are missing or empty"),
        (dict(list(SAVED.items())[:1]), STATE, "1 of 2 tensors"),
        (SAVED | {"base_model.model.q.lora_B.weight": torch.ones(0)}, STATE, "1 of 2 tensors"),
        (SAVED, STATE | {"base_model.model.q.lora_B.default.weight": torch.ones(4, 3)}, "1 of 2 tensors"),
        ({}, {}, "0 of 0 tensors"),
        (SAVED | {"base_model.model.q.lora_B.weight": torch.zeros(4, 2)}, STATE, "changes nothing"),
    ],
)
def test_an_incomplete_adapter_is_refused(tmp_path, saved, state, message):
    with pytest.raises(Refusal, match=message):
        checked(tmp_path, saved, state)


SAMPLE = {"input_ids": torch.tensor([[5, 6, 7, 8]]), "attention_mask": torch.ones(1, 4, dtype=torch.int64)}


@pytest.fixture
def trained(llama, tokenizer, tmp_path):
    """(job, folder of the saved adapter, logits of the trained model)."""
    llama.save_pretrained(tmp_path / "base")
    torch.manual_seed(1)
    lora = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    adapted = get_peft_model(copy.deepcopy(llama), lora)
    adapted.save_pretrained(scratch := tmp_path / "scratch/model")
    section, base = FinetuneSection(mode="lora", merge=True), ModelSection(name_or_path=str(tmp_path / "base"))
    output = Folder.of(str(tmp_path / "round/model"))
    job = Job(base, PromptSection(), section, Table(Folder.of(str(tmp_path / "none"))), output, 0)
    return job, scratch, logits_of(adapted, SAMPLE)


def test_the_adapter_and_the_merged_model_give_the_trained_logits(trained, tokenizer, monkeypatch):
    """The base model is read once: other ranks wait meanwhile, and it may be large."""
    job, scratch, expected = trained
    read, load = [], AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(
        AutoModelForCausalLM, "from_pretrained", lambda path, **more: read.append(path) or load(path, **more)
    )
    export(job, scratch, tokenizer, SAMPLE, expected)
    assert read == [job.model.name_or_path, str(scratch.with_name("merged"))]
    for folder in (job.output, job.merged):
        loaded = load_model(job.model, folder.path)
        torch.testing.assert_close(logits_of(loaded, SAMPLE), expected, atol=1e-3, rtol=1e-3)
    assert {"adapter_model.safetensors", "adapter_config.json"} <= set(job.output.names())
    assert "model.safetensors" in job.merged.names()
    assert not (job.output / "merged").exists()


def test_a_folder_that_reloads_to_other_logits_is_refused_and_not_uploaded(trained, tokenizer):
    job, scratch, expected = trained
    with pytest.raises(Refusal, match="the saved adapter gives other logits when loaded again"):
        export(job, scratch, tokenizer, SAMPLE, expected + 1.0)
    assert not job.output.exists()
    assert not job.merged.exists()
