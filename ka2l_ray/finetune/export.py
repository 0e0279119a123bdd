"""From a trained engine to a folder that transformers, PEFT and vLLM can load, checked by loading it.

In: an engine on every rank. Out: a PEFT adapter or a full model in `job.output`, on request the merged weights in
`job.merged`. Under ZeRO-3 all ranks gather the weights, one tensor at a time; only rank 0 writes. Nothing is uploaded
before it has been found complete and, loaded again, has given the logits of the trained model. Refuses to know: Ray,
losses, checkpoints.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedTokenizerBase

from ka2l_ray.finetune.job import Job, Refusal
from ka2l_ray.models.loading import load_model, with_adapter

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
"""Largest difference allowed between a reloaded model's logits and the trained one's, as a share of the largest logit:
rounding in float32; a few ulps in bfloat16, because merged weights are rounded again."""


@torch.no_grad()
def logits_of(model: nn.Module, sample: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Float32 logits (tokens, V) of a padded sample, without padding, on the CPU. Under ZeRO-3 every rank must call
    it."""
    model.eval()
    device = next(model.parameters()).device
    logits = model(**{k: v.to(device) for k, v in sample.items()}).logits
    return logits[sample["attention_mask"].bool().to(logits.device)].float().cpu()


def gather_weights(module: nn.Module, rank: int, trained_only: bool) -> dict[str, torch.Tensor]:
    """The module's weights and buffers on the CPU of rank 0, without frozen ones where `trained_only`; empty on other
    ranks. Every rank must call it."""
    import deepspeed

    parameters = dict(module.named_parameters())
    buffers = {} if trained_only else module.state_dict()
    state = {k: v.cpu() for k, v in buffers.items() if k not in parameters and v.numel()}
    for name, parameter in parameters.items():
        if parameter.requires_grad or not trained_only:
            with deepspeed.zero.GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
                if rank == 0:
                    state[name] = parameter.detach().cpu().clone()
    return state if rank == 0 else {}


def write_model(
    module: Any,
    rank: int,
    tokenizer: PreTrainedTokenizerBase,
    sample: Mapping[str, torch.Tensor],
    folder: Path,
    lora: bool,
) -> torch.Tensor:
    """Gather the trained weights, which every rank must do, and write them on rank 0 as a standard folder. Returns the
    logits of `sample` that the folder must give when loaded. Raises `Refusal` for an adapter that is incomplete."""
    expected = logits_of(module, sample)
    state = gather_weights(module, rank, trained_only=lora)
    if rank == 0:
        # Embeddings of an adapter are frozen; "auto" would ask the hub whether their size changed.
        module.save_pretrained(folder, state_dict=state, **{"save_embedding_layers": False} if lora else {})
        tokenizer.save_pretrained(folder)
        if lora:
            check_adapter(folder, state)
    return expected


def check_adapter(folder: Path, state: dict[str, torch.Tensor]) -> None:
    """Raises `Refusal` unless the file contains every trained tensor in its shape, and the adapter changes the
    model."""
    saved = load_file(folder / "adapter_model.safetensors")
    wanted = {k.replace(".default.", "."): v for k, v in state.items()}
    missing = sorted(k for k, v in wanted.items() if k not in saved or saved[k].shape != v.shape or not v.numel())
    if missing or not wanted:
        raise Refusal(
            f"the saved adapter is incomplete: {len(missing)} of {len(wanted)} tensors are missing or empty, "
            f"such as {missing[:3]}"
        )
    if not any(v.any() for k, v in saved.items() if "lora_B" in k or "lora_embedding_B" in k):
        raise Refusal(
            "the saved adapter changes nothing: every lora_B is zero; raise finetune.learning_rate or finetune.epochs"
        )


def export(
    job: Job,
    scratch: Path,
    tokenizer: PreTrainedTokenizerBase,
    sample: Mapping[str, torch.Tensor],
    expected: torch.Tensor,
) -> None:
    """On rank 0, after the engine is destroyed: reload the folder `scratch`, merge on request, then upload.

    Raises `Refusal` where the logits of `sample` differ from `expected` (tokens, V).
    """
    if job.finetune.mode == "full":
        check_logits("model", load_model(job.training_model, str(scratch), job.placement), sample, expected)
    else:
        adapted = with_adapter(load_model(job.training_model, placement=job.placement), str(scratch))
        check_logits("adapter", adapted, sample, expected)
        if job.finetune.merge:
            merged = scratch.with_name("merged")
            adapted.merge_and_unload().save_pretrained(merged)
            tokenizer.save_pretrained(merged)
            del adapted  # frees memory for the merged model
            check_logits("merged model", load_model(job.training_model, str(merged), job.placement), sample, expected)
            job.merged.delete()
            job.merged.upload(merged)
    job.output.delete()
    job.output.upload(scratch)


def check_logits(what: str, model: nn.Module, sample: Mapping[str, torch.Tensor], expected: torch.Tensor) -> None:
    """Raise `Refusal` where a model that was loaded again gives other logits (tokens, V) than expected."""
    allowed = TOLERANCE[next(model.parameters()).dtype] * float(expected.abs().max())
    gap = float((logits_of(model, sample) - expected).abs().max())
    if not gap <= allowed:
        raise Refusal(
            f"the saved {what} gives other logits when loaded again: largest difference {gap:.3g}, "
            f"allowed {allowed:.3g}"
        )
