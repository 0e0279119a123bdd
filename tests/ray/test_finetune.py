"""Real DeepSpeed on real Ray Train workers gives what one plain PyTorch process gives, and survives the death of each
part."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import finetune_jobs
import psutil
import pytest
import torch
from finetune_jobs import NAME, WORLD, SlowStorage, job
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from safetensors.torch import save

from ka2l_ray.config import ConfigError, FinetuneSection, LoraSection, ModelSection, PromptSection, ReplaySection
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.errors import StageError
from ka2l_ray.finetune import train
from ka2l_ray.finetune.deepspeed import BETAS, learning_rate_factor
from ka2l_ray.finetune.examples import collate, epoch_batches, held_to_base, tokenize_all
from ka2l_ray.finetune.export import logits_of
from ka2l_ray.finetune.job import Job, read_examples
from ka2l_ray.finetune.losses import answer_loss, answers_of, kl_to_base
from ka2l_ray.finetune.model import trainable_model
from ka2l_ray.finetune.passes import shared_tokens
from ka2l_ray.finetune.train import SNAPSHOT, fallback_checkpoint, finetune, restored_interrupt_handler
from ka2l_ray.models.engine import embedding_rows
from ka2l_ray.models.loading import ASSETS, load_model, load_tokenizer
from ka2l_ray.text.tokens import pad_id
from ka2l_ray.world.facts import build_world, phrase_question

LOSS_TOLERANCE = 2e-3
"""Nats per answer token. AdamW divides by a root of tiny second moments, so the order of a sum shows after some
steps."""
LOGIT_TOLERANCE = 5e-2
"""For the same reason the models that both ends arrive at differ a little; their logits reach about 20."""
RATES = {"full": 1e-3, "lora": 5e-3}
CASES: dict[str, dict[str, Any]] = {
    "1-full": {"schedule": "cosine"},
    "1-lora": {
        **{"group_by_length": True, "lora": LoraSection(last_blocks=4)},
        "replay": ReplaySection(ratio=0, kl_weight=0.5),
    },
    "2-full": {"replay": ReplaySection(ratio=0, kl_weight=0.5)},
    "2-lora": {"merge": True, "evaluate_every_epochs": 2, "tensorboard": True},
    "3-full": {"gradient_checkpointing": True},
    "3-lora": {
        **{
            "replay": ReplaySection(ratio=0, kl_weight=0.5),
            "checkpoint_every_steps": 4,
            "gradient_checkpointing": True,
        },
        "gpus_per_worker": 1,
    },
}
"""Every stage and mode once, each with something of its own."""
SLOW = "0-full, slow upload"
TOGETHER = ("1-full", "1-lora", "2-full", "3-full")
SEEING_GPUS = "2-lora"
ALONE = ("2-lora",)
"""Stages and modes that others show too, each at the cost of workers of its own: tested by `make test-long`."""
PADDED_APART = "2-full"
SHARING = ("1-full", "1-lora")
"""Those of `TOGETHER` whose prompts begin alike; the first blocks of the second are run once per row."""


def section(stage: Any, mode: Any, **fields: Any) -> FinetuneSection:
    small = {"epochs": 3, "batch_rows": 8, "micro_batch_rows": 2, "learning_rate": RATES[mode]}
    return FinetuneSection(zero_stage=stage, mode=mode, **small | fields)


def behind_solved_examples(prompt: PromptSection) -> PromptSection:
    """The prompt after solved examples, which all rows share."""
    solved = "".join(
        prompt.template.replace("{question}", phrase_question(f.attribute, 0, f.person.name)) + f" {f.value}\n"
        for f in build_world().facts[:3]
    )
    return prompt.model_copy(update={"template": solved + prompt.template})


def padded_apart(folder: Path) -> ModelSection:
    """The world's model with a padding token that was added to its tokenizer and has no row in the embedding."""
    shutil.copytree(ASSETS / "model", folder)
    tokenizer = load_tokenizer(WORLD)
    tokenizer.add_special_tokens({"pad_token": "[ADDED]"})
    tokenizer.save_pretrained(str(folder))
    return ModelSection(name_or_path=str(folder))


def padding(given: Job, model: Any) -> int:
    """A token that the model has: the tokenizer's padding token or, where the model has none such, the last one."""
    return min(pad_id(load_tokenizer(given.model)), embedding_rows(model) - 1)


