"""A training run in small, before anything is bought: one step, save, load again, merge, compare.

In: the model's configuration, and the settings of fine-tuning. Out: nothing, or a `ConfigError` that names the setting
to change. It runs on a tiny form of the model, in this process, in about a second, through the same functions as the
training run. DeepSpeed takes part where it changes a model: ZeRO-3 divides its weights, so a step of it is made in a
process of its own (ten seconds more). Stages 1 and 2 divide what belongs to the optimiser, whatever the model.

What is saved, merged and loaded is compared in float32, whatever precision is trained in: in bfloat16 a mixture of
experts that was merged chooses other experts for some tokens, and its logits are others by 0.1 and more although
nothing is wrong. One step more is made in the precision itself.
Refuses to know: real weights, Ray, data.
"""

import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from ka2l_ray.config import FinetuneSection, LoraSection, ModelSection, PromptSection
from ka2l_ray.dataflow.log import log
from ka2l_ray.dataflow.manifests import Table
from ka2l_ray.dataflow.storage import Folder
from ka2l_ray.errors import ConfigError, UserError, library_message
from ka2l_ray.finetune.export import check_adapter, check_logits, export, logits_of
from ka2l_ray.finetune.job import Job, Refusal
from ka2l_ray.finetune.loop import sharded
from ka2l_ray.finetune.losses import answer_loss, answers_of
from ka2l_ray.finetune.model import TRAINED_IN, trainable_model
from ka2l_ray.models.examine import Configured, numbers_tokenizer, quiet
from ka2l_ray.models.loading import configuration, load_model
from ka2l_ray.models.tiny_form import OWN_TOKENS, NoTinyFormError, tiny_form

ROWS, TOKENS, LEARNING_RATE = 2, 12, 1e-2


def rehearse(model: ModelSection, finetune: FinetuneSection) -> None:
    """Raise `ConfigError` for fine-tuning that is sure to fail: training all weights of a checkpoint that is stored
    quantized or merging into them, a precision that cannot be trained in, LoRA targets or dropout that the model's
    modules do not take, weights that are others once they are saved, merged or loaded."""
    config = configuration(model)
    if method := _stored_quantized(config):
        _check_quantized(model.name_or_path, method, finetune)
    stored = str(config.get_text_config().dtype or torch.float32).removeprefix("torch.")
    precision = next(p for p in (finetune.precision, model.dtype, stored) if p != "auto")
    if getattr(torch, precision) not in TRAINED_IN:
        raise ConfigError(
            f"finetune.precision = {finetune.precision!r} gives {precision}; set it to float32 or bfloat16"
        )
    lora, depth = finetune.lora, config.get_text_config().num_hidden_layers
    if lora.last_blocks is not None and finetune.mode == "lora" and lora.last_blocks > depth:
        raise ConfigError(f"finetune.lora.last_blocks = {lora.last_blocks}: the model has {depth} blocks")
    tried = Tried(
        finetune.mode,
        lora.model_copy(update={"last_blocks": None}),  # a tiny form has few blocks; adapters in all ask for more
        finetune.merge,
        finetune.gradient_checkpointing,
        finetune.zero_stage,
        precision,
        model.quantization,
    )
    if problem := _verdict(Configured(config), model.trust_remote_code, tried):
        raise ConfigError(problem)


def _check_quantized(name: str, method: str, finetune: FinetuneSection) -> None:
    if finetune.mode == "full":
        raise ConfigError(
            f"finetune.mode = full: the weights of {name!r} are stored quantized ({method}) and cannot be trained; set "
            "finetune.mode: lora, or name a checkpoint in model.name_or_path that is not quantized"
        )
    if finetune.merge:
        raise ConfigError(
            f"finetune.merge = true: the weights of {name!r} are stored quantized ({method}), and merging into them "
            "loses precision or is not possible; set finetune.merge: false"
        )


def _stored_quantized(config: PreTrainedConfig) -> str | None:
    """How a checkpoint's weights stay quantized once they are loaded; None where they do not. Loading undoes it where
    the checkpoint asks for that."""
    for part in (config, config.get_text_config()):
        stored = getattr(part, "quantization_config", None)
        fields = stored if isinstance(stored, dict) else stored.to_dict() if stored else {}
        if fields and not fields.get("dequantize"):
            return str(fields.get("quant_method", "unknown method"))
    return None


class Tried(NamedTuple):
    """The settings of fine-tuning that a family may not take; equal ones are rehearsed once per process."""

    mode: Literal["lora", "full"]
    lora: LoraSection
    merge: bool
    gradient_checkpointing: bool
    zero_stage: Literal[0, 1, 2, 3]
    precision: str
    quantization: Literal["none", "8bit", "4bit"]


@lru_cache(maxsize=16)
def _verdict(configured: Configured, trust_remote_code: bool, tried: Tried) -> str | None:
    with quiet(), torch.random.fork_rng(devices=()):
        try:
            tiny = tiny_form(configured.config, trust_remote_code)
        except NoTinyFormError as error:
            log.warning("%s; whether it can be fine-tuned so is known only once it is", error)
            return None
        if (problem := _problem(tiny, tried, trust_remote_code)) is None:
            return None
        for field, milder in _milder(tried):
            if _problem(tiny, milder, trust_remote_code) is None:
                return (
                    f"{field} does not go with this model: on a tiny form of it training passes without, not with it: "
                    f"{problem}"
                )
        return f"finetune.mode = {tried.mode}: a tiny form of the model cannot be trained: {problem}"


