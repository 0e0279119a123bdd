"""Where a process computes: on what Ray allotted to it, never on whatever it can see.

In: `model.device` and the GPUs that a pool or a training run gives each of its processes. Out: a `Placement`, which
decides torch's device, Hugging Face's `device_map` and the backend of torch.distributed.
A process without a GPU of its own sees all GPUs of its machine, and a worker of Ray Train sees those of all workers of
its node. So only this module asks torch which GPUs are visible; `ka2l doctor` does too, to say what the machine has.
Refuses to know: Ray, models.
"""

import math
import os
from dataclasses import dataclass
from typing import Literal

import torch

from ka2l_ray.config import ConfigError, FinetuneSection, ModelSection, Pool


@dataclass(frozen=True)
class Placement:
    """The GPUs that a process computes on."""

    gpus: float = 0.0
    """0: on the CPU; below 1: shares one."""
    field: str = "gpus"
    """The configuration field that allots them, for errors."""
    sees_others: bool = False
    """Whether GPUs of other processes are visible too, as they are to workers of Ray Train."""

    @property
    def on_gpu(self) -> bool:
        """Whether the process computes on a GPU, own or shared."""
        return self.gpus > 0

    @property
    def device(self) -> torch.device:
        """Device of models, token ids and caches: `cpu`, or `cuda`, the process' current GPU (see `take`)."""
        return torch.device("cuda" if self.on_gpu else "cpu")

    @property
    def backend(self) -> Literal["nccl", "gloo"]:
        """Backend of torch.distributed between the workers of a training run."""
        return "nccl" if self.on_gpu else "gloo"

    def device_map(self, quantized: bool) -> Literal["auto"] | dict[str, torch.device] | None:
        """Hugging Face's `device_map`: `auto` spreads a model block by block over several GPUs.

        On one device, quantized weights must be loaded there; other models (None) are moved after loading.
        """
        if self.gpus > 1:
            return "auto"
        return {"": self.device} if quantized else None

    def check(self) -> None:
        """Raise `ConfigError` where this process cannot use its GPUs; called before weights or NCCL are loaded."""
        if not self.on_gpu:
            return
        seen, allotted = torch.cuda.device_count() if torch.cuda.is_available() else 0, math.ceil(self.gpus)
        if seen < allotted:
            is_built = torch.version.cuda or torch.version.hip
            why = f"sees {seen} of {allotted} GPUs" if is_built else "was built without CUDA"
            raise ConfigError(
                f"{self.field} = {self.gpus:g}: torch {torch.__version__} of the process that got them {why}; "
                "install a CUDA build of torch on every node, or set model.device: cpu, "
                "which is for clusters whose GPUs are simulated"
            )
        if seen > allotted and not self.sees_others:
            raise ConfigError(
                f"{self.field} = {self.gpus:g}: the process sees {seen} GPUs, so it cannot tell which are its own; "
                "unset RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES on every node"
            )

    def take(self, device: torch.device) -> None:
        """Make one of several visible GPUs the process' current one, for torch and for DeepSpeed (by `LOCAL_RANK`)."""
        torch.cuda.set_device(device)
        os.environ["LOCAL_RANK"] = str(device.index)


CPU = Placement()


def of_actor(model: ModelSection, pool: Pool, section: str) -> Placement:
    """Placement of each actor of `section`'s pool; it sees no other GPUs."""
    return Placement(gpus_used(model, pool.gpus), f"{section}.pool.gpus")


def of_worker(model: ModelSection, finetune: FinetuneSection) -> Placement:
    """Placement of each worker of a training run."""
    return Placement(gpus_used(model, finetune.gpus_per_worker), "finetune.gpus_per_worker", sees_others=True)


def gpus_used(model: ModelSection, gpus: float) -> float:
    """GPUs that a process computes on, of the `gpus` allotted to it: none with `model.device: cpu`."""
    return 0.0 if model.device == "cpu" else float(gpus)


def visible_memory() -> list[int]:
    """Bytes of each GPU that this process can see, for the plan; it does not decide where models go."""
    return [torch.cuda.get_device_properties(n).total_memory for n in range(torch.cuda.device_count())]