def plain_training(given: Job) -> tuple[list[float], Any]:
    """The same global batches in one process: no DeepSpeed, no Ray, no micro-batches. Losses, and the model that they
    lead to."""
    tune, tokenizer = given.finetune, load_tokenizer(given.model)
    examples = tokenize_all(tokenizer, given.prompt, read_examples(given.examples))
    torch.manual_seed(given.seed)
    model, base = trainable_model(given), load_model(given.model)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=tune.learning_rate, weight_decay=tune.weight_decay, betas=BETAS)
    steps = tune.epochs * math.ceil(len(examples) / tune.batch_rows)
    losses = []
    for epoch in range(tune.epochs):
        for batch in epoch_batches(examples, tune.batch_rows, given.seed, epoch, tune.group_by_length):
            for group in optimizer.param_groups:
                group["lr"] = tune.learning_rate * learning_rate_factor(
                    len(losses), steps, tune.warmup_share, tune.schedule
                )
            inputs = collate(batch, padding(given, base))
            labels = inputs.pop("labels")
            logits, answers = answers_of(model(**inputs).logits, labels)
            loss = objective = answer_loss(logits, answers) / len(answers)
            if any(r.replayed for r in batch):
                with torch.no_grad():
                    held = answers_of(base(**inputs).logits, labels)[0][at := held_to_base(batch)]
                objective = loss + tune.replay.kl_weight * kl_to_base(logits, held, at) / len(answers)
            objective.backward()
            torch.nn.utils.clip_grad_norm_(parameters, tune.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    return losses, model


def some_inputs(given: Job) -> dict[str, torch.Tensor]:
    tokenizer = load_tokenizer(given.model)
    rows = tokenize_all(tokenizer, given.prompt, read_examples(given.examples)[:6])
    rows, pad = [answers[0] for answers in rows], padding(given, load_model(given.model))
    return {k: v for k, v in collate(rows, pad).items() if k != "labels"}


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Job], dict[str, Any]]:
    """The cases that need nothing of `finetune` itself, in one run of Ray Train: (jobs, results)."""
    folder = tmp_path_factory.mktemp("together")
    models = {PADDED_APART: padded_apart(folder / "padded")}
    jobs = {
        c: job(
            folder,
            section(int(c[0]), c[2:], **CASES[c]),
            output=Folder.of(str(folder / c / "model")),
            model=models.get(c, WORLD),
        )
        for c in TOGETHER
    }
    for c in SHARING:
        jobs[c] = replace(jobs[c], prompt=behind_solved_examples(jobs[c].prompt))
    storage = Folder.of(str(folder / SLOW / "model"))
    jobs[SLOW] = job(
        folder, section(0, "full", epochs=1), output=SlowStorage(storage.filesystem, storage.path)
    )  # the last: it leaves a timeout
    workers = ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1})
    run = RunConfig(name="together", storage_path=str(folder / "train"))
    result: Any = TorchTrainer(
        finetune_jobs.train_all, train_loop_config={"jobs": jobs}, scaling_config=workers, run_config=run
    ).fit()
    return jobs, result.return_value