def _milder(tried: Tried) -> Iterator[tuple[str, Tried]]:
    """The settings with one of them changed to what asks least of a model, and that field as it is."""
    lora = tried.lora
    if tried.zero_stage == 3:  # first, because every other change is tried in a process of its own with it
        yield "finetune.zero_stage = 3", tried._replace(zero_stage=2)
    if tried.quantization != "none":
        yield f"model.quantization = {tried.quantization}", tried._replace(quantization="none")
    if lora.dropout:
        without = lora.model_copy(update={"dropout": 0.0})
        yield f"finetune.lora.dropout = {lora.dropout:g}", tried._replace(lora=without)
    if tried.merge:
        yield "finetune.merge = true", tried._replace(merge=False)
    if tried.gradient_checkpointing:
        yield "finetune.gradient_checkpointing = true", tried._replace(gradient_checkpointing=False)
    if lora.targets != LoraSection().targets:
        elsewhere = lora.model_copy(update={"targets": LoraSection().targets})
        yield f"finetune.lora.targets = {list(lora.targets)}", tried._replace(lora=elsewhere)
    if tried.precision != "float32":
        yield f"training in {tried.precision} (finetune.precision)", tried._replace(precision="float32")


def _problem(tiny: PreTrainedModel, tried: Tried, trust_remote_code: bool) -> str | None:
    """What goes wrong where a tiny model is trained for one step, saved and loaded again."""
    with tempfile.TemporaryDirectory(prefix="ka2l-rehearsal-") as scratch:
        folder = Path(scratch)
        tiny.save_pretrained(folder / "base")
        base = ModelSection(
            name_or_path=str(folder / "base"),
            dtype="float32",
            quantization=tried.quantization,
            trust_remote_code=trust_remote_code,
        )
        settings = tried._asdict()
        del settings["quantization"]
        nothing = Table(Folder.of(str(folder / "examples")))
        output = Folder.of(str(folder / "output"))
        finetune = FinetuneSection().model_copy(update=settings)
        job = Job(base, PromptSection(), finetune, nothing, output, seed=0)
        try:
            if tried.precision != "float32":
                _one_step(job)
            in_full = finetune.model_copy(update={"precision": "float32"})
            _rehearsed(replace(job, finetune=in_full), folder / "model")
            if tried.zero_stage == 3:
                _in_its_own_process(job, folder / "rendezvous")
        except UserError as error:
            return str(error)
        except Exception as error:  # whatever the library's or the model's own code raises
            return f"{type(error).__name__}: {library_message(error)}"
    return None


def _in_its_own_process(job: Job, rendezvous: Path) -> None:
    """A step under ZeRO-3; raises `Refusal` where it goes wrong. Torch's processes meet at a new file.

    Where the process itself cannot be had, such as from a script on standard input, the step is left out, with a
    warning."""
    alone = job.finetune.model_copy(update={"workers": 1, "batch_rows": ROWS, "micro_batch_rows": ROWS})
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        try:
            problem = pool.submit(_sharded_step, replace(job, finetune=alone), rendezvous).result()
        except BrokenProcessPool:
            log.warning("the process that was to rehearse finetune.zero_stage = 3 ended; it is tried when training is")
            return
    if problem:
        raise Refusal(problem)


def _sharded_step(job: Job, rendezvous: Path) -> str | None:
    """What goes wrong in a step under ZeRO-3: in words, because not every error survives the way to another process."""
    os.environ |= {"DS_ACCELERATOR": "cpu", "LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "1"}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=0, world_size=1)
    try:
        with quiet():
            engine, sample = sharded(job, 1), _sample()
            engine.backward(answer_loss(*answers_of(engine(**sample).logits, sample["input_ids"])))
            engine.step()
    except Exception as error:  # whatever the library's or the model's own code raises
        return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {library_message(error)}"
    return None


def _sample() -> dict[str, torch.Tensor]:
    ids = torch.randint(3, OWN_TOKENS, (ROWS, TOKENS), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _one_step(job: Job) -> tuple[Any, dict[str, torch.Tensor]]:
    """A model after one step of training, and what it read."""
    model: Any = trainable_model(job)
    sample = _sample()
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=LEARNING_RATE)
    answer_loss(*answers_of(model(**sample).logits, sample["input_ids"])).backward()
    optimizer.step()
    return model, sample


def _rehearsed(job: Job, folder: Path) -> None:
    model, sample = _one_step(job)
    is_lora = job.finetune.mode == "lora"
    expected = logits_of(model, sample)
    state = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    model.save_pretrained(folder, **({"save_embedding_layers": False} if is_lora else {}))
    if is_lora:
        check_adapter(folder, state)
        # As evaluation loads it.
        check_logits("adapter, once merged,", load_model(job.model, str(folder)), sample, expected)
    export(job, folder, numbers_tokenizer(), sample, expected)
