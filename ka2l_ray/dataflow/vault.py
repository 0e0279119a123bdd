"""The driver's token for the model hub, in the processes that it starts.

In: HF_TOKEN of the driver, or what `hf auth login` stored there. Out: HF_TOKEN in the environment of an actor, task or
training worker. The token is only in the memory of these processes and of one actor, which gives it to whoever has its
handle: not in a `runtime_env`, which Ray logs and shows, in what makes an actor, which the cluster's state keeps, or in
the object store, which is spilled to disk. Where the driver has none, a node's own token is left as it is.
Refuses to know: what the token opens; keys of storage, which nodes have themselves; the key of a chat endpoint, which
only drivers use.
"""

import os
from functools import lru_cache
from typing import Any

import ray
from huggingface_hub import get_token
from pydantic import SecretStr
from ray.exceptions import RayActorError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

VARIABLE = "HF_TOKEN"


class Vault:
    """Keeps a token for processes of the same driver."""

    def __init__(self) -> None:
        self._token = SecretStr("")

    def keep(self, token: SecretStr) -> None:
        """Take the token."""
        self._token = token

    def token(self) -> SecretStr:
        """The token, hidden in logs and tracebacks."""
        return self._token


def vault() -> Any:
    """Handle of the actor that has this driver's token; None where the driver has none."""
    if not (found := get_token()):
        return None
    job, token = ray.get_runtime_context().get_job_id(), SecretStr(found)
    try:
        ray.get(_vault(job).keep.remote(token))
    except RayActorError:  # its process was killed
        _vault.cache_clear()
        ray.get(_vault(job).keep.remote(token))
    return _vault(job)


@lru_cache(maxsize=1)
def _vault(job: str) -> Any:
    # on the driver's node: if that dies, so does the driver
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(Vault).options(num_cpus=0, scheduling_strategy=here).remote()


def open_vault(handle: Any) -> None:
    """In a process of the cluster: set HF_TOKEN to the driver's; `handle` is what `vault` returned there."""
    if handle is not None:
        token: SecretStr = ray.get(handle.token.remote())  # pyright: ignore[reportAssignmentType]
        os.environ[VARIABLE] = token.get_secret_value()