@pytest.mark.parametrize("case", [pytest.param(c, marks=pytest.mark.long) if c in ALONE else c for c in CASES])
def test_two_deepspeed_workers_follow_one_plain_process(
    tmp_path: Path, case: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where workers see GPUs that are not theirs, and where they are lent simulated ones under `model.device:
    cpu`."""
    mode = case[2:]
    if case in TOGETHER:
        given, result = (found[case] for found in request.getfixturevalue("together"))
        beyond = pad_id(load_tokenizer(given.model)) >= embedding_rows(load_model(given.model))
        assert beyond == (case == PADDED_APART)
        rows = tokenize_all(load_tokenizer(given.model), given.prompt, read_examples(given.examples))
        assert bool(shared_tokens(answers[0] for answers in rows)) == (case in SHARING)
    else:
        on_s3 = Folder.of(request.getfixturevalue("bucket")) / "round/model" if case == "3-lora" else None
        given = job(tmp_path, section(int(case[0]), mode, **CASES[case]), output=on_s3)
        given = replace(given, model=ModelSection(device="cpu")) if given.finetune.gpus_per_worker else given
        if case == SEEING_GPUS:
            monkeypatch.setattr(train, "_worker", finetune_jobs.seeing_gpus)
        result = finetune(given, f"test-{case}-{tmp_path.name}")
    losses, model = plain_training(given)
    assert result["losses"] == pytest.approx(losses, abs=LOSS_TOLERANCE)
    assert sum(losses[-3:]) < sum(losses[:3]) - 0.3, "nothing was learned, so agreement shows nothing"
    sample = some_inputs(given)
    wanted = logits_of(model, sample)
    base_gap = float((wanted - logits_of(load_model(given.model), sample)).abs().max())
    assert base_gap > 10 * LOGIT_TOLERANCE, "training changed too little for the comparison of logits to show anything"
    with given.output.local() as folder:
        saved = {f.name for f in Path(folder).iterdir()}
        assert ("adapter_model.safetensors" if mode == "lora" else "model.safetensors") in saved
        tuned = load_model(given.model, adapter=folder)
        torch.testing.assert_close(logits_of(tuned, sample), wanted, atol=LOGIT_TOLERANCE, rtol=0)
        if mode == "lora":
            from peft import AutoPeftModelForCausalLM

            by_peft = AutoPeftModelForCausalLM.from_pretrained(folder)
            torch.testing.assert_close(logits_of(by_peft, sample), wanted, atol=LOGIT_TOLERANCE, rtol=0)
    assert not given.checkpoints.exists(), "a finished training run keeps no optimiser state"
    assert (given.tensorboard.exists(), given.merged.exists()) == (given.finetune.tensorboard, given.finetune.merge)
    if given.finetune.merge:
        whole = load_model(given.model, adapter=given.merged.path)
        torch.testing.assert_close(logits_of(whole, sample), wanted, atol=LOGIT_TOLERANCE, rtol=0)
    if given.finetune.evaluate_every_epochs:
        (evaluation,) = result["evaluations"]
        assert (evaluation["epoch"], evaluation["step"]) == (2, 6)
        assert 0 < evaluation["loss"] < losses[0]
        assert 0 <= evaluation["exact_match"] <= evaluation["token_accuracy"] <= 1
    if given.finetune.replay.kl_weight:
        assert result["kl"][0] == pytest.approx(0, abs=1e-6), "before the first step the model is the base model"
        assert result["kl"][-1] > 0
    if case not in TOGETHER:
        assert finetune(given, f"test-{case}-{tmp_path.name}") == result, "a finished training run is not repeated"


def test_no_rank_waits_in_a_collective_while_rank_zero_uploads(together: tuple[dict[str, Job], dict[str, Any]]) -> None:
    """The upload takes longer than a collective's timeout; the training run succeeds, and what was uploaded is
    complete."""
    jobs, results = together
    given, losses = jobs[SLOW], results[SLOW]["losses"]
    assert len(losses) == 3
    load_model(given.model, adapter=given.output.path)


def test_gpus_that_workers_cannot_use_are_refused_before_nccl_is_asked_for(tmp_path: Path) -> None:
    """The cluster's are simulated, and this torch is a build for CPUs."""
    given = job(tmp_path, section(2, "full", gpus_per_worker=1))
    problem = r"finetune\.gpus_per_worker = 1: torch .* was built without CUDA"
    remedy = r"install a CUDA build .* or set model\.device: cpu"
    with pytest.raises(ConfigError, match=rf"{problem}; {remedy}"):
        finetune(given, "refused")
    assert not given.checkpoints.exists(), "no training run was started"


@pytest.mark.long
def test_a_killed_worker_or_driver_loses_only_the_steps_since_the_last_checkpoint(tmp_path: Path) -> None:
    """LoRA with dropout: a resumed training run equals an uninterrupted one only if its random state is restored."""
    tune = section(
        2,
        "lora",
        epochs=80,
        learning_rate=5e-4,
        lora=LoraSection(dropout=0.1),
        checkpoint_every_steps=20,
        evaluate_every_epochs=20,
    )
    (calm_folder := tmp_path / "calm").mkdir()
    (killed_folder := tmp_path / "killed").mkdir()
    calm, killed = job(calm_folder, tune), job(killed_folder, tune)
    ctrl_c = signal.getsignal(signal.SIGINT)
    undisturbed = finetune(calm, "calm")
    assert signal.getsignal(signal.SIGINT) is ctrl_c
    assert undisturbed["resumed_at_steps"] == []

    snapshot = killed.checkpoints / NAME / SNAPSHOT
    driver = subprocess.Popen(
        [sys.executable, finetune_jobs.__file__, str(killed_folder), tune.model_dump_json()],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    wait_for(lambda: last_listed(snapshot) > 0, driver)
    first_group = train_workers(driver.pid)
    assert len(first_group) == 2
    before_worker = last_listed(snapshot, wait_s=30)
    first_group[1].send_signal(signal.SIGKILL)
    wait_for(
        lambda: (
            len(again := train_workers(driver.pid)) == 2 and not {p.pid for p in again} & {p.pid for p in first_group}
        ),
        driver,
    )
    at_restart = last_listed(snapshot, wait_s=30)
    wait_for(lambda: last_listed(snapshot) > at_restart, driver)
    cluster = psutil.Process(driver.pid).children(recursive=True)
    os.killpg(
        driver.pid, signal.SIGKILL
    )  # with Ray's agents, which would outlive it by a minute; workers have groups of their own
    driver.wait()
    psutil.wait_procs(cluster, timeout=60)
    before_driver = last_listed(snapshot, wait_s=30)

    resumed = finetune(killed, NAME)
    assert resumed["resumed_at_steps"] == [at_restart, before_driver]
    assert 0 < before_worker <= at_restart < before_driver < resumed["steps"] == 240
    assert len(resumed["step_seconds"]) == 240 - before_driver
    assert resumed["losses"] == undisturbed["losses"]
    assert resumed["evaluations"] == undisturbed["evaluations"]
    sample = some_inputs(calm)
    ours, theirs = (logits_of(load_model(j.model, adapter=j.output.path), sample) for j in (calm, killed))
    torch.testing.assert_close(ours, theirs, atol=0, rtol=0)
    assert not killed.checkpoints.exists()


def last_listed(snapshot: Folder, wait_s: float = 0.0) -> int:
    """The step of the last checkpoint that Ray Train counts; 0 where there is none, or its list is incomplete after
    `wait_s`."""
    deadline = time.monotonic() + wait_s
    while True:
        try:
            return int(
                json.loads(snapshot.read_bytes())["latest_checkpoint_result"]["checkpoint_dir_name"].removeprefix(
                    "step_"
                )
            )
        except (OSError, ValueError, TypeError):  # not there yet, or being written
            if time.monotonic() >= deadline:
                return 0
            time.sleep(0.05)


def train_workers(driver: int) -> list[psutil.Process]:
    """The Train workers of the cluster that this driver started."""
    found = []
    for process in psutil.Process(driver).children(recursive=True):
        try:
            if "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def wait_for(ready: Callable[[], bool], driver: subprocess.Popen[bytes], timeout_s: float = 180) -> None:
    deadline = time.monotonic() + timeout_s
    while not ready():
        if driver.poll() is not None or time.monotonic() > deadline:
            driver.kill()
            raise AssertionError(
                f"the driver ended or hung before the moment to kill: {driver.communicate()[1].decode()[-3000:]}"
            )
        time.sleep(0.05)


def test_a_damaged_list_of_checkpoints_loses_no_complete_checkpoint(tmp_path: Path) -> None:
    """A driver killed while Ray Train wrote its list, and again before the next list: the newest checkpoint with all
    files of both ranks counts."""
    given = job(tmp_path, section(2, "full"))
    folder = given.checkpoints / NAME
    assert fallback_checkpoint(given, folder) is None, "no checkpoint: a new training run"
    for step, ranks in ((7, (0, 1)), (14, (0, 1)), (21, (0,))):
        for rank in ranks:
            (folder / f"step_{step:08d}/rank_{rank:03d}.json").write_json({})
            (folder / f"step_{step:08d}/rank_{rank:03d}.safetensors").write_bytes(save({"x": torch.ones(3)}))
    snapshot = folder / SNAPSHOT
    whole = json.dumps({"checkpoint_results": [{"checkpoint_dir_name": "step_00000014"}]})
    snapshot.write_bytes(whole.encode())
    assert fallback_checkpoint(given, folder) is None, "Ray Train restores what it lists"
    snapshot.write_bytes(whole[:-9].encode())
    for _ in range(2):
        found = fallback_checkpoint(given, folder)
        assert found is not None
        assert found.path.endswith("step_00000014")
        assert not snapshot.exists(), "Ray Train would fail on it"
    (folder / "step_00000014").delete()
    (folder / "step_00000007").delete()
    assert fallback_checkpoint(given, folder) is None, "none is complete: a new training run"


def test_ctrl_c_works_as_before_after_a_training_run() -> None:
    """Ray Train's handler ends the process by `sys.exit`, and stays installed."""

    def interrupted() -> None:
        with restored_interrupt_handler():
            signal.signal(signal.SIGINT, lambda *_: sys.exit(0))
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.long
def test_what_would_fail_again_is_not_retried(tmp_path: Path) -> None:
    """Found by rank 0 only, after the other rank has returned. AdamW's steps at this learning rate are zero in
    float32."""
    given = job(tmp_path, section(2, "lora", max_failures=5, epochs=1).model_copy(update={"learning_rate": 1e-60}))
    with pytest.raises(
        StageError, match=r"the saved adapter changes nothing: every lora_B is zero; raise finetune.learning_rate"
    ):
        finetune(given, "nothing")
    assert not given.output.exists()


def test_nothing_to_train_on_is_refused_before_workers_start(tmp_path: Path) -> None:
    given = job(tmp_path, section(2, "full"), rows=0)
    with pytest.raises(StageError, match="contains no examples"):
        finetune(given, "empty")
