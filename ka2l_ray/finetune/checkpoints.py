"""The state of a training run, written and read without pickle.

In: a DeepSpeed engine and the history so far. Out: per rank a safetensors file and a JSON file in a local folder, and
the way back. DeepSpeed's own checkpoints need `torch.load(weights_only=False)`, so they are not used. Instead every
rank stores its ZeRO shard of the float32 master weights and of AdamW's state; the weights follow from the master
weights. Restoring is exact, random state included, and needs the same number of workers. Refuses to know: Ray,
filesystems, when a checkpoint is due.
"""

import json
import random
from abc import abstractmethod
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ka2l_ray.finetune.job import Job, Refusal

ZERO_KEYS = {
    1: ("base_optimizer_state", "single_partition_of_fp32_groups"),
    2: ("base_optimizer_state", "single_partition_of_fp32_groups"),
    3: ("optimizer_state_dict", "fp32_flat_groups"),
}
"""Keys of ZeRO's state dict, per stage: the wrapped AdamW's state, and this rank's shard of the master weights."""
MAY_CHANGE = {
    *("cpus_per_worker", "checkpoint_every_steps", "max_failures", "evaluate_every_epochs", "evaluate_rows"),
    *("gradient_checkpointing", "merge", "tensorboard"),
}
"""Fields of `finetune` that may change between attempts; the others determine the shape of a shard or the order of
sums."""


class Checkpoints(Protocol):
    """Where checkpoints are stored."""

    @abstractmethod
    def latest(self) -> AbstractContextManager[str | None]:
        """A local copy of the last complete checkpoint; None where there is none."""

    @abstractmethod
    def new_folder(self) -> Path:
        """An empty local folder for this rank's part; waits until the previous part has been uploaded."""

    @abstractmethod
    def submit(self, folder: Path, step: int) -> None:
        """Start the upload of this rank's part, without waiting for it."""

    @abstractmethod
    def barrier(self) -> None:
        """Wait for all ranks without a timeout: a model or checkpoint may reach one node much later than another."""


@dataclass
class History:
    """What happened so far: per optimiser step the loss and the KL in nats per token, and each evaluation with its
    epoch and step.

    The number of losses is the position in the data.
    """

    losses: list[float] = field(default_factory=list)
    kl: list[float | None] = field(default_factory=list)
    evaluations: list[dict[str, float]] = field(default_factory=list)
    resumed_at_steps: list[int] = field(default_factory=list)


def checkpoint_identity(job: Job, examples: int, world_size: int) -> dict[str, Any]:
    """What must be equal for a checkpoint to be resumed."""
    return job.finetune.model_dump(mode="json", exclude=MAY_CHANGE) | {
        "workers": world_size,
        "seed": job.seed,
        "examples": examples,
        "device": job.placement.device.type,
    }


def write_state(folder: Path, engine: Any, rank: int, history: History, identity: dict[str, Any]) -> None:
    """Write this rank's part of a checkpoint. Without ZeRO all ranks have the same optimiser state, and only rank 0
    writes it."""
    adam, masters = _optimizer_state(engine)
    tensors = {"random.torch": torch.get_rng_state()}
    if engine.device.type == "cuda":
        tensors["random.cuda"] = torch.cuda.get_rng_state(engine.device)
    if engine.zero_optimization_stage() or rank == 0:
        tensors |= {f"master.{i}": t.detach() for i, t in enumerate(masters)}
        tensors |= {f"adam.{i}.{k}": v for i, entry in adam["state"].items() for k, v in entry.items()}
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / f"{_name(rank)}.safetensors")
    kind, words, *rest = cast("tuple[str, np.ndarray, int, int, float]", np.random.get_state())
    state = {
        "history": asdict(history),
        "identity": identity,
        "groups": adam["param_groups"],
        "schedule": engine.lr_scheduler.state_dict(),
        "random": {"python": random.getstate(), "numpy": [kind, words.tolist(), *rest]},
    }
    (folder / f"{_name(rank)}.json").write_text(json.dumps(state))


