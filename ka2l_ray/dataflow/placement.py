"""Where a process computes: on what Ray allotted to it, never on what it happens to see.

In: `model.device` and the GPUs that a pool or a training gives each of its processes. Out: a `Placement`, which decides torch's device,
Hugging Face's `device_map`, the backend of torch.distributed and DeepSpeed's accelerator. A process without a GPU of its own sees all of
its machine's, and a worker of Ray Train sees those of all workers of its node, so nothing else in the package asks what is visible; the
plan and `ka2l doctor` do, to say what this machine has. Refuses to know: Ray, models.
"""

import math
import os
from dataclasses import dataclass
from typing import Any, Literal

import torch

from ka2l_ray.config import ConfigError, FinetuneSection, ModelSection, Pool


@dataclass(frozen=True)
class Placement:
    """`gpus` that the process computes on, 0 for the CPU; below 1 it shares one. `field` allots them, and is named in errors.

    `sees_others`: GPUs of other processes are visible too, as they are to workers of Ray Train.
    """

    gpus: float = 0.0
    field: str = "gpus"
    sees_others: bool = False

    @property
    def on_gpu(self) -> bool:
        return self.gpus > 0

    @property
    def device(self) -> torch.device:
        """Of models, token ids and caches: `cpu`, or `cuda`, the process' current GPU, which is the first unless `take` chose another."""
        return torch.device("cuda" if self.on_gpu else "cpu")

    @property
    def backend(self) -> Literal["nccl", "gloo"]:
        """Of torch.distributed, among the workers of a training."""
        return "nccl" if self.on_gpu else "gloo"

    @property
    def accelerator(self) -> Literal["cuda", "cpu"]:
        """DeepSpeed's name for the device (`DS_ACCELERATOR`); left alone it takes a GPU wherever one is visible."""
        return "cuda" if self.on_gpu else "cpu"

    def device_map(self, quantized: bool) -> Literal["auto"] | dict[str, torch.device] | None:
        """How Hugging Face spreads a model: block by block over several GPUs, else whole on one device, where quantized weights have to
        be from the start. None: as it loads, to be moved afterwards."""
        if self.gpus > 1:
            return "auto"
        return {"": self.device} if quantized else None

    def check(self) -> None:
        """Raise `ConfigError` where this process cannot use what it was allotted, before weights are read or NCCL is asked for."""
        if not self.on_gpu:
            return
        seen, allotted = torch.cuda.device_count() if torch.cuda.is_available() else 0, math.ceil(self.gpus)
        if seen < allotted:
            is_built = torch.version.cuda or torch.version.hip
            why = f"sees {seen} of {allotted} GPUs" if is_built else "was built without CUDA"
            raise ConfigError(
                f"{self.field} = {self.gpus:g}: torch {torch.__version__} of the process that got them {why}; install a CUDA build "
                "of torch on every node, or set model.device: cpu, which is for clusters whose GPUs are simulated"
            )
        if seen > allotted and not self.sees_others:
            raise ConfigError(
                f"{self.field} = {self.gpus:g}: the process sees {seen} GPUs, so it cannot tell which are its own; "
                "unset RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES on every node"
            )

    def take(self, device: torch.device) -> None:
        """Make one of several visible GPUs the process' own, for torch and for DeepSpeed, which goes by `LOCAL_RANK`."""
        torch.cuda.set_device(device)
        os.environ["LOCAL_RANK"] = str(device.index)


CPU = Placement()


def of_actor(model: ModelSection, pool: Pool, section: str) -> Placement:
    """Of each actor of `section`'s pool; its GPUs are the only ones that it sees."""
    return Placement(gpus_used(model, pool.gpus), f"{section}.pool.gpus")


def of_worker(model: ModelSection, finetune: FinetuneSection) -> Placement:
    """Of each worker of a training."""
    return Placement(gpus_used(model, finetune.gpus_per_worker), "finetune.gpus_per_worker", sees_others=True)


def gpus_used(model: ModelSection, gpus: float) -> float:
    """GPUs that one process computes on, of those allotted to it."""
    return 0.0 if model.device == "cpu" else float(gpus)


def visible_memory() -> list[int]:
    """Bytes of each GPU that this machine shows to this process, for a plan: where models go is no matter of it."""
    found: Any = [torch.cuda.get_device_properties(n) for n in range(torch.cuda.device_count())]
    return [p.total_memory for p in found]
