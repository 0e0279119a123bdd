"""From a trained engine to a folder that transformers, PEFT and vLLM load, checked by loading it.

In: an engine on every rank. Out: a PEFT adapter or a full model in `job.output`, on request the merged weights in `job.merged`.
Under ZeRO-3 weights are gathered on every rank, one tensor at a time; rank 0 alone writes. Nothing is uploaded before it is found to be
whole and to reload to the logits that the trained model gives. Refuses to know: Ray, losses, checkpoints.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerBase

from ka2l_ray.finetune.job import Job, Refusal
from ka2l_ray.models.loading import load_model, with_adapter

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
"""Largest difference of a reloaded model's logits, as a share of the largest logit: float32 rounding; a few bfloat16 ulps, for merged
weights are rounded again."""


@torch.no_grad()
def logits_of(model: Any, sample: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits (tokens, V) of a padded sample on the CPU, padding left out. Under ZeRO-3 every rank must call it."""
    model.eval()
    device = next(model.parameters()).device
    logits = model(**{k: v.to(device) for k, v in sample.items()}).logits
    return logits[sample["attention_mask"].bool().to(logits.device)].float().cpu()


def gathered(module: Any, rank: int, trained_only: bool) -> dict[str, torch.Tensor]:
    """The module's weights and buffers on rank 0's CPU, nothing elsewhere; `trained_only` leaves out what is frozen. All ranks call it."""
    import deepspeed

    gather: Any = deepspeed.zero.GatheredParameters
    parameters = dict(module.named_parameters())
    state = (
        {}
        if trained_only
        else {k: v.cpu() for k, v in module.state_dict().items() if k not in parameters and v.numel()}
    )
    for name, parameter in parameters.items():
        if trained_only and not parameter.requires_grad:
            continue
        with gather([parameter], enabled=hasattr(parameter, "ds_id")):
            if rank == 0:
                state[name] = parameter.detach().cpu().clone()
    return state if rank == 0 else {}


def write_model(
    module: Any, state: dict[str, torch.Tensor], tokenizer: PreTrainedTokenizerBase, folder: Path, lora: bool
) -> None:
    """A standard folder from gathered weights. Raises `Refusal` for an adapter that is not whole."""
    if not lora:
        module.save_pretrained(folder, state_dict=state)
        tokenizer.save_pretrained(folder)
        return
    # Embeddings are frozen; "auto" would ask the hub whether their size changed.
    module.save_pretrained(folder, state_dict=state, save_embedding_layers=False)
    tokenizer.save_pretrained(folder)
    check_adapter(folder, state)


def check_adapter(folder: Path, state: dict[str, torch.Tensor]) -> None:
    """Every trained tensor is in the file with its shape, and something was learned. Raises `Refusal` else."""
    saved = load_file(folder / "adapter_model.safetensors")
    wanted = {k.replace(".default.", "."): v for k, v in state.items()}
    missing = sorted(k for k, v in wanted.items() if k not in saved or saved[k].shape != v.shape or not v.numel())
    if missing or not wanted:
        raise Refusal(
            f"the saved adapter is not whole: {len(missing)} of {len(wanted)} tensors are missing or empty, as {missing[:3]}"
        )
    if not any(v.any() for k, v in saved.items() if "lora_B" in k or "lora_embedding_B" in k):
        raise Refusal(
            "the saved adapter changes nothing: every lora_B is zero; raise finetune.learning_rate or finetune.epochs"
        )


def export(
    job: Job, scratch: Path, tokenizer: PreTrainedTokenizerBase, sample: dict[str, torch.Tensor], expected: torch.Tensor
) -> None:
    """On rank 0, with the engine gone: reload what is in `scratch`, merge on request, then upload. Raises `Refusal` where logits differ."""
    if job.finetune.mode == "full":
        _check("model", load_model(job.trained, str(scratch), job.placement), sample, expected)
    else:
        adapted = with_adapter(load_model(job.trained, placement=job.placement), str(scratch))
        _check("adapter", adapted, sample, expected)
        if job.finetune.merge:
            merged = scratch.with_name("merged")
            adapted.merge_and_unload().save_pretrained(merged)
            tokenizer.save_pretrained(merged)
            del adapted  # the merged model may need its memory
            _check("merged model", load_model(job.trained, str(merged), job.placement), sample, expected)
            job.merged.delete()
            job.merged.upload(merged)
    job.output.delete()
    job.output.upload(scratch)


def _check(what: str, model: Any, sample: dict[str, torch.Tensor], expected: torch.Tensor) -> None:
    allowed = TOLERANCE[next(model.parameters()).dtype] * float(expected.abs().max())
    gap = float((logits_of(model, sample) - expected).abs().max())
    if not gap <= allowed:
        raise Refusal(
            f"the saved {what} does not reload to the same logits: largest difference {gap:.3g}, allowed {allowed:.3g}"
        )
