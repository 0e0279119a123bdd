"""What fine-tuning saves is what vLLM serves: the adapter beside the base model, and the merged model."""

import importlib
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from ka2l_ray.config import Config, FinetuneSection, LoraSection, ModelSection, PromptSection
from ka2l_ray.dataflow.cluster import connect
from ka2l_ray.dataflow.manifests import Table
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.finetune.job import Job
from ka2l_ray.finetune.train import finetune
from ka2l_ray.models.loading import load_model, load_tokenizer, model_path
from ka2l_ray.models.vllm import CPU_ENVIRONMENT
from ka2l_ray.text.prompts import render
from ka2l_ray.text.tokens import ids_of
from ka2l_ray.world.facts import build_world, phrase_question

RANK, STEPS = 8, 6
PROMPT = PromptSection()
TOLERANCE = 2e-2
"""Nats of a token's log-probability: vLLM's kernels sum in another order and keep the adapter next to the weights."""


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A LoRA training on unseen facts, finished: its adapter and its merged weights are in their folders."""
    connect(Config())
    folder = tmp_path_factory.mktemp("tuned")
    facts = [f for f in build_world().facts if f.truth == "unseen"][:24]
    columns = {
        "id": [f.fact_id for f in facts],
        "question": [phrase_question(f.attribute, 0, f.person.name) for f in facts],
        "answers": [[f.value] for f in facts],
        "rewordings": [[]] * len(facts),
        "source": ["annotation"] * len(facts),
    }
    examples = Table(Folder.of(str(folder / "examples")))
    examples.write((None, pa.table(columns)))
    lora = {"mode": "lora", "lora": LoraSection(rank=RANK), "merge": True, "learning_rate": 5e-3}
    section = FinetuneSection.model_validate(
        lora | {"epochs": 12, "batch_rows": 8, "micro_batch_rows": 8, "workers": 1}
    )
    made = Job(ModelSection(), PROMPT, section, examples, Folder.of(str(folder / "model")), 0)
    finetune(made, "for-vllm")
    return made


@pytest.fixture(scope="module")
def vllm() -> Any:
    os.environ |= CPU_ENVIRONMENT | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    return pytest.importorskip("vllm")


def asked(job: Job) -> list[list[int]]:
    tokenizer = load_tokenizer(job.model)
    return [ids_of(tokenizer, render(PROMPT, q)) for q in job.examples.read(["question"])["question"].to_pylist()]


def by_us(job: Job, prompts: list[list[int]]) -> list[tuple[list[int], list[float]]]:
    """Greedy tokens and their log-probabilities of the adapter as this project loads it."""
    model, written = load_model(job.model, adapter=job.output.path), []
    for prompt in prompts:
        ids, scores = list(prompt), []
        for _ in range(STEPS):
            with torch.no_grad():
                logprobs = model(torch.tensor([ids])).logits[0, -1].float().log_softmax(-1)
            ids.append(int(logprobs.argmax()))
            scores.append(float(logprobs.max()))
        written.append((ids[len(prompt) :], scores))
    return written


def by_vllm(
    vllm: Any, folder: str, prompts: list[list[int]], adapter: str | None
) -> list[tuple[list[int], list[float]]]:
    lora = {"enable_lora": True, "max_lora_rank": RANK} if adapter else {}
    llm = vllm.LLM(folder, dtype="float32", enforce_eager=True, max_model_len=64, enable_chunked_prefill=False, **lora)
    request = importlib.import_module("vllm.lora.request").LoRARequest("tuned", 1, adapter) if adapter else None
    wanted = vllm.SamplingParams(temperature=0, max_tokens=STEPS, ignore_eos=True, logprobs=0)
    outputs = llm.generate([{"prompt_token_ids": p} for p in prompts], wanted, lora_request=request, use_tqdm=False)
    ends = [o.outputs[0] for o in outputs]
    return [
        (list(e.token_ids), [step[t].logprob for t, step in zip(e.token_ids, e.logprobs, strict=True)]) for e in ends
    ]


@pytest.mark.parametrize("what", ["adapter", "merged"])
def test_vllm_serves_what_fine_tuning_saved(job: Job, vllm: Any, what: str) -> None:
    prompts = asked(job)
    ours = by_us(job, prompts)
    theirs = by_vllm(
        vllm,
        *((model_path(job.model), prompts, job.output.path) if what == "adapter" else (job.merged.path, prompts, None)),
    )
    base = by_vllm(vllm, model_path(job.model), prompts, None)
    assert [tokens for tokens, _ in theirs] == [tokens for tokens, _ in ours]
    for (_, one), (_, other) in zip(theirs, ours, strict=True):
        assert one == pytest.approx(other, abs=TOLERANCE)
    assert sum(a != b for (a, _), (b, _) in zip(theirs, base, strict=True)) > len(prompts) / 2, (
        "the base model says the same"
    )
    assert Path(job.merged.path, "model.safetensors").exists()
