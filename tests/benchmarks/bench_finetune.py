"""Steps per second of two ZeRO-2 workers under Ray Train against two plain DDP processes on the same cores.

In: the world model, or with `--config FOLDER` a random-weight model of that folder's `config.json`, stepped on the
world's questions. Out: `results/finetune.json`, one entry per model, and a line. The ratio is ours over DDP's: the
median of interleaved pairs with its range. Both sides take the same global batches with one thread per process at the
niceness that Ray gives its workers; start-up, the first steps, tokenizing, saving and checking are left out. That
both did the same work is checked by their losses.
Says nothing of GPUs, where ZeRO saves memory and gathers run beside the arithmetic.
"""

import argparse
import json
import os
import platform
import shlex
import socket
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow as pa
import torch
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from ka2l_ray.config import Config, FinetuneSection, ModelSection, PromptSection, ReplaySection
from ka2l_ray.dataflow.manifests import Table
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.finetune.deepspeed import BETAS, accumulation_steps, learning_rate_factor, micro_batch_rows
from ka2l_ray.finetune.examples import collate, epoch_batches, micro_batches, tokenize_all
from ka2l_ray.finetune.job import Job, read_examples
from ka2l_ray.finetune.losses import answer_loss, answers_of
from ka2l_ray.finetune.model import trainable_model
from ka2l_ray.models.loading import load_tokenizer
from ka2l_ray.text.tokens import pad_id
from ka2l_ray.world.facts import build_world, phrase_question

RESULTS = Path(__file__).parent / "results" / "finetune.json"
WARM_UP_STEPS, RAY_NICENESS = 5, 15
LOSS_TOLERANCE = 2e-2
"""Nats per answer token after dozens of AdamW steps whose sums ran in another order."""


def make_job(folder: Path, model: ModelSection, section: FinetuneSection, steps: int, name: str) -> Job:
    """One epoch of `steps` whole steps."""
    facts = build_world().facts[: steps * section.batch_rows]
    table = Table(Folder.of(str(folder / "examples")))
    if not table.is_done:
        columns = {
            "id": [f.fact_id for f in facts],
            "question": [phrase_question(f.attribute, 0, f.person.name) for f in facts],
        }
        columns |= {"answers": [[f.value] for f in facts], "source": ["annotation"] * len(facts)}
        columns |= {"rewordings": [[]] * len(facts)}
        table.write((None, pa.table(columns)))
    return Job(model, PromptSection(), section, table, Folder.of(str(folder / name / "model")), 0)