def read_state(folder: Path, engine: Any, rank: int, identity: dict[str, Any]) -> History:
    """Restore a checkpoint into the engine and this process's random generators.

    Raises `Refusal` where it belongs to another training run.
    """
    state = json.loads((folder / f"{_name(0)}.json").read_text())
    if different := [
        f"{k}: {state['identity'].get(k)!r} → {v!r}" for k, v in identity.items() if state["identity"].get(k) != v
    ]:
        raise Refusal(
            f"the checkpoint at step {len(state['history']['losses'])} belongs to another training run (its setting → "
            f"this run's): {'; '.join(different)}. Restore the settings, or delete the round's `train` folder to start "
            "again"
        )
    state = json.loads((folder / f"{_name(rank)}.json").read_text())
    tensors = load_file(folder / f"{_name(rank)}.safetensors")
    shard = tensors if engine.zero_optimization_stage() else load_file(folder / f"{_name(0)}.safetensors")
    _restore_optimizer(engine, shard, state["groups"])
    engine.lr_scheduler.load_state_dict(state["schedule"])
    version, words, gauss = state["random"]["python"]
    random.setstate((version, tuple(words), gauss))
    kind, words, *rest = state["random"]["numpy"]
    np.random.set_state((kind, np.array(words, dtype=np.uint32), *rest))
    torch.set_rng_state(tensors["random.torch"])
    if "random.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random.cuda"], engine.device)
    history = History(**state["history"])
    history.resumed_at_steps.append(len(history.losses))
    return history


def is_complete(folder: Path, world_size: int) -> bool:
    """Whether the files of all ranks are there and none is truncated."""
    try:
        for rank in range(world_size):
            json.loads((folder / f"{_name(rank)}.json").read_text())
            load_file(folder / f"{_name(rank)}.safetensors")
    except (OSError, ValueError, SafetensorError):
        return False
    return True


def _name(rank: int) -> str:
    return f"rank_{rank:03d}"


def _optimizer_state(engine: Any) -> tuple[dict[str, Any], list[torch.Tensor]]:
    """AdamW's state dict, and the tensors that it updates: under ZeRO this rank's shard of the master weights, else all
    of them."""
    if not (stage := int(engine.zero_optimization_stage())):
        adam, masters, _ = _unsharded(engine)
        return adam.state_dict(), masters
    state = engine.optimizer.state_dict()
    adam_key, masters_key = ZERO_KEYS[stage]
    return state[adam_key], list(state[masters_key])


def _unsharded(engine: Any) -> tuple[torch.optim.Optimizer, list[torch.Tensor], list[torch.Tensor]]:
    """Without ZeRO: AdamW, its float32 master weights, and the parameters, which are the same tensors in float32 and
    copies in bfloat16."""
    parameters = [p for p in engine.module.parameters() if p.requires_grad]
    if isinstance(engine.optimizer, torch.optim.Optimizer):
        return engine.optimizer, parameters, parameters
    return engine.optimizer.optimizer, [p for group in engine.optimizer.fp32_groups for p in group], parameters


@torch.no_grad()
def _restore_optimizer(engine: Any, tensors: dict[str, torch.Tensor], groups: list[dict[str, Any]]) -> None:
    entries: dict[int, dict[str, torch.Tensor]] = {}
    for name in (n for n in tensors if n.startswith("adam.")):
        _, index, key = name.split(".", 2)
        entries.setdefault(int(index), {})[key] = tensors[name]
    adam_state = {"state": entries, "param_groups": groups}
    saved = [tensors[f"master.{i}"] for i in range(sum(n.startswith("master.") for n in tensors))]
    if not (stage := int(engine.zero_optimization_stage())):
        adam, masters, parameters = _unsharded(engine)
        adam.load_state_dict(adam_state)
        for master, parameter, stored in zip(masters, parameters, saved, strict=True):
            master.copy_(stored)
            parameter.copy_(stored)
        return
    zero, (adam_key, masters_key) = engine.optimizer, ZERO_KEYS[stage]
    if stage == 3:
        zero.checkpoint_event_prologue()
    state = zero.state_dict() | {adam_key: adam_state, masters_key: saved}
    zero.load_state_dict([state] * torch.distributed.get_world_size(), load_from_fp32_weights=True)
    if stage == 3:
        zero.checkpoint_event_epilogue()
    else:
        zero.update_lp_params()  # weights from master weights: every rank casts its shard and gathers the others'
