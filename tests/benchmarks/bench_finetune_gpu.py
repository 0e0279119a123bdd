"""Tokens per second and model FLOP utilisation of LoRA on an 8B-shape Llama on one GPU, against a plain loop.

In: a random-weight Llama in the shape of Llama-3.1-8B (`--tiny`: a few thousand weights, to see on a CPU that this
runs) and rows of `--tokens` tokens. Out: `results/finetune_gpu.json` where there is a GPU, and a line per side. Ours
is the loop of one rank (`train_rank`) with ZeRO-2 in this process; the plain loop is transformers, PEFT and torch's
AdamW with PEFT's own autocasting. MFU counts 4 FLOPs per weight and token (forward, and backward through frozen
weights; recomputation is not counted as useful).
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow as pa
import torch
from bench_finetune import WARM_UP_STEPS, random_model
from transformers import LlamaConfig

from ka2l_ray.config import FinetuneSection, ModelSection, PromptSection, ReplaySection
from ka2l_ray.dataflow.manifests import Table
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.finetune.deepspeed import BETAS
from ka2l_ray.finetune.examples import collate, epoch_batches, tokenize_all
from ka2l_ray.finetune.job import Job, read_examples
from ka2l_ray.finetune.loop import train_rank
from ka2l_ray.finetune.losses import answer_loss, answers_of
from ka2l_ray.finetune.model import trainable_model
from ka2l_ray.models.loading import load_tokenizer
from ka2l_ray.text.tokens import ids_of, pad_id

RESULTS = Path(__file__).parent / "results" / "finetune_gpu.json"
SHAPE = {
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "vocab_size": 128256,
}  # fmt: skip
TINY = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "vocab_size": 800,
}  # fmt: skip
ANSWER_WORDS = 8


def long_rows(folder: Path, rows: int, tokens: int, model: ModelSection) -> Table:
    """Rows of about `tokens` tokens: the world's words, over and over."""
    tokenizer = load_tokenizer(model)
    words = sorted(w for w in tokenizer.get_vocab() if w.isalpha())[:200]
    count = max(1, tokens * len(words) // len(ids_of(tokenizer, " ".join(words))) - ANSWER_WORDS)
    texts = [" ".join(words[(i + j) % len(words)] for j in range(count)) for i in range(rows)]
    answers = [[" ".join(words[(i + j) % len(words)] for j in range(ANSWER_WORDS))] for i in range(rows)]
    table = Table(Folder.of(str(folder / "examples")))
    ids = [f"{i:05d}" for i in range(rows)]
    columns = {"id": ids, "question": texts, "answers": answers, "rewordings": [[]] * rows}
    table.write((None, pa.table(columns | {"source": ["annotation"] * rows})))
    return table


def plain(job: Job) -> list[float]:
    """Seconds per step of the loop as one would write it."""
    tune, tokenizer = job.finetune, load_tokenizer(job.model)
    model = trainable_model(job)
    parameters = [p for p in model.parameters() if p.requires_grad]
    device = parameters[0].device
    optimizer = torch.optim.AdamW(parameters, lr=tune.learning_rate, betas=BETAS)
    seconds = []
    for batch in epoch_batches(
        tokenize_all(tokenizer, job.prompt, read_examples(job.examples)), tune.batch_rows, job.seed, 0
    ):
        started = time.perf_counter()
        inputs = {k: v.to(device) for k, v in collate(batch, pad_id(tokenizer)).items()}
        labels = inputs.pop("labels")
        loss = answer_loss(*answers_of(model(**inputs).logits, labels)) / sum(r.answer_length for r in batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, tune.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        seconds.append(time.perf_counter() - started)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="a shape for a CPU; no result file is written")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--batch-rows", type=int, default=8)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--peak-tflops", type=float, default=989.0, help="dense bfloat16 peak of the GPU")
    arguments = parser.parse_args()
    gpus = int(torch.cuda.is_available())  # this process is the only worker
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    with tempfile.TemporaryDirectory(prefix="ka2l-bench-") as scratch:
        folder = Path(scratch)
        backend = "nccl" if gpus else "gloo"
        torch.distributed.init_process_group(backend, init_method=f"file://{folder}/store", rank=0, world_size=1)
        LlamaConfig.from_dict((TINY if arguments.tiny else SHAPE) | {"dtype": "bfloat16"}).save_pretrained(
            folder / "shape"
        )
        model = random_model(folder / "shape", folder)
        section = FinetuneSection(
            mode="lora", precision="bfloat16", zero_stage=2, workers=1, gpus_per_worker=gpus, epochs=1,
            batch_rows=arguments.batch_rows, micro_batch_rows=arguments.batch_rows, checkpoint_every_steps=0,
            replay=ReplaySection(ratio=0),
        )  # fmt: skip
        table = long_rows(folder, arguments.steps * arguments.batch_rows, arguments.tokens, model)
        job = Job(model, PromptSection(), section, table, Folder.of(str(folder / "model")), 0)
        sides: dict[str, list[float]] = {"ours": [], "plain": []}
        for _ in range(arguments.pairs):
            for name, seconds in (("ours", train_rank(job, 0, 1)["step_seconds"]), ("plain", plain(job))):
                sides[name].append(median(seconds[WARM_UP_STEPS:]))
        report(sides, job, arguments)
    torch.distributed.destroy_process_group()


def report(sides: dict[str, list[float]], job: Job, arguments: argparse.Namespace) -> None:
    weights = sum(p.numel() for p in trainable_model(job).parameters())
    rows = tokenize_all(load_tokenizer(job.model), job.prompt, read_examples(job.examples))
    (batch, *_) = epoch_batches(rows, arguments.batch_rows, 0, 0)
    tokens = sum(len(r.ids) for r in batch)
    ratios = [b / a for a, b in zip(sides["ours"], sides["plain"], strict=True)]
    found: dict[str, Any] = {
        "ratio": median(ratios),
        "range": [min(ratios), max(ratios)],
        "weights": weights,
        "tokens_per_step": tokens,
    }
    for name, seconds in sides.items():
        rate = tokens / median(seconds)
        found |= {f"{name}_tokens_per_s": rate, f"{name}_mfu": 4 * weights * rate / (arguments.peak_tflops * 1e12)}
        print(f"{name:<6} {rate:,.0f} tokens/s, MFU {found[f'{name}_mfu']:.3f}")
    print(f"ours over plain: {found['ratio']:.2f} ({min(ratios):.2f} … {max(ratios):.2f})")
    if torch.cuda.is_available() and not arguments.tiny:
        found["machine"] = torch.cuda.get_device_name()
        RESULTS.write_text(
            json.dumps(found | {"command": "python tests/benchmarks/bench_finetune_gpu.py"}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