def random_model(config_folder: Path, folder: Path) -> ModelSection:
    """Random weights in the shape of `config.json`, with the world's tokenizer where the folder holds none."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(config_folder)).save_pretrained(folder / "base")
    source = str(config_folder) if (config_folder / "tokenizer_config.json").exists() else "world"
    load_tokenizer(ModelSection(name_or_path=source)).save_pretrained(folder / "base")
    return ModelSection(name_or_path=str(folder / "base"))


def ddp_rank(rank: int, port: int, job: Job, out: str) -> None:
    """The baseline as one would write it: DDP, `no_sync` while accumulating, AdamW, clipping."""
    os.nice(RAY_NICENESS)
    torch.set_num_threads(1)
    tune, world_size = job.finetune, job.finetune.workers
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world_size
    )
    tokenizer = load_tokenizer(job.model)
    examples = tokenize_all(tokenizer, job.prompt, read_examples(job.examples))
    torch.manual_seed(job.seed)
    model = DistributedDataParallel(trainable_model(job))
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=tune.learning_rate, betas=BETAS, weight_decay=tune.weight_decay
    )
    steps, losses, seconds = len(examples) // tune.batch_rows, [], []
    for batch in epoch_batches(examples, tune.batch_rows, job.seed, 0):
        started = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = tune.learning_rate * learning_rate_factor(
                len(losses), steps, tune.warmup_share, tune.schedule
            )
        tokens, total = sum(r.answer_length for r in batch), torch.zeros(())
        parts = micro_batches(batch, rank, world_size, micro_batch_rows(tune), accumulation_steps(tune))
        for i, rows in enumerate(parts):
            inputs = collate(rows, pad_id(tokenizer))
            labels = inputs.pop("labels")
            with nullcontext() if i == len(parts) - 1 else model.no_sync():
                loss = answer_loss(*answers_of(model(**inputs).logits, labels))
                (loss * world_size / tokens).backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(model.parameters(), tune.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        torch.distributed.all_reduce(total)
        losses.append(float(total) / tokens)
        seconds.append(time.perf_counter() - started)
    if rank == 0:
        Path(out).write_text(json.dumps({"losses": losses, "step_seconds": seconds}))
    torch.distributed.barrier()
    os._exit(0)  # gloo's threads may wait for ever when a rank is torn down after the other has gone


def run_ddp(job: Job, folder: Path) -> dict[str, Any]:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    spawn(ddp_rank, args=(port, job, str(folder / "ddp.json")), nprocs=job.finetune.workers)
    return json.loads((folder / "ddp.json").read_text())


def steps_per_s(run: dict[str, Any]) -> float:
    """From the median step: a burst of other load on the machine falls on a few steps only."""
    return 1 / median(run["step_seconds"][WARM_UP_STEPS:])


def measure(model: ModelSection, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    from ka2l_ray.finetune.train import finetune

    section = FinetuneSection(
        mode="full", zero_stage=2, workers=2, epochs=1, batch_rows=arguments.batch_rows,
        micro_batch_rows=arguments.micro_batch_rows, learning_rate=1e-4, checkpoint_every_steps=0,
        replay=ReplaySection(ratio=0),
    )  # fmt: skip
    pairs: list[tuple[float, float]] = []
    for pair in range(arguments.pairs):
        job = make_job(folder, model, section, arguments.steps, f"pair_{pair}")
        sides = [lambda job=job, pair=pair: finetune(job, f"bench-{pair}"), lambda job=job: run_ddp(job, folder)]
        first, second = (sides[i]() for i in ((0, 1) if pair % 2 == 0 else (1, 0)))
        ours, plain = (first, second) if pair % 2 == 0 else (second, first)
        gap = max(abs(a - b) for a, b in zip(ours["losses"], plain["losses"], strict=True))
        assert gap < LOSS_TOLERANCE, f"the sides did different work: losses differ by {gap:.3g}"
        pairs.append((steps_per_s(ours), steps_per_s(plain)))
        print(f"pair {pair}: {pairs[-1][0]:.2f} steps/s under Ray Train with ZeRO-2, {pairs[-1][1]:.2f} with DDP")
    ratios = [a / b for a, b in pairs]
    return {
        "ratio": median(ratios),
        "range": [min(ratios), max(ratios)],
        "steps_per_s": median(a for a, _ in pairs),
        "ddp_steps_per_s": median(b for _, b in pairs),
        "pairs": arguments.pairs,
        "steps": arguments.steps - WARM_UP_STEPS,
        "batch_rows": arguments.batch_rows,
        "micro_batch_rows": arguments.micro_batch_rows,
        "parameters": sum(p.numel() for p in trainable_model(job).parameters()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--config", type=Path, help="folder with a config.json: random weights of that shape, not the world model"
    )
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=45)
    parser.add_argument("--batch-rows", type=int, default=32)
    parser.add_argument("--micro-batch-rows", type=int, default=16)
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    from ka2l_ray.dataflow.cluster import connect

    connect(Config())
    with tempfile.TemporaryDirectory(prefix="ka2l-bench-") as scratch:
        model = random_model(arguments.config, Path(scratch)) if arguments.config else ModelSection()
        found = measure(model, Path(scratch), arguments)
    name = arguments.config.name if arguments.config else "world"
    found |= {
        "command": shlex.join(["python", *sys.argv]),
        "machine": f"{os.cpu_count()} × {platform.processor() or platform.machine()}",
    }
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    RESULTS.write_text(json.dumps(results | {name: found}, indent=1) + "\n")
    print(f"{name}: {found['ratio']:.2f}x of plain DDP ({found['range'][0]:.2f} … {found['range'][1]:.2f})")


if __name__ == "__main__":
    main()
